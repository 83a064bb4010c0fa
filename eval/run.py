"""Ask every question of the tasks, and make one report of the scores."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmdiff.answers import Answer
from mmdiff.eval import commands, speech
from mmdiff.eval.evidence import (
    Evidence,
    EvidenceRow,
    against,
    circumstances,
    details,
    processor_name,
    read,
    summary,
    today,
)
from mmdiff.eval.tasks import TASKS as PICTURE_TASKS
from mmdiff.eval.tasks import Question
from mmdiff.pipeline import Pipeline

Rows = Callable[[Pipeline, int | None, int, Container[str]], Iterator[list[EvidenceRow]]]


@dataclass(frozen=True)
class Task:
    """What gives the rows of a task, a batch at a time and without those that are done.

    Its arguments: the pipeline, a limit of questions of each kind, how many are asked at once, the
    ids that are done.
    """

    rows: Rows
    errors: bool = False  # whether rows count what is wrong


def evaluate(
    pipeline: Pipeline,
    tasks: Sequence[str],
    limit: int | None,
    batch_size: int,
    *,
    name: str = "",
    out: Path | None = None,
    other: Path | None = None,
) -> dict[str, Any]:
    """Scores by task and kind with their intervals, and what they were measured with; also printed
    as a table.

    Args:
        limit: images of each task at most, from the first.
        batch_size: questions answered at once; it does not change the answers.
        name: of the model, for the report.
        out: where the evidence is written, row by row; what is in it is not asked again.
        other: evidence of another run to compare with.
    """
    compared = None
    if other is not None:
        compared = read(other)["rows"]
    facts = {
        **circumstances(pipeline, name, pipeline.speech_facts),
        "tasks": list(tasks),
        "limit": limit,
    }
    evidence = Evidence(out, facts)
    done = {}
    processor = processor_name()
    if pipeline.model.device.type == "cuda":
        processor = torch.cuda.get_device_name()
    for task in tasks:
        done[task] = _ask(task, pipeline, limit, batch_size, evidence)
    report: dict[str, Any] = {
        "command": sys.argv,
        "date": today(),
        "batch_size": batch_size,
        "processor": processor,
        "tasks": done,
    }
    if compared is not None:
        report["against"] = {
            "file": str(other),
            "tasks": against(evidence.rows.values(), compared, lambda task: TASKS[task].errors),
        }
    evidence.finish(report)
    console = Console()
    console.print(_table(report))
    if compared is not None:
        console.print(_comparison(report["against"]))
    return {"circumstances": facts, **report}


def _ask(
    task: str, pipeline: Pipeline, limit: int | None, batch_size: int, evidence: Evidence
) -> dict[str, Any]:
    """The summary of a task, whose rows are in the evidence by then."""
    finished = {id for name, id in evidence.rows if name == task}
    started = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(task, total=None, completed=len(finished))
        for rows in TASKS[task].rows(pipeline, limit, batch_size, finished):
            evidence.add(rows)
            bar.advance(line, len(rows))
    rows = [row for row in evidence.rows.values() if row.task == task]
    made = summary(rows, TASKS[task].errors)
    steps = {}
    for each in ("steps", "passes"):
        if counts := details(rows, each):
            steps[f"{each}_per_answer"] = sum(counts) / len(counts)
    return {**made, **steps, "seconds": round(time.monotonic() - started, 1)}


def ask_all(
    name: str,
    pipeline: Pipeline,
    limit: int | None,
    batch_size: int,
    done: Container[str] = (),
    **decoding: Any,
) -> Iterator[list[EvidenceRow]]:
    """The rows of a task about images."""
    left, group = list[tuple[int, int, Question]](), -1
    last = None
    for number, question in enumerate(PICTURE_TASKS[name](limit)):
        group += question.image is not last
        last = question.image
        if str(number) not in done:
            left.append((number, group, question))
    left.sort(key=lambda each: each[2].gen_length or 0)  # a batch has answers of one length
    for gen_length, same in groupby(left, lambda each: each[2].gen_length):
        settings = dict(decoding)
        if gen_length is not None:
            settings["gen_length"] = gen_length
        for batch in _batched(same, batch_size):
            images, texts = [], []
            for _, _, question in batch:
                images.append(question.image)
                texts.append(question.text)
            answers = pipeline.ask(images, texts, **settings)
            rows = []
            for (number, group, question), answer in zip(batch, answers, strict=True):
                rows.append(_row(name, number, group, question, answer))
            yield rows


def _row(name: str, number: int, group: int, question: Question, answer: Answer) -> EvidenceRow:
    return EvidenceRow(
        name,
        str(number),
        str(group),
        question.kind,
        question.expected,
        answer.text,
        *question.score(answer.text),
        {
            "question": question.text,
            "steps": answer.steps,
            "passes": answer.passes,
            "confidence": round(answer.confidence, 3),
        },
    )


TASKS: dict[str, Task] = {
    **{name: Task(partial(ask_all, name)) for name in PICTURE_TASKS},
    "speech-words": Task(speech.transcripts, errors=True),
    "speech-people": Task(speech.people, errors=True),
    "speech-questions": Task(speech.questions),
    "speech-conditions": Task(speech.conditions, errors=True),
    "speech-none": Task(speech.no_speech, errors=True),
    "speech-confidence": Task(speech.confidences, errors=True),
    speech.VALID_CONFIDENCE: Task(partial(speech.confidences, validation=True), errors=True),
    "speech-times": Task(speech.word_times, errors=True),
    commands.TASK: Task(commands.spoken_commands),
    commands.VALID_TASK: Task(partial(commands.spoken_commands, validation=True)),
    commands.CHOICES: Task(commands.spoken_choices),
}
GROUPS = {
    "pictures": tuple(PICTURE_TASKS),
    "speech": tuple(name for name in TASKS if name.startswith("speech-")),
}


def _batched(
    questions: Iterable[tuple[int, int, Question]], size: int
) -> Iterator[list[tuple[int, int, Question]]]:
    rest = iter(questions)
    while batch := list(islice(rest, size)):
        yield batch


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(
        "task",
        "kind",
        "score",
        "95 % interval",
        "count / of",
        "steps per answer",
        caption="score: share that is right, or with * the share that is wrong",
    )
    for name, task in report["tasks"].items():
        steps = ""
        if "steps_per_answer" in task:
            steps = f"{task['steps_per_answer']:.1f}"
        mark = ""
        if task["measure"] == "error rate":
            mark = "*"
        table.add_row(name, "all", *_cells(task, mark), steps)
        for kind, scored in task["kinds"].items():
            table.add_row("", kind, *_cells(scored, mark), "")
        if (valid := task.get("valid")) is not None:
            counts = f"{valid['count']} / {valid['of']}"
            table.add_row("", "valid", f"{valid['count'] / valid['of']:.2%}", "", counts, "")
        if (found := task.get("confidence_auc")) is not None:
            low, high = found["interval"]
            counts = f"{found['right']} / {found['of']}"
            table.add_row(
                "",
                "confidence, AUC",
                f"{found['value']:.3f}",
                f"{low:.3f} to {high:.3f}",
                counts,
                "",
            )
            table.add_row("", "confidence, Brier score", f"{found['brier']:.3f}", "", counts, "")
    return table


def _cells(scored: Mapping[str, Any], mark: str) -> tuple[str, str, str]:
    low, high = scored["interval"]
    return (
        f"{scored['score']:.2%}{mark}",
        f"{low:.2%} to {high:.2%}",
        f"{scored['count']} / {scored['of']}",
    )


def _comparison(found: Mapping[str, Any]) -> Table:
    table = Table(
        "task",
        "score",
        "other",
        "difference",
        "95 % interval",
        "wins",
        "losses",
        caption=f"against {found['file']}; wins and losses: questions that got better and worse",
    )
    for name, task in found["tasks"].items():
        low, high = task["interval"]
        table.add_row(
            name,
            f"{task['score']:.2%}",
            f"{task['other_score']:.2%}",
            f"{task['difference']:+.2%}",
            f"{low:+.2%} to {high:+.2%}",
            str(task["wins"]),
            str(task["losses"]),
        )
        changed = [row for row in task["disagreeing"] if row["count"] != row["other_count"]]
        for row in changed[:10]:
            table.add_row(
                "", row["kind"], repr(row["other"])[:40], "became", repr(row["answer"])[:40], "", ""
            )
    return table
