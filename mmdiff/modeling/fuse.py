"""Put picture and sound embeddings at their placeholder positions: one masked assignment.

Shapes: B batch, T positions, D width, N embeddings in reading order over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_media_embeddings(embeds_BTD: Tensor, here_BT: Tensor, media_ND: Tensor) -> Tensor:
    """Replace the embeddings at the True positions of `here_BT`, row by row, by the rows of `media_ND`.

    Raises:
        ValueError: the number of placeholders is not the number of embeddings.
    """
    if int(here_BT.sum()) != media_ND.shape[0]:
        raise ValueError(
            f"{int(here_BT.sum())} placeholders in the prompt for {media_ND.shape[0]} media embeddings"
        )
    return torch.masked_scatter(embeds_BTD, here_BT[..., None], media_ND.to(embeds_BTD.dtype))
