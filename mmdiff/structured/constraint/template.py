"""Templates: a walk through a tree as token ids, literals and slots, and how long each slot is.

A slot of bounded choices is as long as its longest choice, a word with a longest spelling as long
as that where it is short; any other word is given one of several lengths, and what it leaves over
becomes PAD at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.structured.constraint.slots import ChoiceSlot, Distinct, Slot, SlotsConstraint, WordSlot
from mmdiff.structured.constraint.token_dfa import TokenDfa, Vocabulary
from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import LanguageError, still_time
from mmdiff.structured.regular.lru_cache import LruCache
from mmdiff.structured.schema.errors import BudgetError, UnsupportedSchemaError
from mmdiff.structured.schema.serialize import dumps, slot_ids
from mmdiff.structured.schema.structure import EnumNode, Expansion, RegularNode, SlotRef

LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256)  # tokens, of a word that may be long
KEPT = 4096  # literals, tables of choices, and lengths of words
REFUSED = 256  # schemas that were too large
SHORT = 12  # bytes up to which a longest spelling decides a word's length
Lengths = Mapping[int, int]  # of slots, by their number among the pieces


@dataclass(frozen=True, eq=False)
class Template:
    """A row: ids, the mask where a slot stands, and its slots in order."""

    ids: tuple[int, ...]
    constraint: SlotsConstraint
    pieces: tuple[str | Slot, ...]
    expansion: tuple[str | SlotRef, ...]  # that the pieces were made of

    def begun(self) -> Tensor:
        """The ids (1, G), with those that nothing else could become."""
        ids_G = torch.tensor(self.ids)
        for position, token in self.constraint.forced(ids_G).items():
            ids_G[position] = token
        return ids_G[None]

    def texts(self, ids: Sequence[int], vocabulary: Vocabulary) -> list[str]:
        """What each piece says, once all positions are decided."""
        found = []
        for piece in self.pieces:
            if isinstance(piece, str):
                found.append(piece)
            else:
                found.append(slot_text(piece, ids, vocabulary))
        return found


def slot_text(slot: Slot, ids: Sequence[int], vocabulary: Vocabulary) -> str:
    inside = []
    for token in ids[slot.first : slot.first + slot.length]:
        if token != vocabulary.pad:
            inside.append(token)
    if isinstance(slot, ChoiceSlot):
        row = np.flatnonzero(
            (slot.ids_KL == np.array(ids[slot.first : slot.first + slot.length])).all(1)
        )[0]
        return slot.texts[int(row)]
    return vocabulary.text(inside)


class TemplateBuilder:
    """Lays walks out with one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, mask_id: int, end_id: int) -> None:
        self.vocabulary = vocabulary
        self.mask_id, self.end_id = mask_id, end_id
        self._literals: LruCache[str, list[int]] = LruCache(KEPT)
        self._choices: LruCache[int, tuple[EnumNode, Any]] = LruCache(KEPT)
        self._lengths: LruCache[Any, tuple[int, ...]] = LruCache(KEPT)
        self.refusals: LruCache[bytes, tuple[str, str]] = LruCache(
            REFUSED
        )  # schemas that are too large: why, and where

    def literal(self, text: str) -> list[int]:
        """The tokens of a literal."""
        ids = self._literals.get(text)
        if ids is not None:
            return ids
        return self._literals.put(text, self.vocabulary.encode(text))

    def lengths(self, node: EnumNode | RegularNode) -> tuple[int, ...]:
        """How long a slot may be, shortest first."""
        if isinstance(node, EnumNode):
            return (int(self.choices(node).shape[1]),)
        key = node.language, node.spelling, node.least, node.most
        lengths = self._lengths.get(key)
        if lengths is not None:
            return lengths
        return self._lengths.put(key, self._word_lengths(node))

    def _word_lengths(self, node: RegularNode) -> tuple[int, ...]:
        automaton = self.words(node, None)
        least = max(automaton.least, node.least, 1)
        if node.least:
            return (least,)
        longest = _longest(byte_dfa_of(node.language, node.spelling).next_SB)
        most = longest
        if longest is None:
            most = node.most
        if longest is not None and longest <= SHORT:
            return (max(longest, least),)
        return tuple(sorted({max(least, min(length, most or length)) for length in LENGTHS}))

    def choices(self, node: EnumNode) -> Any:
        """The tokens of all choices (K, L)."""
        if (kept := self._choices.get(id(node))) is None:
            end = []
            if node.ends:
                end = [self.end_id]
            rows = []
            for text in node.texts:
                still_time()
                plain = node.spelling == "plain"
                if plain:
                    ids = self.vocabulary.encode(text)
                else:
                    ids = slot_ids(self.vocabulary.encode, text)
                rows.append([*ids, *end])
            table = np.full((len(rows), max(map(len, rows))), self.vocabulary.pad, dtype=np.int64)
            for row, ids in zip(table, rows, strict=True):
                row[: len(ids)] = ids
            # The node is kept, lest its id is given to another.
            kept = self._choices.put(id(node), (node, table))
        return kept[1]

    def words(self, node: RegularNode, length: int | None) -> TokenDfa:
        """The automaton of a word of this many positions (None: of any number)."""
        cap = None
        if node.most is not None and length:
            cap = node.most // length
        key = node.language, node.spelling, bool(node.least), cap

        def make() -> TokenDfa:
            machine = byte_dfa_of(node.language, node.spelling)
            automaton = self.vocabulary.automaton(machine.next_SB, machine.accepts_S)
            if cap is None and not node.least:
                return automaton
            at_least, at_most = self.vocabulary.characters
            return automaton.only((at_most <= (cap or at_most)) & (at_least >= int(node.least > 0)))

        return self.vocabulary.kept(key, make)

    def holds(self, node: RegularNode, text: str) -> bool:
        """Whether a slot of some length that the node may have takes these characters of its
        language."""
        spelled = text
        if node.spelling == "json":
            spelled = dumps(text)[1:-1]
        ids = self.vocabulary.encode(spelled)
        for length in self.lengths(node):
            slot = self._slot(SlotRef(node, ""), 0, length)
            assert isinstance(slot, WordSlot)
            for tokens in (ids, self._respelled(spelled.encode(), slot.automaton)):
                blank = slot.length - len(tokens)
                if tokens and blank >= 0 and slot.reads([*tokens, *[self.vocabulary.pad] * blank]):
                    return True
        return not spelled and self.words(node, None).accepts(())

    def _respelled(self, spelled: bytes, automaton: TokenDfa) -> list[int]:
        """As few tokens as spell it, of those that the automaton knows; none where they cannot."""
        known = {}
        for token in automaton.ids.tolist():
            if word := self.vocabulary.spell(token):
                known[word] = token
        longest = max(map(len, known), default=0)
        ways: list[list[int] | None] = [[]]
        for end in range(1, len(spelled) + 1):
            before = (
                (start, known.get(spelled[start:end]))
                for start in range(max(0, end - longest), end)
            )
            found = []
            for start, token in before:
                if token is not None and (way := ways[start]) is not None:
                    found.append([*way, token])
            ways.append(min(found, key=len, default=None))
        return ways[-1] or []

    def count(self, walk: Expansion) -> int:
        """Tokens of the walk with its slots as short as they may be, and the end."""
        total = 1
        for piece in walk.pieces:
            still_time()
            total += (
                len(self.literal(piece)) if isinstance(piece, str) else self.lengths(piece.node)[0]
            )
        return total

    def affordable(self, walk: Expansion, budget: int) -> bool:
        """Whether the walk fits the budget, and everything in it can be worked out."""
        try:
            return self.count(walk) <= budget
        except (
            LanguageError,
            UnsupportedSchemaError,
        ):  # too large an automaton, or no tokens for it
            return False

    def lay_out(
        self, pieces: Sequence[str | SlotRef], lengths: Lengths, end: bool = True
    ) -> Template:
        """The canvas of some pieces; slots without a given length are as short as they may be."""
        ids: list[int] = []
        made: list[str | Slot] = []
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                ids += self.literal(piece)
                made.append(piece)
            else:
                slot = self._slot(piece, len(ids), lengths.get(number))
                ids += [self.mask_id] * slot.length
                made.append(slot)
        slots: list[Slot] = []
        for each in made:
            if not isinstance(each, str):
                slots.append(each)
        last = None
        if pieces and isinstance(pieces[-1], SlotRef):
            last = pieces[-1].node
        end &= not (isinstance(last, EnumNode) and last.ends)
        constraint = SlotsConstraint(slots, self.mask_id, _groups(pieces, made))
        return Template(
            (*ids, *([self.end_id] if end else ())), constraint, tuple(made), tuple(pieces)
        )

    def _slot(self, ref: SlotRef, first: int, length: int | None) -> Slot:
        node, path = ref.node, ref.path
        if isinstance(node, EnumNode):
            table = self.choices(node)
            return ChoiceSlot(path, first, table.shape[1], node.values, node.texts, table)
        length = length or self.lengths(node)[0]
        automaton = self.words(node, length)
        while automaton.least > length:  # shorter tokens need more positions
            length = automaton.least
            automaton = self.words(node, length)
        return WordSlot(path, first, length, automaton, node.least)

    def fit(self, walk: Expansion, budget: int) -> None:
        """Refuse what is too long even at its shortest.

        Raises:
            BudgetError: it names how many tokens are needed.
        """
        if (needed := self.count(walk)) > budget:
            raise BudgetError(
                f"the shortest value takes {needed} tokens, and at most {budget} are allowed; "
                f"raise max_tokens to at least {needed}, or ask for a shorter one",
                needed,
            )


