"""Tokenizers of the three kinds that are known, learned from a few words, and layouts of the
shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmdiff.config import PRESETS, TokenIds
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary

SPECIAL = ["<mask>", "<eos>", "<eot>", "<bos>", "<image>"]
TOKENS = TokenIds(mask=0, eos=1, eot=2, bos=3, pad=1, image=4, never=(3, 4))
TEXT = [
    '{"name":"a red circle","count":12,"ok":true}',
    "the quick brown fox, 3.5 and -7 [x] \u00e9\u00e8 \u20ac",
] * 30
TEXT += ["name shape circle red green blue small large true false null"] * 9
TEXT += ['0 1 2 3 4 5 6 7 8 9 : , . - { } [ ] " \\ / _ @'] * 9


def _byte_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return made


def _sentencepiece() -> Tokenizer:
    """As Llama's: spaces as \u2581, a space in front of a text, bytes for what is not in the
    vocabulary."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL))
    plan = json.loads(made.to_str())
    vocabulary = plan["model"]["vocab"]
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocabulary.setdefault(token, len(vocabulary))
    return Tokenizer.from_str(json.dumps(plan))


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=[*SPECIAL, "[UNK]"])
    )
    plan = json.loads(made.to_str())
    vocabulary = plan["model"]["vocab"]
    for letter in map(
        chr, range(33, 127)
    ):  # also inside words, as few real vocabularies have them all
        for token in (letter, f"##{letter}"):
            vocabulary.setdefault(token, len(vocabulary))
    return Tokenizer.from_str(json.dumps(plan))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": _byte_bpe,
    "SentencePiece": _sentencepiece,
    "WordPiece": _wordpiece,
}


def layouts_of(tokenizer: Tokenizer, tokens: TokenIds) -> TemplateBuilder:
    vocabulary = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), tokens)
    return TemplateBuilder(vocabulary, tokens.mask, tokens.eot)


@pytest.fixture(scope="session", params=sorted(KINDS))
def foreign(request: pytest.FixtureRequest) -> tuple[TemplateBuilder, Tokenizer]:
    """Layouts of each kind of tokenizer."""
    made = KINDS[request.param]()
    return layouts_of(made, TOKENS), made


@pytest.fixture(scope="session")
def layouts(root: Path) -> TemplateBuilder:
    """Layouts of the shipped tokenizer."""
    file = root / "mmdiff" / "models" / "tiny" / "tokenizer.json"
    return layouts_of(Tokenizer.from_file(str(file)), PRESETS["tiny"].tokens)
