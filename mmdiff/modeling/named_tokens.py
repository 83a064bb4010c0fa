"""Image tokens that carry names: how a classifier's vocabulary becomes readable to a backbone.

A connector of features alone has to teach the backbone a vector for every thing that it may name.
Here each token also holds its likeliest names as a mixture of the backbone's *own* word vectors, so
that naming is choosing and copying. The names come from experts that are fitted apart
(`vision/namer.py`) and say which names each token may have, with probabilities.

The pointer goes the other way: each word of a prompt is told where in the image, and how surely,
the names that contain it are seen. It is a lookup, which the model reads and phrases. It depends on
the image and the words alone: once for an answer, not at every step.

Shapes: N images, P token positions of an image, F features, D width, W names, L tokens of a name,
K likeliest names kept, B rows, T positions of text, M words that names are made of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KEPT = 8  # likeliest names of a token
FEATURE_SIZE, WAVE_SIZE = 0.3, 0.5  # of a word vector's size, at the start
NO_TOKEN = -1
POINTER_INPUTS = 4
LARGEST = 4  # positions whose mean is a word's first input


@dataclass(frozen=True)
class NamedPositions:
    """The likeliest names of each token of some images, and their probabilities."""

    names_NPK: Tensor
    probabilities_NPK: Tensor


def likeliest(probabilities_NPW: Tensor, kept: int = KEPT) -> NamedPositions:
    """The first names of each token; the rest of the probability is dropped."""
    best = probabilities_NPW.topk(min(kept, probabilities_NPW.shape[-1]), dim=-1)
    return NamedPositions(best.indices, best.values)


class NamedTokenConnector(nn.Module):
    """Features by one linear layer, names as word vectors, and waves for positions."""

    name_ids_WL: Tensor
    waves_PD: Tensor

    def __init__(
        self, num_features: int, width: int, side: int, name_ids: Sequence[Sequence[int]]
    ) -> None:
        """
        Args:
            num_features: of a token.
            width: of the backbone.
            side: tokens per side of an image.
            name_ids: the backbone's tokens of each name, as they stand within a sentence.
        """
        super().__init__()
        self.norm = nn.LayerNorm(num_features, elementwise_affine=False)
        self.project = nn.Linear(num_features, width, bias=False)
        length = max(len(ids) for ids in name_ids)
        padded = [[*ids, *[NO_TOKEN] * (length - len(ids))] for ids in name_ids]
        self.register_buffer("name_ids_WL", torch.tensor(padded))
        self.register_buffer("waves_PD", position_waves(side, width))

    def start(self, word_vectors_VD: Tensor) -> None:
        """Set the sizes of features and positions by that of the backbone's word vectors."""
        size = float(word_vectors_VD.square().mean().sqrt())
        nn.init.normal_(
            self.project.weight, std=FEATURE_SIZE * size / self.project.in_features**0.5
        )
        self.waves_PD.mul_(WAVE_SIZE * size / self.waves_PD.square().mean().sqrt())

    def forward(
        self, features_NPF: Tensor, named: NamedPositions, word_vectors_VD: Tensor
    ) -> Tensor:
        """Embeddings (N, P, D).

        Args:
            named: of the same tokens.
            word_vectors_VD: the backbone's token embeddings.
        """
        projected_NPD = self.project(self.norm(features_NPF))
        return projected_NPD + self.mixture(named, word_vectors_VD) + self.waves_PD

    def mixture(self, named: NamedPositions, word_vectors_VD: Tensor) -> Tensor:
        """Word vectors of the names, weighted by their probabilities (N, P, D)."""
        vectors_NPKD = self.name_vectors(word_vectors_VD)[named.names_NPK]
        return (vectors_NPKD * named.probabilities_NPK[..., None]).sum(2)

    def name_vectors(self, word_vectors_VD: Tensor) -> Tensor:
        """The mean word vector of each name's tokens (W, D)."""
        is_token_WL1 = (self.name_ids_WL != NO_TOKEN)[..., None]
        vectors_WLD = word_vectors_VD[self.name_ids_WL.clamp(min=0)] * is_token_WL1
        return vectors_WLD.sum(1) / is_token_WL1.sum(1)


def position_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row at several wavelengths (P, D)."""
    at_S = (torch.arange(side) + 0.5) / side
    num_waves = math.ceil(width / 4)
    frequencies_Q = math.pi * torch.logspace(0, math.log2(side), num_waves, base=2)
    angles_SQ = at_S[:, None] * frequencies_Q
    waves_SR = torch.cat([angles_SQ.sin(), angles_SQ.cos()], dim=1)
    columns_SSR = waves_SR[None].expand(side, -1, -1)
    rows_SSR = waves_SR[:, None].expand(-1, side, -1)
    return torch.cat([columns_SSR, rows_SSR], dim=2).flatten(0, 1)[:, :width].contiguous()


class NameLexicon:
    """Which names contain a word, as the whole of one of its words or of an alias's."""

    def __init__(self, names: Sequence[str], aliases: Sequence[Sequence[str]]) -> None:
        """
        Args:
            aliases: for each name, what else it is called.
        """
        self.num_names = len(names)
        self.names_of_word: dict[str, list[int]] = {}
        for number, (name, others) in enumerate(zip(names, aliases, strict=True)):
            for word in words_of(" ".join((name, *others))):
                known = self.names_of_word.setdefault(word, [])
                if number not in known:
                    known.append(number)

    def names_of(self, word: str) -> list[int]:
        """The names that contain a word, in singular or plural."""
        for form in _forms(word.lower()):
            if form in self.names_of_word:
                return self.names_of_word[form]
        return []

    def spans(self, text: str) -> list[tuple[int, int, list[int]]]:
        """Start, end and names of each word of a text that some name contains."""
        found = []
        for match in re.finditer(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text):
            if names := self.names_of(match[0]):
                found.append((match.start(), match.end(), names))
        return found


SMALL_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")
)


def words_of(text: str) -> list[str]:
    """The words of a name in lower case, without those that say nothing."""
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.lower())
    return [word for word in words if word not in SMALL_WORDS]


def _forms(word: str) -> list[str]:
    forms = [word]
    for ending, other in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            forms.append(word.removesuffix(ending) + other)
    return [*forms, f"{word}s"]


class PointerInput(nn.Module):
    """Adds to the embedding of each word of a prompt where its names are seen in the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(POINTER_INPUTS, width, bias=False)

    def forward(self, embeds_BTD: Tensor, pointers_BT4: Tensor) -> Tensor:
        """Embeddings (B, T, D); pointers of zero leave them as they are."""
        return embeds_BTD + self.project(pointers_BT4.to(embeds_BTD.dtype))


def pointer(named: NamedPositions, image: int, names: Sequence[int], side: int) -> Tensor:
    """Where a word's names are seen in an image (4): the mean of the four greatest shares of a
    position, the sum of all by ten, and the centroid (x and y from -1 to 1) weighted by squares."""
    is_one_PK = torch.isin(
        named.names_NPK[image], torch.tensor(names, device=named.names_NPK.device)
    )
    share_P = (named.probabilities_NPK[image] * is_one_PK).sum(1)
    greatest = share_P.topk(min(LARGEST, len(share_P))).values.mean()
    weights_P = share_P.square() / share_P.square().sum().clamp(min=1e-9)
    at_S = (torch.arange(side, device=share_P.device) + 0.5) / side * 2 - 1
    x, y = (weights_P * at_S.repeat(side)).sum(), (weights_P * at_S.repeat_interleave(side)).sum()
    return torch.stack([greatest, share_P.sum() / 10, x, y])
