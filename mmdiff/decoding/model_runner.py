"""A model behind prompts: logits at canvas positions, for the sampler.

Images, audio and prompt embeddings are computed once. Everything else is computed at every step;
what may be kept between steps is in cached_runner.py, which calls `prefill` and `decode` here.

A sequence's columns are its prompt and right behind it its canvas, so that a column is a rotary
position and does not depend on who else is computed; padding stands behind. Where things stand is
worked out with NumPy on the host, so that nothing waits for the device.

Shapes: B prompts, A active ones, P prompt positions, G canvas positions, T columns, Q computed
columns, N selected positions, L positions asked for as if hidden, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmdiff.decoding.canvas import PAD_POSITION, Array
from mmdiff.decoding.kv_cache import KVSlot, LayerCache
from mmdiff.decoding.prefix_cache import CachingEncoder, PrefixBlock, PrefixCache, prompt_blocks
from mmdiff.modeling.attention import build_attention_mask
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.weights_version import every_module
from mmdiff.tokens import segment_ids as derive_segments

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
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


def _evaluated(method: Method) -> Method:
    @functools.wraps(method)
    def evaluated(self: ModelRunner, *args: Any, **kwargs: Any) -> Any:
        if not (self._training or self.model.training):
            return method(self, *args, **kwargs)
        with evaluating(self.model):
            return method(self, *args, **kwargs)

    return cast(Method, evaluated)


@dataclass(eq=False)
class Prompt:
    """A prompt, and what was computed of it."""

    embeds_PD: Tensor
    segments_P: Tensor
    audio: Array  # positions of audio embeddings
    blocks: Sequence[PrefixBlock]
    passes: int = 0  # through the backbone, that it took part in
    slot: KVSlot | None = None  # its keys and values, where some are kept

    @property
    def length(self) -> int:
        """In positions."""
        return len(self.segments_P)

    def fork(self) -> Prompt:
        """The same prompt for another canvas."""
        return replace(self, passes=0, slot=None)


@dataclass(frozen=True)
class PaddedPrompts:
    """Some prompts side by side, padded behind."""

    embeds_APD: Tensor
    segments_AP: Tensor  # one column more: the segment of the canvas
    lengths_A: Array


class ModelRunner:
    """A `sampler.Runner` that computes everything at every step."""

    def __init__(
        self,
        model: MMDiffModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prefix_cache: PrefixCache | None = None,
        **media: Any,
    ) -> None:
        self.model, self.prefix_cache, self.device = model, prefix_cache, input_ids.device
        tokens = model.model_config.tokens
        version = b"" if prefix_cache is None else prefix_cache.version(model)
        encoder = None if prefix_cache is None else CachingEncoder(model, prefix_cache, version)
        # A new adapter may be in training mode, on its own.
        self._training = any(module.training for module in every_module(model))
        with evaluating(model):
            embeds_BPD = model.embed(input_ids, encoder=encoder, **media)
        valid_BP = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        valid_BP, segments_BP = valid_BP.bool(), derive_segments(input_ids, tokens)
        blocks: list[list[PrefixBlock]] = [[] for _ in input_ids]
        causal = model.model_config.backbone.attention_pattern == "segment-causal"
        if encoder is not None and causal:
            media_of = {tokens.image: encoder.pictures, tokens.audio: encoder.sounds}
            placeholders = {token: given for token, given in media_of.items() if token is not None}
            blocks = prompt_blocks(input_ids, valid_BP, segments_BP, placeholders, version)
        self.prompts = []
        for row, valid_P in enumerate(valid_BP):
            audio = torch.eq(input_ids[row][valid_P], tokens.audio or 0).numpy(force=True)
            embeds_PD, segments_P = embeds_BPD[row][valid_P], segments_BP[row][valid_P]
            self.prompts.append(Prompt(embeds_PD, segments_P, audio.nonzero()[0], blocks[row]))
        self._padded: tuple[list[Prompt], PaddedPrompts] | None = None

    def unconditional(self) -> ModelRunner:
        """The same prompts with every token and image hidden behind the mask embedding."""
        other = copy.copy(self)
        mask = torch.tensor(self.model.model_config.tokens.mask, device=self.device)
        mask_D = self.model.backbone.embed_tokens(mask)
        other.prompts = [
            replace(each.fork(), embeds_PD=mask_D.expand_as(each.embeds_PD), blocks=[])
            for each in self.prompts
        ]
        return other

    @torch.inference_mode()
    @_evaluated
    def audio_logits(self) -> list[Tensor]:
        """Logits (N, V) at the audio positions of each prompt, which see no canvas."""
        blank_AG = np.zeros((len(self.prompts), 0), dtype=np.int64)
        counts = [len(each.audio) for each in self.prompts]
        places_AQ = np.zeros((len(counts), max(counts)), dtype=np.int64)
        real_AQ = np.arange(max(counts)) < np.array(counts)[:, None]
        places_AQ[real_AQ] = np.concatenate([each.audio for each in self.prompts])
        logits_NV = self._pass(blank_AG, self.prompts, places_AQ, real_AQ)
        return list(logits_NV.split(counts))

    @torch.inference_mode()
    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        return self.prefill(ids_AG, prompts, select_AG, hidden_AG)

    @_evaluated
    def prefill(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
        keeps: Callable[[slice, int], Sequence[LayerCache]] = lambda where, total: (),
        first: int = 0,
    ) -> Tensor:
        """Logits (N, V) from a pass over prompt and canvas, then those (L, V) of what is asked for
        as if hidden.

        Args:
            keeps: of each layer, for the columns that are computed, and how many there are.
            first: column from which on there is something to compute; what stands before it is
                kept.
        """
        lengths_A1 = self._stack(prompts).lengths_A[:, None]
        places_AQ, real_AQ = _places(select_AG)
        if hidden_AG is not None:
            places_AL, real_AL = _places(hidden_AG)
            chosen = (places_AQ + lengths_A1, real_AQ, places_AL + lengths_A1, real_AL)
            return self._verify(ids_AG, prompts, *chosen)
        # Shifted logits are those of the position before.
        shift = int(self.model.backbone.config.shifted)
        wanted_AQ = places_AQ + lengths_A1 - shift
        return self._pass(ids_AG, prompts, wanted_AQ, real_AQ, keeps, first)

    def _pass(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        wanted_AQ: Array,
        real_AQ: Array,
        keeps: Callable[[slice, int], Sequence[LayerCache]] = lambda where, total: (),
        first: int = 0,
    ) -> Tensor:
        """Logits (N, V) at the wanted columns that are real."""
        embeds_ATD, mask_A1TT = self._inputs(ids_AG, prompts)
        count, total = embeds_ATD.shape[:2]
        positions_AT = torch.arange(first, total, device=self.device).expand(count, -1)
        hidden_AQD = self.model.backbone(
            embeds_ATD[:, first:],
            positions_AT,
            None if mask_A1TT is None else mask_A1TT[:, :, first:],
            keeps(slice(first, total), total),
            self._up((wanted_AQ - first).clip(0, total - first - 1)),
        )
        logits_NV: Tensor = self.model.backbone.lm_head(_picked(hidden_AQD, real_AQ))
        return logits_NV

    def _inputs(self, ids_AG: Array, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None]:
        """Embeddings (A, T, D) of prompts and canvases, and who may look at whom."""
        padded, config = self._stack(prompts), self.model.backbone.config
        for each in prompts:
            each.passes += 1
        ends_A1 = _ends(padded.lengths_A, ids_AG)
        total, width = int(ends_A1.max()), padded.embeds_APD.shape[1]
        canvas_AGD = self.model.backbone.embed_tokens(self._up(ids_AG.clip(min=0)))
        embeds_ATD = torch.cat((padded.embeds_APD, canvas_AGD), dim=1)
        canvas_AG = padded.segments_AP[:, -1:].expand(-1, ids_AG.shape[1])
        segments_AT = torch.cat((padded.segments_AP[:, :-1], canvas_AG), dim=1)
        columns_T = np.arange(total)
        # Padding stands between a shorter prompt and its canvas: each column is fetched from where
        # it is, and those of the canvas lie as far behind as there is padding.
        if (padded.lengths_A < width).any():
            behind_AT = columns_T >= padded.lengths_A[:, None]
            from_AT = columns_T + behind_AT * (width - padded.lengths_A[:, None])
            from_AT = from_AT.clip(max=embeds_ATD.shape[1] - 1)
            rows_A1 = torch.arange(len(prompts), device=self.device)[:, None]
            embeds_ATD = embeds_ATD[rows_A1, self._up(from_AT)]
            segments_AT = segments_AT[rows_A1, self._up(from_AT)]
        valid_AT = columns_T < ends_A1
        embeds_ATD, segments_AT = embeds_ATD[:, :total], segments_AT[:, :total]
        if config.attention_pattern == "full":
            return embeds_ATD, self._mask(valid_AT, total)
        pattern = config.attention_pattern
        return embeds_ATD, build_attention_mask(self._up(valid_AT), segments_AT, pattern)

    def _mask(self, valid_AT: Array, queries: int) -> Tensor | None:
        """A mask (A, 1, Q, T) by which all see what is no padding, or None where nothing is."""
        if valid_AT.all():
            return None
        return self._up(valid_AT)[:, None, None].expand(-1, 1, queries, -1)

    def _verify(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        wanted_AQ: Array,
        real_AQ: Array,
        places_AL: Array,
        real_AL: Array,
    ) -> Tensor:
        """Logits at the wanted columns, and behind them those of the verify lane (WINO, arXiv
        2507.18578).

        The lane holds a mask token for each hidden position. It sees what the position sees but the
        position itself, and is seen by itself alone.
        """
        backbone, mask = self.model.backbone, self.model.model_config.tokens.mask
        embeds_ATD, mask_A1TT = self._inputs(ids_AG, prompts)
        (count, total), lane = embeds_ATD.shape[:2], places_AL.shape[1]
        at_AL = self._up(places_AL.clip(max=total - 1))
        sees_ASS = torch.zeros(
            count, total + lane, total + lane, dtype=torch.bool, device=self.device
        )
        sees_ASS[:, :total, :total] = True if mask_A1TT is None else mask_A1TT[:, 0]
        # The lane's rows are those of the positions that it hides, without these positions.
        seen_ALT = sees_ASS[:, :total, :total].gather(1, at_AL[..., None].expand(-1, -1, total))
        sees_ASS[:, total:, :total] = seen_ALT.scatter(2, at_AL[..., None], False)
        sees_ASS[:, total:, total:] = torch.eye(lane, dtype=torch.bool, device=self.device)
        mask_D = backbone.embed_tokens.weight[mask]
        positions_AT = torch.arange(total, device=self.device).expand(count, -1)
        lane_AL = np.broadcast_to(np.arange(total, total + lane), (count, lane))
        hidden_ASD = backbone(
            torch.cat((embeds_ATD, mask_D.expand(count, lane, -1)), dim=1),
            torch.cat((positions_AT, at_AL), dim=1),
            sees_ASS[:, None],
            wanted_BQ=self._up(np.concatenate((wanted_AQ.clip(max=total - 1), lane_AL), axis=1)),
        )
        width = wanted_AQ.shape[1]
        chosen = (_picked(hidden_ASD[:, :width], real_AQ), _picked(hidden_ASD[:, width:], real_AL))
        logits_NV: Tensor = backbone.lm_head(torch.cat(chosen))
        return logits_NV

    @_evaluated
    def decode(
        self,
        ids_AG: Array,
        prompts: Sequence[Prompt],
        select_AG: Array,
        columns_AG: Array,
        keeps: Callable[[slice | Array, int], Sequence[LayerCache]],
    ) -> Tensor:
        """Logits (N, V) from a pass over some positions of the canvas, which see all that is kept.

        Args:
            keeps: of each layer, for the columns of the new keys and values (-1 for padding), and
                how many there are.
        """
        lengths_A = np.array([each.length for each in prompts])
        for each in prompts:
            each.passes += 1
        places_AQ, real_AQ = _places(columns_AG)
        at_AQ, ends_A1 = places_AQ + lengths_A[:, None], _ends(lengths_A, ids_AG)
        total, width = int(ends_A1.max()), at_AQ.shape[1]
        run = slice(int(at_AQ[0, 0]), int(at_AQ[0, 0]) + width)
        same = real_AQ.all() and (at_AQ == np.arange(run.start, run.stop)).all()
        chosen_AQ = np.take_along_axis(ids_AG, places_AQ, 1).clip(min=0)
        wanted_AW, real_AW = _places(np.take_along_axis(select_AG, places_AQ, 1) & real_AQ)
        hidden_AWD = self.model.backbone(
            self.model.backbone.embed_tokens(self._up(chosen_AQ)),
            self._up(at_AQ),
            self._mask(np.arange(total) < ends_A1, width),
            keeps(run if same else np.where(real_AQ, at_AQ, -1), total),
            self._up(wanted_AW),
        )
        logits_NV: Tensor = self.model.backbone.lm_head(_picked(hidden_AWD, real_AW))
        return logits_NV

    def _up(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _stack(self, prompts: Sequence[Prompt]) -> PaddedPrompts:
        """The prompts side by side; made once for each change of who is there."""
        if self._padded is None or self._padded[0] != prompts:
            lengths_A = np.array([each.length for each in prompts])
            segments = [each.segments_P for each in prompts]
            width = int(lengths_A.max())
            # The canvas is the segment behind the prompt's last one.
            segments_AP = torch.stack(
                [
                    torch.cat((each, (each[-1:] + 1).expand(width + 1 - len(each))))
                    for each in segments
                ]
            )
            embeds_APD = pad_sequence([each.embeds_PD for each in prompts], batch_first=True)
            self._padded = (list(prompts), PaddedPrompts(embeds_APD, segments_AP, lengths_A))
        return self._padded[1]


def _ends(lengths_A: Array, ids_AG: Array) -> Array:
    """The column (A, 1) behind each canvas."""
    ends_A1: Array = lengths_A[:, None] + (ids_AG != PAD_POSITION).sum(1, keepdims=True)
    return ends_A1


def _places(some_AG: Array) -> tuple[Array, Array]:
    """The columns (A, Q) of the True positions of each sequence, from the left, and which of them
    are not mere padding."""
    widest = int(some_AG.sum(1).max())
    places_AQ = (~some_AG).argsort(axis=1, kind="stable")[:, :widest]
    return places_AQ, np.take_along_axis(some_AG, places_AQ, 1)


def _picked(hidden_AQD: Tensor, real_AQ: Array) -> Tensor:
    """The states (N, D) that are not mere padding."""
    hidden_ND = hidden_AQD.flatten(0, 1)
    if real_AQ.all():
        return hidden_ND
    real_N = real_AQ.ravel().nonzero()[0]
    return hidden_ND[torch.from_numpy(real_N).to(hidden_ND.device, non_blocking=True)]
