"""The comparison of settings: what it asks, reports and draws."""

from pathlib import Path
from typing import Any

import pytest

from mmdiff.config import DecodingConfig
from mmdiff.eval import tradeoff
from mmdiff.pipeline import Answer


class Fake:
    """Right when given steps enough."""

    class model:  # noqa: N801
        class device:  # noqa: N801
            type = "cpu"

    def ask(self, images: list[Any], texts: list[str], **decoding: Any) -> list[Answer]:
        exact = decoding.get("rule") == "quota"
        return [Answer("yes", (), steps=3, passes=8 if exact else 2) for _ in texts]


def test_settings_are_decoding_settings() -> None:
    for changes in tradeoff.SETTINGS.values():
        DecodingConfig(**{"threshold": 0.9, **changes})


def test_a_report_and_its_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tradeoff.compare(Fake(), ["default"], 2, 8)  # type: ignore[arg-type]
    assert [row["setting"] for row in report["rows"]] == [tradeoff.ONE_A_STEP, "default"]
    assert [row["easy-vqa"]["passes_per_answer"] for row in report["rows"]] == [8.0, 2.0]
    assert "(8.00)" in capsys.readouterr().out
    tradeoff.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
