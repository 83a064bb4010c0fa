"""Special tokens by name, the chat format, media placeholders and segments.

The format is LLaDA's (its Hugging Face tokenizer_config.json), with pictures and sound as placeholder tokens and with
`add_generation_prompt` honoured.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.config import TokenIds

MASK, EOS, EOT, BOS = "<|mdm_mask|>", "<|endoftext|>", "<|eot_id|>", "<|startoftext|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
IMAGE, AUDIO = "<|image|>", "<|audio|>"
SPECIAL = (MASK, EOS, EOT, BOS, HEADER, END_HEADER, IMAGE, AUDIO)  # ids 0 to 7 of a tokenizer made here

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
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def media_mask(ids_BT: Tensor, tokens: TokenIds) -> Tensor:
    """True at picture and sound placeholders."""
    here_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for placeholder in (tokens.image, tokens.audio):
        if placeholder is not None:
            here_BT |= ids_BT == placeholder
    return here_BT


def segment_ids(ids_BT: Tensor, tokens: TokenIds) -> Tensor:
    """Number the segments of each row from 0: every run of placeholders, and every stretch of text between them.

    A turn's end closes its segment too, so a system prompt, a picture, the user's words and the answer are apart.
    """
    media_BT = media_mask(ids_BT, tokens)
    starts_BT = torch.zeros_like(media_BT)
    starts_BT[:, 1:] = (media_BT[:, 1:] != media_BT[:, :-1]) | (ids_BT[:, :-1] == tokens.eot)
    return starts_BT.long().cumsum(dim=1)
