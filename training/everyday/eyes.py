"""The eyes: both experts fitted and put together, and the choice of their settings.

    python -m mmdiff.training.everyday.eyes

writes `eyes.safetensors` with `eyes.json` (names and settings) into the recipe's folder; `--choose`
prints a table of settings on a training artist that is left out and on photographs that are held
out of training.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdiff.training.everyday.discriminant import RANK, SHRINKAGE
from mmdiff.training.everyday.experts import (
    CHOICE_ARTIST,
    PHOTOGRAPHS,
    Samples,
    Selection,
    build_experts,
    class_logits_of,
    columns,
    could_be_named,
    cross_fitted,
    fit_gate,
    fit_namer,
    fit_temperature,
    gate_inputs,
    samples_of,
    training_samples,
    vocabulary,
)
from mmdiff.training.everyday.features import Features
from mmdiff.training.everyday.lite0 import lite0_tower
from mmdiff.training.everyday.sources import FOLDER
from mmdiff.training.everyday.tables import MAPS
from mmdiff.vision.namer import NameExperts, merge_classes

NAMER_MAPS = ("blocks.5", "bn2")  # whose pooled features the namer sees


Expert = Literal["both", "namer", "classifier"]


@dataclass(frozen=True)
class Eyes:
    """Fitted experts over the cached features of the frozen tower."""

    experts: NameExperts
    names: tuple[str, ...]
    classifier: tuple[Tensor, Tensor]  # the tower's own: weight and bias
    settings: dict[str, Any]

    def probabilities(self, features_NF: Tensor) -> Tensor:
        """Of names (N, W), from all cached features."""
        logits_NK = class_logits_of(features_NF, *self.classifier)
        return self.experts(features_NF[:, columns(NAMER_MAPS)], logits_NK)

    def answers(self, table: Features, expert: Expert = "both") -> list[str]:
        """The likeliest name of each image, by both experts and the gate or by one alone."""
        features_NF = torch.from_numpy(table.values_NF.astype(np.float32))
        if expert == "namer":
            probabilities_NW = self.experts.namer(features_NF[:, columns(NAMER_MAPS)])
        elif expert == "classifier":
            logits_NK = class_logits_of(features_NF, *self.classifier)
            classes_K, num_names = self.experts.name_of_class_K, self.experts.num_names
            probabilities_NW = merge_classes(logits_NK.softmax(1), classes_K, num_names)
        else:
            probabilities_NW = self.probabilities(features_NF)
        return list(map(self.names.__getitem__, probabilities_NW.argmax(1).tolist()))


def classifier(folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """The tower's own, float32."""
    head = lite0_tower(folder, MAPS).trunk.get_classifier()
    return head.weight.detach(), head.bias.detach()


def fit_eyes(selection: Selection) -> Eyes:
    """On every training artist and the clothes photographs; the gate on names that are
    cross-fitted."""
    folder = selection.folder
    words = vocabulary(folder)
    weights = classifier(folder)
    full = training_samples(selection)
    samples = _of_namer(full)
    photographed_N = full.of(PHOTOGRAPHS)
    drawn_N = ~photographed_N
    # Names of clothes photographs too are made without having seen any.
    scores_NK = cross_fitted(samples, folder)
    temperature = fit_temperature(scores_NK[drawn_N], samples.labels_N[drawn_N])
    logits_NK = class_logits_of(full.features_NF, *weights)
    inputs_NC = gate_inputs(scores_NK, logits_NK, temperature, words.num_photograph_classes)
    experts = build_experts(fit_namer(samples, folder), folder)
    named_N = drawn_N & could_be_named(scores_NK, samples.labels_N)
    experts.gate.copy_(fit_gate(inputs_NC[named_N], inputs_NC[photographed_N]))
    experts.temperatures.copy_(torch.tensor([temperature, 1.0]))
    settings = {
        "maps": NAMER_MAPS,
        "shrinkage": SHRINKAGE,
        "rank": RANK,
        "temperature": temperature,
        "samples": len(samples),
        "parts": selection.parts,
        "sets": selection.sets,
        "styles": selection.styles,
        "gate": experts.gate.tolist(),
    }
    return Eyes(experts, words.names, weights, settings)


def _of_namer(samples: Samples, maps: tuple[str, ...] = NAMER_MAPS) -> Samples:
    features_NF = samples.features_NF[:, columns(maps)]
    return Samples(features_NF, samples.labels_N, samples.artists_N)


def choices(selection: Selection) -> list[dict[str, Any]]:
    """Share of first names that are right, for settings of the namer, on the artist that is left
    out and on the photographs that are held out."""
    folder = selection.folder
    full = training_samples(selection)
    held_out = samples_of([(PHOTOGRAPHS, selection.table("clothes-choose"))], folder)
    found = []
    map_sets = (("blocks.5", "bn2"), ("blocks.4", "blocks.6", "bn2"), ("blocks.4", "bn2"), ("bn2",))
    for maps, shrinkage in itertools.product(map_sets, (0.1, 0.3, 0.5)):
        seen = _of_namer(full.without(CHOICE_ARTIST), maps)
        unseen = _of_namer(full.only(CHOICE_ARTIST), maps)
        for rank in (192, 256, 384, 1024):
            namer = fit_namer(seen, folder, shrinkage, rank)
            photographs = _of_namer(held_out, maps)
            found.append(
                {
                    "maps": maps,
                    "shrinkage": shrinkage,
                    "rank": rank,
                    "artist": _share_right(namer(unseen.features_NF), unseen.labels_N, folder),
                    "clothes": _share_right(
                        namer(photographs.features_NF), photographs.labels_N, folder
                    ),
                }
            )
            print(found[-1], flush=True)
    return found


def _share_right(probabilities_NW: Tensor, labels_N: Tensor, folder: Path) -> float:
    names_K = torch.tensor(vocabulary(folder).name_of_class)
    return float((probabilities_NW.argmax(1) == names_K[labels_N]).float().mean())


def save(eyes: Eyes, folder: Path) -> None:
    """Matrices in half precision, names and settings beside them."""
    tensors = {}
    for name, tensor in eyes.experts.state_dict().items():
        kept = tensor.half() if tensor.is_floating_point() else tensor
        tensors[name] = kept.contiguous()
    save_file(tensors, folder / "eyes.safetensors")
    described = {"names": eyes.names, "settings": eyes.settings}
    (folder / "eyes.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that make a selection of tables."""
    default = Selection()
    parser.add_argument("--folder", type=Path, default=default.folder)
    parser.add_argument("--parts", type=int, default=default.parts)
    parser.add_argument("--sets", nargs="*", default=default.sets)
    parser.add_argument("--styles", nargs="*", default=default.styles)


def selected(options: argparse.Namespace) -> Selection:
    return Selection(options.folder, options.parts, tuple(options.sets), tuple(options.styles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.choose:
        choices(selected(options))
        return
    eyes = fit_eyes(selected(options))
    save(eyes, options.folder)
    print(json.dumps(eyes.settings))


if __name__ == "__main__":
    main()
