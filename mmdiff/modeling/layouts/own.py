"""Checkpoints that mmdiff saved: the model's own names."""

from __future__ import annotations

from mmdiff.modeling.layouts.family import Layout

OWN_LAYOUT = Layout(
    name="mmdiff",
    mark=r"backbone\.embed_tokens\.weight",
    names={
        r"(backbone|vision_tower|connector|audio_tower|audio_connector)\..*": r"\g<0>",
        r"image_newline": r"\g<0>",
    },
)
