"""What is in an image, by name: two experts over one vocabulary of everyday names, and a gate.

The first expert is a linear discriminant analysis of pooled features, fitted in closed form on
named drawings (Fisher; regularised as in Friedman 1989), at low rank. The second is the tower's
own ImageNet classifier with its classes merged into everyday names. The gate is a logistic
regression on how sure both are.

Shapes: N images, F features, R rank, K classes, W names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softmax

NUM_CONFIDENCES = 6


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Mean and maximum over the positions of each map (N, F), map after map."""
    parts = []
    for each in maps:
        parts += [each.mean((2, 3)), each.amax((2, 3))]
    return torch.cat(parts, dim=1)


class DiscriminantNamer(nn.Module):
    """Log-posteriors of classes by linear discriminant analysis: (x - mean) P C^T + bias."""

    mean_F: Tensor
    projection_FR: Tensor
    classes_KR: Tensor
    bias_K: Tensor
    name_of_class_K: Tensor

    def __init__(self, num_features: int, rank: int, num_classes: int, num_names: int) -> None:
        super().__init__()
        self.num_names = num_names
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("projection_FR", torch.zeros(num_features, rank))
        self.register_buffer("classes_KR", torch.zeros(num_classes, rank))
        self.register_buffer("bias_K", torch.zeros(num_classes))
        self.register_buffer("name_of_class_K", torch.zeros(num_classes, dtype=torch.long))

    def class_scores(self, features_NF: Tensor) -> Tensor:
        """Log-posteriors up to a constant (N, K)."""
        projected_NR = (features_NF - self.mean_F) @ self.projection_FR
        return linear(projected_NR, self.classes_KR, self.bias_K)

    def forward(self, features_NF: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities of names (N, W): those of all classes that have the name."""
        posteriors_NK = softmax(self.class_scores(features_NF) / temperature, dim=1)
        return merge_classes(posteriors_NK, self.name_of_class_K, self.num_names)


def merge_classes(posteriors_NK: Tensor, name_of_class_K: Tensor, num_names: int) -> Tensor:
    """Probabilities of names (N, W) from those of classes."""
    merged_NW = posteriors_NK.new_zeros(len(posteriors_NK), num_names)
    return merged_NW.index_add(1, name_of_class_K, posteriors_NK)


class NameExperts(nn.Module):
    """Both experts and their gate."""

    name_of_class_K: Tensor
    is_photograph_K: Tensor
    gate: Tensor
    temperatures: Tensor

    def __init__(
        self, namer: DiscriminantNamer, num_photograph_classes: int, num_names: int
    ) -> None:
        super().__init__()
        self.namer, self.num_names = namer, num_names
        # Names of the classifier's classes.
        self.register_buffer("name_of_class_K", torch.zeros(num_photograph_classes).long())
        # Classes of the namer that were fitted on photographs stand outside of the gate.
        self.register_buffer("is_photograph_K", torch.zeros(len(namer.bias_K), dtype=torch.bool))
        self.register_buffer("gate", torch.zeros(NUM_CONFIDENCES + 1))
        self.register_buffer("temperatures", torch.ones(2))

    def forward(self, features_NF: Tensor, class_logits_NK: Tensor) -> Tensor:
        """Probabilities of names (N, W).

        Args:
            features_NF: pooled maps.
            class_logits_NK: of the tower's classifier.
        """
        drawn_NK, photographed_NK = self.posteriors(features_NF, class_logits_NK)
        outside_NK = drawn_NK * self.is_photograph_K
        inside_NK = drawn_NK - outside_NK
        left_N1 = inside_NK.sum(1, keepdim=True)
        inside_NK = inside_NK / left_N1.clamp(min=1e-9)
        share_N1 = gate_share(confidences(inside_NK, photographed_NK), self.gate)[:, None]
        names = self.namer.name_of_class_K
        drawings_NW = merge_classes(inside_NK, names, self.num_names)
        photographs_NW = merge_classes(photographed_NK, self.name_of_class_K, self.num_names)
        mixed_NW = share_N1 * photographs_NW + (1 - share_N1) * drawings_NW
        return left_N1 * mixed_NW + merge_classes(outside_NK, names, self.num_names)

    def posteriors(self, features_NF: Tensor, class_logits_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Of the namer's classes and of the classifier's."""
        drawn_NK = softmax(self.namer.class_scores(features_NF) / self.temperatures[0], dim=1)
        photographed_NK = softmax(class_logits_NK / self.temperatures[1], dim=1)
        return drawn_NK, photographed_NK


def confidences(drawn_NK: Tensor, photographed_NK: Tensor) -> Tensor:
    """How sure each expert is: log-odds of its first class, log-ratio to its second, and entropy
    (N, 6)."""
    parts = []
    for posteriors_NK in (drawn_NK, photographed_NK):
        best_N2 = posteriors_NK.topk(2, dim=1).values.clamp(1e-6, 1 - 1e-6)
        entropy_N = torch.special.entr(posteriors_NK).sum(1)
        first_N = best_N2[:, 0]
        parts += [torch.logit(first_N), first_N.log() - best_N2[:, 1].log(), entropy_N]
    return torch.stack(parts, dim=1)


def gate_share(confidences_NC: Tensor, gate: Tensor) -> Tensor:
    """The photograph expert's share (N)."""
    return torch.sigmoid(confidences_NC @ gate[:-1] + gate[-1])
