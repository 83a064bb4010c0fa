"""The tensors of a batch's images and audio, as the processor makes them and the model takes
them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MediaInputs:
    """All images and audio of a batch in reading order; None where there are none of the kind.

    Shapes: N views of all images, I images, A windows of audio, M mel bands, F frames.
    """

    pixel_values: Tensor | None = None  # (N, 3, H, W)
    image_sizes: Tensor | None = None  # width and height in pixels, (I, 2)
    # Columns and rows of tiles behind the base view, (I, 2); 0 and 0 for a single view.
    image_grids: Tensor | None = None
    input_features: Tensor | None = None  # log-mel spectrograms, zero behind their ends, (A, M, F)
    feature_lengths: Tensor | None = None  # frames of each window, (A)

    def present(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


MEDIA_NAMES = tuple(field.name for field in dataclasses.fields(MediaInputs))
