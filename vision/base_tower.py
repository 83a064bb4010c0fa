"""What all vision towers share.

Shapes: V views, S pixels per side, P patches in row-major order, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmdiff.config import VisionConfig


class Tower(nn.Module):
    """What all towers share: the size check. `encode` is each library's own; `build_tower` makes
    one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size

    def forward(self, pixels_V3SS: Tensor) -> Tensor:
        """Features (V, P, D) of normalised pixels (V, 3, S, S).

        Raises:
            ValueError: the pixels are not square images of the configured size.
        """
        if pixels_V3SS.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"pixels of shape {tuple(pixels_V3SS.shape)} do not fit: this tower takes "
                f"(views, 3, {self.image_size}, {self.image_size}); cut images with make_views"
            )
        return self.encode(pixels_V3SS)

    def encode(self, pixels_V3SS: Tensor) -> Tensor:
        raise NotImplementedError
