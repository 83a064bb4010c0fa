"""Dream (arXiv 2508.15487): Qwen2's layers, with transformers' names as in `llada_v.py`."""

from __future__ import annotations

from mmdiff.config import DREAM_TOKENS
from mmdiff.modeling.layouts.family import (
    EVERYWHERE,
    IDS,
    SIZES,
    Family,
    Published,
    architectures_of,
)


def _recognises(published: Published) -> bool:
    kind = str(published.get("model_type")).lower()
    return kind == "dream" or "DreamModel" in architectures_of(published)


DREAM = Family(
    name="Dream",
    settings=EVERYWHERE,
    read=SIZES | IDS,
    architectures=("DreamModel",),
    model_types=("dream",),
    recognises=_recognises,
    tokens=DREAM_TOKENS,
    fixed={"qkv_bias": True, "shifted": True},  # Qwen2's layers; logits one position early
)
