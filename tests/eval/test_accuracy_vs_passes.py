"""The comparison of settings: what it asks, reports, draws, and leaves out when it was measured
before."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdiff.answers import Answer
from mmdiff.config import DecodingConfig
from mmdiff.errors import MMDiffError
from mmdiff.eval import accuracy_vs_passes
from mmdiff.eval.accuracy_vs_passes import ONE_A_STEP, SETTINGS, compare


class Fake:
    """Says yes to everything, one position a step in more passes, until it is asked with the rule
    that `stops` it."""

    def __init__(self, weight: float = 0.0, stops: str | None = None) -> None:
        weights = [torch.nn.Parameter(torch.full((2,), weight))]
        self.model = SimpleNamespace(device=torch.device("cpu"), parameters=lambda: iter(weights))
        self.stops, self.asked = stops, list[str | None]()

    def ask(self, images: list[Any], texts: list[str], **decoding: Any) -> list[Answer]:
        rule = decoding.get("rule")
        if rule is not None and rule == self.stops:
            raise KeyboardInterrupt
        if self.asked[-1:] != [rule]:
            self.asked.append(rule)
        return [Answer("yes", (), steps=3, passes=8 if rule == "quota" else 2) for _ in texts]


def test_settings_are_decoding_settings() -> None:
    for changes in SETTINGS.values():
        DecodingConfig(**{"threshold": 0.9, **changes})


def test_a_report_and_its_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = compare(Fake(), ["default"], 2, 8)  # type: ignore[arg-type]
    assert [row["setting"] for row in report["rows"]] == [ONE_A_STEP, "default"]
    assert [row["easy-vqa"]["passes_per_answer"] for row in report["rows"]] == [8.0, 2.0]
    assert "(8.00)" in capsys.readouterr().out
    accuracy_vs_passes.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_an_interrupted_report_goes_on(tmp_path: Path) -> None:
    out, names = tmp_path / "report.json", ["saber", "wino"]
    with pytest.raises(KeyboardInterrupt):
        compare(Fake(stops="wino"), names, 1, 8, out)  # type: ignore[arg-type]
    assert [row["setting"] for row in json.loads(out.read_text())["rows"]] == [ONE_A_STEP, "saber"]
    again, anew = Fake(), Fake()
    report = compare(again, names, 1, 8, out)  # type: ignore[arg-type]
    assert again.asked == ["wino"] and json.loads(out.read_text()) == report
    assert compare(anew, names, 1, 8) == report and anew.asked == ["quota", "saber", "wino"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("weight", "limit", "batch_size"), [(1.0, 1, 8), (0.0, 2, 8), (0.0, 1, 4)])
def test_other_circumstances_are_measured_anew(
    tmp_path: Path, weight: float, limit: int, batch_size: int
) -> None:
    out, other = tmp_path / "report.json", Fake(weight)
    compare(Fake(), [], 1, 8, out)  # type: ignore[arg-type]
    report = compare(other, [], limit, batch_size, out)  # type: ignore[arg-type]
    assert other.asked == ["quota"] and json.loads(out.read_text()) == report


@pytest.mark.parametrize("text", ["", "scores", "[1, 2]", "3", "{}", "\x00"])
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    out, fake = tmp_path / "notes.txt", Fake()
    out.write_text(text)
    with pytest.raises(
        MMDiffError, match="notes.txt holds something else than a report; name another file"
    ):
        compare(fake, [], 1, 8, out)  # type: ignore[arg-type]
    assert fake.asked == [] and out.read_text() == text


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for name in ("plot.png", "plot.SVG", "plot.pdf"):
        accuracy_vs_passes.check_plot(tmp_path / name)
    for name in ("plot", "plot.docx", "png"):
        with pytest.raises(MMDiffError, match=f"{name} cannot be drawn"):
            accuracy_vs_passes.check_plot(tmp_path / name)
