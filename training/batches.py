"""What a batch of training data holds, by name."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

SKIPPED = "skipped"


class TrainingBatch(TypedDict, total=False):
    """Tensors of a batch; which of them depends on the data set.

    Shapes: B rows, T positions, N positions where facts are told, K facts, I images, V views, A
    clips of audio, M mels, F frames, U tokens of a transcript, G images of scenes, P phrases and X
    patches of all G images, O things in them.
    """

    # Packed conversations: `packing.pack`.
    input_ids: Tensor  # (B, T)
    labels: Tensor  # (B, T), IGNORE where nothing is learned
    importance: Tensor  # (B, T), weight of a label's loss
    attention_mask: Tensor  # (B, T), False at padding
    segment_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    branch_ids: Tensor  # (B, T), 0 in what all branches see
    named: Tensor  # (B, T), not 0 where facts are told
    facts: Tensor  # (N, K)
    image_sizes: Tensor  # (I, 2), pixels
    image_grids: Tensor  # (I, 2)
    # Packed conversations with images, and images of scenes with phrases.
    pixel_values: Tensor  # (V, 3, H, W)
    # Audio, alone or in conversations.
    input_features: Tensor  # (A, M, F)
    feature_lengths: Tensor  # (A)
    said: Tensor  # (A, U), IGNORE behind a transcript
    # Images of scenes with phrases: `RegionTextDataset`.
    phrase_ids: Tensor  # (P, T)
    phrase_mask: Tensor  # (P, T)
    owner: Tensor  # (G, X / G), the thing that a patch shows, 0 for background
    truth: Tensor  # (1 + O, P)
    # What is wrong with the rows that were left out, a sentence each.
    skipped: list[str]
