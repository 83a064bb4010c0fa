"""Structural decisions by the model: which options, how many items, how long each word is.

What comes next after a slot tells the options apart, so each decision takes one canvas: all before
it laid out, masks behind it. The decisions that can be reached are asked about in one batched pass,
deeper ones in the next. In one more the numbers of items that are likely are laid out, and the
number whose bounded choices are likeliest together with it is taken; and in a last one several
lengths of the words are tried, and those of the best mean confidence taken, as CAL does (arXiv
2602.00476), though without its correction of the bias; a word that fills the longest is tried at
more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from mmdiff.answers import Decision
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.constraint.slots import ChoiceSlot, WordSlot
from mmdiff.structured.constraint.template import Template
from mmdiff.structured.schema.errors import SchemaTooLargeError
from mmdiff.structured.schema.serialize import pointer
from mmdiff.structured.schema.structure import (
    Expansion,
    Made,
    Name,
    OpenDecision,
    RegularNode,
    SlotRef,
)

Array = np.ndarray[Any, Any]
Probe = Callable[
    [Sequence["ProbeRow"]], list[Array]
]  # of each row the log-probabilities (N, V) at its positions
ASKED = 64  # decisions in one pass,
CHAIN = 8  # and of those that follow each other, as the items of an array do
OPTIONS = 32  # of a decision, that are told apart
BEHIND = 16  # masks behind what the options begin with
ROUNDS = 12
USUAL = 32  # tokens of a word, up to which all lengths are tried,
LONGER = 1024  # and of all words together that longer lengths are tried for
UNLIKELY = float(np.log(0.01))  # numbers of items less likely than that are not tried
Chances = dict[Name, dict[int, float]]


class ProbeRow(NamedTuple):
    """Canvas ids, and the positions whose logits are wanted."""

    ids: Sequence[int]
    positions: Sequence[int]


@dataclass(frozen=True)
class Decided:
    canvas: Template
    decisions: tuple[Decision, ...] = ()  # on the way to it, where the model was asked


def search_structure(
    scaffold: CompiledSchema, probe: Probe, temperature: float, draws: torch.Generator
) -> Decided:
    """Decide everything but the slots' own tokens."""
    decisions: dict[Name, int] = {}
    chances: Chances = {}
    for _ in range(ROUNDS):
        questions = _questions(scaffold, decisions)
        if not questions:
            break
        chances.update(_ask(scaffold, questions, probe))
        if not _settle(scaffold, decisions, chances, temperature, draws):
            break
    if temperature == 0:
        decisions.update(_counts(scaffold, decisions, chances, probe))
    walk = scaffold.tree.walk(decisions)
    canvas = scaffold.layouts.lay_out(walk.pieces, _lengths(scaffold, walk, probe))
    return Decided(canvas, tuple(_told(walk, chances)))


def _told(walk: Expansion, chances: Chances) -> Iterator[Decision]:
    """The decisions of a walk with their chances."""
    counted: dict[str, list[Made]] = {}
    for made in walk.made:
        path, kind, number = made.name
        options = chances.get(made.name, {})
        if not any(options.values()) or made.chosen not in options:
            continue
        if kind == "more":
            counted.setdefault(path, []).append(made)
        elif kind == "next":
            yield from _present(made, options)
        else:
            yield Decision(path, "alternative", _first(made.chosen, options, made.labels))
    for path, several in counted.items():
        numbers = sorted(made.name[2] for made in several)
        ends = dict.fromkeys(numbers, 0.0)
        left = 1.0
        number = numbers[0]
        while (path, "more", number) in chances:
            ends[number] = left * chances[path, "more", number].get(0, 0.0)
            left, number = left - ends[number], number + 1
        ends[max(ends) + 1] = left
        chosen = next((made.name[2] for made in several if not made.chosen), numbers[-1] + 1)
        yield Decision(path, "items", _first(chosen, ends, {}))


def _present(made: Made, options: Mapping[int, float]) -> Iterator[Decision]:
    """A decision about the next member tells of all optional ones up to it whether they are
    there."""
    left = sum(options.values())
    for option in sorted(options):
        name = made.labels.get(option)
        if option > made.chosen or not name:
            return
        chance = min(1.0, options[option] / max(left, 1e-300))
        here = option == made.chosen
        if here:
            sure = chance
        else:
            sure = 1 - chance
        yield Decision(pointer(made.name[0], name), "present", ((here, sure), (not here, 1 - sure)))
        left -= options[option]


