"""Ask every question of the tasks, and make one report of the scores."""

from __future__ import annotations

import datetime
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmdiff
from mmdiff.eval import speech
from mmdiff.eval.tasks import TASKS as PICTURE_TASKS
from mmdiff.eval.tasks import Question
from mmdiff.pipeline import Pipeline

Task = Callable[[Pipeline, int | None, int], dict[str, Any]]


def evaluate(pipeline: Pipeline, tasks: Sequence[str], limit: int | None, batch_size: int) -> dict[str, Any]:
    """Scores by task and kind, with what they were measured on; also printed as a table.

    Args:
        limit: only the first so many pictures of each task.
        batch_size: questions answered at once; it does not change the answers.
    """
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "mmdiff": mmdiff.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if pipeline.model.device.type == "cuda" else processor_name(),
        "limit": limit,
        "tasks": {name: TASKS[name](pipeline, limit, batch_size) for name in tasks},
    }
    Console().print(_table(report))
    return report


def ask_all(
    name: str, pipeline: Pipeline, limit: int | None, batch_size: int, **decoding: Any
) -> dict[str, Any]:
    """The score of one task about pictures, its parts by kind of question, and some wrong answers."""
    questions = list(PICTURE_TASKS[name](limit))
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    steps = passes = 0
    wrong: list[dict[str, str]] = []
    started = time.monotonic()
    questions.sort(key=lambda question: question.gen_length or 0)  # a batch has answers of one length
    batches = [b for _, same in groupby(questions, lambda q: q.gen_length) for b in _batched(same, batch_size)]
    for batch in track(batches, description=f"{name}: {len(questions)} questions"):
        room = {} if batch[0].gen_length is None else {"gen_length": batch[0].gen_length}
        pictures, texts = [question.image for question in batch], [question.text for question in batch]
        answers = pipeline.ask(pictures, texts, **room, **decoding)
        for question, answer in zip(batch, answers, strict=True):
            got, most = question.score(answer.text)
            right[question.kind] += got
            total[question.kind] += most
            steps, passes = steps + answer.steps, passes + answer.passes
            if got < most and len(wrong) < 20:
                wrong.append({"question": question.text, "expected": question.expected, "answer": answer.text})
    return {
        "questions": len(questions),
        "score": sum(right.values()) / sum(total.values()),
        "right": sum(right.values()),
        "of": sum(total.values()),
        "kinds": {kind: right[kind] / total[kind] for kind in sorted(total)},
        "steps_per_answer": steps / len(questions),
        "passes_per_answer": passes / len(questions),
        "seconds": round(time.monotonic() - started, 1),
        "some_wrong": wrong,
    }


TASKS: dict[str, Task] = {
    **{name: partial(ask_all, name) for name in PICTURE_TASKS},
    "speech-words": speech.transcripts,
    "speech-questions": speech.questions,
}
GROUPS = {"pictures": tuple(PICTURE_TASKS), "speech": ("speech-words", "speech-questions")}


def _batched(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    rest = iter(questions)
    while batch := list(islice(rest, size)):
        yield batch


def processor_name() -> str:
    """Its name where Linux tells it, and how many threads are used of it."""
    try:
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} threads of {name}"


def _table(report: dict[str, Any]) -> Table:
    table = Table("task", "kind", "score", "right / of", "steps per answer",
                  caption="score: share that is right; of speech-words: the word error rate")
    for name, task in report["tasks"].items():
        counts = f"{task['right']} / {task['of']}"
        steps = f"{task['steps_per_answer']:.1f}" if "steps_per_answer" in task else ""
        table.add_row(name, task.get("of_what", "all"), f"{task['score']:.2%}", counts, steps)
        for kind, score in task["kinds"].items():
            table.add_row("", kind, f"{score:.2%}", "", "")
    return table
