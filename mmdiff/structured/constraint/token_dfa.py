"""Token-level DFA, in which tokens with equal transitions share a class; and what each token
spells, as bytes.

Tokens are never decoded one by one: alone, many are not valid UTF-8, and leading spaces come and
go. Their bytes are read from the tokenizer's own tables. Byte-level BPE, SentencePiece (with byte
fallback) and WordPiece are known.

Shapes: S states, C classes of tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmdiff.config import TokenIds
from mmdiff.errors import MMDiffError
from mmdiff.structured.regular.lru_cache import LruCache
from mmdiff.structured.schema.errors import UnsupportedSchemaError

BIG = 2048  # tokens of a class whose best is sought in whole rows instead of among its members
KEPT = 64  # automata per vocabulary
REMEMBERED = 20_000  # steps of sets of states, per automaton,
MASKS = 256  # and sets of tokens
NONE, ANY = -1, -2  # instead of a class: none, any,
SOLID = -3  # and any but PAD
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class TokenDfa:
    """States and what tokens do to them; tokens that do the same to every state are one class.

    `next_CS` is -1 where a class has no way on. The ids of class c are `ids[offsets[c]:offsets[c +
    1]]`.
    """

    next_CS: Array
    accepts_S: Array
    start: int
    ids: Array
    offsets: Array
    vocab_size: int
    pad: int
    _before: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    _steps: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict, repr=False)
    _numbers: dict[bytes, int] = field(default_factory=dict, repr=False)
    _masks: list[tuple[Array, bool, Array]] = field(default_factory=list, repr=False)

    @cached_property
    def class_V(self) -> Array:
        """The class of each token, or NONE."""
        # `ids` are sorted by class: each class number, as often as it has tokens.
        classes = np.full(self.vocab_size, NONE, dtype=np.int32)
        classes[self.ids] = np.repeat(np.arange(len(self.next_CS)), np.diff(self.offsets))
        return classes

    @property
    def pad_class(self) -> int:
        """The class of PAD alone."""
        return int(self.class_V[self.pad])

    def before(self, ends: int, chosen: int) -> int:
        """The states (a bit each) from which a class of `chosen` leads into `ends`; see `step`."""
        key = ends, chosen
        if key not in self._before:
            ways_CS = self._inside(ends)[self.next_CS] & self._chosen(chosen)[:, None]
            self._before[key] = _bits(np.asarray(ways_CS.any(0)))
        return self._before[key]

    def step(self, here: int, ends: int, chosen: int) -> tuple[int, int]:
        """The states reached in `ends` from those of `here`, and a number for the classes that lead
        there.

        Args:
            chosen: the class at this position, or ANY, or SOLID for any but PAD.
        """
        key = here, ends, chosen
        if key not in self._steps:
            states = np.flatnonzero(self._inside(here)[:-1])
            next_CH = self.next_CS[:, states]
            ways_CH = self._inside(ends)[next_CH] & self._chosen(chosen)[:, None]
            # The states that a way in the direction of `ends` leads to.
            reached = np.zeros(self.next_CS.shape[1], dtype=bool)
            reached[next_CH[ways_CH]] = True
            self._steps[key] = _bits(reached), self._number(np.asarray(ways_CH.any(1)))
        return self._steps[key]

    @property
    def accepting(self) -> int:
        return _bits(self.accepts_S)

    def mask(self, number: int) -> tuple[Array, bool, Array]:
        """The classes (C) of this number; and their tokens or (True) all tokens but theirs,
        whichever are fewer."""
        return self._masks[number]

    def fits(self, classes_C: Array) -> Array:
        """Whether each token (V) is of one of these classes."""
        return np.asarray((self.class_V >= 0) & classes_C[self.class_V])

    def _inside(self, states: int) -> Array:
        """Whether each state is one of these, and False for the dead one at the end."""
        count = self.next_CS.shape[1]
        raw = np.frombuffer(states.to_bytes(count // 8 + 1, "little"), dtype=np.uint8)
        return np.unpackbits(raw, bitorder="little")[: count + 1].astype(bool)

    def _chosen(self, chosen: int) -> Array:
        classes = np.arange(len(self.next_CS))
        if chosen == SOLID:
            return classes != self.pad_class
        if chosen == ANY:
            return np.ones(len(classes), dtype=bool)
        return classes == chosen

    def _number(self, classes_C: Array) -> int:
        key = classes_C.tobytes()
        if key not in self._numbers:
            fits_V = self.fits(classes_C)
            all_but = 2 * int(fits_V.sum()) > len(fits_V)
            self._numbers[key] = len(self._masks)
            self._masks.append((classes_C, all_but, np.flatnonzero(fits_V != all_but)))
        return self._numbers[key]

    def forget(self) -> None:
        """Bound what is remembered of sets of states."""
        if len(self._before) + len(self._steps) > REMEMBERED or len(self._masks) > MASKS:
            for kept in (self._before, self._steps, self._numbers, self._masks):
                kept.clear()

    def only(self, fits_V: Array) -> TokenDfa:
        """The same with these tokens alone, and PAD."""
        kept = fits_V[self.ids] | (self.ids == self.pad)
        classes = np.repeat(np.arange(len(self.next_CS)), np.diff(self.offsets))[kept]
        left, sizes = np.unique(classes, return_counts=True)
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        return TokenDfa(
            self.next_CS[left],
            self.accepts_S,
            self.start,
            self.ids[kept],
            offsets,
            self.vocab_size,
            self.pad,
        )

    @cached_property
    def big(self) -> list[tuple[int, Array]]:
        """The classes with very many tokens, and all tokens that are not in them."""
        sizes = np.diff(self.offsets)
        found = []
        for c in np.flatnonzero(sizes > BIG):
            found.append((int(c), np.flatnonzero(self.class_V != c)))
        return found

    @cached_property
    def small(self) -> tuple[Array, Array, Array]:
        """The other classes, their tokens, and where those of each begin."""
        sizes = np.diff(self.offsets)
        here = np.flatnonzero((sizes <= BIG) & (sizes > 0))
        ids = []
        for c in here:
            ids.append(self.ids[self.offsets[c] : self.offsets[c + 1]])
        if len(here):
            starts = np.concatenate(([0], np.cumsum(sizes[here])[:-1]))
        else:
            starts = np.zeros(0, dtype=int)
        return here, np.concatenate(ids) if ids else np.zeros(0, dtype=int), starts

    def accepts(self, classes: Sequence[int]) -> bool:
        """Whether tokens of these classes, in turn, are a word."""
        state = self.start
        for chosen in classes:
            if state >= 0 and chosen >= 0:
                state = int(self.next_CS[chosen, state])
            else:
                state = -1
        return state >= 0 and bool(self.accepts_S[state])

    def members(self, chosen: int) -> Array:
        return self.ids[self.offsets[chosen] : self.offsets[chosen + 1]]

    @cached_property
    def least(self) -> int:
        """Tokens of the shortest way from the start to acceptance."""
        here_S = np.arange(self.next_CS.shape[1]) == self.start
        seen_S, count = here_S.copy(), 0
        while not (here_S & self.accepts_S).any():
            reached = self.next_CS[:, here_S]
            here_S = np.zeros_like(seen_S)  # the next states, without the dead one
            here_S[reached[reached >= 0]] = True
            here_S &= ~seen_S
            if not here_S.any():
                raise UnsupportedSchemaError(
                    "the model's tokenizer cannot spell any text that fits"
                )
            seen_S |= here_S
            count += 1
        return count


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that may stand in a slot, the one that fills what is left over of it, and the
    tokenizer."""

    spelled: Sequence[bytes | None]  # by id; None for those that never stand in a slot
    pad: int
    swallows_space: bool  # whether a space in front of a text's first token is not written
    encode: Callable[[str], list[int]]
    _kept: LruCache[Hashable, TokenDfa] = field(default_factory=lambda: LruCache(KEPT))

    @classmethod
    def of(cls, tokenizer: Any, tokens: TokenIds, size: int | None = None) -> Vocabulary:
        """The vocabulary of a fast tokenizer of `transformers`.

        Args:
            size: ids that the model has logits for, which may be more than the tokenizer has
                tokens.

        Raises:
            MMDiffError: it is of a kind that is not known.
        """
        plan = json.loads(tokenizer.backend_tokenizer.to_str())
        spell, swallows = _speller(plan)
        added = set()
        for token in plan.get("added_tokens", ()):
            added.add(token["id"])
        never = {
            *added,
            *tokens.never,
            tokens.mask,
            tokens.eos,
            tokens.eot,
            tokens.bos,
            tokens.pad,
            tokens.image,
            tokens.audio,
        }
        spelled: list[bytes | None] = [None] * (size or 1 + max(tokenizer.get_vocab().values()))
        for token, number in tokenizer.get_vocab().items():
            if number not in never and number < len(spelled):
                spelled[number] = spell(token)

        from tokenizers import Tokenizer

        # Literals are words: none of them is a control token, which would end the answer or hide a
        # part of it.
        plain = Tokenizer.from_str(json.dumps({**plan, "added_tokens": []}))

        def encode(text: str) -> list[int]:
            return list(plain.encode(text, add_special_tokens=False).ids)

        return cls(spelled, tokens.eos, swallows, encode)

    def spell(self, token: int) -> bytes | None:
        """The bytes of a token; None where it never stands in a slot."""
        if token < len(self.spelled):
            return self.spelled[token]
        return None

    def text(self, ids: Sequence[int]) -> str:
        """What the tokens of a slot spell."""
        spelled = b"".join(self.spelled[token] or b"" for token in ids)
        if self.swallows_space and spelled.startswith(b" "):
            spelled = spelled[1:]
        return spelled.decode()

    def prepare(self) -> None:
        """Work out what every automaton needs; later calls find it done."""
        _ = self._tries, self.characters

    def kept(self, key: Hashable, make: Callable[[], TokenDfa]) -> TokenDfa:
        """What `make` gives, made once."""
        found = self._kept.get(key)
        if found is not None:
            return found
        return self._kept.put(key, make())

    def automaton(self, next_SB: Array, accepts_S: Array) -> TokenDfa:
        """Read an automaton over bytes (S, 256; -1 where there is no way on) by tokens, and PAD
        behind acceptance."""
        ids, rows_TS = self._walk(self._tries[0], next_SB, np.arange(len(next_SB)))
        start = 0
        if self.swallows_space:  # a state of its own, for the first token is read otherwise
            first_ids, first_T1 = self._walk(self._tries[1], next_SB, np.zeros(1, dtype=np.int64))
            every = np.union1d(ids, first_ids)
            # Both tables over the union of their tokens, the new state behind the others.
            joined = np.full((len(every), len(next_SB) + 1), -1, dtype=np.int32)
            joined[np.searchsorted(every, ids), :-1] = rows_TS
            joined[np.searchsorted(every, first_ids), -1] = first_T1[:, 0]
            ids, rows_TS = every, joined
            accepts_S, start = np.append(accepts_S, accepts_S[0]), len(next_SB)
        states = rows_TS.shape[1]
        padded = np.full((len(ids) + 1, states + 1), -1, dtype=np.int32)
        padded[:-1, :-1] = rows_TS
        padded[-1, np.append(accepts_S, True)] = states  # PAD, from acceptance or from PAD
        return _classes(
            np.append(ids, self.pad), padded, np.append(accepts_S, True), start, self.size, self.pad
        )

    @property
    def size(self) -> int:
        return max(len(self.spelled), self.pad + 1)

    @cached_property
    def characters(self) -> tuple[Array, Array]:
        """At least and at most how many characters each token begins, inside a JSON string."""
        least, most = [], []
        for word in self.spelled:
            begun = 0
            for byte in word or b"":
                begun += not 0x80 <= byte < 0xC0  # not a byte that continues a character
            most.append(begun)
            least.append(begun - (word or b"").count(b"\\"))
        pad = (0, self.size - len(self.spelled))
        return np.pad(least, pad), np.pad(most, pad)

    @cached_property
    def _tries(self) -> tuple[_Trie, _Trie]:
        """Of all tokens, and of them as they are read at the beginning of a text."""
        swallowed: list[bytes | None] = []
        for word in self.spelled:
            if word and word.startswith(b" "):
                swallowed.append(word[1:])
            else:
                swallowed.append(word)
        return _Trie(self.spelled), _Trie(swallowed)

    def _walk(self, trie: _Trie, next_SB: Array, states: Array) -> tuple[Array, Array]:
        """The tokens that lead on from any of the states, and where from each (T, S)."""
        found: list[tuple[Array, Array]] = []
        rows, alive = states[None].astype(np.int32), np.zeros(1, dtype=np.int64)  # the root
        # A dead state (-1, the last row) goes nowhere.
        wide = np.vstack((next_SB, np.full((1, 256), -1))).astype(np.int32)
        for parents, symbols, token_nodes, tokens in trie.levels:
            # Where the nodes that are alive stand in `rows`, by their numbers.
            position = np.full(parents.max() + 1, -1, dtype=np.int64)
            position[alive[alive <= parents.max()]] = np.flatnonzero(alive <= parents.max())
            reached = np.flatnonzero(position[parents] >= 0)
            rows = wide[rows[position[parents[reached]]], symbols[reached, None]]
            living = (rows >= 0).any(1)
            rows, alive = rows[living], reached[living]
            if not len(alive):
                break
            position = np.full(len(parents), -1, dtype=np.int64)
            position[alive] = np.arange(len(alive))
            here = position[token_nodes] >= 0
            found.append((tokens[here], rows[position[token_nodes[here]]]))
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros((0, len(states)), dtype=np.int32)
        ids = np.concatenate([tokens for tokens, _ in found])
        table = np.concatenate([rows for _, rows in found])
        order = ids.argsort()
        return ids[order], table[order]


