"""Define what training, evaluation and sampling need from a model, whatever its architecture.

Knows tensors of ids and caches; knows no layers. `model.architectures` lists the models.

Shapes: `batch`; `m` positions; `d` width; `vocab` ids. Tokens are `[batch, m]`, or `[batch, m, fields]` where a
position has several ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pamusic.model.caches import Caches
from pamusic.model.config import ModelConfig
from pamusic.model.fields import NO_HINTS, FieldHeads, Hints
from pamusic.model.key_recall import KeyRecall
from pamusic.model.recall import Recall


class SequenceModel(nn.Module, ABC):
    """A model that predicts the token after each position from the positions up to it.

    Attributes:
        config: Shape of the model.
        recompute: In training, recompute activations of layers in the backward pass, to save memory.
        embedding: Embedding of ids.
        layers: Self-attention blocks after the first block.
        fields: Heads of the fields; None where a position has one id.
        recall: Recall of a Perceiver AR, or None.
        head: Weights of the head, which the fields share.
    """

    config: ModelConfig
    recompute: bool
    embedding: nn.Embedding
    layers: nn.ModuleList
    fields: FieldHeads | None
    recall: Recall | KeyRecall | None
    head: nn.Linear

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        num_latents: int | None = None,
        prefix_indices: Tensor | None = None,
        recalled: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Tensor:
        """Return logits `[batch, n, vocab]` of the tokens that follow each of the last `n` positions.

        Args:
            tokens: Ids `[batch, m]`.
            num_latents: The number `n`; by default `config.num_targets`, at most `m`.
            prefix_indices, recalled: As in `PerceiverAR.forward`; None in other architectures.
            following: Positions after the last `n`, `[batch, n, fields]`, for a model with several fields.
        """

    @abstractmethod
    def num_held(self, config: ModelConfig) -> int | None:
        """Return how many positions the layers hold until a refill; None if they need no refill.

        Args:
            config: Shape of the model, which may be resized.
        """

    @abstractmethod
    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> Caches:
        """Return empty caches; context and number of latents may differ from the configuration's.

        `headroom` is extra capacity of the layers' caches. It lets positions follow after those that the layers hold.
        Each then sees the last ones only.
        """

    @abstractmethod
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append tokens `[batch, n]` to the context only, without running the layers."""

    @abstractmethod
    def latents(self, tokens: Tensor, caches: Caches) -> Tensor:
        """Return the input of the layers, `[batch, n, d]`, at the last `n` tokens read, `[batch, n]`."""

    @abstractmethod
    def states(self, latents: Tensor, caches: Caches, last_only: bool = False) -> Tensor:
        """Apply the layers to the result of `latents`, `[batch, n, d]`; return the input of the head.

        With `last_only`, return only the last position.
        """

    @abstractmethod
    def logits(
        self, latents: Tensor, caches: Caches, last_only: bool = False, following: Tensor | None = None
    ) -> Tensor:
        """Apply the layers and the head to the result of `latents`; return logits `[batch, n, vocab]`."""

    @abstractmethod
    def block_logits(self, tokens: Tensor, start: int, caches: Caches, num_latents: int) -> Tensor:
        """Read the next block of a piece and return the logits `[batch, n, vocab]` after each of its positions.

        Args:
            tokens: The piece up to the block and one token beyond, `[batch, start + n + 1]`; `n` is at most
                `num_latents`.
            start: First position of the block. The positions before it are already read.
            caches: Caches of one piece.
            num_latents: Number of latents of the caches.
        """

    def hints(self, tokens: Tensor, n: int, recalled: Tensor | None = None) -> Hints:
        """Return what is added to the logits of fields after the last `n` tokens: nothing in a plain architecture."""
        return NO_HINTS

    def num_parameters(self) -> int:
        """Return the number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())
