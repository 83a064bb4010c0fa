"""Special tokens by name, the chat format, media placeholders and segments.

The format is LLaDA's (its Hugging Face tokenizer_config.json), with images and audio as placeholder
tokens and with `add_generation_prompt` honoured. A checkpoint with a format of its own keeps it;
see `chat_format.py`.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mmdiff.config import TokenIds

MASK, EOS, EOT, BOS = "<|mdm_mask|>", "<|endoftext|>", "<|eot_id|>", "<|startoftext|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
IMAGE, AUDIO = "<|image|>", "<|audio|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # of ChatML, which Qwen and Dream use
SPECIAL = (
    MASK,
    EOS,
    EOT,
    BOS,
    HEADER,
    END_HEADER,
    IMAGE,
    AUDIO,
)  # ids 0 to 7 of a tokenizer made here

_MARK = re.compile(
    r"[<\[{].+[>\]}]", re.DOTALL
)  # what looks like one, so that no word that was added is broken up
_ROUNDS = 8

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>\n' }}"
    "{% elif part['type'] == 'audio' %}{{ '<|audio|>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}"
    "{% else %}{{ raise_exception('unknown content part: ' + part['type']) }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

# Before a template that knows texts alone: each message's parts joined to one text, media as marks.
FLATTENED = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set text = namespace(content='') -%}"
    "{%- if message['content'] is string -%}{%- set text.content = message['content'] -%}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set text.content = text.content + '<|image|>\n' -%}"
    "{%- elif part['type'] == 'audio' -%}{%- set text.content = text.content + '<|audio|>\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set text.content = text.content + part['text'] -%}"
    "{%- else -%}{{- raise_exception('unknown content part: ' + part['type']) -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=text.content)] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def control_tokens(tokenizer: Any, tokens: TokenIds) -> frozenset[str]:
    """What text must not hold as it stands, lest it end a turn, claim an image or hide a token.

    These are the tokenizer's special tokens, those that were added to it and look like marks
    (`<think>`, `[INST]`), the model's own, and the placeholders of the chat format.

    Args:
        tokenizer: one of `transformers` or of `tokenizers`.
    """
    if hasattr(tokenizer, "get_added_tokens_decoder"):
        added, name_of = tokenizer.get_added_tokens_decoder(), tokenizer.id_to_token
    else:
        added, name_of = tokenizer.added_tokens_decoder, tokenizer.convert_ids_to_tokens
    own = (
        tokens.mask,
        tokens.eos,
        tokens.eot,
        tokens.bos,
        tokens.pad,
        tokens.image,
        tokens.audio,
        *tokens.never,
    )
    names = [name_of(token) for token in own if token is not None]
    names += [token.content for token in added.values() if not token.special]
    marks = {name for name in names if name and _MARK.fullmatch(name)}
    special = {token.content for token in added.values() if token.special and token.content.strip()}
    return frozenset({*marks, *special, *SPECIAL})


def neutralize(text: str, controls: frozenset[str]) -> str:
    """The text, well formed, with each control token broken up by a space behind its first
    character."""
    text = well_formed(text)
    for _ in range(_ROUNDS):  # what is broken up may make another one whole
        before = text
        for control in controls:
            if control in text:
                text = text.replace(
                    control, f"{control[0]} {control[1:]}" if len(control) > 1 else " "
                )
        if text == before:
            break
    return text


def well_formed(text: str) -> str:
    """The text with the replacement character for what is not Unicode, as half of a surrogate pair
    is."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def media_mask(ids_BT: Tensor, tokens: TokenIds) -> Tensor:
    """True at image and audio placeholders."""
    here_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for placeholder in (tokens.image, tokens.audio):
        if placeholder is not None:
            here_BT |= ids_BT == placeholder
    return here_BT


def segment_ids(ids_BT: Tensor, tokens: TokenIds) -> Tensor:
    """Number the segments of each row from 0: every run of placeholders, and every stretch of text
    between them.

    A turn's end closes its segment too, so a system prompt, an image, the user's words and the
    answer are apart.
    """
    media_BT = media_mask(ids_BT, tokens)
    starts_BT = torch.zeros_like(media_BT)
    starts_BT[:, 1:] = (media_BT[:, 1:] != media_BT[:, :-1]) | (ids_BT[:, :-1] == tokens.eot)
    return starts_BT.long().cumsum(dim=1)