class _Trie:
    """The tokens' bytes, level by level: of each node its parent in the level before and its
    byte."""

    def __init__(self, spelled: Sequence[bytes | None]) -> None:
        words = []
        for number, word in enumerate(spelled):
            if word:
                words.append((word, number))
        self.levels: list[tuple[Array, ...]] = []
        before: dict[bytes, int] = {b"": 0}
        depth = 1
        while words:
            here: dict[bytes, int] = {}
            parents: list[int] = []
            symbols: list[int] = []
            token_nodes: list[int] = []
            tokens: list[int] = []
            for word, number in words:
                head = word[:depth]
                node = here.get(head)
                if node is None:
                    node = here[head] = len(here)
                    parents.append(before[head[:-1]])
                    symbols.append(head[-1])
                if len(word) == depth:
                    token_nodes.append(node)
                    tokens.append(number)
            level = []
            for each in (parents, symbols, token_nodes, tokens):
                level.append(np.array(each, dtype=np.int64))
            self.levels.append(tuple(level))
            words = [pair for pair in words if len(pair[0]) > depth]
            before, depth = here, depth + 1


def _classes(
    ids: Array, rows_TS: Array, accepts_S: Array, start: int, vocab_size: int, pad: int
) -> TokenDfa:
    """Tokens with equal rows put together."""
    draws = np.random.default_rng(0).integers(1, 2**62, rows_TS.shape[1], dtype=np.int64)
    with np.errstate(over="ignore"):
        hashes = (rows_TS.astype(np.int64) + 2) @ draws  # far cheaper to sort than rows
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = inverse.argsort(kind="stable")
    offsets = np.concatenate(([0], np.cumsum(np.bincount(inverse))))
    return TokenDfa(rows_TS[first], accepts_S, start, ids[order], offsets, vocab_size, pad)