def _first(
    chosen: int, chances: Mapping[int, float], labels: Mapping[int, str]
) -> tuple[tuple[Any, float], ...]:
    """Options and chances, the chosen one first, then the likeliest."""
    total = sum(chances.values()) or 1.0
    order = sorted(chances, key=lambda option: (option != chosen, -chances[option]))
    found = []
    for option in order:
        found.append((labels.get(option, option), chances[option] / total))
    return tuple(found)


class _Question(NamedTuple):
    pending: OpenDecision
    walk: Expansion
    heads: dict[int, list[int]]  # the first tokens behind the last slot, of each option


def _questions(scaffold: CompiledSchema, decisions: Mapping[Name, int]) -> dict[Name, _Question]:
    """The decisions that are open, and those of their kind that they lead to."""
    found: dict[Name, _Question] = {}
    waiting = [(pending, dict(decisions)) for pending in scaffold.tree.walk(decisions).pending]
    while waiting and len(found) < ASKED:
        pending, known = waiting.pop(0)
        if pending.name in found or sum(name[:2] == pending.name[:2] for name in found) >= CHAIN:
            continue
        walk, heads = scaffold.tree.walk(known), {}
        for option in pending.options[:OPTIONS]:
            other = _affordable(scaffold, {**known, pending.name: option})
            if other is None:
                continue
            heads[option] = _head(scaffold, other, pending.at)
            for later in other.pending:
                if later.name[:2] == pending.name[:2] and later.name not in found:
                    waiting.append((later, {**known, pending.name: option}))
        found[pending.name] = _Question(pending, walk, heads)
    return found


def _affordable(scaffold: CompiledSchema, decisions: Mapping[Name, int]) -> Expansion | None:
    """The walk with these decisions; None where it is too long, too deep, or cannot be worked
    out."""
    try:
        walk = scaffold.tree.walk(decisions)
    except SchemaTooLargeError:
        return None
    if scaffold.layouts.affordable(walk, scaffold.budget):
        return walk
    return None


def _head(scaffold: CompiledSchema, walk: Expansion, at: int) -> list[int]:
    """What stands behind the last slot before a decision, up to the next slot or the end."""
    start = _last_slot(walk, at)
    text: str | SlotRef = ""
    if start < len(walk.pieces):
        text = walk.pieces[start]
    if not isinstance(text, str):
        return []
    last = start + 1 >= len(walk.pieces)
    return scaffold.layouts.literal(text) + ([scaffold.layouts.end_id] if last else [])


def _last_slot(walk: Expansion, at: int) -> int:
    """Pieces up to the last slot before a decision."""
    if at and isinstance(walk.pieces[at - 1], str):
        return at - 1
    return at


def _ask(scaffold: CompiledSchema, questions: Mapping[Name, _Question], probe: Probe) -> Chances:
    rows, wanted = [], []
    for name, question in questions.items():
        longest = max((len(head) for head in question.heads.values()), default=0)
        if len(question.heads) < 2 or longest == 0:
            continue
        before = scaffold.layouts.lay_out(
            question.walk.pieces[: _last_slot(question.walk, question.pending.at)], {}, end=False
        )
        start = len(before.ids)
        rows.append(
            ProbeRow(
                (*before.ids, *[scaffold.layouts.mask_id] * (longest + BEHIND)),
                range(start, start + longest),
            )
        )
        wanted.append(name)
    told = []
    if rows:
        told = probe(rows)
    chances = {}
    for name, question in questions.items():
        chances[name] = dict.fromkeys(question.heads, 0.0)
    for name, logs_NV in zip(wanted, told, strict=True):
        heads = questions[name].heads
        for option, chance in zip(
            heads, _shares(list(heads.values()), np.nan_to_num(logs_NV, nan=-1e4)), strict=True
        ):
            chances[name][option] = chance
    return chances


def _shares(heads: list[list[int]], logs_NV: Array, at: int = 0) -> list[float]:
    """The chance of each head: wherever they part, by the tokens' chances there; one that ends has
    the rest."""
    if len(heads) == 1:
        return [1.0]
    groups: dict[int | None, list[int]] = {}
    for number, head in enumerate(heads):
        groups.setdefault(head[at] if at < len(head) else None, []).append(number)
    mass: dict[int | None, float] = {}
    for token in groups:
        mass[token] = 0.0
        if token is not None:
            mass[token] = float(np.exp(logs_NV[at, token]))
    if None in groups:
        mass[None] = max(1.0 - sum(mass.values()), 1e-9)
    total, shares = sum(mass.values()), [0.0] * len(heads)
    for token, members in groups.items():
        if total > 0:
            share = mass[token] / total
        else:
            share = 1 / len(groups)
        if token is None:
            inner = [1 / len(members)] * len(members)
        else:
            inner = _shares([heads[number] for number in members], logs_NV, at + 1)
        for number, each in zip(members, inner, strict=True):
            shares[number] = share * each
    return shares


