"""Settings of a published config.json that change the maths: what is not computed here is refused
by name.

What is in none of a family's tables is refused where it is switched on, unless its name says that
it is bookkeeping: a model must not load and compute something else in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff.config import shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.layouts.bookkeeping import is_bookkeeping
from mmdiff.modeling.layouts.family import OFF, Accepted, Family


def check_settings(published: Mapping[str, Any], family: Family) -> None:
    """Refuse what changes the maths and is not computed here.

    Raises:
        CheckpointError: the message names the setting, its value and what is accepted.
    """
    for key, value in published.items():
        if key in family.read:
            continue
        if key in family.settings:
            if not _is_accepted(key, value, published, family.settings[key]):
                why = f"which mmdiff does not compute for {family.name} models"
                if takes := " or ".join(map(repr, family.settings[key])):
                    why += f"; only {takes} is computed"
                raise _refusal(key, value, why)
        elif value and not is_bookkeeping(key, value):
            raise _refusal(
                key,
                value,
                "a setting that mmdiff does not know; take it out if it changes nothing that the "
                "model computes",
            )


def _is_accepted(key: str, value: object, published: Mapping[str, Any], accepted: Accepted) -> bool:
    if key == "sliding_window" and published.get("use_sliding_window") is False:
        return True  # the width is written, and not used
    if value is None or accepted == OFF:
        return not value
    if isinstance(value, list):
        return all(each in accepted for each in value)
    return value in accepted


def rope_theta(published: Mapping[str, Any]) -> float | None:
    """The base of the rotary positions, which transformers 5 writes into `rope_parameters`.

    Raises:
        CheckpointError: positions are scaled, or two bases are named.
    """
    found = []
    if published.get("rope_theta") is not None:
        found.append(published["rope_theta"])
    for key in ("rope_parameters", "rope_scaling"):
        value = published.get(key)
        if not value:
            continue
        rope = {"rope_type": value}
        if isinstance(value, Mapping):
            rope = dict(value)
        kinds = (rope.pop("rope_type", None), rope.pop("type", None))
        theta = rope.pop("rope_theta", None)
        if rope.get("partial_rotary_factor") == 1:
            del rope["partial_rotary_factor"]
        if any(rope.values()) or not all(kind in (None, "default") for kind in kinds):
            raise _refusal(key, value, "and mmdiff computes rotary positions without scaling only")
        if theta is not None:
            found.append(theta)
    if any(theta != found[0] for theta in found):
        raise CheckpointError(
            f"config.json names two values of rope_theta, {shown(found)}; keep the right one"
        )
    if not found:
        return None
    return found[0]


def _refusal(key: str, value: object, why: str) -> CheckpointError:
    return CheckpointError(f"config.json says {key}={shown(value)}, {why}")