def _groups(pieces: Sequence[str | SlotRef], made: Sequence[str | Slot]) -> list[Distinct]:
    found: dict[str, list[ChoiceSlot]] = {}
    for piece, slot in zip(pieces, made, strict=True):
        if isinstance(piece, SlotRef) and piece.group and isinstance(slot, ChoiceSlot):
            found.setdefault(piece.group, []).append(slot)
    result = []
    for slots in found.values():
        if len(slots) > 1:
            result.append(Distinct(slots))
    return result


def _longest(next_SB: Any) -> int | None:
    """Bytes of an automaton's longest word; None where there is no longest."""
    states = len(next_SB)
    ways = []
    for row in next_SB:
        ways.append(np.unique(row[row >= 0]).tolist())
    known: dict[int, int] = {}
    path, on_path = [0], {0}
    at = [0]  # of each state of the path, how many of its ways were taken
    while path:  # depth-first, without recursion
        state = path[-1]
        if at[-1] < len(ways[state]):
            target = ways[state][at[-1]]
            at[-1] += 1
            if target in on_path:
                return None
            if target not in known:
                path.append(target)
                on_path.add(target)
                at.append(0)
            continue
        known[state] = max((1 + known[target] for target in ways[state]), default=0)
        on_path.discard(state)
        path.pop()
        at.pop()
        assert len(path) <= states
    return known[0]
