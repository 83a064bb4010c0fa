"""A model with a batch of prompts before it: logits at canvas positions, for `sampler.denoise`.

Pictures, sounds and prompt embeddings are computed once. Everything else is computed at every step;
what may be kept between steps is in cached_runner.py, which calls `whole` and `part` here.

Shapes: B rows, A active rows, P prompt positions, G canvas positions, T = P + G, Q computed columns
of the canvas, N selected positions, L positions asked for as if hidden, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.decoding.canvas import PAD_POSITION
from mmdiff.decoding.kv_cache import LayerCache
from mmdiff.decoding.prefix_cache import CachingEncoder, PrefixBlock, PrefixCache, prompt_blocks
from mmdiff.decoding.sampler import Batch
from mmdiff.modeling.attention import build_attention_mask
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.weights_version import every_module
from mmdiff.tokens import segment_ids as derive_segments

Method = TypeVar("Method", bound=Callable[..., Tensor])


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
    def evaluated(self: ModelRunner, *args: Any, **kwargs: Any) -> Tensor:
        if not (self._training or self.model.training):
            return method(self, *args, **kwargs)
        with evaluating(self.model):
            return method(self, *args, **kwargs)

    return cast(Method, evaluated)


class ModelRunner:
    """A `sampler.Batch` that computes everything at every step.

    Prompts are padded on the left, so every row's canvas starts in the same column; rotary
    positions are counted per row, so a row's numbers are those it has alone.
    """

    def __init__(
        self,
        model: MMDiffModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prefix_cache: PrefixCache | None = None,
        **media: Any,
    ) -> None:
        self.model, self.prefix_cache = model, prefix_cache
        tokens = model.model_config.tokens
        version = b"" if prefix_cache is None else prefix_cache.version(model)
        encoder = None if prefix_cache is None else CachingEncoder(model, prefix_cache, version)
        self._training = any(
            module.training for module in every_module(model)
        )  # a new adapter may be, on its own
        with evaluating(model):
            self.embeds_BPD = model.embed(input_ids, encoder=encoder, **media)
        valid_BP = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.valid_BP = valid_BP.bool()
        self.segments_BP = derive_segments(input_ids, tokens)
        self.audio_BP = torch.eq(input_ids, tokens.audio or 0)
        self.passes_B = torch.zeros(
            len(input_ids), dtype=torch.long
        )  # through the backbone, of each row
        self.blocks: list[list[PrefixBlock]] = [[] for _ in input_ids]
        if (
            encoder is not None
            and model.model_config.backbone.attention_pattern == "segment-causal"
        ):
            media_of = {tokens.image: encoder.pictures, tokens.audio: encoder.sounds}
            placeholders = {token: given for token, given in media_of.items() if token is not None}
            self.blocks = prompt_blocks(
                input_ids, self.valid_BP, self.segments_BP, placeholders, version
            )

    @property
    def prompt_length_B(self) -> Tensor:
        return self.valid_BP.sum(dim=1)

    def unconditional(self) -> ModelRunner:
        """The same prompts with every token and picture hidden behind the mask embedding."""
        other = copy.copy(self)
        mask = torch.tensor(self.model.model_config.tokens.mask, device=self.embeds_BPD.device)
        other.embeds_BPD = self.model.backbone.embed_tokens(mask).expand_as(self.embeds_BPD)
        other.passes_B, other.blocks = torch.zeros_like(self.passes_B), [[] for _ in self.blocks]
        return other

    def take(self, rows_A: Tensor) -> None:
        """Keep these rows only, in this order; a row may be named several times."""
        self.embeds_BPD, self.valid_BP = self.embeds_BPD[rows_A], self.valid_BP[rows_A]
        self.segments_BP, self.audio_BP = self.segments_BP[rows_A], self.audio_BP[rows_A]
        self.passes_B = self.passes_B[rows_A.cpu()]
        self.blocks = [self.blocks[row] for row in rows_A.tolist()]

    def join(self, other: Batch) -> None:
        """Take the rows of another batch behind these."""
        assert isinstance(other, ModelRunner)
        width = max(self.valid_BP.shape[1], other.valid_BP.shape[1])

        def both(mine_BP: Tensor, others_BP: Tensor) -> Tensor:
            return torch.cat(
                [F.pad(each, (width - each.shape[-1], 0)) for each in (mine_BP, others_BP)]
            )

        self.embeds_BPD = both(self.embeds_BPD.mT, other.embeds_BPD.mT).mT
        self.segments_BP = both(self.segments_BP, other.segments_BP)
        self.audio_BP = both(self.audio_BP, other.audio_BP)
        self.valid_BP = both(self.valid_BP, other.valid_BP)
        self.passes_B = torch.cat((self.passes_B, other.passes_B))
        self.blocks = self.blocks + other.blocks

    @torch.inference_mode()
    @_evaluated
    def prompt_logits(self, where_BP: Tensor) -> Tensor:
        """Logits (N, V) at the True positions of the prompts, which see no canvas."""
        backbone = self.model.backbone
        mask_B1PP = build_attention_mask(
            self.valid_BP, self.segments_BP, backbone.config.attention_pattern
        )
        positions_BP = (self.valid_BP.cumsum(1) - 1).clamp(min=0)
        self.passes_B += 1
        wanted_BQ, real_BQ = _places(where_BP)
        hidden_BQD = backbone(self.embeds_BPD, positions_BP, mask_B1PP, wanted_BQ=wanted_BQ)
        logits_NV: Tensor = backbone.lm_head(hidden_BQD[real_BQ])
        return logits_NV

    @torch.inference_mode()
    def __call__(
        self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor, hidden_AG: Tensor | None = None
    ) -> Tensor:
        return self.prefill(ids_AG, rows_A, select_AG, hidden_AG)

    @_evaluated
    def prefill(
        self,
        ids_AG: Tensor,
        rows_A: Tensor,
        select_AG: Tensor,
        hidden_AG: Tensor | None = None,
        keeps: Callable[[slice], Sequence[LayerCache]] = lambda where: (),
        first: int = 0,
    ) -> Tensor:
        """Logits (N, V) from a pass over prompt and canvas, then those (L, V) of what is asked for
        as if hidden.

        Args:
            keeps: of each layer, for the columns that are computed.
            first: column from which on there is something to compute; what stands before it is
                kept.
        """
        backbone, length = self.model.backbone, ids_AG.shape[1]
        valid_AP, segments_AP = self.valid_BP[rows_A], self.segments_BP[rows_A]
        embeds_ATD = torch.cat(
            (self.embeds_BPD[rows_A], backbone.embed_tokens(ids_AG.clamp(min=0))), dim=1
        )
        valid_AT = torch.cat((valid_AP, ids_AG != PAD_POSITION), dim=1)
        segments_AT = torch.cat((segments_AP, (segments_AP[:, -1:] + 1).expand(-1, length)), dim=1)
        mask_A1TT = build_attention_mask(valid_AT, segments_AT, backbone.config.attention_pattern)
        positions_AT = (valid_AT.cumsum(1) - 1).clamp(min=0)
        self.passes_B[rows_A.cpu()] += 1
        if hidden_AG is not None:
            return self._verify(embeds_ATD, positions_AT, mask_A1TT, select_AG, hidden_AG)
        if mask_A1TT is not None:
            mask_A1TT = mask_A1TT[:, :, first:]
        places_AQ, real_AQ = _places(select_AG)
        # Shifted logits are those of the position before.
        wanted_AQ = (
            places_AQ + valid_AT.shape[1] - length - first - int(backbone.config.shifted)
        ).clamp(min=0)
        hidden_AQD = backbone(
            embeds_ATD[:, first:],
            positions_AT[:, first:],
            mask_A1TT,
            keeps(slice(first, valid_AT.shape[1])),
            wanted_AQ,
        )
        logits_NV: Tensor = backbone.lm_head(hidden_AQD[real_AQ])
        return logits_NV

    def _verify(
        self,
        embeds_ATD: Tensor,
        positions_AT: Tensor,
        mask_A1TT: Tensor | None,
        select_AG: Tensor,
        hidden_AG: Tensor,
    ) -> Tensor:
        """Logits at the selected positions, and behind them those of the verify lane (WINO, arXiv
        2507.18578).

        The lane holds a mask token for each position of `hidden_AG`. It sees what the position sees
        but the position itself, and is seen by itself alone.
        """
        backbone, (num_rows, total), length = (
            self.model.backbone,
            positions_AT.shape,
            hidden_AG.shape[1],
        )
        places_AL, real_AL = _places(hidden_AG)
        places_AL, widest = places_AL + total - length, places_AL.shape[1]
        mask_ASS = torch.zeros(
            num_rows, total + widest, total + widest, dtype=torch.bool, device=places_AL.device
        )
        mask_ASS[:, :total, :total] = True if mask_A1TT is None else mask_A1TT[:, 0]
        seen_ALT = mask_ASS[:, :total, :total].gather(1, places_AL[..., None].expand(-1, -1, total))
        mask_ASS[:, total:, :total] = seen_ALT.scatter(2, places_AL[..., None], False)
        mask_ASS[:, total:, total:] = torch.eye(widest, dtype=torch.bool, device=places_AL.device)
        mask_D = backbone.embed_tokens.weight[self.model.model_config.tokens.mask]
        hidden_ASD = backbone(
            torch.cat((embeds_ATD, mask_D.expand(num_rows, widest, -1)), dim=1),
            torch.cat((positions_AT, positions_AT.gather(1, places_AL)), dim=1),
            mask_ASS[:, None],
        )
        canvas_AGD, lane_ALD = hidden_ASD[:, total - length : total], hidden_ASD[:, total:]
        logits_NV: Tensor = backbone.lm_head(torch.cat((canvas_AGD[select_AG], lane_ALD[real_AL])))
        return logits_NV

    @_evaluated
    def decode(
        self,
        ids_AG: Tensor,
        rows_A: Tensor,
        select_AG: Tensor,
        columns_AG: Tensor,
        keeps: Callable[[slice | Tensor], Sequence[LayerCache]],
    ) -> Tensor:
        """Logits (N, V) from a pass over some columns of the canvas, which see all that is kept.

        Args:
            keeps: of each layer, for the places of the new keys and values among prompt and canvas.
        """
        backbone, length, before = self.model.backbone, ids_AG.shape[1], self.valid_BP.shape[1]
        places_AQ, real_AQ = _places(columns_AG)
        where: slice | Tensor | None = _span(places_AQ, real_AQ, before)
        if where is None:
            where = torch.where(real_AQ, places_AQ + before, before + length)
        valid_AT, mask_A1QT = (
            torch.cat((self.valid_BP[rows_A], ids_AG != PAD_POSITION), dim=1),
            None,
        )
        if not bool(valid_AT.all()):
            mask_A1QT = valid_AT[:, None, None].expand(-1, 1, places_AQ.shape[1], -1)
        positions_AQ = valid_AT[:, :before].sum(1, keepdim=True) + places_AQ
        embeds_AQD = backbone.embed_tokens(ids_AG.gather(1, places_AQ).clamp(min=0))
        self.passes_B[rows_A.cpu()] += 1
        wanted_AW, real_AW = _places(select_AG.gather(1, places_AQ) & real_AQ)
        hidden_AWD = backbone(embeds_AQD, positions_AQ, mask_A1QT, keeps(where), wanted_AW)
        logits_NV: Tensor = backbone.lm_head(hidden_AWD[real_AW])
        return logits_NV


def _places(some_AG: Tensor) -> tuple[Tensor, Tensor]:
    """The columns (A, Q) of the True positions of each row, from the left, and which of them are
    not mere padding."""
    widest = int(some_AG.sum(1).max())
    places_AQ = (~some_AG).byte().argsort(dim=1, stable=True)[:, :widest]
    return places_AQ, some_AG.gather(1, places_AQ)


def _span(places_AQ: Tensor, real_AQ: Tensor, before: int) -> slice | None:
    """The one run of columns that all rows compute, or None."""
    first, width = int(places_AQ[0, 0]), places_AQ.shape[1]
    run_Q = torch.arange(first, first + width, device=places_AQ.device)
    same = bool((places_AQ == run_Q).all() & real_AQ.all())
    return slice(before + first, before + first + width) if same else None
