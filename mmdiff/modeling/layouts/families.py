"""The published families and layouts that mmdiff loads, and how each is recognised.

A new one is a file beside this one, and an entry here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmdiff.config import shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint_folder import some
from mmdiff.modeling.layouts.dream import DREAM
from mmdiff.modeling.layouts.family import Family, Layout, architectures_of
from mmdiff.modeling.layouts.llada import LLADA, LLADA_LAYOUT
from mmdiff.modeling.layouts.llada2 import LLADA2, LLADA2_LAYOUT, LLADA21
from mmdiff.modeling.layouts.llada_moe import LLADA_MOE, LLADA_MOE_LAYOUT
from mmdiff.modeling.layouts.llada_v import LLADA_V, LLADA_V_LAYOUT
from mmdiff.modeling.layouts.own import OWN_LAYOUT

# Of these the first that recognises a config.json, or the names of tensors, counts.
FAMILIES = (LLADA21, LLADA2, LLADA_MOE, DREAM, LLADA, LLADA_V)
LAYOUTS = (OWN_LAYOUT, LLADA_LAYOUT, LLADA2_LAYOUT, LLADA_MOE_LAYOUT, LLADA_V_LAYOUT)
# Each once, though families share them.
ARCHITECTURES = tuple(dict.fromkeys(name for each in FAMILIES for name in each.architectures))
MODEL_TYPES = tuple(dict.fromkeys(name for each in FAMILIES for name in each.model_types))


def family_of(published: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        CheckpointError: its architecture or model type is that of another kind of model.
    """
    named = architectures_of(published)
    if named and not any(name in ARCHITECTURES for name in named):
        raise CheckpointError(
            f"config.json names the architecture {shown(named[0])}, which mmdiff does not "
            f"compute; it loads {', '.join(ARCHITECTURES)}"
        )
    kind = published.get("model_type")
    if kind and str(kind).lower() not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json says model_type={shown(kind)}, which mmdiff does not compute; it loads "
            f"{', '.join(MODEL_TYPES)}"
        )
    return next(family for family in FAMILIES if family.recognises(published))


def recognise(names: Iterable[str]) -> Layout:
    """The layout of a checkpoint, by the names of its tensors."""
    names = set(names)
    for layout in LAYOUTS:
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    marks = sorted(layout.mark.replace("\\", "") for layout in LAYOUTS)
    raise CheckpointError(
        f"unknown architecture: none of {marks} is among its {len(names)} names, such as "
        f"{some(sorted(names), 3)}"
    )


def translate(name: str, layout: Layout) -> str | None:
    """Our name of a published one; None for one that is not needed, the name itself where it is
    unknown."""
    for pattern, target in layout.names.items():
        if match := re.fullmatch(pattern, name):
            return target and match.expand(target)
    return name


def targets(name: str, layout: Layout) -> tuple[str, ...]:
    """Our names of all that a published tensor holds; none where it is not needed."""
    for pattern, parts in layout.joined.items():
        if match := re.fullmatch(pattern, name):
            return tuple(map(match.expand, parts))
    target = translate(name, layout)
    if target is None:
        return ()
    return (target,)
