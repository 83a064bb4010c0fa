"""How well images of everyday things are named: drawings of an artist that nothing was fitted on,
clothes photographs, and cut-out photographs of animals and vehicles.

    python -m mmdiff.eval.everyday naming

So far the closed-form experts are measured, without a backbone. Settings are chosen elsewhere, by
`python -m mmdiff.training.everyday.eyes --choose`. Features come from the cache that
`python -m mmdiff.training.everyday.tables` makes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmdiff.eval.evidence import Evidence, EvidenceRow, summary, versions
from mmdiff.training.everyday.drawings import UNSEEN
from mmdiff.training.everyday.experts import Selection
from mmdiff.training.everyday.eyes import Eyes, add_options, fit_eyes, selected
from mmdiff.training.everyday.features import Features
from mmdiff.training.everyday.names import CLOTHES, everyday_names, is_thing, names_by_code
from mmdiff.training.everyday.tables import ON_BACKGROUNDS, ON_WHITE
from mmdiff.training.everyday.wordnet import WordNet, load_wordnet

STEPS_UP = 2  # in WordNet, from a label to an answer that still counts
ANIMAL, VEHICLE = 15388, 4524313  # WordNet 3.0
KINDS = {"bird": 1503061, "fish": 2512053, "mammal": 1861778, "vehicle": VEHICLE}
UNSEEN_TASKS = {ON_WHITE: "unseen artist", ON_BACKGROUNDS: "unseen artist, backgrounds"}
Row = EvidenceRow


def drawing_rows(task: str, table: Features, answers: Sequence[str], folder: Path) -> Iterator[Row]:
    """Two for each drawing: whether its everyday name came first, and whether a name of the right
    kind did."""
    by_code = names_by_code(folder)
    kinds = {name.name: name.kind for name in everyday_names(folder)}
    for id_, code, answer in zip(table.ids, table.names, answers, strict=True):
        if (name := by_code.get(code)) is None:
            continue
        kind = "things" if is_thing(code, folder) else "faces, persons, signs"
        right = int(answer == name.name)
        details = {"alias": int(name.matches(answer))}
        yield Row(task, id_, code, kind, name.name, answer, right, 1, details)
        same = int(kinds.get(answer) == name.kind)
        yield Row(f"{task}: kind", id_, code, kind, name.kind, answer, same, 1)


def clothes_rows(task: str, table: Features, answers: Sequence[str]) -> Iterator[Row]:
    for id_, folder, answer in zip(table.ids, table.names, answers, strict=True):
        expected = CLOTHES[folder]
        yield Row(task, id_, id_, expected, expected, answer, int(answer == expected), 1)


def stamp_rows(
    task: str, table: Features, answers: Sequence[str], wordnet: WordNet
) -> Iterator[Row]:
    """Whether an answer is the caption's thing, a synonym or at most two steps above it in WordNet;
    and whether it is of the same kind, for birds, fish, mammals and vehicles."""
    for id_, caption, answer in zip(table.ids, table.names, answers, strict=True):
        top = ANIMAL if id_.startswith("animals/") else VEHICLE
        meaning = caption_meaning(caption, wordnet, top)
        if meaning is None:
            continue
        label = wordnet.words(meaning)[0]
        kind = id_.split("/")[0]
        right = int(is_within(answer, meaning, wordnet))
        yield Row(task, id_, id_, kind, label, answer, right, 1, {"caption": caption})
        for name, offset in KINDS.items():
            if offset in (meaning, *wordnet.ancestors(meaning)):
                same = int(is_kind(answer, offset, wordnet))
                yield Row(f"{task}: kind", id_, id_, name, name, answer, same, 1)


def caption_meaning(caption: str, wordnet: WordNet, top: int) -> int | None:
    """The meaning below `top` of a caption such as "A Magellanic penguin.", None where WordNet has
    none."""
    plain = re.split(r"[.,!(]| resembles ", caption)[0].strip()
    plain = re.sub(r"^.*\bof (an?|the) ", "", plain)
    words = plain.lower().split()
    for start in range(len(words)):
        for meaning in wordnet.meanings(" ".join(words[start:])):
            if top in wordnet.ancestors(meaning):
                return meaning
    return None


def is_within(answer: str, meaning: int, wordnet: WordNet) -> bool:
    """Whether an answer is a word of the meaning or of one at most two steps above it."""
    right = (meaning, *wordnet.ancestors(meaning, STEPS_UP))
    if set(wordnet.meanings(answer)) & set(right):
        return True
    words = {word.lower() for each in right for word in wordnet.words(each)}
    return answer.lower() in words


def is_kind(answer: str, kind: int, wordnet: WordNet) -> bool:
    """By the most common meaning of the answer."""
    meanings = wordnet.meanings(answer)[:1]
    return any(kind in (each, *wordnet.ancestors(each)) for each in meanings)


def naming_rows(eyes: Eyes, selection: Selection) -> Iterator[Row]:
    """All tasks of naming, each of images that nothing was fitted on; by both experts, and by the
    one alone that such images are meant for."""
    folder = selection.folder
    for style in selection.styles:
        task, table = UNSEEN_TASKS[style], selection.table(f"{UNSEEN}-{style}")
        yield from drawing_rows(task, table, eyes.answers(table), folder)
        alone = eyes.answers(table, "namer")
        yield from drawing_rows(f"{task}, namer alone", table, alone, folder)
    table = selection.table("clothes-validation")
    yield from clothes_rows("clothes", table, eyes.answers(table))
    yield from clothes_rows("clothes, namer alone", table, eyes.answers(table, "namer"))
    table, wordnet = selection.table("stamps"), load_wordnet(folder)
    yield from stamp_rows("stamps", table, eyes.answers(table), wordnet)
    alone = eyes.answers(table, "classifier")
    yield from stamp_rows("stamps, classifier alone", table, alone, wordnet)


def naming(selection: Selection, out: Path | None) -> dict[str, Any]:
    """Fit the experts, name everything, and write the evidence."""
    eyes = fit_eyes(selection)
    facts = {"task": "everyday naming", "versions": versions(), "settings": eyes.settings}
    evidence = Evidence(out, facts)
    evidence.add(list(naming_rows(eyes, selection)))
    rows: dict[str, list[Row]] = {}
    for row in evidence.rows.values():
        rows.setdefault(row.task, []).append(row)
    report = {task: summary(some, errors=False) for task, some in rows.items()}
    evidence.finish({"tasks": report})
    return report


def print_report(report: Mapping[str, Any]) -> None:
    """A line for each task and kind: score, interval, and of how many."""
    table = Table("task", "kind", "right", "95 % interval", "n")
    for task, scores in report.items():
        kinds = {"all": scores, **scores["kinds"]}
        for kind, score in kinds.items():
            low, high = score["interval"]
            interval = f"{low:.1%} to {high:.1%}"
            table.add_row(task, kind, f"{score['score']:.1%}", interval, str(score["of"]))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["naming"])
    add_options(parser)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_report(naming(selected(options), options.out))


if __name__ == "__main__":
    main()
