"""Linear discriminant analysis in closed form, with a shrunk covariance and at low rank.

Within-class covariance S of features that are scaled to unit variance, shrunk to (1 - a) S + a I;
class means in the whitened space, cut to their R first principal directions.

Shapes: N samples, F features, K classes, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdiff.vision.namer import DiscriminantNamer

SHRINKAGE, RANK = 0.6, 256
UNSEEN_BIAS = -1e4  # of classes without samples


def fit_discriminant(
    features_NF: Tensor,
    labels_N: Tensor,
    name_of_class: Sequence[int],
    num_names: int,
    shrinkage: float = SHRINKAGE,
    rank: int = RANK,
) -> DiscriminantNamer:
    """A namer of classes 0 to K - 1; the prior of all classes is the same.

    Args:
        features_NF: float32.
        labels_N: a class for each sample; classes without one are never named.
        name_of_class: the name of each of the K classes.
    """
    num_classes = len(name_of_class)
    centre_F, scale_F = features_NF.mean(0), features_NF.std(0).clamp(min=1e-4)
    scaled_NF = (features_NF - centre_F) / scale_F
    means_KF, counts_K = class_means(scaled_NF, labels_N, num_classes)
    within_FF = _within_covariance(scaled_NF, labels_N, means_KF, counts_K)
    shrunk_FF = (1 - shrinkage) * within_FF
    shrunk_FF.diagonal().add_(shrinkage)
    factor_FF = torch.linalg.cholesky(shrunk_FF)
    whitened_KF = torch.linalg.solve_triangular(factor_FF, means_KF.T, upper=False).T
    directions_FR = principal_directions(whitened_KF[counts_K > 0], rank)
    projection_FR = torch.linalg.solve_triangular(factor_FF.T, directions_FR, upper=True)
    classes_KR = whitened_KF @ directions_FR
    bias_K = -classes_KR.square().sum(1) / 2
    bias_K[counts_K == 0] = UNSEEN_BIAS
    namer = DiscriminantNamer(len(centre_F), directions_FR.shape[1], num_classes, num_names)
    namer.mean_F.copy_(centre_F)
    namer.projection_FR.copy_(projection_FR / scale_F[:, None])
    namer.classes_KR.copy_(classes_KR)
    namer.bias_K.copy_(bias_K)
    namer.name_of_class_K.copy_(torch.tensor(name_of_class))
    return namer


def class_means(features_NF: Tensor, labels_N: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Means (K, F), zero of classes without samples, and numbers of samples (K)."""
    counts_K = torch.bincount(labels_N, minlength=num_classes)
    sums_KF = features_NF.new_zeros(num_classes, features_NF.shape[1])
    sums_KF.index_add_(0, labels_N, features_NF)
    return sums_KF / counts_K.clamp(min=1)[:, None], counts_K


def _within_covariance(
    features_NF: Tensor, labels_N: Tensor, means_KF: Tensor, counts_K: Tensor
) -> Tensor:
    """Sum of squares within classes is that in all less that between classes: the samples need not
    be copied."""
    total_FF = features_NF.T @ features_NF
    weighted_KF = means_KF * counts_K.sqrt()[:, None]
    freedom = len(features_NF) - int((counts_K > 0).sum())
    return (total_FF - weighted_KF.T @ weighted_KF) / max(1, freedom)


def principal_directions(points_KF: Tensor, rank: int) -> Tensor:
    """The at most R directions (F, R) in which the points vary most, by the eigenvectors of the
    smaller of both products."""
    points_KF = points_KF.double()  # in single precision, many equal eigenvalues do not converge
    num_points, num_features = points_KF.shape
    rank = min(rank, num_points, num_features)
    if num_points < num_features:
        vectors_KK = torch.linalg.eigh(points_KF @ points_KF.T).eigenvectors
        directions_FR = points_KF.T @ vectors_KK[:, -rank:]
        return torch.linalg.qr(directions_FR).Q.float()
    return torch.linalg.eigh(points_KF.T @ points_KF).eigenvectors[:, -rank:].float()
