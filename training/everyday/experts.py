"""Fits what names an image: the vocabulary, the namer, and the gate between both experts.

Names of training images that a backbone learns from are cross-fitted: made by a namer that has not
seen that artist. In-sample names would be right far more often than those of a new artist, and a
backbone would learn to trust them.

Shapes: N images, F features, K classes, W names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmdiff.training.everyday.discriminant import (
    RANK,
    SHRINKAGE,
    UNSEEN_BIAS,
    fit_discriminant,
)
from mmdiff.training.everyday.drawings import ARTISTS, ICON_SETS, PNG_SETS
from mmdiff.training.everyday.features import PARTS, Features
from mmdiff.training.everyday.imagenet import imagenet_names
from mmdiff.training.everyday.names import CLOTHES, everyday_names, names_by_code
from mmdiff.training.everyday.sources import FOLDER
from mmdiff.training.everyday.tables import MAPS, ON_BACKGROUNDS, ON_WHITE, load_table
from mmdiff.vision.namer import (
    NUM_CONFIDENCES,
    DiscriminantNamer,
    NameExperts,
    confidences,
)

CHOICE_ARTIST = "twemoji"  # settings are chosen with this artist left out
PHOTOGRAPHS = "photographs"  # the artist of clothes
MAP_WIDTHS = {"blocks.4": 112, "blocks.5": 192, "blocks.6": 320, "bn2": 1280}


@dataclass(frozen=True)
class Selection:
    """Which cached tables are fitted on and measured with."""

    folder: Path = FOLDER
    parts: int = PARTS  # the first tenths of each
    sets: tuple[str, ...] = (*PNG_SETS, *ICON_SETS)
    styles: tuple[str, ...] = (ON_WHITE, ON_BACKGROUNDS)

    def table(self, name: str) -> Features:
        return load_table(name, self.folder, self.parts)


@dataclass(frozen=True)
class Vocabulary:
    """Everyday names, first those of drawings, then those that only photographs have."""

    names: tuple[str, ...]
    classes: tuple[str, ...]  # of the namer: code points of emoji, then kinds of clothes
    name_of_class: tuple[int, ...]
    name_of_imagenet: tuple[int, ...]

    @property
    def num_photograph_classes(self) -> int:
        return len(CLOTHES)


@functools.cache
def vocabulary(folder: Path = FOLDER) -> Vocabulary:
    names = [name.name for name in everyday_names(folder)]
    number = {name: at for at, name in enumerate(names)}
    for name in imagenet_names(folder):
        if name not in number:
            number[name] = len(names)
            names.append(name)
    codes = names_by_code(folder)
    name_of_class = [number[codes[code].name] for code in codes]
    name_of_class += [number[name] for name in CLOTHES.values()]
    return Vocabulary(
        tuple(names),
        (*codes, *CLOTHES),
        tuple(name_of_class),
        tuple(number[name] for name in imagenet_names(folder)),
    )


@dataclass(frozen=True)
class Samples:
    """Features with classes, and the artist of each."""

    features_NF: Tensor
    labels_N: Tensor
    artists_N: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.artists_N)

    def of(self, artist: str) -> Tensor:
        """Which are by an artist (N)."""
        return torch.from_numpy(self.artists_N == artist)

    def take(self, kept_N: Tensor) -> Samples:
        artists = self.artists_N[kept_N.numpy()]
        return Samples(self.features_NF[kept_N], self.labels_N[kept_N], artists)

    def without(self, artist: str) -> Samples:
        return self.take(~self.of(artist))

    def only(self, artist: str) -> Samples:
        return self.take(self.of(artist))


def columns(maps: Sequence[str]) -> Tensor:
    """Which of the cached features are mean and maximum of these maps."""
    found = []
    start = 0
    for name in MAPS:
        width = 2 * MAP_WIDTHS[name]
        if name in maps:
            found += list(range(start, start + width))
        start += width
    return torch.tensor(found)


def class_logits_of(features_NF: Tensor, weight_KC: Tensor, bias_K: Tensor) -> Tensor:
    """The tower's own classifier on the cached mean of its last map (N, K)."""
    width = MAP_WIDTHS["bn2"]
    mean_NC = features_NF[:, -2 * width : -width]
    return mean_NC @ weight_KC.T + bias_K


