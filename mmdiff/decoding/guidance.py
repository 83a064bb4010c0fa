"""Classifier-free guidance as a wrapped model.

Shapes: A active sequences, G canvas positions, S positions whose logits are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmdiff.decoding.canvas import Array
from mmdiff.decoding.sampler import Runner


@dataclass(eq=False)
class GuidedPrompt:
    """A prompt, and what stands in its place where there is to be none."""

    conditional: Any
    unconditional: Any

    @property
    def passes(self) -> int:
        return int(self.conditional.passes + self.unconditional.passes)

    @property
    def length(self) -> int:
        return int(self.conditional.length)


class Guided:
    """Classifier-free guidance (arXiv 2207.12598) in LLaDA's form: u + (scale + 1)(c - u)."""

    def __init__(self, conditional: Runner, unconditional: Runner, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        pairs = zip(conditional.prompts, unconditional.prompts, strict=True)
        self.prompts = [GuidedPrompt(*pair) for pair in pairs]

    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[GuidedPrompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        asked = (select_AG, hidden_AG)
        with_SV = self.conditional(ids_AG, [each.conditional for each in prompts], *asked)
        without_SV = self.unconditional(ids_AG, [each.unconditional for each in prompts], *asked)
        return without_SV + (self.scale + 1) * (with_SV - without_SV)
