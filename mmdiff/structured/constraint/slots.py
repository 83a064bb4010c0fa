"""Slots: the tokens that their open positions admit, by a token-level DFA or a list of values.

A slot's tokens are drawn together, so that whatever part of them is committed, the rest of the draw
shows that the slot can still be completed (arXiv 2505.23061 finds the likeliest such tokens the
same way). Acceptance is asked for at the slot's last position, and PAD follows only what is
accepted, so it stands at the end.

Shapes: N open positions, L positions of a slot, C classes, S states, K choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdiff.structured.constraint.token_dfa import ANY, SOLID, TokenDfa
from mmdiff.structured.schema.serialize import identity

Array = np.ndarray[Any, Any]
WORST = 1e4  # stands for infinite and missing logits, which leave no order among what is allowed
NEVER = -np.inf


class Slot(Protocol):
    """Positions from `first` on that are decided with respect to each other."""

    path: str  # JSON pointer of the value
    first: int
    length: int

    def decide(
        self,
        ids_L: Array,
        open_L: Array,
        asked: Array,
        rows_NV: Array,
        temperature: float,
        draws: torch.Generator,
    ) -> Array:
        """Ids (N) for the asked positions; what is not allowed there becomes minus infinity in the
        logits `rows_NV`.

        Args:
            ids_L: what is committed, where `open_L` is not True.
            asked: the open positions whose logits are given; the others may become anything.
        """
        ...

    def forced(self, ids_L: Array, open_L: Array) -> dict[int, int]:
        """Open positions (from 0) at which only one token is left, and that token."""
        ...


@dataclass(eq=False)
class WordSlot:
    """A word that a token automaton accepts; the first `solid` positions are not PAD."""

    path: str
    first: int
    length: int
    automaton: TokenDfa
    solid: int = 0

    def decide(
        self,
        ids_L: Array,
        open_L: Array,
        asked: Array,
        rows_NV: Array,
        temperature: float,
        draws: torch.Generator,
    ) -> Array:
        """As `Slot.decide`: at temperature 0 the ids that are likeliest together.

        Above, they are drawn from the distribution that the positions, each by itself, have given
        that the word is accepted (backward filter, forward sampling).
        """
        automaton, class_L = self.automaton, self._classes(ids_L, open_L)
        masks = list(map(automaton.mask, self._allowed(class_L)))
        for row_V, position in zip(rows_NV, asked, strict=True):
            _mask_row(row_V, *masks[position][1:])
        best_N = rows_NV.argmax(1)
        if not np.isfinite(rows_NV[np.arange(len(asked)), best_N]).all():
            self._tame_rows(rows_NV, asked, masks)
            best_N = rows_NV.argmax(1)
        if (
            temperature == 0
            and len(asked) == open_L.sum()
            and self._accepts(class_L, asked, best_N)
        ):
            return best_N  # what is best at each position by itself is best together
        allowed_LC = np.array([classes_C for classes_C, _, _ in masks])
        best_NC, tops = _class_scores(automaton, rows_NV, allowed_LC[asked], temperature)
        if not np.isfinite(best_NC[allowed_LC[asked]]).all():
            self._tame_rows(rows_NV, asked, masks)
            best_NC, tops = _class_scores(automaton, rows_NV, allowed_LC[asked], temperature)
        # Given positions count by their scores, the others alike for every class that may be there.
        score_LC = np.where(allowed_LC, 0.0, NEVER)
        score_LC[asked] = np.where(allowed_LC[asked], best_NC, NEVER)
        found = []
        if temperature == 0:
            path_L = best_path(automaton, score_LC)
            for row_V, position, top in zip(rows_NV, asked, tops, strict=True):
                found.append(self._best(int(path_L[position]), row_V, top))
        else:
            path_L = drawn_path(automaton, score_LC, _uniforms(self.length, draws))
            for row_V, position in zip(rows_NV, asked, strict=True):
                members = automaton.members(int(path_L[position]))
                found.append(_drawn(members, row_V, temperature, draws))
        return np.array(found, dtype=np.int64)

    def _tame_rows(self, rows_NV: Array, asked: Array, masks: Sequence[Any]) -> None:
        for row_V, position in zip(rows_NV, asked, strict=True):
            _tame(row_V, self.automaton.fits(masks[position][0]))

    def forced(self, ids_L: Array, open_L: Array) -> dict[int, int]:
        """As `Slot.forced`."""
        found = {}
        for position, number in enumerate(self._allowed(self._classes(ids_L, open_L))):
            if open_L[position]:
                _, all_but, tokens = self.automaton.mask(number)
                if not all_but and len(tokens) == 1:
                    found[position] = int(tokens[0])
        return found

    def allowed(self, ids_L: Array, open_L: Array) -> Array:
        """Which classes may stand at each position (L, C), so that with what is committed the word
        can be accepted."""
        found = []
        for number in self._allowed(self._classes(ids_L, open_L)):
            found.append(self.automaton.mask(number)[0])
        return np.array(found)

    def _classes(self, ids_L: Array, open_L: Array) -> list[int]:
        """The class of each committed token, ANY or SOLID where the slot is open."""
        # Token 0 stands in for open positions, whose class is not looked at.
        class_L = np.where(open_L, ANY, self.automaton.class_V[np.where(open_L, 0, ids_L)])
        class_L[: self.solid][open_L[: self.solid]] = SOLID
        classes: list[int] = class_L.tolist()
        return classes

    def _allowed(self, class_L: list[int]) -> list[int]:
        """The number of the classes that may stand at each position."""
        automaton = self.automaton
        automaton.forget()
        ends = [automaton.accepting]
        for chosen in reversed(class_L):
            ends.append(automaton.before(ends[-1], chosen))
        ends.reverse()
        here = ends[0] & (1 << automaton.start)
        assert here, f"slot {self.path} cannot be completed"
        numbers = []
        for chosen, after in zip(class_L, ends[1:], strict=True):
            here, number = automaton.step(here, after, chosen)
            numbers.append(number)
        return numbers

    def reads(self, ids_L: Sequence[int]) -> bool:
        """Whether the slot may hold these tokens."""
        solid = all(token != self.automaton.pad for token in ids_L[: self.solid])
        return solid and self.automaton.accepts(
            [int(self.automaton.class_V[token]) for token in ids_L]
        )

    def _accepts(self, class_L: list[int], asked: Array, ids_N: Array) -> bool:
        classes = list(class_L)
        for position, token in zip(asked.tolist(), ids_N.tolist(), strict=True):
            classes[position] = int(self.automaton.class_V[token])
        return self.automaton.accepts(classes)

    def _best(self, chosen: int, row_V: Array, top: dict[int, int]) -> int:
        if chosen in top:
            return top[chosen]
        members = self.automaton.members(chosen)
        return int(members[row_V[members].argmax()])


@dataclass(eq=False)
class ChoiceSlot:
    """One of a few values, each spelled by its own tokens with PAD behind; it is decided as a
    whole."""

    path: str
    first: int
    length: int
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    ids_KL: Array
    probabilities: tuple[
        float, ...
    ] = ()  # of the values, when one was chosen with nothing committed

    def decide(
        self,
        ids_L: Array,
        open_L: Array,
        asked: Array,
        rows_NV: Array,
        temperature: float,
        draws: torch.Generator,
    ) -> Array:
        """As `Slot.decide`: the value whose tokens are likeliest together, or one drawn by that
        likelihood."""
        gain_K = self.gains(ids_L, open_L, asked, rows_NV, self.left(ids_L, open_L))
        if temperature > 0:
            gain_K = gain_K / temperature + _gumbel(len(gain_K), draws)
        return np.asarray(self.ids_KL[int(gain_K.argmax()), asked])

    def gains(
        self, ids_L: Array, open_L: Array, asked: Array, rows_NV: Array, allowed_K: Array
    ) -> Array:
        """The log-likelihood of each allowed value (K); of the others, as of their tokens in
        `rows_NV`, minus infinity.

        It is that of the tokens asked for, each among those that any allowed value has in its
        position.
        """
        choices = np.flatnonzero(allowed_K)
        fits = []
        for position in asked:
            fits.append(np.unique(self.ids_KL[choices, position]))
        for row_V, tokens in zip(rows_NV, fits, strict=True):
            _mask_row(row_V, False, tokens)
            if not np.isfinite(row_V[tokens]).all():
                _tame(row_V, tokens)
        logs_NV = []
        for row_V, tokens in zip(rows_NV, fits, strict=True):
            logs_NV.append(_log_softmax(row_V[tokens]))
        # The values' tokens are among the sorted `tokens`, so a search finds their columns.
        sums = np.zeros(len(choices))
        for position, tokens, logs in zip(asked, fits, logs_NV, strict=True):
            sums += logs[np.searchsorted(tokens, self.ids_KL[choices, position])]
        gain_K = np.full(len(self.values), NEVER)
        gain_K[choices] = sums
        if open_L.all() and len(asked) == self.length:
            self.probabilities = tuple(np.exp(_log_softmax(gain_K)).tolist())
        return gain_K

    def forced(self, ids_L: Array, open_L: Array) -> dict[int, int]:
        """As `Slot.forced`; while nothing is committed nothing is, so that the chances are those of
        whole values."""
        if open_L.all() and len(self.values) > 1:
            return {}
        return self.single(open_L, self.left(ids_L, open_L))

    def single(self, open_L: Array, allowed_K: Array) -> dict[int, int]:
        """Open positions (from 0) at which the allowed values have one token, and that token."""
        left_KL = self.ids_KL[allowed_K]
        single = open_L & (left_KL == left_KL[0]).all(0)
        found = {}
        for position in np.flatnonzero(single):
            found[int(position)] = int(left_KL[0, position])
        return found

    def left(self, ids_L: Array, open_L: Array) -> Array:
        """The choices that what is committed leaves (K)."""
        left_K = ((self.ids_KL == ids_L) | open_L).all(1)
        assert left_K.any(), f"slot {self.path} cannot be completed"
        return np.asarray(left_K)


@dataclass(eq=False)
class Distinct:
    """Choices no two of which may be the same value, as the items of a ranking: they are decided
    together.

    What one has been committed to is none of the others' any more. Of the rest the likeliest
    assignment is taken, or one of the perturbed likelihoods (Papandreou and Yuille, 2011), so that
    any part of it leaves the others a value.
    """

    slots: Sequence[ChoiceSlot]

    @cached_property
    def columns(self) -> list[Array]:
        """The number of each slot's values (K) among all values of the group."""
        known: dict[str, int] = {}
        found = []
        for slot in self.slots:
            found.append(
                np.array([known.setdefault(identity(value), len(known)) for value in slot.values])
            )
        return found

    def allowed(self, parts: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Which values of each slot (K) what is committed leaves.

        Args:
            parts: ids and open positions of each slot.
        """
        left = []
        for slot, part in zip(self.slots, parts, strict=True):
            left.append(slot.left(*part))
        taken: list[int | None] = []
        for left_K, columns, (_, open_L) in zip(left, self.columns, parts, strict=True):
            if open_L.any():
                taken.append(None)
            else:
                taken.append(int(columns[left_K][0]))
        found = []
        for number, (left_K, columns) in enumerate(zip(left, self.columns, strict=True)):
            others = []
            for other, each in enumerate(taken):
                if each is not None and other != number:
                    others.append(each)
            apart_K = left_K & ~np.isin(columns, others)
            found.append(apart_K if apart_K.any() else left_K)
        return found

    def choose(
        self, gains: Sequence[Array], temperature: float, draws: torch.Generator
    ) -> list[int]:
        """The value of each slot, all different where they can be, by the gains of its values."""
        # A value has one column in all slots, so that no two of them take it.
        num_columns = 1 + max(int(each.max()) for each in self.columns)
        gain_NM = np.full((len(gains), num_columns), NEVER)
        for row_M, gain_K, columns in zip(gain_NM, gains, self.columns, strict=True):
            if temperature == 0:
                row_M[columns] = gain_K
            else:
                row_M[columns] = gain_K / temperature + _gumbel(len(gain_K), draws)
        found = assignment(gain_NM)
        if found is None:  # they cannot all differ: the validator will tell
            found = gain_NM.argmax(1)
        made = []
        for columns, column in zip(self.columns, found, strict=True):
            made.append(int(np.flatnonzero(columns == column)[0]))
        return made


@dataclass(eq=False)
class SlotsConstraint:
    """The slots of one sequence, as a `sampler.Constraint`."""

    slots: Sequence[Slot]
    mask_id: int
    groups: Sequence[Distinct] = ()

    def decide(
        self,
        ids_G: Tensor,
        positions: Sequence[int],
        logits_NV: Tensor,
        temperature: float,
        draws: torch.Generator,
    ) -> Tensor:
        """As `sampler.Constraint.decide`."""
        rows_NV, row_G = logits_NV.numpy(), ids_G.numpy()
        ids_N = np.zeros(len(positions), dtype=np.int64)
        positions_N = np.array(positions)
        for slot in self._lone:
            here, asked = self._asked(slot, positions_N)
            if len(asked):
                ids_N[here] = slot.decide(
                    *self._part(row_G, slot), asked, rows_NV[here], temperature, draws
                )
        for group in self.groups:
            wanted = [self._asked(slot, positions_N) for slot in group.slots]
            if not any(len(asked) for _, asked in wanted):
                continue
            parts, gains = self._parts(row_G, group), []
            for slot, part, (here, asked), allowed_K in zip(
                group.slots, parts, wanted, group.allowed(parts), strict=True
            ):
                gains.append(slot.gains(*part, asked, rows_NV[here], allowed_K))
            chosen = group.choose(gains, temperature, draws)
            for slot, (here, asked), choice in zip(group.slots, wanted, chosen, strict=True):
                ids_N[here] = slot.ids_KL[choice, asked]
        return torch.from_numpy(ids_N)

    def expand(self, here_G: Tensor) -> Tensor:
        """As `sampler.Constraint.expand`: all of a choice."""
        here_G = here_G.clone()
        for slot in self.slots:
            if isinstance(slot, ChoiceSlot) and bool(
                here_G[slot.first : slot.first + slot.length].any()
            ):
                here_G[slot.first : slot.first + slot.length] = True
        return here_G

    def forced(self, ids_G: Tensor) -> dict[int, int]:
        """As `sampler.Constraint.forced`."""
        row_G, found = ids_G.numpy(), {}
        for slot in self._lone:
            ids_L, open_L = self._part(row_G, slot)
            if open_L.any():
                for position, token in slot.forced(ids_L, open_L).items():
                    found[slot.first + position] = token
        for group in self.groups:
            parts = self._parts(row_G, group)
            for slot, (_, open_L), allowed_K in zip(
                group.slots, parts, group.allowed(parts), strict=True
            ):
                if open_L.any() and not (open_L.all() and allowed_K.sum() > 1):
                    single = slot.single(open_L, allowed_K)
                    for position, token in single.items():
                        found[slot.first + position] = token
        return found

    @cached_property
    def _lone(self) -> list[Slot]:
        """The slots that are in no group."""
        grouped: set[int] = set()
        for group in self.groups:
            grouped.update(map(id, group.slots))
        found: list[Slot] = []
        for slot in self.slots:
            if id(slot) not in grouped:
                found.append(slot)
        return found

    def _asked(self, slot: Slot, positions_N: Array) -> tuple[slice, Array]:
        """The part of the positions that lies in a slot, and those counted from the slot's
        first."""
        first, end = np.searchsorted(positions_N, (slot.first, slot.first + slot.length))
        return slice(first, end), positions_N[first:end] - slot.first

    def _parts(self, row_G: Array, group: Distinct) -> list[tuple[Array, Array]]:
        return [self._part(row_G, slot) for slot in group.slots]

    def _part(self, row_G: Array, slot: Slot) -> tuple[Array, Array]:
        ids_L = row_G[slot.first : slot.first + slot.length]
        return ids_L, ids_L == self.mask_id


def assignment(gain_NM: Array) -> Array | None:
    """The column of each row (N), all different, of the greatest sum of gains; None where there is
    none.

    Minus infinity is what a row cannot have. By shortest augmenting paths (Jonker and Volgenant,
    1987).
    """
    rows, columns = gain_NM.shape
    if rows > columns:
        return None
    finite = np.isfinite(gain_NM)
    worst = 1.0 + (rows + 1) * float(np.abs(gain_NM[finite]).max(initial=1.0)) * 2
    cost_NM = np.where(finite, -np.where(finite, gain_NM, 0.0), worst)
    price_N, price_M = np.zeros(rows), np.zeros(columns)
    owner_M = np.full(columns, -1)
    for row in range(rows):
        best_M, came_M = np.full(columns, np.inf), np.full(columns, -1)
        open_M = np.ones(columns, dtype=bool)
        here, column = row, -1
        reached = [row]
        while True:  # grow the tree of alternating paths from this row to the nearest free column
            reduced_M = cost_NM[here] - price_N[here] - price_M
            nearer_M = open_M & (reduced_M < best_M)
            # Columns that are nearer by way of this row.
            best_M[nearer_M] = reduced_M[nearer_M]
            came_M[nearer_M] = column
            nearest = int(np.where(open_M, best_M, np.inf).argmin())
            step = best_M[nearest]
            price_N[reached] += step
            price_M[~open_M] -= step
            best_M[open_M] -= step
            open_M[nearest] = False
            column, here = nearest, int(owner_M[nearest])
            if here < 0:
                break
            reached.append(here)
        while column >= 0:  # turn the path round
            before = int(came_M[column])
            owner_M[column] = row if before < 0 else owner_M[before]
            column = before
    found_N = np.full(rows, -1)
    taken = np.flatnonzero(owner_M >= 0)
    found_N[owner_M[taken]] = taken  # from the owner of a column to the column of a row
    if finite[np.arange(rows), found_N].all():
        return found_N
    return None


def best_path(automaton: TokenDfa, score_LC: Array) -> Array:
    """The classes (L) of the best accepted way through the positions (Viterbi)."""
    length, states = len(score_LC), automaton.next_CS.shape[1]
    value = np.append(np.where(automaton.accepts_S, 0.0, NEVER), NEVER)  # the last entry is dead
    ways_LS = np.zeros((length, states), dtype=np.int64)
    for position in range(length - 1, -1, -1):
        # A way that leads nowhere (-1) reads the last entry, which is dead.
        total_CS = score_LC[position][:, None] + value[automaton.next_CS]
        ways_LS[position] = total_CS.argmax(0)
        value = np.append(total_CS.max(0), NEVER)
    state, path_L = automaton.start, np.zeros(length, dtype=np.int64)
    for position in range(length):
        path_L[position] = ways_LS[position, state]
        state = automaton.next_CS[path_L[position], state]
    return path_L


def drawn_path(automaton: TokenDfa, score_LC: Array, draws_L: Array) -> Array:
    """The classes (L) of an accepted way, drawn by its mass; `score_LC` are logarithms of the
    classes' masses."""
    length = len(score_LC)
    values = [np.append(np.where(automaton.accepts_S, 0.0, NEVER), NEVER)]
    for position in range(length - 1, -1, -1):
        # As in `best_path`: -1 reads the dead entry at the end.
        total_CS = score_LC[position][:, None] + values[-1][automaton.next_CS]
        top_S = total_CS.max(0)
        safe_S = np.where(np.isfinite(top_S), top_S, 0.0)
        with np.errstate(divide="ignore"):
            values.append(np.append(safe_S + np.log(np.exp(total_CS - safe_S).sum(0)), NEVER))
    values.reverse()
    state, path_L = automaton.start, np.zeros(length, dtype=np.int64)
    for position in range(length):
        weight_C = score_LC[position] + values[position + 1][automaton.next_CS[:, state]]
        mass_C = np.exp(weight_C - weight_C.max()).cumsum()
        path_L[position] = np.searchsorted(mass_C, draws_L[position] * mass_C[-1], side="right")
        state = automaton.next_CS[path_L[position], state]
    return path_L


def _class_scores(
    automaton: TokenDfa, rows_NV: Array, allowed_NC: Array, temperature: float
) -> tuple[Array, list[dict[int, int]]]:
    """Of each class (N, C) its best logit, or at a temperature the logarithm of its mass; and the
    best of big ones."""
    best_NC = np.full(allowed_NC.shape, NEVER)
    here, ids, starts = automaton.small
    # Small classes at once: their tokens side by side, each class a run of columns.
    if len(here):
        values = rows_NV[:, ids]
        if temperature == 0:
            best_NC[:, here] = np.maximum.reduceat(values, starts, axis=1)
        else:
            best_NC[:, here] = _log_masses(values / np.float64(temperature), starts)
    tops: list[dict[int, int]] = []
    for _ in rows_NV:
        tops.append({})
    # Big ones by themselves, as their tokens would be most of a copy of the row.
    for chosen, others in automaton.big:
        for turn in np.flatnonzero(allowed_NC[:, chosen]):
            if temperature == 0:
                row_V = rows_NV[turn].copy()
                row_V[others] = NEVER
                tops[turn][chosen] = top = int(row_V.argmax())
                best_NC[turn, chosen] = row_V[top]
            else:
                values = rows_NV[turn, automaton.members(chosen)][None] / np.float64(temperature)
                best_NC[turn, chosen] = _log_masses(values, np.zeros(1, dtype=int))[0, 0]
    return best_NC, tops


def _log_masses(values: Array, starts: Array) -> Array:
    """Logarithms of the sums of exponentials of runs of columns; not finite where the values are
    not."""
    sizes = np.diff(np.append(starts, values.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = np.maximum.reduceat(values, starts, axis=1)
        return np.asarray(
            top + np.log(np.add.reduceat(np.exp(values - top.repeat(sizes, 1)), starts, axis=1))
        )


def _log_softmax(values: Array) -> Array:
    values = values.astype(np.float64) - values.max()
    return np.asarray(values - np.log(np.exp(values).sum()))


def _mask_row(row_V: Array, all_but: bool, tokens: Array) -> None:
    """Only the tokens stay possible, or all but them."""
    if all_but:
        row_V[tokens] = NEVER
    else:  # put aside, so that the rest of the row is filled where it is
        kept = row_V[tokens]
        row_V[:] = NEVER
        row_V[tokens] = kept


def _tame(row_V: Array, fits: Array) -> None:
    """Finite numbers for all that is allowed; what is missing or infinitely unlikely is as bad as
    can be."""
    row_V[fits] = np.nan_to_num(row_V[fits], nan=-WORST, posinf=WORST, neginf=-WORST).clip(
        -WORST, WORST
    )


def _drawn(members: Array, row_V: Array, temperature: float, draws: torch.Generator) -> int:
    values = row_V[members] / np.float64(temperature)
    mass = np.exp(values - values.max()).cumsum()
    return int(members[np.searchsorted(mass, _uniforms(1, draws)[0] * mass[-1], side="right")])


def _gumbel(count: int, draws: torch.Generator) -> Array:
    """Noise with which the greatest of log-likelihoods is a draw by them."""
    return np.asarray(-np.log(-np.log(_uniforms(count, draws).clip(1e-300, 1 - 1e-16))))


def _uniforms(count: int, draws: torch.Generator) -> Array:
    return torch.rand(count, dtype=torch.float64, generator=draws).numpy()