def _settle(
    scaffold: CompiledSchema,
    decisions: dict[Name, int],
    chances: Chances,
    temperature: float,
    draws: torch.Generator,
) -> bool:
    """Decide all that was asked about and is met; False when nothing was."""
    settled = set[
        Name
    ]()  # each once: alternatives may have decisions of one name with different options
    while met := [
        pending
        for pending in scaffold.tree.walk(decisions).pending
        if pending.name in chances and pending.name not in settled
    ]:
        for pending in met:
            decisions[pending.name] = _pick(pending, chances, temperature, draws)
            if _affordable(scaffold, decisions) is None:
                decisions[pending.name] = pending.options[0]
            settled.add(pending.name)
    return bool(settled)


def _pick(
    pending: OpenDecision, chances: Chances, temperature: float, draws: torch.Generator
) -> int:
    """At temperature 0 the beginning of the likeliest way through what follows, not the likeliest
    next step."""
    options = {}
    for option in pending.options:
        options[option] = chances[pending.name].get(option, 0.0)
    if not any(options.values()):
        return pending.options[0]
    if temperature == 0:
        return max(
            options, key=lambda option: options[option] * _ahead(pending.name, option, chances)
        )
    weights = torch.tensor(list(options.values()), dtype=torch.float64) ** (1 / temperature)
    return list(options)[int(torch.multinomial(weights, 1, generator=draws))]


def _ahead(name: Name, option: int, chances: Chances) -> float:
    """The chance of the likeliest way on among decisions in a row: items of an array, optional
    members."""
    path, kind, number = name
    later = {"more": number + 1 if option else -1, "next": option + 1}.get(kind, -1)
    options = chances.get((path, kind, later), {})
    return max(
        (chance * _ahead((path, kind, later), each, chances) for each, chance in options.items()),
        default=1.0,
    )


def _counts(
    scaffold: CompiledSchema, decisions: Mapping[Name, int], chances: Chances, probe: Probe
) -> dict[Name, int]:
    """Decisions about the numbers of items, by their own chances and those of the choices that then
    stand there."""
    trials: list[tuple[str, dict[Name, int], float, Template, ProbeRow]] = []
    for path in {path for path, kind, _ in chances if kind == "more"}:
        numbers = sorted(number for at, kind, number in chances if (at, kind) == (path, "more"))
        if (path, "more", numbers[0]) not in decisions:
            continue
        before = 0.0
        for count in range(numbers[0], numbers[-1] + 2):
            options = chances.get((path, "more", count), {0: 1.0})
            known: dict[Name, int] = {}
            for number in numbers:
                known[(path, "more", number)] = int(number < count)
            chance = before + float(np.log(max(options.get(0, 0.0), 1e-9)))
            before += float(np.log(max(options.get(1, 0.0), 1e-9)))
            walk = _affordable(scaffold, {**decisions, **known})
            if chance < UNLIKELY or walk is None:
                continue
            canvas = scaffold.layouts.lay_out(walk.pieces, {})
            positions = []
            for slot in _choices(canvas):
                for position in range(slot.first, slot.first + slot.length):
                    positions.append(position)
            trials.append((path, known, chance, canvas, ProbeRow(canvas.ids, positions)))
    several = Counter(path for path, *_ in trials)
    trials = [trial for trial in trials if several[trial[0]] > 1 and trial[-1].positions]
    best: dict[str, tuple[float, dict[Name, int]]] = {}
    for (path, known, chance, canvas, row), logs_NV in zip(
        trials, probe([t[-1] for t in trials]) if trials else [], strict=True
    ):
        score = chance + sum(_likeliest(slot, row, logs_NV) for slot in _choices(canvas))
        if path not in best or score > best[path][0]:
            best[path] = score, known
    return {name: option for _, known in best.values() for name, option in known.items()}


def _choices(canvas: Template) -> list[ChoiceSlot]:
    """The bounded choices of a value, among them those that speak of the whole, such as a count."""
    return [piece for piece in canvas.pieces if isinstance(piece, ChoiceSlot)]


def _likeliest(slot: ChoiceSlot, row: ProbeRow, logs_NV: Array) -> float:
    """The logarithm of the chance of a slot's likeliest choice."""
    first = list(row.positions).index(slot.first)
    rows_LV = logs_NV[first : first + slot.length].copy()
    slot.decide(
        np.zeros(slot.length, dtype=np.int64),
        np.ones(slot.length, dtype=bool),
        np.arange(slot.length),
        rows_LV,
        0.0,
        torch.Generator(),
    )
    return float(np.log(max(*slot.probabilities, 1e-9)))


