"""What the engine says of its model, and the limit that the server sets it."""

from __future__ import annotations

import dataclasses

from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Pipeline
from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM
from mmdiff.serve.engine.messages import ModelInfo


def model_info(pipeline: Pipeline) -> ModelInfo:
    """What the server must know of a model.

    Raises:
        MMDiffError: a speech model was named that cannot be loaded.
    """
    config = pipeline.model.model_config
    info = ModelInfo(
        max_model_len=config.backbone.max_position_embeddings,
        decoding=config.decoding,
        captions={
            length: (prompt, CAPTION_ROOM[length]) for length, prompt in CAPTION_PROMPTS.items()
        },
        speech_model=None,
    )
    try:
        speech = pipeline.recognizer
    except MMDiffError as error:
        if pipeline.speech_model is not None:
            raise
        return dataclasses.replace(info, no_speech_model=str(error))
    return dataclasses.replace(info, speech_model=speech.name, languages=list(speech.languages))


def limit_positions(pipeline: Pipeline, limit: int) -> None:
    """Have the model use at most `limit` positions.

    Raises:
        MMDiffError: it has fewer.
    """
    config = pipeline.model.model_config
    available = config.backbone.max_position_embeddings
    if limit > available:
        raise MMDiffError(
            f"--max-model-len {limit} is more than the {available} positions of the model: "
            "lower it, or leave it out"
        )
    backbone = dataclasses.replace(config.backbone, max_position_embeddings=limit)
    pipeline.model.model_config = dataclasses.replace(config, backbone=backbone)
