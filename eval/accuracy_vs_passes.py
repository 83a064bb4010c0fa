"""Accuracy against forward passes: the same questions with each rule and cache, beside one position
a step.

The questions are those of tasks.py, about images that no model here was trained on. Settings are
compared as they were published; none of them is chosen by these scores.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmdiff.errors import MMDiffError, require_extra
from mmdiff.eval.evidence import device_name, weights_digest
from mmdiff.eval.run import ask_all
from mmdiff.eval.tasks import TASKS
from mmdiff.pipeline import Pipeline

EVERY = 128  # steps: as many as there are positions or more, so each commits one
ONE_A_STEP = "one position a step"

SETTINGS: dict[str, dict[str, Any]] = {
    ONE_A_STEP: {"rule": "quota", "steps": EVERY},
    "default": {},
    "one position a step, lookahead 4": {"rule": "quota", "steps": EVERY, "lookahead": 4},
    "quota, 16 steps": {"rule": "quota", "steps": 16},
    "quota, 16 steps, cosine": {"rule": "quota", "steps": 16, "schedule": "cosine"},
    "quota, 16 steps, shifted": {"rule": "quota", "steps": 16, "schedule": "shifted"},
    "quota, 16 steps, margin": {"rule": "quota", "steps": 16, "order": "margin"},
    "quota, 16 steps, entropy": {"rule": "quota", "steps": 16, "order": "entropy"},
    "threshold 0.9": {"rule": "threshold", "threshold": 0.9},
    "threshold 0.6": {"rule": "threshold", "threshold": 0.6},
    "factor 1": {"rule": "factor"},
    "entropy_bounded 0.1": {"rule": "entropy_bounded"},
    "dilated": {"rule": "dilated"},
    "local": {"rule": "local"},
    "first_hitting": {"rule": "first_hitting"},
    "running_confidence, 16 steps": {"rule": "running_confidence", "steps": 16},
    "saber": {"rule": "saber"},
    "wino": {"rule": "wino"},
    "threshold 0.9, cache none": {"rule": "threshold", "threshold": 0.9, "cache": "none"},
    "threshold 0.9, cache block": {"rule": "threshold", "threshold": 0.9, "cache": "block"},
    "threshold 0.9, cache dual": {"rule": "threshold", "threshold": 0.9, "cache": "dual"},
    "threshold 0.9, cache delayed": {"rule": "threshold", "threshold": 0.9, "cache": "delayed"},
    "threshold 0.9, starts with 8": {"rule": "threshold", "threshold": 0.9, "start_length": 8},
}


def compare(
    pipeline: Pipeline,
    names: list[str],
    limit: int | None,
    batch_size: int,
    out: Path | None = None,
) -> dict[str, Any]:
    """Score and passes per answer of each task with each setting; also printed as a table.

    Args:
        names: of the settings; `ONE_A_STEP`, which the others are held against, comes first whether
            it is named or not.
        limit: images of each task at most, from the first.
        out: where the report is written after every setting. What a report with the same
            circumstances holds there already is not measured again.
    """
    report = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "limit": limit,
        "batch_size": batch_size,
        "device": device_name(pipeline.model.device),
        "model": weights_digest(pipeline),
    }
    before = {}
    for row in _rows_there(out, report):
        before[row["setting"]] = row
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([ONE_A_STEP, *names]):
        rows.append(before.get(name) or _measure(pipeline, name, limit, batch_size))
        if out is not None:
            out.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")
    Console().print(table(rows))
    return {**report, "rows": rows}


def _measure(pipeline: Pipeline, name: str, limit: int | None, batch_size: int) -> dict[str, Any]:
    return {
        "setting": name,
        **{task: _score(task, pipeline, name, limit, batch_size) for task in TASKS},
    }


def _score(
    task: str, pipeline: Pipeline, name: str, limit: int | None, batch_size: int
) -> dict[str, Any]:
    right = of = passes = questions = 0
    for row in chain.from_iterable(ask_all(task, pipeline, limit, batch_size, **SETTINGS[name])):
        questions += 1
        right += row.count
        of += row.of
        passes += row.details["passes"]
    return {
        "score": right / of,
        "passes_per_answer": passes / questions,
        "questions": questions,
        "of": of,
        "right": right,
    }


def _rows_there(out: Path | None, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier report, if it was made in the same circumstances."""
    if out is None or not out.is_file():
        return []
    try:
        found = json.loads(out.read_text())
        rows: list[dict[str, Any]] = found.pop("rows")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MMDiffError(f"{out} holds something else than a report; name another file") from error
    if found == report:
        return rows
    return []


def table(rows: list[dict[str, Any]]) -> Table:
    """Scores, and passes in parentheses."""
    made = Table("setting", *TASKS, caption="score (forward passes per answer)")
    for row in rows:
        cells = []
        for task in TASKS:
            cells.append(f"{row[task]['score']:.2%} ({row[task]['passes_per_answer']:.2f})")
        made.add_row(row["setting"], *cells)
    return made


def check_plot(file: Path) -> None:
    """An MMDiffError where matplotlib is not installed, or cannot draw a file of this kind."""
    require_extra("matplotlib", "eval", "drawing")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise MMDiffError(f"{file} cannot be drawn; name a file that ends in .png, .svg or .pdf")


def plot(report: Mapping[str, Any], file: Path) -> None:
    """Draw every setting as a numbered point, passes against score, one panel for each task.

    Raises:
        MMDiffError: as of `check_plot`.
    """
    check_plot(file)
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(5 * len(TASKS) + 3, 5), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        points: dict[tuple[float, float], list[str]] = {}
        for number, row in enumerate(report["rows"], 1):
            at = round(row[task]["passes_per_answer"], 1), round(100 * row[task]["score"], 1)
            points.setdefault(at, []).append(str(number))
        for at, numbers in points.items():
            axes.plot(*at, "o", color="tab:red" if "1" in numbers else "tab:blue")
            label = "\n".join(
                ", ".join(numbers[first : first + 6]) for first in range(0, len(numbers), 6)
            )
            axes.annotate(label, at, fontsize=7, xytext=(3, 3), textcoords="offset points")
        axes.set(title=task, xlabel="forward passes per answer", ylabel="score (%)")
        axes.margins(0.2)
        axes.grid(alpha=0.3)
    listed = []
    for n, row in enumerate(report["rows"], 1):
        listed.append(Line2D([], [], linestyle="", label=f"{n}  {row['setting']}"))
    figure.legend(handles=listed, loc="outside right center", fontsize=7, handlelength=0)
    figure.savefig(file, dpi=90)