def _bits(states_S: Array) -> int:
    return int.from_bytes(np.packbits(states_S, bitorder="little").tobytes(), "little")


def _speller(plan: dict[str, Any]) -> tuple[Callable[[str], bytes | None], bool]:
    """How tokens of this tokenizer spell bytes, and whether a text's first space is not written."""
    parts = [plan.get("decoder") or {}, *(plan.get("decoder") or {}).get("decoders", ())]
    kinds = set()
    for part in parts:
        kinds.add(part.get("type"))
    model = plan["model"]["type"]
    if "ByteLevel" in kinds:
        table = _byte_letters()
        return (
            lambda token: (
                bytes(table[letter] for letter in token) if table.keys() >= set(token) else None
            ),
            False,
        )
    if model == "WordPiece":
        prefix = plan["model"].get("continuing_subword_prefix", "##")
        return lambda token: (
            token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        ).encode(), True
    if "Metaspace" in kinds or "ByteFallback" in kinds or "Replace" in kinds:
        strips = "Metaspace" in kinds or "Strip" in kinds

        def spell(token: str) -> bytes:
            byte = BYTE_TOKEN.fullmatch(token)
            if byte:
                return bytes([int(byte[1], 16)])
            return token.replace("\u2581", " ").encode()

        return spell, strips
    raise MMDiffError(
        f"the tokenizer's decoder {sorted(map(str, kinds))} is not known; structured output needs "
        "byte-level BPE, SentencePiece or WordPiece"
    )


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level BPE (GPT-2): itself where it is
    printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + number): byte for number, byte in enumerate(rest)},
    }
