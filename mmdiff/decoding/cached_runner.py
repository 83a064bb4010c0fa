"""A model with prompts, and what is kept of it between the steps of a generation.

What a step computes is a cache's choice (kv_cache.py). Sequences that compute everything and those
that compute a part go through the backbone one after the other, so that no sequence's work depends
on its neighbours.

Shapes: A active sequences, G canvas positions, N selected positions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION, Array
from mmdiff.decoding.kv_cache import (
    CACHES,
    CachePolicy,
    CacheState,
    KVPool,
    KVSlot,
    LayerCache,
)
from mmdiff.decoding.model_runner import ModelRunner, Prompt
from mmdiff.decoding.sampler import Runner
from mmdiff.decoding.speculative import SpeculativeRunner
from mmdiff.errors import MMDiffError


class CachedRunner:
    """A `sampler.Runner` that keeps keys and values between the steps of a generation."""

    def __init__(self, runner: ModelRunner, cache: CachePolicy, block_length: int) -> None:
        self.runner, self.cache, self.block_length = runner, cache, block_length
        self.calls = 0  # passes through the backbone
        dtype = runner.prompts[0].embeds_PD.dtype
        self.pool = KVPool(runner.model.backbone.config, runner.device, dtype)

    @property
    def prompts(self) -> list[Prompt]:
        return self.runner.prompts

    @torch.inference_mode()
    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        assert hidden_AG is None, "no cache holds what a token would be if it were hidden"
        slots = self._slots(prompts, ids_AG.shape[1])
        progress = self._progress(ids_AG, slots, select_AG)
        anew_A = self.cache.needs_refresh(progress)
        columns_AG = self.cache.positions_to_recompute(progress) | select_AG
        columns_AG &= ids_AG != PAD_POSITION
        for slot, anew in zip(slots, anew_A, strict=True):
            slot.age = 1 if anew else slot.age + 1
        made, order = [], []
        for anew, some_A in ((True, anew_A), (False, ~anew_A)):
            if not some_A.any():
                continue
            rows = some_A.nonzero()[0]
            chosen = [prompts[row] for row in rows.tolist()]
            here = (ids_AG[rows], chosen, select_AG[rows])
            made.append(self._anew(*here) if anew else self._part(*here, columns_AG[rows]))
            order.append(rows.repeat(select_AG[rows].sum(1)))
        if len(made) == 1:
            return made[0]
        # Back into reading order: each sequence's logits follow each other already.
        at_N = np.concatenate(order).argsort(kind="stable")
        return torch.cat(made)[torch.from_numpy(at_N).to(self.runner.device)]

    def _slots(self, prompts: Sequence[Prompt], length: int) -> list[KVSlot]:
        """The slots of these sequences; all others are let go, for no finished one is asked for
        again."""
        known = [slot for each in prompts if (slot := each.slot) in self.pool.slots and slot]
        if known != self.pool.slots:
            self.pool.keep(known)
        self.pool.reserve(len(prompts), max(each.length for each in prompts) + length)
        for each in prompts:
            if each.slot not in self.pool.slots:
                each.slot = self.pool.add()
        return [slot for each in prompts if (slot := each.slot) is not None]

    def _anew(self, ids_AG: Array, prompts: Sequence[Prompt], select_AG: Array) -> Tensor:
        """Logits from a pass over prompts and canvases, of which the store may hold a beginning."""
        self.calls += 1
        keeps = functools.partial(self._writers, prompts)
        first = min(self._recall(each) for each in prompts)
        made = self.runner.prefill(ids_AG, prompts, select_AG, keeps=keeps, first=first)
        for each in prompts:
            self._remember(each)
        return made

    def _part(
        self, ids_AG: Array, prompts: Sequence[Prompt], select_AG: Array, columns_AG: Array
    ) -> Tensor:
        """Logits from a pass over some positions of the canvases."""
        self.calls += 1
        keeps = functools.partial(self._writers, prompts)
        return self.runner.decode(ids_AG, prompts, select_AG, columns_AG, keeps)

    def _writers(
        self, prompts: Sequence[Prompt], where: slice | Array, total: int
    ) -> list[LayerCache]:
        slots_A = np.array([each.slot.index for each in prompts if each.slot is not None])
        run = slice(int(slots_A[0]), int(slots_A[0]) + len(slots_A))
        same = (slots_A == np.arange(run.start, run.stop)).all()
        return self.pool.writers(where, run if same else slots_A, total)

    def _recall(self, prompt: Prompt) -> int:
        """Put in its slot what the store holds of a prompt; gives the first column that it does
        not."""
        store, end = self.runner.prefix_cache, 0
        for part in prompt.blocks if store is not None else ():
            assert store is not None and prompt.slot is not None
            found = store.get(b"kv" + part.key)
            if found is None:
                break
            self.pool.stored[:, :, prompt.slot.index, :, part.first : part.end] = found
            end = part.end
        return end

    def _remember(self, prompt: Prompt) -> None:
        """Give the store the keys and values of a prompt that was just computed."""
        store = self.runner.prefix_cache
        for part in prompt.blocks if store is not None else ():
            assert store is not None and prompt.slot is not None
            if b"kv" + part.key not in store:
                held = self.pool.stored[:, :, prompt.slot.index, :, part.first : part.end]
                store.put(b"kv" + part.key, held)

    def _progress(self, ids_AG: Array, slots: Sequence[KVSlot], select_AG: Array) -> CacheState:
        """Where the sequences stand, remembered for the next step."""
        open_AG = ids_AG == self.runner.model.model_config.tokens.mask
        block_A = select_AG.argmax(axis=1) // self.block_length
        length_A = (ids_AG != PAD_POSITION).sum(axis=1)
        numbers_G = np.arange(ids_AG.shape[1]) // self.block_length
        before_AG = np.ones_like(open_AG)
        for row, slot in zip(before_AG, slots, strict=True):
            seen = slot.open_G[: len(row)]
            row[: len(seen)] = seen
        progress = CacheState(
            open_AG,
            before_AG,
            numbers_G == block_A[:, None],
            block_A != [slot.block for slot in slots],
            np.array([slot.age for slot in slots]),
            length_A != [slot.length for slot in slots],
        )
        for row, slot in enumerate(slots):
            slot.open_G, slot.block, slot.length = open_AG[row], block_A[row], length_A[row]
        return progress


def make_runner(prompted: ModelRunner, decoding: DecodingConfig) -> Runner:
    """The prompts with the cache that the settings name; where they name none, with one that is
    exact."""
    model = prompted.model.model_config
    causal = model.backbone.attention_pattern == "segment-causal" and not model.backbone.shifted
    exact, hides = ("none", "prefix") if causal else ("none",), decoding.rule == "wino"
    name = decoding.cache or ("none" if hides else exact[-1])
    if name != "none" and (model.backbone.shifted or hides):
        fault = "rule='wino'" if hides else "a model with shifted logits"
        raise MMDiffError(f"cache={name!r} does not fit {fault}; use none")
    if hides and model.backbone.shifted:
        raise MMDiffError("rule='wino' does not fit a model with shifted logits; use another rule")
    runner: Runner = prompted
    if name != "none":
        options = {} if decoding.refresh is None else {"interval": decoding.refresh}
        runner = CachedRunner(prompted, CACHES[name](**options), decoding.block_length)
    if decoding.lookahead == 0:
        return runner
    if name not in exact:
        raise MMDiffError(
            f"lookahead={decoding.lookahead} needs a cache that is exact with this model, and "
            f"cache={name!r} is not; use {' or '.join(exact)}"
        )
    return SpeculativeRunner(runner, decoding.lookahead, model.tokens)
