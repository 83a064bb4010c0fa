"""A model with a batch of prompts, and what is kept of it between the steps of a generation.

What a step computes is a cache's choice (kv_cache.py). Rows that compute everything and rows that
compute a part go through the backbone one after the other, so that no row's work depends on its
neighbours.

Shapes: B rows, A active rows, P prompt positions, G canvas positions, N selected positions, V
vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION
from mmdiff.decoding.kv_cache import CACHES, CachePolicy, CacheState, KVCache, LayerCache
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.sampler import Batch
from mmdiff.decoding.speculative import SpeculativeRunner
from mmdiff.errors import MMDiffError


class CachedRunner:
    """A `sampler.Batch` over prompts that keeps keys and values between the steps of one
    generation."""

    def __init__(self, prompted: ModelRunner, cache: CachePolicy, block_length: int) -> None:
        self.prompted, self.cache, self.block_length = prompted, cache, block_length
        self.calls = 0  # passes through the backbone
        self._kept: KVCache | None = None
        self._rows: list[int] = []  # whose keys and values are kept
        # What the last step saw of each row.
        self._open_BG = self._length_B = self._block_B = self._age_B = torch.empty(0)

    @property
    def passes_B(self) -> Tensor:
        return self.prompted.passes_B

    @property
    def prompt_length_B(self) -> Tensor:
        return self.prompted.prompt_length_B

    @torch.inference_mode()
    def __call__(
        self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor, hidden_AG: Tensor | None = None
    ) -> Tensor:
        assert hidden_AG is None, "no cache holds what a token would be if it were hidden"
        kept = self._hold(rows_A, ids_AG.shape[1])
        progress = self._progress(ids_AG, rows_A, select_AG)
        stale_A = self.cache.needs_refresh(progress)
        columns_AG = (self.cache.positions_to_recompute(progress) | select_AG) & (
            ids_AG != PAD_POSITION
        )
        self._age_B[rows_A] = torch.where(stale_A, 1, progress.age_A + 1)
        counts_A = select_AG.sum(1)
        logits_NV = torch.empty(0)
        for anew, some_A in ((True, stale_A), (False, ~stale_A)):
            if not some_A.any():
                continue
            made = self._pass(anew, _run(some_A), kept, ids_AG, rows_A, select_AG, columns_AG)
            if some_A.all():
                return made
            if not len(logits_NV):
                logits_NV = made.new_empty(int(counts_A.sum()), made.shape[1])
            logits_NV[some_A.repeat_interleave(counts_A)] = made
        return logits_NV

    def take(self, rows_A: Tensor) -> None:
        """As `ModelRunner.take`."""
        self.prompted.take(rows_A)
        if self._kept is not None:
            # A finished row may have been let go; it is not asked for again, so any row stands in
            # for it.
            held = [self._rows.index(row) if row in self._rows else 0 for row in rows_A.tolist()]
            self._kept.take(torch.tensor(held, dtype=torch.long, device=rows_A.device))
            self._rows = list(range(len(held)))
            self._length_B, self._open_BG = self._length_B[rows_A], self._open_BG[rows_A]
            self._block_B, self._age_B = self._block_B[rows_A], self._age_B[rows_A]

    def join(self, other: Batch) -> None:
        """As `ModelRunner.join`; what the other one kept is computed anew."""
        assert isinstance(other, CachedRunner)
        before, num_rows, more = (
            self.prompted.valid_BP.shape[1],
            len(self.passes_B),
            len(other.passes_B),
        )
        self.prompted.join(other.prompted)
        if self._kept is not None:
            self._kept.extend(rows=more, before=self.prompted.valid_BP.shape[1] - before)
            self._rows += range(num_rows, num_rows + more)
            self._length_B, self._block_B, self._age_B = (
                F.pad(each, (0, more), value=-1)
                for each in (self._length_B, self._block_B, self._age_B)
            )
            self._open_BG = F.pad(self._open_BG, (0, 0, 0, more), value=True)

    def _pass(
        self,
        anew: bool,
        here_A: slice | Tensor,
        kept: KVCache,
        ids_AG: Tensor,
        rows_A: Tensor,
        select_AG: Tensor,
        columns_AG: Tensor,
    ) -> Tensor:
        """The logits of all active rows, or of some."""
        self.calls += 1
        ids_AG, rows_A, select_AG, columns_AG = (
            each[here_A] for each in (ids_AG, rows_A, select_AG, columns_AG)
        )

        def keeps(where: slice | Tensor) -> list[LayerCache]:
            return kept.writers(where, here_A)

        if not anew:
            return self.prompted.decode(ids_AG, rows_A, select_AG, columns_AG, keeps)
        first = self._recall(kept, rows_A)
        made = self.prompted.prefill(ids_AG, rows_A, select_AG, keeps=keeps, first=first)
        self._remember(kept, rows_A)
        return made

    def _recall(self, kept: KVCache, rows_A: Tensor) -> int:
        """Put in place what the store holds of the prompts; gives the first column that no row has
        there."""
        store, width, ends = self.prompted.prefix_cache, self.prompted.valid_BP.shape[1], []
        if store is None:
            return 0
        for row in rows_A.tolist():
            held, padding = self._rows.index(row), width - int(self.prompted.valid_BP[row].sum())
            ends.append(padding)
            for part in self.prompted.blocks[row]:
                found = store.get(b"kv" + part.key)
                if found is None:
                    break
                kept.stored[:, :, held, :, padding + part.first : padding + part.end] = found
                ends[-1] = padding + part.end
        return min(ends)

    def _remember(self, kept: KVCache, rows_A: Tensor) -> None:
        """Give the store the keys and values of prompts that were just computed."""
        store, width = self.prompted.prefix_cache, self.prompted.valid_BP.shape[1]
        if store is None:
            return
        for row in rows_A.tolist():
            held, padding = self._rows.index(row), width - int(self.prompted.valid_BP[row].sum())
            for part in self.prompted.blocks[row]:
                where = slice(padding + part.first, padding + part.end)
                if b"kv" + part.key not in store:
                    store.put(b"kv" + part.key, kept.stored[:, :, held, :, where])

    def _hold(self, rows_A: Tensor, length: int) -> KVCache:
        """Keys and values of these rows and no others; rows only ever leave."""
        num_rows, before = self.prompted.valid_BP.shape
        if self._kept is None:
            like = self.prompted.embeds_BPD
            config = self.prompted.model.backbone.config
            self._kept = KVCache(config, num_rows, before + length, like.device, like.dtype)
            self._rows = list(range(num_rows))
            self._open_BG = torch.ones(num_rows, length, dtype=torch.bool, device=like.device)
            self._length_B, self._block_B, self._age_B = (
                torch.full((num_rows,), -1, device=like.device) for _ in range(3)
            )
        if more := before + length - self._kept.length:
            self._kept.extend(after=more)
            self._open_BG = F.pad(self._open_BG, (0, more), value=True)
        rows = rows_A.tolist()
        if rows != self._rows:
            self._kept.take(
                torch.tensor([self._rows.index(row) for row in rows], device=rows_A.device)
            )
            self._rows = rows
        return self._kept

    def _progress(self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor) -> CacheState:
        """Where the rows stand, remembered for the next step."""
        open_AG = torch.eq(ids_AG, self.prompted.model.model_config.tokens.mask)
        block_A = select_AG.int().argmax(dim=1) // self.block_length
        length_A = torch.ne(ids_AG, PAD_POSITION).sum(dim=1)
        numbers_G = torch.arange(ids_AG.shape[1], device=ids_AG.device) // self.block_length
        progress = CacheState(
            open_AG,
            self._open_BG[rows_A],
            numbers_G == block_A[:, None],
            block_A != self._block_B[rows_A],
            self._age_B[rows_A],
            length_A != self._length_B[rows_A],
        )
        self._open_BG[rows_A], self._block_B[rows_A], self._length_B[rows_A] = (
            open_AG,
            block_A,
            length_A,
        )
        return progress


def _run(some_A: Tensor) -> slice | Tensor:
    """The places of the True ones; a slice where they follow each other, for what it takes is no
    copy."""
    places = some_A.nonzero()[:, 0]
    first, end = int(places[0]), int(places[-1]) + 1
    return slice(first, end) if end - first == len(places) else places


def make_runner(prompted: ModelRunner, decoding: DecodingConfig) -> Batch:
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
    batch: Batch = prompted
    if name != "none":
        options = {} if decoding.refresh is None else {"interval": decoding.refresh}
        batch = CachedRunner(prompted, CACHES[name](**options), decoding.block_length)
    if decoding.lookahead == 0:
        return batch
    if name not in exact:
        raise MMDiffError(
            f"lookahead={decoding.lookahead} needs a cache that is exact with this model, and "
            f"cache={name!r} is not; use {' or '.join(exact)}"
        )
    return SpeculativeRunner(batch, decoding.lookahead, model.tokens)
