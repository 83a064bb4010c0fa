"""From tower features to the backbone's width: join neighbouring patches, then two linear layers
with GELU.

Sources: LLaVA-1.5 (arXiv 2310.03744) for the layers, InternVL 1.5 (arXiv 2404.16821) for joining
patches.

Shapes: V views, P patches, Q joined patches, D width.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def build_connector(in_features: int, out_features: int, norm: bool = False) -> nn.Sequential:
    """Linear, GELU, Linear with biases; state-dict names `0.*` and `2.*`, as in published
    checkpoints.

    `norm` puts a LayerNorm (`norm.*`) before them, as InternVL does: the features come from before
    the tower's last norm, and a connector learned from scratch would otherwise pass their large
    common part on.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if norm:
        layers["norm"] = nn.LayerNorm(in_features)
    layers["0"] = nn.Linear(in_features, out_features)
    layers["1"] = nn.GELU()
    layers["2"] = nn.Linear(out_features, out_features)
    return nn.Sequential(layers)


def pixel_shuffle(features_VPD: Tensor, factor: int) -> Tensor:
    """Join squares of `factor` x `factor` patches into one of `factor`^2 times the width (V, Q,
    D)."""
    if factor == 1:
        return features_VPD
    num_views, num_patches, width = features_VPD.shape
    side = round(num_patches**0.5)
    squares = features_VPD.view(num_views, side // factor, factor, side // factor, factor, width)
    return squares.transpose(2, 3).reshape(num_views, num_patches // factor**2, factor**2 * width)
