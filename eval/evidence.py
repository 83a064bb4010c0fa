"""Evidence of an evaluation: every row, what it was measured with, bootstrap intervals, and paired
comparisons.

A run writes its rows to `OUT.part`, one JSON object a line, as they are finished, and `OUT` at its
end. The same command goes on after the last whole row of either.

Intervals are percentiles of 1,000 resamples (Efron's bootstrap). What is drawn are groups: rows
about the same image or recording are not independent.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mmdiff
from mmdiff.decoding.prefix_cache import digest
from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Pipeline

RESAMPLES, SEED = 1000, 0
COVERED = 95  # percent of the resamples that lie in an interval
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "faster-whisper",
    "ctranslate2",
    "silero-vad",
    "jiwer",
    "whisper-normalizer",
)


@dataclass(frozen=True)
class EvidenceRow:
    """One question of a task, its answer, and what it counts: `count` of `of`.

    `count` is what is right, or in tasks that measure errors what is wrong. `id` is the same in
    every run, and rows of one `group` are about the same image or recording.
    """

    task: str
    id: str
    group: str
    kind: str
    expected: str
    answer: str
    count: int
    of: int
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.id


def circumstances(
    pipeline: Pipeline, name: str, speech_model: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What decides the answers of a run: weights, settings, number types, versions, seed."""
    model = pipeline.model
    return {
        "model": name,
        "weights": weights_digest(pipeline),
        "speech_model": dict(speech_model or {}),
        "decoding": dataclasses.asdict(model.model_config.decoding),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "seed": SEED,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, this package and those that numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "mmdiff": mmdiff.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def weights_digest(pipeline: Pipeline) -> str:
    """A short hash of the model's weights: whose scores they are."""
    return digest(*(weight.data for weight in pipeline.model.parameters())).hex()[:16]


class Evidence:
    """The rows of a run, those that were finished before included, and the files that they are
    written to."""

    def __init__(self, out: Path | None, facts: Mapping[str, Any]) -> None:
        """
        Raises:
            MMDiffError: a file is there that is not evidence, or of a run with other circumstances.
        """
        self.out, self.facts = out, dict(facts)
        self.rows: dict[tuple[str, str], EvidenceRow] = {}
        self.part: Path | None = None
        if out is not None:
            self.part = out.with_name(f"{out.name}.part")
        if out is not None and out.is_file():
            self._take(out, read(out))
        if (
            self.part is not None
            and self.part.is_file()
            and (begun := _read_part(self.part)) is not None
        ):
            self._take(self.part, begun)

    def add(self, rows: Sequence[EvidenceRow]) -> None:
        """Keep finished rows; they are on the disk when this returns."""
        if self.part is not None and rows:
            new = not self.part.is_file()
            lines = []
            if new:
                lines = [json.dumps({"circumstances": self.facts})]
            for row in rows:
                lines.append(json.dumps(dataclasses.asdict(row)))
            with self.part.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._keep(rows)

    def _keep(self, rows: Iterable[EvidenceRow]) -> None:
        for row in rows:
            self.rows[row.key] = row

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report with all rows, at once, and remove what it was made of."""
        if self.out is None or self.part is None:
            return
        made = self.out.with_name(f"{self.out.name}.new")
        rows = []
        for row in self.rows.values():
            rows.append(json.dumps(dataclasses.asdict(row)))
        body = json.dumps({"circumstances": self.facts, **report}, indent=1)
        listed = ",\n".join(rows)  # a row a line
        made.write_text(f'{body[:-2]},\n "rows": [\n{listed}\n ]\n}}\n', encoding="utf-8")
        made.replace(self.out)
        self.part.unlink(missing_ok=True)

    def _take(self, file: Path, found: Mapping[str, Any]) -> None:
        before, now = json.loads(json.dumps([found["circumstances"], self.facts]))
        for name in now:
            if now[name] != before.get(name):
                raise MMDiffError(
                    f"{file} is of another run, whose {name} was "
                    f"{str(before.get(name))[:80]!r}, not {str(now[name])[:80]!r}: "
                    "name another file, or delete it"
                )
        self._keep(found["rows"])


def read(file: Path) -> dict[str, Any]:
    """The evidence that a finished run wrote, its rows as `Row`s.

    Raises:
        MMDiffError: the file is missing or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = _evidence_rows(found["rows"])
        return {**found, "circumstances": dict(found["circumstances"]), "rows": rows}
    except OSError as error:
        raise MMDiffError(
            f"{file} cannot be read ({error.strerror}): name a file that mmdiff eval wrote"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MMDiffError(
            f"{file} is not evidence of an evaluation: name a file that mmdiff eval wrote"
        ) from None


def _read_part(file: Path) -> dict[str, Any] | None:
    """The rows of a run that was broken off, None where it has none; a last line that is not whole
    is cut away."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        file.unlink()
        return None
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    try:
        head, *rows = map(json.loads, whole.splitlines())
        return {"circumstances": dict(head["circumstances"]), "rows": _evidence_rows(rows)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MMDiffError(
            f"{file} is not evidence of an evaluation: name another file, or delete it"
        ) from None


def _evidence_rows(rows: Iterable[Mapping[str, Any]]) -> list[EvidenceRow]:
    return [EvidenceRow(**row) for row in rows]


# Scores


def details(rows: Iterable[EvidenceRow], name: str) -> list[Any] | None:
    """What each row has by a name; None where one of them has nothing."""
    found = []
    for row in rows:
        if name not in row.details:
            return None
        found.append(row.details[name])
    return found


def summary(rows: Sequence[EvidenceRow], errors: bool) -> dict[str, Any]:
    """The score of a task with its interval, and of each kind of question; of the confidence too,
    where rows have one.

    Args:
        errors: whether `count` is of what is wrong.
    """
    kinds: dict[str, list[EvidenceRow]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    made = {
        "questions": len(rows),
        "measure": "error rate" if errors else "accuracy",
        **_scored(rows),
    }
    if details(rows, "confidence") is not None:
        made["confidence_auc"] = _auc_with_interval(rows, errors)
    if (valid := details(rows, "valid")) is not None:  # of structured answers
        made["valid"] = {"count": sum(valid), "of": len(valid)}
    by_kind = {}
    for kind, some in sorted(kinds.items()):
        by_kind[kind] = {"questions": len(some), **_scored(some)}
    return {**made, "kinds": by_kind}


def _scored(rows: Sequence[EvidenceRow]) -> dict[str, Any]:
    counts_G2 = _by_group(rows)
    count, of = counts_G2.sum(0).astype(int).tolist()
    return {
        "score": _ratio(counts_G2),
        "interval": _interval(counts_G2, _ratio),
        "count": count,
        "of": of,
    }


Counts = npt.NDArray[np.float64]  # one line for each group


def _by_group(rows: Iterable[EvidenceRow]) -> Counts:
    """Count and of, summed over the rows of each group: (groups, 2)."""
    sums: dict[str, list[int]] = {}
    for row in rows:
        total = sums.setdefault(row.group, [0, 0])
        total[0] += row.count
        total[1] += row.of
    return np.array(list(sums.values()), np.float64).reshape(-1, 2)


def _ratio(counts_G2: Counts) -> float:
    count, of = counts_G2[:, 0].sum(), counts_G2[:, 1].sum()
    if of:
        return float(count / of)
    return 0.0


def _interval(groups: Counts, measure: Callable[[Counts], float]) -> list[float]:
    """The middle 95 % of a measure over resamples of the groups."""
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(RESAMPLES):
        drawn.append(measure(groups[rng.integers(len(groups), size=len(groups))]))
    low, high = np.percentile(drawn, [(100 - COVERED) / 2, (100 + COVERED) / 2])
    return [round(float(low), 6), round(float(high), 6)]


def auc(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """The chance that a right answer is more confident than a wrong one; ties count half. 0.5 where
    all are alike."""
    rights, wrongs = confidences[right], np.sort(confidences[~right])
    if not len(rights) or not len(wrongs):
        return 0.5
    below = np.searchsorted(wrongs, rights, "left") + np.searchsorted(wrongs, rights, "right")
    return float(below.mean() / 2 / len(wrongs))


def _auc_with_interval(rows: Sequence[EvidenceRow], errors: bool) -> dict[str, Any]:
    pairs = []
    for row in rows:
        pairs.append((row.details["confidence"], row.count == (0 if errors else row.of)))
    table_N2 = np.array(pairs, np.float64)

    def measured(drawn_N2: Counts) -> float:
        return auc(drawn_N2[:, 0], drawn_N2[:, 1] > 0)

    return {
        "value": round(measured(table_N2), 4),
        "interval": _interval(table_N2, measured),
        "brier": round(float(((table_N2[:, 0] - table_N2[:, 1]) ** 2).mean()), 4),
        "right": int(table_N2[:, 1].sum()),
        "of": len(rows),
    }


# Comparisons


def against(
    rows: Iterable[EvidenceRow], others: Iterable[EvidenceRow], errors: Callable[[str], bool]
) -> dict[str, Any]:
    """What changed from `others` to `rows`, task by task, over the questions that both answered.

    Args:
        errors: tells of a task whether it counts what is wrong.

    Returns:
        for each task the two scores, the difference with its interval, wins and losses (rows that
        got better and worse), and the rows that disagree.

    Raises:
        MMDiffError: no question is in both, or one expects another answer.
    """
    theirs = {}
    for row in others:
        theirs[row.key] = row
    tasks: dict[str, list[tuple[EvidenceRow, EvidenceRow]]] = {}
    for row in rows:
        if (other := theirs.get(row.key)) is not None:
            if (row.expected, row.of) != (other.expected, other.of):
                raise MMDiffError(
                    f"question {row.id[:80]!r} of {row.task} expects another answer in the "
                    "other run: evaluate both with the same version"
                )
            tasks.setdefault(row.task, []).append((row, other))
    if not tasks:
        raise MMDiffError("the two runs have no question in common: evaluate the same tasks")
    found = {}
    for task, pairs in tasks.items():
        found[task] = _paired(pairs, errors(task))
    return found


def _paired(pairs: Sequence[tuple[EvidenceRow, EvidenceRow]], errors: bool) -> dict[str, Any]:
    sums: dict[str, Counts] = {}
    for one, other in pairs:
        sums.setdefault(one.group, np.zeros(3))
        sums[one.group] += (one.count, other.count, one.of)
    groups_G3 = np.array(list(sums.values()))

    def difference(drawn_G3: Counts) -> float:
        of = drawn_G3[:, 2].sum()
        if of:
            return float((drawn_G3[:, 0] - drawn_G3[:, 1]).sum() / of)
        return 0.0

    totals = groups_G3.sum(0)
    more = fewer = 0
    disagreeing = []
    for one, other in pairs:
        more += one.count > other.count
        fewer += one.count < other.count
        if one.answer != other.answer:
            disagreeing.append(
                {
                    "id": one.id,
                    "kind": one.kind,
                    "expected": one.expected,
                    "answer": one.answer,
                    "other": other.answer,
                    "count": one.count,
                    "other_count": other.count,
                    "of": one.of,
                }
            )
    wins, losses = more, fewer
    if errors:
        wins, losses = fewer, more
    return {
        "questions": len(pairs),
        "score": totals[0] / totals[2],
        "other_score": totals[1] / totals[2],
        "difference": difference(groups_G3),
        "interval": _interval(groups_G3, difference),
        "wins": wins,
        "losses": losses,
        "disagreeing": disagreeing,
    }


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    """Its name where Linux tells it, and how many threads are used of it."""
    try:
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    if named:
        name = named[1]
    else:
        name = platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} threads of {name}"


def default_out(model: str) -> Path:
    """A file in runs/eval that is not there yet."""
    folder = Path("runs/eval")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", Path(model).name) or "model"
    stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    file = folder / f"{name}-{stamp}.json"
    number = 0
    while file.exists() or file.with_name(f"{file.name}.part").exists():
        number += 1
        file = folder / f"{name}-{stamp}-{number}.json"
    return file


def today() -> str:
    return datetime.date.today().isoformat()