def samples_of(tables: Iterable[tuple[str, Features]], folder: Path = FOLDER) -> Samples:
    """Those of tables of one artist each."""
    number = {name: at for at, name in enumerate(vocabulary(folder).classes)}
    parts = []
    labels: list[int] = []
    artists: list[str] = []
    for artist, table in tables:
        kept = [at for at, name in enumerate(table.names) if name in number]
        parts.append(torch.from_numpy(table.values_NF[kept].astype(np.float32)))
        for at in kept:
            labels.append(number[table.names[at]])
            artists.append(artist)
    return Samples(torch.cat(parts), torch.tensor(labels), np.array(artists))


def training_samples(selection: Selection) -> Samples:
    """All drawings and clothes that the namer is fitted on."""
    tables = []
    for style in selection.styles:
        for name in selection.sets:
            tables.append((ARTISTS[name], selection.table(f"{name}-{style}")))
    tables.append((PHOTOGRAPHS, selection.table("clothes-fit")))
    return samples_of(tables, selection.folder)


def fit_namer(
    samples: Samples,
    folder: Path = FOLDER,
    shrinkage: float = SHRINKAGE,
    rank: int = RANK,
) -> DiscriminantNamer:
    """On all samples."""
    words = vocabulary(folder)
    return fit_discriminant(
        samples.features_NF,
        samples.labels_N,
        words.name_of_class,
        len(words.names),
        shrinkage,
        rank,
    )


def cross_fitted(samples: Samples, folder: Path = FOLDER) -> Tensor:
    """Class scores (N, K) of each drawing by a namer that has not seen its artist, of photographs
    by one that has seen all others of their fold."""
    words = vocabulary(folder)
    scores_NK = torch.zeros(len(samples), len(words.classes))
    for artist in np.unique(samples.artists_N).tolist():
        namer = fit_namer(samples.without(artist), folder)
        scores_NK[samples.of(artist)] = namer.class_scores(samples.only(artist).features_NF)
    return scores_NK


def could_be_named(scores_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Whether the namer that scored a sample had seen its class (N)."""
    own_N = scores_NK.gather(1, labels_N[:, None])[:, 0]
    return own_N > UNSEEN_BIAS / 2


def fit_temperature(scores_NK: Tensor, labels_N: Tensor) -> float:
    """What scores are divided by so that they predict labels best (Guo et al. 2017), from a
    logarithmic grid; labels that could not be named do not count."""
    known_N = could_be_named(scores_NK, labels_N)
    scores_NK, labels_N = scores_NK[known_N], labels_N[known_N]
    losses = {}
    for temperature in np.geomspace(0.3, 300, 61).tolist():
        logits_NK = scores_NK / temperature
        losses[temperature] = float(torch.nn.functional.cross_entropy(logits_NK, labels_N))
    return min(losses, key=losses.__getitem__)


def fit_gate(drawings_NC: Tensor, photographs_NC: Tensor, steps: int = 500) -> Tensor:
    """A logistic regression of photographs against drawings on confidences, both counted alike;
    its weights, then its bias (C + 1)."""
    inputs_NC = torch.cat([drawings_NC, photographs_NC])
    target_N = torch.cat([torch.zeros(len(drawings_NC)), torch.ones(len(photographs_NC))])
    balance_N = torch.where(
        target_N > 0, len(target_N) / len(photographs_NC), len(target_N) / len(drawings_NC)
    )
    centre_C, scale_C = inputs_NC.mean(0), inputs_NC.std(0).clamp(min=1e-4)
    scaled_NC = (inputs_NC - centre_C) / scale_C
    weights = torch.zeros(NUM_CONFIDENCES + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=steps)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_N = scaled_NC @ weights[:-1] + weights[-1]
        value = binary_cross_entropy_with_logits(logits_N, target_N, balance_N)
        value = value + 1e-3 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    slopes_C = weights.detach()[:-1] / scale_C
    bias = weights.detach()[-1] - centre_C @ slopes_C
    return torch.cat([slopes_C, bias[None]])


def build_experts(namer: DiscriminantNamer, folder: Path = FOLDER) -> NameExperts:
    """Both experts with their names, before their gate is fitted."""
    words = vocabulary(folder)
    experts = NameExperts(namer, len(words.name_of_imagenet), len(words.names))
    experts.name_of_class_K.copy_(torch.tensor(words.name_of_imagenet))
    experts.is_photograph_K[-words.num_photograph_classes :] = True
    return experts


def gate_inputs(
    scores_NK: Tensor, class_logits_NK: Tensor, temperature: float, num_photograph_classes: int
) -> Tensor:
    """Confidences of both experts, the namer's among classes of drawings alone."""
    drawn_NK = (scores_NK[:, :-num_photograph_classes] / temperature).softmax(1)
    return confidences(drawn_NK, class_logits_NK.softmax(1))
