"""The chat format of a checkpoint folder: its own template, made to take media, and the token that
ends a turn.

Published templates know texts alone. Before one of them renders a conversation, the parts of each
message are joined to one text, with the marks that the processor replaces where an image or audio
stands (`FLATTENED`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mmdiff.config import ModelConfig
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint_folder import read_json
from mmdiff.tokens import CHAT_TEMPLATE, CHATML_TEMPLATE, FLATTENED, IM_END, IM_START, IMAGE

_SPOKEN = "MMDIFFANSWER"  # an answer that no template has in it
_PROBE = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": _SPOKEN},
    {"role": "user", "content": "Why"},
]


def chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that a folder's conversations are written with.

    Its own goes before any other. Where it writes what `CHAT_TEMPLATE` does, that one is used, and
    a folder without one has ChatML, if its tokenizer does, or else the format of LLaDA.

    Raises:
        CheckpointError: the folder's template cannot be read.
    """
    own = _own_template(folder, tokenizer)
    if own is None:
        if {IM_START, IM_END} <= tokenizer.get_vocab().keys():
            return FLATTENED + CHATML_TEMPLATE
        return CHAT_TEMPLATE
    if IMAGE in own:  # it was written for this processor
        return own
    if _written(tokenizer, own) == _written(tokenizer, CHAT_TEMPLATE):
        return CHAT_TEMPLATE
    return FLATTENED + own


def with_end_of_turn(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, template: str
) -> ModelConfig:
    """The settings with the special token that the template writes behind an answer, if it writes
    one."""
    _, found, behind = _written(tokenizer, template).partition(_SPOKEN)
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if not ids or ids[0] not in special or ids[0] >= config.backbone.vocab_size:
        return config
    return dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, eot=ids[0]))


def _own_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """From chat_template.jinja, chat_template.json or tokenizer_config.json, in this order, as
    transformers does."""
    found: Any = tokenizer.chat_template
    if (folder / "chat_template.json").is_file() and not (folder / "chat_template.jinja").is_file():
        found = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, dict):  # several by name
        found = found.get("default")
    return found if isinstance(found, str) and found.strip() else None


def _written(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                _PROBE, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the chat template of {tokenizer.name_or_path} cannot be used ({str(error)[:80]}); "
            "fetch it again"
        ) from None
