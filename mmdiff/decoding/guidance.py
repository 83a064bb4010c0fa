"""Classifier-free guidance as a wrapped model.

Shapes: A active rows, G canvas positions, S positions whose logits are asked for.
"""

from __future__ import annotations

from torch import Tensor

from mmdiff.decoding.sampler import Batch


class Guided:
    """Classifier-free guidance (arXiv 2207.12598) in LLaDA's form: u + (scale + 1)(c - u)."""

    def __init__(self, conditional: Batch, unconditional: Batch, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    @property
    def passes_B(self) -> Tensor:
        return self.conditional.passes_B + self.unconditional.passes_B

    @property
    def prompt_length_B(self) -> Tensor:
        return self.conditional.prompt_length_B

    def take(self, rows_A: Tensor) -> None:
        """As `Batch.take`."""
        self.conditional.take(rows_A)
        self.unconditional.take(rows_A)

    def join(self, other: Batch) -> None:
        """As `Batch.join`."""
        assert isinstance(other, Guided) and other.scale == self.scale
        self.conditional.join(other.conditional)
        self.unconditional.join(other.unconditional)

    def __call__(
        self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor, hidden_AG: Tensor | None = None
    ) -> Tensor:
        hidden = () if hidden_AG is None else (hidden_AG,)
        with_prompt_SV = self.conditional(ids_AG, rows_A, select_AG, *hidden)
        without_SV = self.unconditional(ids_AG, rows_A, select_AG, *hidden)
        return without_SV + (self.scale + 1) * (with_prompt_SV - without_SV)
