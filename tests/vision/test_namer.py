"""Experts over names: classes of one name are added up, and the gate parts the two experts."""

import torch

from mmdiff.vision.namer import (
    DiscriminantNamer,
    NameExperts,
    confidences,
    gate_share,
    merge_classes,
    pooled,
)


def small_namer() -> DiscriminantNamer:
    """Three classes of two names along one feature."""
    namer = DiscriminantNamer(num_features=2, rank=1, num_classes=3, num_names=4)
    namer.projection_FR.copy_(torch.tensor([[1.0], [0.0]]))
    namer.classes_KR.copy_(torch.tensor([[-4.0], [0.0], [4.0]]))
    namer.bias_K.copy_(torch.tensor([-8.0, 0.0, -8.0]))
    namer.name_of_class_K.copy_(torch.tensor([0, 1, 0]))
    return namer


def test_pooling_is_mean_and_maximum_of_each_map() -> None:
    first = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    second = torch.tensor([[[[3.0]], [[4.0]]]])
    assert pooled([first, second]).tolist() == [[2.0, 5.0, 3.0, 4.0, 3.0, 4.0]]


def test_classes_of_one_name_are_added_up() -> None:
    posteriors = torch.tensor([[0.2, 0.5, 0.3]])
    assert torch.allclose(
        merge_classes(posteriors, torch.tensor([0, 1, 0]), 3), torch.tensor([[0.5, 0.5, 0.0]])
    )


def test_the_nearest_class_is_named() -> None:
    features = torch.tensor([[-4.0, 9.0], [0.0, 0.0], [4.0, -9.0]])
    names = small_namer()(features)
    assert names.argmax(1).tolist() == [0, 1, 0]
    assert torch.allclose(names.sum(1), torch.ones(3))


def test_the_gate_decides_between_experts() -> None:
    experts = NameExperts(small_namer(), num_photograph_classes=2, num_names=4)
    experts.name_of_class_K.copy_(torch.tensor([2, 3]))
    features, logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, -5.0]])
    for bias, name in ((-20.0, 1), (20.0, 2)):
        experts.gate[-1] = bias
        names = experts(features, logits)
        assert names.argmax(1).tolist() == [name]
        assert torch.allclose(names.sum(1), torch.ones(1), atol=1e-5)


def test_classes_of_photographs_stand_outside_of_the_gate() -> None:
    experts = NameExperts(small_namer(), num_photograph_classes=2, num_names=4)
    experts.name_of_class_K.copy_(torch.tensor([2, 3]))
    experts.is_photograph_K[1] = True
    experts.gate[-1] = 20.0
    names = experts(torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, -5.0]]))
    assert names.argmax(1).tolist() == [1]


def test_confidences_grow_with_certainty() -> None:
    unsure, sure = torch.tensor([[0.4, 0.35, 0.25]]), torch.tensor([[0.98, 0.01, 0.01]])
    low, high = confidences(unsure, sure)[0, :3], confidences(sure, unsure)[0, :3]
    assert high[0] > low[0] and high[1] > low[1] and high[2] < low[2]
    gate = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    assert gate_share(torch.zeros(1, 6), gate).tolist() == [0.5]
