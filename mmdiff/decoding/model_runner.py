"""A model behind prompts: logits at canvas positions, for the sampler.

Images, audio and prompt embeddings are computed once. A step is a `prefill`, over prompts and
canvases, or with a KV cache a `decode`, over some positions of the canvases against what is kept;
which of them, the cache's policy says of each sequence (kv_cache.py). The two go through the
backbone one after the other, so that no sequence's work depends on its neighbours.

A sequence's columns are its prompt and right behind it its canvas, so that a column is a rotary
position and does not depend on who else is computed; padding stands behind. Where things stand is
worked out with NumPy on the host, so that nothing waits for the device.

Shapes: B prompts, A active ones, P prompt positions, G canvas positions, T columns, Q computed
columns, W columns whose logits are wanted, N all of these without padding, L positions asked for
as if hidden, S = T + L, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION, Array, stacked
from mmdiff.decoding.kv_cache import CACHES, CachePolicy, KVPool, KVSlot, LayerCache, plan_step
from mmdiff.decoding.prefix_cache import CachingEncoder, PrefixBlock, PrefixCache, prompt_blocks
from mmdiff.decoding.sampler import Runner
from mmdiff.decoding.speculative import SpeculativeRunner
from mmdiff.errors import MMDiffError
from mmdiff.modeling.attention import build_attention_mask
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.weights_version import every_module
from mmdiff.tokens import segment_ids as derive_segments


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, also where a training run asks between its steps; then as it was."""
    training = [module for module in every_module(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(eq=False)
class Prompt:
    """A prompt, and what was computed of it."""

    embeds_PD: Tensor
    segments_P: Tensor
    audio_P: Array  # whether a position holds an audio embedding
    blocks: Sequence[PrefixBlock]
    passes: int = 0  # through the backbone, that it took part in
    slot: KVSlot = field(default_factory=KVSlot)  # its keys and values, where some are kept

    @property
    def length(self) -> int:
        """In positions."""
        return len(self.segments_P)

    def fork(self) -> Prompt:
        """The same prompt for another canvas."""
        return replace(self, passes=0, slot=KVSlot())


@dataclass(frozen=True)
class PaddedPrompts:
    """Some prompts side by side, each with capacity for a canvas right behind it."""

    embeds_ATD: Tensor  # zeros from the prompt's end on
    segments_AT: Tensor  # from the prompt's end on that of the canvas, the segment behind its last
    at: tuple[Tensor, Tensor]  # rows (A, 1) and columns (A, G) of the canvases


class ModelRunner:
    """A `sampler.Runner`; without a cache it computes everything at every step."""

    cache: CachePolicy | None = None
    pool: KVPool  # with a cache
    block_length = 0
    origin = 1  # the length of blocks that are counted from the prompt's start
    calls = 0  # passes through the backbone

    def __init__(
        self,
        model: MMDiffModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prefix_cache: PrefixCache | None = None,
        **media: Any,
    ) -> None:
        self.model, self.device = model, input_ids.device
        self.prefix_cache = PrefixCache(0) if prefix_cache is None else prefix_cache
        # A new adapter may be in training mode, on its own.
        self._training = any(module.training for module in every_module(model))
        self._padded: tuple[list[Prompt], int, PaddedPrompts] | None = None
        self.attention_block = model.model_config.backbone.causal_block
        version, config = self.prefix_cache.version(model), model.model_config
        encoder = CachingEncoder(model, self.prefix_cache, version)
        with evaluating(model):
            embeds_BPD = model.embed(input_ids, encoder=encoder, **media)
        valid_BP = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        segments_BP = derive_segments(input_ids, config.tokens)
        image_keys, audio_keys = iter(encoder.image_keys), iter(encoder.audio_keys)
        keys = {config.tokens.image: image_keys, config.tokens.audio: audio_keys}
        self.prompts = list[Prompt]()
        for row, valid_P in enumerate(valid_BP.bool()):
            ids_P, segments_P = input_ids[row][valid_P], segments_BP[row][valid_P]
            blocks = list[PrefixBlock]()
            if config.backbone.attention_pattern == "segment-causal":
                blocks = prompt_blocks(ids_P, segments_P, keys, version)
            audio_P = ids_P.numpy(force=True) == config.tokens.audio
            self.prompts.append(Prompt(embeds_BPD[row][valid_P], segments_P, audio_P, blocks))

    def unconditional(self) -> ModelRunner:
        """The same prompts with every token and image hidden behind the mask embedding."""
        other = copy.copy(self)
        mask = torch.tensor(self.model.model_config.tokens.mask, device=self.device)
        mask_D, other.prompts = self.model.backbone.embed_tokens(mask), []
        for each in self.prompts:
            embeds_PD = mask_D.expand_as(each.embeds_PD)
            other.prompts.append(replace(each.fork(), embeds_PD=embeds_PD, blocks=[]))
        return other

    def cached(self, cache: CachePolicy, block_length: int) -> ModelRunner:
        """The same prompts with a KV cache between the steps of a generation."""
        other, dtype = copy.copy(self), self.prompts[0].embeds_PD.dtype
        other.cache, other.block_length = cache, block_length
        other.pool = KVPool(self.model.backbone.config, self.device, dtype)
        return other

    @torch.inference_mode()
    def audio_logits(self) -> list[Tensor]:
        """Logits (N, V) at the audio positions of each prompt, which see no canvas."""
        audio_AP = stacked([each.audio_P for each in self.prompts], False)
        blank_AG = np.zeros((len(self.prompts), 0), dtype=np.int64)
        logits_NV = self._whole(blank_AG, self.prompts, *_places(audio_AP))
        return list(logits_NV.split(audio_AP.sum(1).tolist()))

    @torch.inference_mode()
    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        """Logits (N, V) at the selected positions, then those (L, V) of what is asked for as if
        hidden."""
        if self.cache is None:
            return self.prefill(ids_AG, prompts, select_AG, hidden_AG)
        assert hidden_AG is None, "no cache holds what a token would be if it were hidden"
        for each in prompts:
            if each.slot not in self.pool.slots:  # it may have one of another pool
                each.slot = KVSlot(offset=each.length % self.origin)
        length = max(each.length for each in prompts) + ids_AG.shape[1]
        self.pool.arrange([each.slot for each in prompts], length)
        tokens = self.model.model_config.tokens
        step = (ids_AG, select_AG, tokens.mask, self.block_length)
        anew_A, columns_AG = plan_step(self.cache, self.pool.slots, *step)
        parts, order = list[Tensor](), list[Array]()
        for anew in (True, False):
            rows = (anew_A == anew).nonzero()[0]
            if not len(rows):
                continue
            some = (ids_AG[rows], [prompts[row] for row in rows], select_AG[rows])
            parts.append(self.prefill(*some) if anew else self.decode(*some, columns_AG[rows]))
            order.append(rows.repeat(select_AG[rows].sum(1)))
        if len(parts) == 1:
            return parts[0]
        # Back into reading order: each sequence's logits follow each other already.
        back_N = np.concatenate(order).argsort(kind="stable")
        return torch.cat(parts)[self._up(back_N)]

    def prefill(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        """As `__call__`, by a pass over prompts and canvases, of which the prefix cache may hold a
        beginning."""
        places_AW, real_AW = _places(select_AG)
        # Shifted logits are those of the position before.
        wanted_AW = places_AW + _lengths(prompts) - int(self.model.backbone.config.shifted)
        if hidden_AG is not None:
            return self._verify(ids_AG, prompts, wanted_AW, real_AW, hidden_AG)
        return self._whole(ids_AG, prompts, wanted_AW, real_AW)

    def decode(
        self, ids_AG: Array, prompts: Sequence[Prompt], select_AG: Array, columns_AG: Array
    ) -> Tensor:
        """Logits (N, V) at the selected positions, by a pass over some positions of the canvases,
        which see all that is kept."""
        places_AQ, real_AQ = _places(columns_AG)
        at_AQ = np.where(real_AQ, places_AQ + _lengths(prompts), -1)
        # Padding takes what stands at any position; nothing reads what comes of it.
        chosen_AQ = np.take_along_axis(ids_AG, places_AQ, 1).clip(min=0)
        # Of the computed positions, counted among these, those that are selected.
        wanted_AW, real_AW = _places(np.take_along_axis(select_AG, places_AQ, 1) & real_AQ)
        embeds_AQD = self.model.backbone.embed_tokens(self._up(chosen_AQ))
        valid_AT = _valid(ids_AG, prompts)
        mask = self._mask(valid_AT, at_AQ)
        layers = self.pool.writers([each.slot for each in prompts], at_AQ, valid_AT.shape[1])
        return self._pass(
            prompts, embeds_AQD, at_AQ, mask, layers, wanted_AW, np.flatnonzero(real_AW)
        )

    def _whole(
        self, ids_AG: Array, prompts: Sequence[Prompt], wanted_AW: Array, real_AW: Array
    ) -> Tensor:
        """Logits (N, V) at the wanted columns that are real, by a pass over all columns but those
        that the prefix cache holds for all."""
        known, layers = list[Prompt](), list[LayerCache]()
        if self.cache is not None:
            known += prompts
        ends = [self.pool.recall(each.slot, each.blocks, self.prefix_cache) for each in known]
        first = min(ends, default=0)
        embeds_AQD, mask_A1QT = self._inputs(ids_AG, prompts, first)
        width = embeds_AQD.shape[1]
        at_AQ = np.broadcast_to(np.arange(first, first + width), (len(prompts), width))
        if known:
            layers = self.pool.writers([each.slot for each in known], at_AQ, first + width)
        wanted_AW = (wanted_AW - first).clip(0, width - 1)
        made = self._pass(
            prompts, embeds_AQD, at_AQ, mask_A1QT, layers, wanted_AW, np.flatnonzero(real_AW)
        )
        for each in known:
            self.pool.remember(each.slot, each.blocks, self.prefix_cache)
        return made

    def _verify(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        wanted_AW: Array,
        real_AW: Array,
        hidden_AG: Array,
    ) -> Tensor:
        """Logits at the wanted columns, and behind them those of the verify lane (WINO, arXiv
        2507.18578).

        The lane holds a mask token for each hidden position. It sees what the position sees but the
        position itself, and is seen by itself alone.
        """
        embeds_ATD, mask_A1TT = self._inputs(ids_AG, prompts, 0)
        (count, total), (places_AL, real_AL) = embeds_ATD.shape[:2], _places(hidden_AG)
        lane, at_AL = places_AL.shape[1], (places_AL + _lengths(prompts)).clip(max=total - 1)
        mask_A1SS = _lane_mask(mask_A1TT, self._up(at_AL), total)
        mask_D = self.model.backbone.embed_tokens.weight[self.model.model_config.tokens.mask]
        embeds_ASD = torch.cat((embeds_ATD, mask_D.expand(count, lane, -1)), dim=1)
        at_AS = np.concatenate((np.broadcast_to(np.arange(total), (count, total)), at_AL), axis=1)
        lane_AL = np.broadcast_to(np.arange(total, total + lane), (count, lane))
        wanted_AS = np.concatenate((wanted_AW.clip(max=total - 1), lane_AL), axis=1)
        # All that was selected first, then the lanes.
        selected_AS = np.pad(real_AW, ((0, 0), (0, lane)))
        hidden_AS = np.pad(real_AL, ((0, 0), (wanted_AW.shape[1], 0)))
        picked = np.concatenate((np.flatnonzero(selected_AS), np.flatnonzero(hidden_AS)))
        return self._pass(prompts, embeds_ASD, at_AS, mask_A1SS, (), wanted_AS, picked)

    def _pass(
        self,
        prompts: Sequence[Prompt],
        embeds_AQD: Tensor,
        at_AQ: Array,
        mask_A1QT: Tensor | None,
        layers: Sequence[LayerCache],
        wanted_AW: Array,
        picked_N: Array,
    ) -> Tensor:
        """Logits (N, V) at those of the wanted columns that are picked, counted over all rows."""
        self.calls += 1
        for each in prompts:
            each.passes += 1
        training, backbone = self._training or self.model.training, self.model.backbone
        with evaluating(self.model) if training else contextlib.nullcontext():
            at_wanted = (self._up(at_AQ), mask_A1QT, layers, self._up(wanted_AW))
            hidden_AWD = backbone(embeds_AQD, *at_wanted)
            logits_NV: Tensor = backbone.lm_head(hidden_AWD.flatten(0, 1)[self._up(picked_N)])
        return logits_NV

    def _inputs(
        self, ids_AG: Array, prompts: Sequence[Prompt], first: int
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (A, Q, D) of prompts and canvases from a column on, and their mask."""
        padded, valid_AT = self._pad(prompts, ids_AG.shape[1]), _valid(ids_AG, prompts)
        total, pattern = valid_AT.shape[1], self.model.backbone.config.attention_pattern
        canvas_AGD = self.model.backbone.embed_tokens(self._up(ids_AG.clip(min=0)))
        # Each canvas goes right behind its own prompt, however long the others are.
        embeds_ATD = padded.embeds_ATD.index_put(padded.at, canvas_AGD)[:, first:total]
        if pattern != "segment-causal":
            return embeds_ATD, self._mask(valid_AT, np.arange(first, total)[None])
        segments_AT = padded.segments_AT[:, :total]
        mask_A1TT = build_attention_mask(self._up(valid_AT), segments_AT, pattern)
        assert mask_A1TT is not None
        return embeds_ATD, mask_A1TT[:, :, first:]

    def _mask(self, valid_AT: Array, at_AQ: Array) -> Tensor | None:
        """A mask (A, 1, Q, T) by which the columns `at_AQ` see what is no padding and in no later
        block; None where they see all."""
        if self.attention_block is None and valid_AT.all():
            return None
        seen_AQT = valid_AT[:, None] & _no_later(at_AQ, valid_AT.shape[1], self.attention_block)
        return self._up(seen_AQT)[:, None].expand(-1, 1, at_AQ.shape[1], -1)

    def _pad(self, prompts: Sequence[Prompt], length: int) -> PaddedPrompts:
        """The prompts side by side; made once for each change of who is there."""
        if self._padded is None or self._padded[:2] != (prompts, length):
            lengths_A1 = _lengths(prompts)
            at_AG, total = lengths_A1 + np.arange(length), int(lengths_A1.max()) + length
            rows_A1 = torch.arange(len(prompts), device=self.device)[:, None]
            embeds, segments = list[Tensor](), list[Tensor]()
            for each in prompts:
                rest, last = total - each.length, each.segments_P[-1:]
                embeds.append(F.pad(each.embeds_PD, (0, 0, 0, rest)))
                segments.append(torch.cat((each.segments_P, (last + 1).expand(rest))))
            at = (rows_A1, self._up(at_AG))
            made = PaddedPrompts(torch.stack(embeds), torch.stack(segments), at)
            self._padded = (list(prompts), length, made)
        return self._padded[2]

    def _up(self, array: Array) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device, non_blocking=True)


def make_runner(prompted: ModelRunner, decoding: DecodingConfig) -> Runner:
    """The prompts with the cache that the settings name; where they name none, with one that is
    exact."""
    model = prompted.model.model_config
    causal = model.backbone.attention_pattern == "segment-causal" and not model.backbone.shifted
    exact, hides = ["none"] + ["prefix"] * causal, decoding.rule == "wino"
    if decoding.block_origin == "sequence":
        prompted = _in_blocks(prompted, decoding.block_length)
    if prompted.attention_block is not None:
        if decoding.block_origin != "sequence":
            raise MMDiffError(
                f"block_origin={decoding.block_origin!r} does not fit a model with block-causal "
                "attention; use sequence"
            )
        exact += ["finished_blocks"] * (not model.backbone.shifted)
    name = decoding.cache or ("none" if hides else exact[-1])
    if name != "none" and (model.backbone.shifted or hides):
        fault = "rule='wino'" if hides else "a model with shifted logits"
        raise MMDiffError(f"cache={name!r} does not fit {fault}; use none")
    if hides and model.backbone.shifted:
        raise MMDiffError("rule='wino' does not fit a model with shifted logits; use another rule")
    if name != "none":
        policy = CACHES[name]()
        if decoding.refresh is not None:
            policy = replace(policy, interval=decoding.refresh)
        prompted = prompted.cached(policy, decoding.block_length)
    if decoding.lookahead == 0:
        return prompted
    if name not in exact:
        raise MMDiffError(
            f"lookahead={decoding.lookahead} needs a cache that is exact with this model, and "
            f"cache={name!r} is not; use {' or '.join(exact)}"
        )
    return SpeculativeRunner(prompted, decoding.lookahead, model.tokens)


def _in_blocks(prompted: ModelRunner, length: int) -> ModelRunner:
    """The same prompts with blocks of this length, counted from the prompt's start."""
    other = copy.copy(prompted)
    other.origin = length
    if prompted.attention_block is not None:
        other.attention_block = length
    return other


def _lengths(prompts: Sequence[Prompt]) -> Array:
    """The lengths (A, 1) of prompts."""
    return np.array([[each.length] for each in prompts])


def _valid(ids_AG: Array, prompts: Sequence[Prompt]) -> Array:
    """The columns (A, T) that are not padding behind a canvas."""
    ends_A1 = _lengths(prompts) + (ids_AG != PAD_POSITION).sum(1, keepdims=True)
    return np.asarray(np.arange(int(ends_A1.max())) < ends_A1)


def _no_later(at_AQ: Array, total: int, block: int | None) -> Array:
    """Which of all columns lie in no later block than those of `at_AQ`, (A, Q, T)."""
    if block is None:
        return np.ones((1, 1, total), dtype=bool)
    return np.asarray(np.arange(total) // block <= at_AQ.clip(min=0)[..., None] // block)


def _lane_mask(mask_A1TT: Tensor | None, at_AL: Tensor, total: int) -> Tensor:
    """The mask (A, 1, S, S) of prompt, canvas and a verify lane for the columns `at_AL`."""
    count, lane = at_AL.shape
    sees_ASS = at_AL.new_zeros(count, total + lane, total + lane, dtype=torch.bool)
    sees_ASS[:, :total, :total] = True if mask_A1TT is None else mask_A1TT[:, 0]
    # The lane's rows are those of the positions that it hides, without these positions.
    seen_ALT = sees_ASS[:, :total, :total].gather(1, at_AL[..., None].expand(-1, -1, total))
    sees_ASS[:, total:, :total] = seen_ALT.scatter(2, at_AL[..., None], False)
    sees_ASS[:, total:, total:] = torch.eye(lane, dtype=torch.bool, device=at_AL.device)
    return sees_ASS[:, None]


def _places(some_AG: Array) -> tuple[Array, Array]:
    """The True positions (A, W) of each sequence, from the left, and which of them are not mere
    padding."""
    widest = int(some_AG.sum(1).max())
    places_AW = (~some_AG).argsort(axis=1, kind="stable")[:, :widest]
    return places_AW, np.take_along_axis(some_AG, places_AW, 1)
