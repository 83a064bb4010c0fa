"""Whisper's encoder (arXiv 2212.04356) for audio of any length up to 30 s, each window of a batch
as if it were alone.

The layers are those of `transformers`. Published weights are taught on windows padded to 30 s; here
audio is encoded at its own length, with the first of the positions, and what pads a batch is
never looked at.

Shapes: N windows, M mels, F frames of 10 ms, T encoder frames of 20 ms, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mmdiff import torchvision_fix
from mmdiff.config import AudioConfig
from mmdiff.errors import CheckpointError


class WhisperTower(nn.Module):
    """Log-mel spectrograms to features; state-dict names as in
    `transformers.WhisperModel.encoder`."""

    def __init__(self, config: AudioConfig) -> None:
        torchvision_fix.declare_operators()  # which transformers imports
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.config = config
        sizes = WhisperConfig(
            d_model=config.hidden_size,
            encoder_layers=config.num_hidden_layers,
            encoder_attention_heads=config.num_attention_heads,
            encoder_ffn_dim=config.intermediate_size,
            num_mel_bins=config.num_mels,
            max_source_positions=config.max_positions,
        )
        encoder = WhisperEncoder._from_config(sizes, attn_implementation="sdpa")
        self.conv1, self.conv2, self.layers = encoder.conv1, encoder.conv2, encoder.layers
        self.layer_norm = encoder.layer_norm if config.final_norm else nn.Identity()

    def forward(self, mels_NMF: Tensor, lengths_N: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tapped layers' states and the features, (N, T, D) each, and which of their frames are
        real (N, T).

        Args:
            mels_NMF: zero from each row's length on.
            lengths_N: frames of each row.

        Raises:
            ValueError: a window is longer than the encoder has positions for, or has another number
                of mels.
        """
        _check(mels_NMF, self.config)
        lengths_N = lengths_N.to(mels_NMF.device)
        real_NF = torch.arange(mels_NMF.shape[2], device=mels_NMF.device) < lengths_N[:, None]
        convolved_NDF = gelu(self.conv1(mels_NMF)) * real_NF[:, None]
        states_NTD = gelu(self.conv2(convolved_NDF)).transpose(1, 2)
        valid_NT = real_NF[:, ::2]
        _, length, width = states_NTD.shape
        states_NTD = states_NTD + sinusoids(length, width, mels_NMF.device).to(states_NTD.dtype)
        mask_N11T = None
        if not bool(valid_NT.all()):
            mask_N11T = valid_NT[:, None, None].expand(-1, 1, valid_NT.shape[1], -1)
        kept = []
        for number, layer in enumerate(self.layers):
            if number in self.config.taps:
                kept.append(states_NTD)
            states_NTD = layer(states_NTD, mask_N11T)
            if isinstance(states_NTD, tuple):  # before transformers 5.4
                states_NTD = states_NTD[0]
        return [*kept, self.layer_norm(states_NTD)], valid_NT


def _check(mels_NMF: Tensor, config: AudioConfig) -> None:
    if mels_NMF.shape[1] != config.num_mels or mels_NMF.shape[2] > 2 * config.max_positions:
        raise ValueError(
            f"spectrograms of shape {tuple(mels_NMF.shape)} do not fit: this encoder takes "
            "(windows, "
            f"{config.num_mels}, at most {2 * config.max_positions} frames); cut audio with "
            "split_windows"
        )


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Whisper's fixed positions (T, D): sines, then cosines, of wave lengths from 2 pi to 20,000 pi
    frames."""
    steps = math.log(10_000) / (width // 2 - 1)
    rates = torch.exp(-steps * torch.arange(width // 2, device=device))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def whisper_config(published: Mapping[str, Any], **changes: Any) -> AudioConfig:
    """Our settings for the `config.json` of a Whisper checkpoint; `changes` choose connector,
    layers and so on.

    Raises:
        CheckpointError: it is no Whisper model.
    """
    if published.get("model_type") != "whisper":
        raise CheckpointError(
            f"model_type {published.get('model_type')!r} is no Whisper model: name such a "
            "checkpoint"
        )
    sizes = {
        "hidden_size": published["d_model"],
        "intermediate_size": published["encoder_ffn_dim"],
        "num_hidden_layers": published["encoder_layers"],
        "num_attention_heads": published["encoder_attention_heads"],
        "num_mels": published["num_mel_bins"],
        "max_positions": published["max_source_positions"],
    }
    return AudioConfig(**sizes | changes)


def encoder_state(weights: Mapping[str, Tensor], tower: WhisperTower) -> dict[str, Tensor]:
    """The tower's part of a Whisper checkpoint, with or without a decoder; fixed positions are left
    out.

    Raises:
        CheckpointError: names are missing or of another shape; the message lists them.
    """
    prefixes = ("model.encoder.", "encoder.", "")
    prefix = next((prefix for prefix in prefixes if f"{prefix}conv1.weight" in weights), None)
    if prefix is None:
        raise CheckpointError(
            "no Whisper encoder is among the names of the checkpoint: conv1.weight is missing"
        )
    wanted = tower.state_dict()
    bad = [
        name
        for name, tensor in wanted.items()
        if f"{prefix}{name}" not in weights or weights[f"{prefix}{name}"].shape != tensor.shape
    ]
    if bad:
        raise CheckpointError(
            f"the Whisper encoder does not fit; missing or of another shape: {', '.join(bad[:8])}"
        )
    return {name: weights[f"{prefix}{name}"] for name in wanted}
