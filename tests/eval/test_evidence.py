"""Evidence of a run: rows on the disk as they are finished, runs that go on, intervals, and paired
comparisons."""

import json
import random
from collections.abc import Container, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.config import DecodingConfig
from mmdiff.errors import MMDiffError
from mmdiff.eval import run
from mmdiff.eval.evidence import Evidence, EvidenceRow, against, auc, read, summary

FACTS = {"model": "tiny", "weights": "00ff", "seed": 0}


def row(number: int, count: int = 1, **changes: Any) -> EvidenceRow:
    made = {
        "task": "t",
        "id": str(number),
        "group": str(number),
        "kind": "k",
        "expected": "yes",
        "answer": "yes" if count else "no",
        "count": count,
        "of": 1,
    }
    return EvidenceRow(**{**made, **changes})


class Asking:
    """A task of ten questions, with a note of those that were asked; it breaks off before
    `stop`."""

    def __init__(self, stop: int | None = None, answer: str = "yes") -> None:
        self.stop, self.answer, self.asked = stop, answer, list[str]()

    def rows(
        self, pipeline: Any, limit: int | None, batch_size: int, done: Container[str]
    ) -> Iterator[list[EvidenceRow]]:
        left = [number for number in range(10) if str(number) not in done]
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            if self.stop is not None and self.stop in batch:
                raise KeyboardInterrupt
            self.asked += map(str, batch)
            yield [row(number, int(number % 3 > 0), answer=self.answer) for number in batch]


@pytest.fixture
def pipeline() -> Any:
    model = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=lambda: iter(()),
        model_config=SimpleNamespace(decoding=DecodingConfig()),
    )
    return SimpleNamespace(model=model, speech_facts={})


def evaluate(
    monkeypatch: pytest.MonkeyPatch,
    pipeline: Any,
    asking: Asking,
    batch_size: int,
    out: Path,
    other: Path | None = None,
) -> dict[str, Any]:
    monkeypatch.setitem(run.TASKS, "t", run.Task(asking.rows))
    return run.evaluate(pipeline, ["t"], None, batch_size, out=out, other=other)


def test_a_run_that_was_broken_off_goes_on(
    monkeypatch: pytest.MonkeyPatch, pipeline: Any, tmp_path: Path
) -> None:
    """No finished row is asked again, and the rows are those of a run in one go, with another batch
    size too."""
    broken, again, whole = Asking(stop=7), Asking(), Asking()
    with pytest.raises(KeyboardInterrupt):
        evaluate(monkeypatch, pipeline, broken, 2, tmp_path / "one.json")
    assert broken.asked == ["0", "1", "2", "3", "4", "5"] and not (tmp_path / "one.json").exists()
    report = evaluate(monkeypatch, pipeline, again, 3, tmp_path / "one.json")
    assert again.asked == ["6", "7", "8", "9"] and not (tmp_path / "one.json.part").exists()
    evaluate(monkeypatch, pipeline, whole, 10, tmp_path / "two.json")
    one, two = read(tmp_path / "one.json"), read(tmp_path / "two.json")
    assert (
        one["rows"] == two["rows"]
        and len(one["rows"]) == 10
        and report["tasks"]["t"]["score"] == 0.6
    )
    finished = Asking()
    evaluate(monkeypatch, pipeline, finished, 5, tmp_path / "one.json")
    assert finished.asked == [] and read(tmp_path / "one.json")["rows"] == two["rows"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_asked_again(tmp_path: Path, cut: int) -> None:
    first = Evidence(tmp_path / "out.json", FACTS)
    first.add([row(1), row(2)])
    first.add([row(3)])
    part = tmp_path / "out.json.part"
    part.write_bytes(part.read_bytes()[:-cut])
    again = Evidence(tmp_path / "out.json", FACTS)
    assert [key for _, key in again.rows] == ["1", "2"]
    again.add([row(3)])
    assert len(Evidence(tmp_path / "out.json", FACTS).rows) == 3


def test_a_file_that_was_only_begun_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "out.json.part").write_text('{"circumst')
    evidence = Evidence(tmp_path / "out.json", FACTS)
    evidence.add([row(1)])
    assert len(Evidence(tmp_path / "out.json", FACTS).rows) == 1


