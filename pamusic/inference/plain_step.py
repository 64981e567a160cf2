"""Compute the decode steps of a model without a cross-attention, with PyTorch's operations.

Knows a model and its caches; knows no refill. The model may have bfloat16 weights. The head stays as it is, because ids
are drawn from its logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.model.caches import Caches
from pamusic.model.fields import FieldHeads
from pamusic.model.sequence_model import SequenceModel


class PlainStep:
    """Decode steps of one position a row."""

    def __init__(self, model: SequenceModel, heads: FieldHeads | None, head: Tensor) -> None:
        """Keep the parts.

        Args:
            model: Model that computes the layers.
            heads: Heads of the fields, or None for one id a position.
            head: Weights of the head, `[vocab, d]`.
        """
        self._model, self._heads, self._head = model, heads, head

    @property
    def heads(self) -> FieldHeads:
        """The heads of the fields."""
        assert self._heads is not None, "this model has one id a position"
        return self._heads

    def new_caches(self, batch: int, num_latents: int, context_length: int, headroom: int = 0) -> Caches:
        """Return empty caches, like `SequenceModel.new_caches`."""
        return self._model.new_caches(batch, num_latents, context_length, headroom)

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append tokens `[rows, n]` to the context, without running the layers."""
        self._model.read(tokens, caches)

    @torch.inference_mode()
    def latents(self, ids: Tensor, caches: Caches) -> Tensor:
        """Append a position of each row to the context; return the input of the layers there, `[rows, d]`."""
        tokens = ids[:, None]
        self._model.read(tokens, caches)
        return self._model.latents(tokens, caches)[:, 0]

    @torch.inference_mode()
    def states(self, x: Tensor, caches: Caches) -> Tensor:
        """Return the input of the heads for the output `[rows, d]` of `latents`; extends the caches of the layers."""
        return self._model.states(x[:, None], caches)[:, 0]

    @torch.inference_mode()
    def logits(self, x: Tensor, caches: Caches) -> Tensor:
        """Return logits `[rows, vocab]` for the output `[rows, d]` of `latents`; extends the caches of the layers."""
        return F.linear(self.states(x, caches).to(self._head.dtype), self._head)
