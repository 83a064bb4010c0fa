"""The closed-form namer against the slow obvious one, its gate, and the table of features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.eval.everyday import caption_meaning, is_within
from mmdiff.training.everyday.discriminant import (
    UNSEEN_BIAS,
    fit_discriminant,
    principal_directions,
)
from mmdiff.training.everyday.experts import fit_gate, fit_temperature
from mmdiff.training.everyday.features import load_features, make_part, part_of
from mmdiff.training.everyday.wordnet import Synset, WordNet

NUM_CLASSES, WIDTH = 6, 5


def clouds(seed: int, count: int = 400) -> tuple[Tensor, Tensor]:
    """Samples of classes with one covariance that is far from round."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(NUM_CLASSES, WIDTH, generator=rng)
    mixing = torch.randn(WIDTH, WIDTH, generator=rng)
    rng.manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=rng)
    return means[labels] + 0.5 * torch.randn(count, WIDTH, generator=rng) @ mixing, labels


def test_scores_are_those_of_mahalanobis_distances() -> None:
    features, labels = clouds(1)
    namer = fit_discriminant(features, labels, range(NUM_CLASSES), NUM_CLASSES, 0.2, rank=WIDTH)
    scaled = (features - features.mean(0)) / features.std(0)
    means = torch.stack([scaled[labels == each].mean(0) for each in range(NUM_CLASSES)])
    residuals = scaled - means[labels]
    within = residuals.T @ residuals / (len(features) - NUM_CLASSES)
    inverse = torch.linalg.inv(0.8 * within + 0.2 * torch.eye(WIDTH))
    offsets = scaled[:, None] - means[None]
    slow = -0.5 * torch.einsum("nkf,fg,nkg->nk", offsets, inverse, offsets)
    assert torch.allclose(
        namer.class_scores(features).log_softmax(1), slow.log_softmax(1), atol=1e-3
    )


def test_unseen_samples_are_named() -> None:
    features, labels = clouds(1)
    namer = fit_discriminant(features, labels, range(NUM_CLASSES), NUM_CLASSES, rank=4)
    others, right = clouds(2)
    assert (namer(others).argmax(1) == right).float().mean() > 0.6
    assert namer.projection_FR.shape == (WIDTH, 4)


def test_classes_without_samples_are_never_named() -> None:
    features, labels = clouds(1)
    many = NUM_CLASSES + 300
    namer = fit_discriminant(features, labels, range(many), many)
    assert namer(features)[:, NUM_CLASSES:].max() == 0


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_directions_hold_most_of_the_points(shape: tuple[int, int]) -> None:
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    directions = principal_directions(points, 3)
    assert torch.allclose(directions.T @ directions, torch.eye(3), atol=1e-4)
    kept = (points @ directions).square().sum()
    assert torch.allclose(kept, torch.linalg.svdvals(points)[:3].square().sum(), rtol=1e-3)


def test_temperature_and_gate() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=rng)
    scores = torch.nn.functional.one_hot(labels, 4) + torch.randn(200, 4, generator=rng)
    assert fit_temperature(scores * 10, labels) > 4 * fit_temperature(scores, labels) > 0
    unseen = scores.clone()
    unseen[labels == 0, 0] = UNSEEN_BIAS
    assert fit_temperature(unseen, labels) < 2 * fit_temperature(scores, labels)
    drawings, photographs = torch.randn(90, 6, generator=rng), torch.randn(30, 6, generator=rng)
    photographs[:, 2] += 6
    gate = fit_gate(drawings, photographs)
    shares = [torch.sigmoid(each @ gate[:-1] + gate[-1]) for each in (drawings, photographs)]
    assert shares[0].mean() < 0.1 and shares[1].mean() > 0.9


def test_tables_are_made_once(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    del timm
    from mmdiff.vision.map_tower import build_map_tower, map_config

    tower = build_map_tower(
        map_config("test_efficientnet", ("blocks.1", "bn2"), 32, layout="resize")
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    items = [(f"id{at}", f"name{at}", Image.fromarray(each)) for at, each in enumerate(images)]
    make_part(tmp_path / "table", 0, tower, items)
    table = load_features(tmp_path / "table", parts=1)
    assert table.ids == ["id0", "id1", "id2"] and table.values_NF.shape[0] == 3
    make_part(tmp_path / "table", 0, tower, items[:1])
    assert len(load_features(tmp_path / "table", parts=1).ids) == 3
    with pytest.raises(MMDiffError, match="make it with python -m"):
        load_features(tmp_path / "table", parts=2)
    assert {part_of(str(each)) for each in range(200)} == set(range(10))


def test_weights_of_another_hash_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from mmdiff.training.everyday.lite0 import load_weights
    from mmdiff.vision.map_tower import build_map_tower, map_config

    tower = build_map_tower(map_config("test_efficientnet", ("bn2",), 32, layout="resize"))
    file = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(tower, file)
    file.write_bytes(b"other")
    with pytest.raises(CheckpointError, match="holds other weights"):
        load_weights(tower, file)


def test_captions_become_meanings() -> None:
    synsets = {
        15388: Synset(("animal",), ()),
        2: Synset(("bird",), (15388,)),
        3: Synset(("piciform bird",), (2,)),
        4: Synset(("toucan",), (3,)),
    }
    senses = {"bird": (2,), "toucan": (4,), "animal": (15388,)}
    wordnet = WordNet(synsets, senses)
    assert caption_meaning("A colorful toucan.", wordnet, 15388) == 4
    assert caption_meaning("The baby of a toucan.", wordnet, 15388) == 4
    assert caption_meaning("A unicycle.", wordnet, 15388) is None
    right = [is_within(name, 4, wordnet) for name in ("toucans", "bird", "animal", "cat")]
    assert right == [True, True, False, False]
