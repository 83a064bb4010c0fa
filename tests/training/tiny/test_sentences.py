"""Sentences are plain words; numbers, dates and spelled letters are said as they are written."""

import re
from collections import Counter

import numpy as np
import pytest

from mmdiff.training.tiny.sentences import (
    KINDS,
    SHARES,
    cardinal,
    heard_question,
    ordinal,
    pronounced,
    sentence,
    spoken,
)


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_are_words_in_lower_case(kind: str) -> None:
    rng = np.random.default_rng(0)
    made = [KINDS[kind](rng) for _ in range(300)]
    assert all(re.fullmatch(r"[a-z'-]+( [a-z'-]+)*", text) for text in made), [
        t for t in made if "{" in t or "_" in t
    ]
    assert len(set(made)) > 60


def test_kinds_come_by_their_shares() -> None:
    assert SHARES.keys() == KINDS.keys() and sum(SHARES.values()) == pytest.approx(1)
    assert sentence(np.random.default_rng(3)) == sentence(np.random.default_rng(3))


def test_numbers_in_words() -> None:
    said = {
        0: "zero",
        13: "thirteen",
        20: "twenty",
        45: "forty five",
        100: "one hundred",
        305: "three hundred five",
        1000: "one thousand",
        9999: "nine thousand nine hundred ninety nine",
    }
    assert {number: cardinal(number) for number in said} == said
    assert len({cardinal(number) for number in range(10_000)}) == 10_000
    days = {
        1: "first",
        12: "twelfth",
        20: "twentieth",
        21: "twenty first",
        30: "thirtieth",
        31: "thirty first",
    }
    assert {day: ordinal(day) for day in days} == days


def test_letters_are_said_by_name_and_words_are_not() -> None:
    assert pronounced("b a d") == "B, ay, D" and pronounced("a") == "ay" and pronounced("x") == "X"
    assert pronounced("a as in alpha") == "ay, as in alpha"
    assert (
        pronounced("i saw a cat") == "i saw a cat"
        and pronounced("is there a cross") == "is there a cross"
    )


def test_questions_are_written_by_ear() -> None:
    assert spoken("What colour is the grey shape?") == "what color is the gray shape"


def test_questions_about_what_is_heard_have_right_answers() -> None:
    rng, kinds = np.random.default_rng(0), Counter[str]()
    for _ in range(2000):
        said = sentence(rng)
        question, answer = heard_question(said, rng)
        words = said.split()
        kinds[question.split(" ", 3)[2]] += 1
        if found := re.fullmatch(r'Is the word "(.+)" said\?', question):
            assert answer == ("yes" if found[1] in words else "no")
        elif "first word" in question or "last word" in question:
            assert answer == words[0 if "first" in question else -1]
        else:
            assert answer == "none" or answer in words
    assert kinds.keys() == {"the", "word", "is"} and min(kinds.values()) > 100, kinds
