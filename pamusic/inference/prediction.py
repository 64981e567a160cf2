"""Predictions of the next position. Knows tensors; knows no sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from pamusic.model.fields import Hints


class LogitsOfFields(Protocol):
    """The heads of the fields, like `model.fields.FieldHeads`."""

    slices: list[slice]

    def logits(self, field: int, latents: Tensor, chosen: Tensor, head: Tensor, hints: Hints) -> Tensor:
        """Return logits `[rows, size]` of a field, given the ids `[rows, field]` of the fields before it."""


@dataclass(frozen=True, eq=False)
class FieldPrediction:
    """The prediction of a position with several fields, whose logits depend on the fields before.

    Attributes:
        states: Normalised output of the layers at the last position, `[rows, d]`.
        hints: What is counted in the context up to the last position, `[rows, …]`.
        heads: The heads of the fields.
        head: Weights of the head, `[vocab, d]`.
    """

    states: Tensor
    hints: Hints
    heads: LogitsOfFields
    head: Tensor

    @property
    def slices(self) -> list[slice]:
        """Range of ids of each field."""
        return self.heads.slices

    @torch.inference_mode()
    def logits(self, field: int, chosen: Tensor) -> Tensor:
        """Return logits `[rows, size]` of a field, given the ids `[rows, field]` of the fields before it."""
        return self.heads.logits(field, self.states, chosen, self.head, self.hints)

    def expand(self, num_rows: int, _: int = -1) -> FieldPrediction:
        """Return the prediction of one row for several rows, like `Tensor.expand`."""
        hints = self.hints.changed(lambda hint: hint.expand(num_rows, -1))
        return FieldPrediction(self.states.expand(num_rows, -1), hints, self.heads, self.head)


Prediction: TypeAlias = Tensor | FieldPrediction  # logits `[rows, vocab]`, or of several fields
