"""What tokens spell, for tokenizers of three kinds."""

from __future__ import annotations

import json
import random

from tokenizers import Tokenizer

from mmdiff.config import TokenIds
from mmdiff.eval.structured_adversarial import BASE, SCHEMAS, Fake, Judge, generate
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import CompileLimits
from mmdiff.structured.regular.language import ANY
from mmdiff.structured.regular.regex import compile_regex

TOKENS = TokenIds(
    mask=0, eos=1, eot=2, bos=3, pad=1, image=4, never=(3, 4)
)  # of the tokenizers in conftest.py
SAID = ["a red circle", "12", "-3.5", "quick brown fox", "true", "name", "\u00e9\u00e8 \u20ac"]


def test_the_tokens_of_a_text_spell_it(foreign: tuple[TemplateBuilder, Tokenizer]) -> None:
    layouts, tokenizer = foreign
    vocabulary = layouts.vocabulary
    for text in SAID:
        ids = vocabulary.encode(text)
        if all(
            vocabulary.spelled[token] is not None for token in ids
        ):  # WordPiece has no token for some signs
            spelled = vocabulary.text(ids)
            assert spelled.replace(" ", "") == text.replace(" ", "")
            if "-" not in text:  # WordPiece's decode sets spaces around signs
                assert spelled == tokenizer.decode(ids, skip_special_tokens=False).removeprefix(" ")


def test_special_tokens_spell_nothing(foreign: tuple[TemplateBuilder, Tokenizer]) -> None:
    spelled = foreign[0].vocabulary.spelled
    assert all(
        spelled[token] is None
        for token in (TOKENS.mask, TOKENS.eos, TOKENS.eot, TOKENS.bos, TOKENS.image)
    )


def test_classes_of_tokens_do_what_their_bytes_do(
    foreign: tuple[TemplateBuilder, Tokenizer],
) -> None:
    vocabulary = foreign[0].vocabulary
    for language, spelling in (
        (ANY, "json"),
        (compile_regex("^-?[0-9]+$"), "plain"),
        (compile_regex("^[a-z ]*$"), "json"),
    ):
        machine = byte_dfa_of(language, spelling, CompileLimits())  # type: ignore[arg-type]
        automaton = vocabulary.automaton(machine.next_SB, machine.accepts_S)
        for token, word in enumerate(vocabulary.spelled):
            chosen = automaton.class_V[token]
            for state in range(len(machine.next_SB)):
                at = state
                for byte in word or b"":
                    at = machine.next_SB[at, byte] if at >= 0 else -1
                expected = at if word else -1
                got = (
                    automaton.next_CS[chosen, state]
                    if chosen >= 0 and token != vocabulary.pad
                    else -1
                )
                assert got == expected, (token, word, state)


def test_values_are_valid_with_every_tokenizer(foreign: tuple[TemplateBuilder, Tokenizer]) -> None:
    rng = random.Random(0)
    for name in (
        "receipt",
        "choices",
        "numbers",
        "lengths",
        "recursive",
        "one of",
        "text",
        "anything",
        "maps",
    ):
        scaffold, judge = compile_schema(SCHEMAS[name], foreign[0], 512), Judge(SCHEMAS[name])
        for seed in range(4):
            fake = Fake(foreign[0], TOKENS, rng.choice(("random", "torn", "quote", "nan")))
            made, _ = generate(scaffold, fake, BASE, seed)
            assert judge(made.text), (name, made.text)
            assert json.loads(made.text) == made.value


def test_no_token_is_decoded_by_itself(foreign: tuple[TemplateBuilder, Tokenizer]) -> None:
    """A character of several bytes comes out whole, whatever tokens its bytes are in."""
    vocabulary = foreign[0].vocabulary
    ids = [token for token in vocabulary.encode("\u20ac") if vocabulary.spelled[token] is not None]
    assert not ids or vocabulary.text(ids).strip() in ("\u20ac", "")
