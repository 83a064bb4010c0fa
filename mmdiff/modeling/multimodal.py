"""`MMDiffModel`: towers, connectors and backbone as one `transformers.PreTrainedModel`.

`embed` turns ids, pixels and spectrograms into embeddings; `forward` gives logits where they are
asked for. Denoising is in `sampler.py`, published layouts in `checkpoint.py`.

Shapes: B batch, T positions, D width, V vocabulary, S selected positions, N views or windows, P
patches, W views of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from mmdiff import config as settings
from mmdiff.audio.connector import CONNECTORS
from mmdiff.audio.tower import WhisperTower
from mmdiff.config import ModelConfig
from mmdiff.errors import MMDiffError
from mmdiff.files import share_weights
from mmdiff.modeling.attention import build_attention_mask
from mmdiff.modeling.auto_config import MMDiffConfig as MMDiffConfig
from mmdiff.modeling.backbone import Backbone
from mmdiff.modeling.checkpoint_folder import replacing_weights
from mmdiff.modeling.media_inputs import MediaInputs
from mmdiff.tokens import segment_ids as derive_segments
from mmdiff.vision.connector import build_connector, pixel_shuffle
from mmdiff.vision.merge import merge_views
from mmdiff.vision.tower import build_tower

WINDOWS_AT_ONCE = 8  # windows of audio that the tower sees together


class Encoder(Protocol):
    """What turns pixels and spectrograms into embeddings; `MMDiffModel` does."""

    def encode_images(
        self, pixel_values: Tensor, image_sizes: Tensor, image_grids: Tensor
    ) -> list[Tensor]: ...
    def encode_audio(self, input_features: Tensor, feature_lengths: Tensor) -> list[Tensor]: ...


@dataclass
class MMDiffOutput(ModelOutput):
    """What `MMDiffModel.forward` gives."""

    logits: Tensor  # (B, T, V), or (S, V) where positions were selected


class MMDiffModel(PreTrainedModel):
    """A multimodal masked-diffusion language model."""

    config_class = MMDiffConfig
    config: MMDiffConfig
    main_input_name = "input_ids"
    input_modalities = ["text", "image", "audio"]
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["Block", "SiglipEncoderLayer", "WhisperEncoderLayer"]

    def __init__(self, config: MMDiffConfig) -> None:
        super().__init__(config)
        self.model_config = model = config.model
        self.backbone = Backbone(model.backbone)
        width = model.backbone.hidden_size
        self.vision_tower: nn.Module | None = None
        self.connector: nn.Module | None = None
        self.audio_tower: nn.Module | None = None
        self.audio_connector: nn.Module | None = None
        self.image_newline: nn.Parameter | None = None
        if model.vision is not None:
            self.vision_tower = build_tower(model.vision)
            self.connector = _connector(model)
        if model.audio is not None:
            self.audio_tower = WhisperTower(model.audio)
            self.audio_connector = CONNECTORS[model.audio.connector](model.audio, width)
        if model.vision is not None and model.vision.newline:
            self.image_newline = nn.Parameter(torch.zeros(width))
        self.post_init()

    def set_config(self, config: ModelConfig) -> None:
        """Take settings that build the same modules, such as other special ids."""
        self.model_config = config
        self.config.settings = settings.to_dict(config)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part is initialised where it is built, whatever the version of transformers
        does here."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in `transformers`; weights that an earlier save left there in another number of files
        are removed.

        Raises:
            MMDiffError: layers are in 8 or 4 bits, which nothing could load again.
        """
        if any(type(module).__module__.startswith("bitsandbytes") for module in self.modules()):
            raise MMDiffError(
                f"a model with layers in 8 or 4 bits is not saved in {str(save_directory)!r}: "
                "load it without quantize and save that; every load can quantize it again"
            )
        with replacing_weights(Path(save_directory)):
            super().save_pretrained(save_directory, *args, **kwargs)
        # safetensors leaves weights to their owner
        if (Path(save_directory) / "config.json").exists():
            share_weights(Path(save_directory), like="config.json")

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is tied: the head is its own matrix."""

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def encode_images(
        self, pixel_values: Tensor, image_sizes: Tensor, image_grids: Tensor
    ) -> list[Tensor]:
        """The embeddings (tokens, D) of each image; arguments as in `MediaInputs`."""
        vision, newline = self.model_config.vision, self.image_newline
        assert vision is not None and self.vision_tower is not None and self.connector is not None
        patches_NPD = self.vision_tower(pixel_values.to(self.dtype))
        features_NPD = self.connector(pixel_shuffle(patches_NPD, vision.pixel_shuffle))
        sizes, grids = image_sizes.tolist(), image_grids.tolist()
        images = features_NPD.split([1 + columns * rows for columns, rows in grids])
        embeds = []
        for views_WPD, size, grid in zip(images, sizes, grids, strict=True):
            embeds.append(merge_views(views_WPD, size, grid, vision, newline))
        return embeds

    def encode_audio(self, input_features: Tensor, feature_lengths: Tensor) -> list[Tensor]:
        """The embeddings (tokens, D) of each window; arguments as in `MediaInputs`."""
        assert self.audio_tower is not None and self.audio_connector is not None
        embeds: dict[int, Tensor] = {}
        # Windows about as long as each other together: little of what the tower sees is then
        # padding.
        for numbers_G in feature_lengths.argsort().split(WINDOWS_AT_ONCE):
            lengths_G = feature_lengths[numbers_G]
            mels_GMF = input_features[numbers_G, :, : int(lengths_G.max())]
            made = self.audio_connector(*self.audio_tower(mels_GMF.to(self.dtype), lengths_G))
            embeds.update(zip(numbers_G.tolist(), made, strict=True))
        return [embeds[number] for number in range(len(feature_lengths))]

    def embed(
        self,
        input_ids: Tensor,
        encoder: Encoder | None = None,
        **media: Tensor | None,
    ) -> Tensor:
        """Embeddings (B, T, D) of the ids, with those of all images and audio at their
        placeholders.

        Args:
            encoder: what encodes images and audio in the model's stead.
            media: the tensors of `MediaInputs`, by name.
        """
        tokens, encoder, inputs = self.model_config.tokens, encoder or self, MediaInputs(**media)
        embeds_BTD: Tensor = self.backbone.embed_tokens(input_ids)
        pixels, sizes, grids = inputs.pixel_values, inputs.image_sizes, inputs.image_grids
        if pixels is not None and sizes is not None and grids is not None:
            images = encoder.encode_images(pixels, sizes, grids)
            here_BT = torch.eq(input_ids, tokens.image or 0)
            embeds_BTD = merge_media_embeddings(embeds_BTD, here_BT, torch.cat(images))
        mels, lengths = inputs.input_features, inputs.feature_lengths
        if mels is not None and lengths is not None:
            windows = encoder.encode_audio(mels, lengths)
            here_BT = torch.eq(input_ids, tokens.audio or 0)
            embeds_BTD = merge_media_embeddings(embeds_BTD, here_BT, torch.cat(windows))
        return embeds_BTD

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        select: Tensor | None = None,
        **media: Tensor | None,
    ) -> MMDiffOutput:
        """Logits (B, T, V), or (S, V) at the True positions of `select` (B, T), the only ones then
        computed.

        `attention_mask` (B, T) is 1 at real positions; `segment_ids` and `branch_ids` are as in
        `attention.build_attention_mask`; what is left out is derived from the ids. `media` are the
        tensors of `MediaInputs`, by name (`pixel_values=...`).
        """
        tokens, backbone = self.model_config.tokens, self.model_config.backbone
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        valid_BT = attention_mask.bool()
        if position_ids is None:
            position_ids = (valid_BT.cumsum(1) - 1).clamp(min=0)
        if segment_ids is None:
            segment_ids = derive_segments(input_ids, tokens)
            if backbone.attention_pattern == "block-causal":
                segment_ids = position_ids // backbone.attention_block
        mask_B1TT = build_attention_mask(
            valid_BT, segment_ids, backbone.attention_pattern, branch_ids
        )
        hidden_BTD = self.backbone(self.embed(input_ids, None, **media), position_ids, mask_B1TT)
        if backbone.shifted:  # each position's logits are made at the one before it
            hidden_BTD = torch.cat((hidden_BTD[:, :1], hidden_BTD[:, :-1]), dim=1)
        if select is not None:
            hidden_BTD = hidden_BTD[select]
        return MMDiffOutput(logits=self.backbone.lm_head(hidden_BTD))


def _connector(config: ModelConfig) -> nn.Sequential:
    assert config.vision is not None
    vision = config.vision
    width = vision.hidden_size * vision.pixel_shuffle**2
    return build_connector(width, config.backbone.hidden_size, vision.connector_norm)


AutoModel.register(MMDiffConfig, MMDiffModel)
AutoModelForImageTextToText.register(MMDiffConfig, MMDiffModel)


def merge_media_embeddings(embeds_BTD: Tensor, here_BT: Tensor, media_ND: Tensor) -> Tensor:
    """Replace the embeddings at the True positions of `here_BT`, sequence after sequence, by
    `media_ND`.

    Raises:
        ValueError: the number of placeholders is not the number of embeddings.
    """
    if int(here_BT.sum()) != media_ND.shape[0]:
        raise ValueError(
            f"{int(here_BT.sum())} placeholders in the prompt for {media_ND.shape[0]} media "
            "embeddings"
        )
    return torch.masked_scatter(embeds_BTD, here_BT[..., None], media_ND.to(embeds_BTD.dtype))
