"""The code stays readable: its density is counted, and each word of the field is found where its
thing lives."""

from pathlib import Path

import pytest

from tests.helpers.house import ROOT, Counts, count, python_files

# At most this of the package.
TERNARIES_PER_100 = 1.5
COMPREHENSIONS_PER_100 = 2.5
WIDE_LINES = 0
LONG_FUNCTIONS = 0
LONG_CLASSES = 0

# CONTRIBUTING.md has the same words. A folder stands for any of its modules.
WORDS = {
    "KV cache": "mmdiff/decoding",
    "prefix caching": "mmdiff/decoding/prefix_cache.py",
    "prefill": "mmdiff/decoding/model_runner.py",
    "speculative decoding": "mmdiff/decoding/speculative.py",
    "logits processor": "mmdiff/decoding",
    "commit rule": "mmdiff/decoding/commit_rules.py",
    "unmask": "mmdiff/decoding",
    "remask": "mmdiff/decoding/commit_rules.py",
    "classifier-free guidance": "mmdiff/decoding/guidance.py",
    "constrained decoding": "mmdiff/structured/constraint",
    "grammar": "mmdiff/structured/constraint",
    "DFA": "mmdiff/structured/constraint/token_dfa.py",
    "Brzozowski": "mmdiff/structured/regular/derivatives.py",
    "JSON Schema": "mmdiff/structured/schema/normalize.py",
    "continuous batching": "mmdiff/serve/engine/process.py",
    "heartbeat": "mmdiff/serve/engine",
    "detokenizer": "mmdiff/serve/engine",
    "sandbox": "mmdiff/serve/media/worker.py",
    "file lock": "mmdiff/serve/batch/file_lock.py",
    "voice activity detection": "audio/vad.py",
    "CTC": "audio/ctc.py",
    "log-mel spectrogram": "audio/log_mel.py",
    "any-resolution": "vision",
    "attention mask": "mmdiff/modeling/attention.py",
    "forward process": "training/forward_process.py",
    "SpecAugment": "training/tiny/augment.py",
}


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count()


def test_ternaries_are_few(counts: Counts) -> None:
    assert counts.per_100(counts.ternaries) <= TERNARIES_PER_100


def test_comprehensions_are_few(counts: Counts) -> None:
    assert counts.per_100(counts.comprehensions) <= COMPREHENSIONS_PER_100


def test_lines_end_at_column_100(counts: Counts) -> None:
    assert len(counts.wide_lines) <= WIDE_LINES, "\n".join(counts.wide_lines)


def test_functions_are_short(counts: Counts) -> None:
    assert len(counts.long_functions) <= LONG_FUNCTIONS, "\n".join(counts.long_functions)


def test_classes_are_short(counts: Counts) -> None:
    assert len(counts.long_classes) <= LONG_CLASSES, "\n".join(counts.long_classes)


def test_what_is_counted() -> None:
    counts = Counts()
    counts.add(
        "a.py",
        '"""A docstring\nof two lines."""\n\nimport os  # code\n\n# a comment\n\n'
        'def f(x):\n    """One more."""\n'
        "    y = [\n        a if a else 0\n        for a in x\n    ]\n"
        f"    return {{{' ' * 100}}}\n",
    )
    assert (counts.code_lines, counts.ternaries, counts.comprehensions) == (7, 1, 1)
    assert counts.wide_lines == ["a.py:14 has 113 columns"] and counts.long_functions == []
    counts.add("b.py", "class C:\n    def g(self):\n" + "        pass\n" * 60)
    assert counts.long_functions == ["b.py:2 g: 61 lines"] and counts.long_classes == []
    counts.add("c.py", "class D:\n" + "    x = 1\n" * 250)
    assert counts.long_classes == ["c.py:1 D: 251 lines"]


@pytest.mark.parametrize(("word", "home"), WORDS.items(), ids=list(WORDS))
def test_a_word_is_found_where_its_thing_lives(word: str, home: str) -> None:
    texts = (path.read_text(encoding="utf-8") for path in python_files([ROOT / home]))
    assert any(found(word, text) for text in texts), f"nothing in {home} says {word!r}"


def found(word: str, text: str) -> bool:
    """Whatever the case, and across the end of a docstring's line."""
    return word.lower() in " ".join(text.lower().replace("#", " ").split())


def test_contributing_lists_the_words() -> None:
    page = Path(ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| ")}
    assert [word for word in WORDS if word not in rows] == []
    assert [word for word, home in WORDS.items() if f"`{home}`" not in rows[word]] == []