def _lengths(scaffold: CompiledSchema, walk: Expansion, probe: Probe) -> dict[int, int]:
    """How long each word is, by its number among the pieces."""
    several = _open_lengths(scaffold, walk)
    spare = scaffold.budget - scaffold.layouts.count(walk)
    shortest = sum(lengths[0] for lengths in several.values())
    tries = _usual_lengths(several)
    best: dict[int, _Tried] = {}
    longest = dict.fromkeys(several, 0)  # that was tried: no length is tried again
    numbers = list(several)
    while tries := [lengths for lengths in tries if sum(lengths.values()) - shortest <= spare]:
        for number, tried in _tried(scaffold, walk, tries, numbers, probe):
            if number not in best or tried.score > best[number].score:
                best[number] = tried
        for number in numbers:
            longest[number] = max(lengths[number] for lengths in tries)
        longer = {}
        for number, tried in best.items():
            length = _next_length(several[number], tried)
            if length > USUAL and length > longest[number]:
                longer[number] = length
        if not longer or sum(longer.values()) > LONGER:
            break
        numbers = list(longer)
        tries = [{**_best_lengths(best), **longer}]
    return _best_lengths(best)


def _open_lengths(scaffold: CompiledSchema, walk: Expansion) -> dict[int, tuple[int, ...]]:
    """The lengths of each word that may have several."""
    several = {}
    for number, piece in enumerate(walk.pieces):
        if isinstance(piece, SlotRef) and isinstance(piece.node, RegularNode):
            lengths = scaffold.layouts.lengths(piece.node)
            if len(lengths) > 1:
                several[number] = lengths
    return several


def _usual_lengths(several: Mapping[int, tuple[int, ...]]) -> list[dict[int, int]]:
    """Lengths to try at once: the usual ones, from the shortest. Longer ones are tried later, and
    only for words that fill the longest of these."""
    usual: dict[int, list[int]] = {}
    for number, lengths in several.items():
        usual[number] = [length for length in lengths if length <= USUAL] or [lengths[0]]
    tries = []
    for turn in range(max(map(len, usual.values()), default=0)):
        chosen = {}
        for number, few in usual.items():
            chosen[number] = few[min(turn, len(few) - 1)]
        tries.append(chosen)
    return tries


def _next_length(lengths: tuple[int, ...], tried: _Tried) -> int:
    """The next length of a word that filled the one it had; 0 where there is none."""
    if tried.full:
        for length in lengths:
            if length > tried.length:
                return length
    return 0


def _best_lengths(best: Mapping[int, _Tried]) -> dict[int, int]:
    found = {}
    for number, tried in best.items():
        found[number] = tried.length
    return found


class _Tried(NamedTuple):
    """A length of a word: how sure its likeliest word is, and whether that fills it."""

    score: float
    length: int
    full: bool


def _tried(
    scaffold: CompiledSchema,
    walk: Expansion,
    tries: Sequence[dict[int, int]],
    numbers: Sequence[int],
    probe: Probe,
) -> Iterator[tuple[int, _Tried]]:
    canvases = []
    for lengths in tries:
        canvases.append(scaffold.layouts.lay_out(walk.pieces, lengths))
    rows = []
    for canvas in canvases:
        rows.append(
            ProbeRow(
                canvas.ids,
                [position for number in numbers for position in _positions(canvas, number)],
            )
        )
    told = probe(rows)
    for number in numbers:
        for lengths, canvas, row, logs_NV in zip(tries, canvases, rows, told, strict=True):
            score, full = _confidence(canvas, row, logs_NV, number)
            yield number, _Tried(score, lengths[number], full)


def _positions(canvas: Template, number: int) -> range:
    slot = canvas.pieces[number]
    assert isinstance(slot, WordSlot)
    return range(slot.first, slot.first + slot.length)


def _confidence(canvas: Template, row: ProbeRow, logs_NV: Array, number: int) -> tuple[float, bool]:
    """The mean log-probability of the likeliest allowed word in a slot, and whether that has no
    PAD."""
    slot = canvas.pieces[number]
    assert isinstance(slot, WordSlot)
    first = list(row.positions).index(slot.first)
    rows_LV = logs_NV[first : first + slot.length].copy()
    free = np.ones(slot.length, dtype=bool)
    ids = slot.decide(
        np.zeros(slot.length, dtype=np.int64),
        free,
        np.arange(slot.length),
        rows_LV,
        0.0,
        torch.Generator(),
    )
    logs_L = np.nan_to_num(
        logs_NV[np.arange(first, first + slot.length), ids], nan=-1e4, neginf=-1e4
    )
    return float(logs_L.mean()), int(ids[-1]) != slot.automaton.pad