def test_other_circumstances_are_refused_by_name(tmp_path: Path) -> None:
    Evidence(tmp_path / "out.json", FACTS).add([row(1)])
    with pytest.raises(
        MMDiffError, match="out.json.part is of another run, whose weights was '00ff', not 'abcd'"
    ):
        Evidence(tmp_path / "out.json", {**FACTS, "weights": "abcd"})


@pytest.mark.parametrize(
    "text", ["", "scores", "[1]", "3", "{}", '{"rows": [{}], "circumstances": {}}', "\x00"]
)
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    out = tmp_path / "notes.json"
    out.write_text(text)
    with pytest.raises(MMDiffError, match="notes.json is not evidence of an evaluation"):
        Evidence(out, FACTS)
    assert out.read_text() == text


def test_intervals_hold_the_score_and_shrink() -> None:
    """Groups are drawn, not rows: ten equal rows of a group are worth one."""
    rng = random.Random(0)
    rows = [row(number, int(rng.random() < 0.8)) for number in range(400)]
    few, many = summary(rows[:40], errors=False), summary(rows, errors=False)
    for scored in (few, many):
        low, high = scored["interval"]
        assert low < scored["score"] < high
    assert np.ptp(many["interval"]) == pytest.approx(np.ptp(few["interval"]) / 10**0.5, rel=0.4)
    copies = [
        row(10 * number + copy, each.count, group=each.group)
        for number, each in enumerate(rows[:40])
        for copy in range(10)
    ]
    assert summary(copies, errors=False)["interval"] == few["interval"]


def test_the_auc_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(60) < 0.6
    confidence = np.round(rng.random(60) + 0.3 * right, 1)
    pairs = [
        (one > other) + 0.5 * (one == other)
        for one in confidence[right]
        for other in confidence[~right]
    ]
    assert auc(confidence, right) == pytest.approx(np.mean(pairs))
    assert auc(confidence, np.ones(60, bool)) == 0.5


@pytest.mark.parametrize("errors", [False, True])
def test_comparisons_pair_rows(errors: bool) -> None:
    ours = [row(number, int(number < 6)) for number in range(10)]
    theirs = [row(number, int(number in (0, 1, 8))) for number in range(10)]
    found = against(ours, theirs, lambda task: errors)["t"]
    assert (found["wins"], found["losses"]) == ((1, 4) if errors else (4, 1))
    assert (
        found["difference"] == pytest.approx(0.3)
        and found["score"] == 0.6
        and found["other_score"] == 0.3
    )
    assert [each["id"] for each in found["disagreeing"]] == ["2", "3", "4", "5", "8"]
    same = against(ours, ours, lambda task: errors)["t"]
    assert (
        same["interval"] == [0, 0]
        and same["wins"] == same["losses"] == 0
        and same["disagreeing"] == []
    )


def test_runs_of_other_questions_are_not_compared() -> None:
    with pytest.raises(MMDiffError, match="no question in common"):
        against([row(1)], [row(2)], lambda task: False)
    with pytest.raises(MMDiffError, match="question '1' of t expects another answer"):
        against([row(1)], [row(1, expected="no")], lambda task: False)


def test_a_comparison_is_in_the_evidence(
    monkeypatch: pytest.MonkeyPatch,
    pipeline: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate(monkeypatch, pipeline, Asking(), 4, tmp_path / "one.json")
    evaluate(
        monkeypatch, pipeline, Asking(answer="no"), 4, tmp_path / "two.json", tmp_path / "one.json"
    )
    found = json.loads((tmp_path / "two.json").read_text())["against"]
    assert found["file"].endswith("one.json") and len(found["tasks"]["t"]["disagreeing"]) == 10
    assert "wins" in capsys.readouterr().out
    with pytest.raises(MMDiffError, match="nothing.json cannot be read"):
        evaluate(
            monkeypatch, pipeline, Asking(), 4, tmp_path / "three.json", tmp_path / "nothing.json"
        )
