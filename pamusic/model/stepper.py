"""One token at a time: what `read` and `extend` of a model compute for a single token, in fewer operations.

Knows a model's weights and caches; knows no sampling. The model is the plain twin; the tests hold the two together.
A step on a CPU is bound by the memory it reads and by the number of operations it starts, so:
- what the cross-attention makes of a token (its latent, query, key, value) depends on its id alone, up to the turn
  by position: it is looked up in a table `[vocab, ...]` computed once, and of the context little but ids is kept;
- the gain of a norm is multiplied into the weights behind it, or into the turn of queries and keys, and the scale of
  attention into that of queries;
- queries, keys and values come from one product, and weights are held as `model.precision` has it.

Shapes: `batch`; `heads` of width `head_dim`; `d` width; `vocab` ids.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.model.cache import ContextCache, KeyValueCache
from pamusic.model.perceiver_ar import Block, Caches, PerceiverAR
from pamusic.model.precision import product
from pamusic.model.rotary import rotated, rotation

TURNS = 1024  # positions whose rotation is computed at a time


class Stepper:
    """`read` and `extend` in one, for one token a row. Holds a copy of the weights as they were when it was made."""

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR, precision: str = "fp32") -> None:
        """`precision` is that of the weights: one of `model.precision`, resolved."""
        cross, eps, fraction = model.cross.attention, model.norm.eps, model.config.rotary_fraction
        assert eps is not None
        self._config = model.config
        embedding, width = model.embedding.weight, model.config.d_model
        self._least = _least(embedding, width, eps)
        self._latents = model.to_latents(embedding)  # [vocab, d]
        context = model.context_norm(embedding)
        shape = (len(embedding), cross.num_heads, cross.head_dim)
        queries = cross.query_norm(cross.query(model.cross.attention_norm(self._latents)).view(shape))
        self._keys, self._values = cross.key_norm(cross.key(context).view(shape)), cross.value(context).view(shape)
        self._queries_keys = torch.stack([queries * cross.head_dim**-0.5, self._keys], dim=1)
        self._num_turned = num_turned(cross.head_dim, fraction)
        self._cross_turn = _Turn(embedding.new_ones(2, cross.head_dim), fraction)
        self._cross_tail = _Tail(model.cross, precision)
        self._ledger = deepcopy(model.ledger)
        self._layers = [_Layer(layer, fraction, precision, eps) for layer in model.layers if isinstance(layer, Block)]
        self._head = product(model.head.weight * model.norm.weight * width**0.5, "fp32")  # ids are drawn from it

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, slack: int = 0
    ) -> Caches:
        """Empty caches, as the model's own `new_caches` but smaller; the model can `extend` them, too."""
        config = self._config.resized(context_length=context_length, num_latents=num_latents)
        device, dtype, room = self._keys.device, self._keys.dtype, max(256, config.context_length // 8)
        cross = ContextCache(
            self._keys, self._values, self._num_turned, batch, window=config.context_length, slack=room
        )  # fmt: skip
        heads, window = config.num_heads, config.num_latents
        layers = [
            KeyValueCache(batch, heads, config.d_model // heads, window=window, slack=slack, device=device, dtype=dtype)
            for _ in self._layers
        ]
        return Caches(cross, layers, entries=None if self._ledger is None else self._ledger.new_entries(batch))

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Takes `[batch, n]` tokens into the context alone: all that is computed is the turn of their keys."""
        assert isinstance(caches.cross, ContextCache)
        positions = torch.arange(caches.position, caches.position + tokens.shape[1], device=tokens.device)
        keys = self._keys[tokens][..., : self._num_turned].transpose(1, 2)
        caches.cross.append(tokens, rotated(keys, rotation(positions, self._num_turned, 1.0)))
        caches.position += tokens.shape[1]
        if self._ledger is not None and caches.entries is not None:
            self._ledger.enter(tokens, caches.entries)

    @torch.inference_mode()
    def __call__(self, ids: Tensor, caches: Caches) -> Tensor:
        """Logits `[batch, vocab]` after the next ids `[batch]`; the caches' layers have room for one more latent."""
        assert isinstance(caches.cross, ContextCache)
        queries, keys = _turned(self._queries_keys[ids], self._cross_turn.at(caches.position)).unbind(1)
        caches.cross.append(ids[:, None], keys[:, :, None, : self._num_turned])
        x = self._cross_tail(self._latents[ids], caches.cross.attended(queries), self._least)
        if self._ledger is not None and caches.entries is not None:
            x = x + self._ledger.step(ids, caches.entries, caches.cross.window)
        for layer, cache in zip(self._layers, caches.layers, strict=True):
            x = layer(x, caches.position, cache, self._least)
        caches.position += 1
        return self._head(_unit(x, self._least))


class _Layer:
    """A self-attention block, for one token."""

    def __init__(self, block: Block, fraction: float, precision: str, eps: float) -> None:
        attention, gain = block.attention, block.attention_norm.weight * len(block.attention_norm.weight) ** 0.5
        self._num_heads, self._head_dim = attention.num_heads, attention.head_dim
        self._least_of_heads = _least(gain, self._head_dim, eps)
        projections = [attention.query.weight, attention.key.weight, attention.value.weight]
        self._project = product(torch.cat(projections) * gain, precision)
        gains = [attention.query_norm.weight, attention.key_norm.weight * self._head_dim**0.5]
        self._turn = _Turn(torch.stack(gains), fraction)
        self._tail = _Tail(block, precision)

    def __call__(self, x: Tensor, position: int, cache: KeyValueCache, least: Tensor) -> Tensor:
        projected = self._project(_unit(x, least)).to(x.dtype).view(-1, 3, self._num_heads, self._head_dim)
        heads = _unit(projected[:, :2], self._least_of_heads)
        queries, keys = _turned(heads, self._turn.at(position)).unbind(1)
        cache.append(keys[:, :, None], projected[:, 2, :, None])
        return self._tail(x, cache.attended(queries), least)


class _Tail:
    """What follows the heads of a block: their output, the MLP, and the residual stream around both."""

    def __init__(self, block: Block, precision: str) -> None:
        self._output = product(block.attention.output.weight, precision)
        gain = block.mlp_norm.weight * len(block.mlp_norm.weight) ** 0.5
        self._up = product(block.mlp.up.weight * gain, precision)
        self._down = product(block.mlp.down.weight, precision)

    def __call__(self, x: Tensor, heads: Tensor, least: Tensor) -> Tensor:
        x = x + self._output(heads.flatten(1))
        return x + self._down(self._up(_unit(x, least)).relu_().square_())


class _Turn:
    """Rotations of queries and keys of one head's width at any position, with their gains, `TURNS` at a time."""

    def __init__(self, gains: Tensor, fraction: float) -> None:
        """`gains` are those of queries and keys, `[2, head_dim]`."""
        self._gains, self._fraction = gains, fraction
        turned = num_turned(gains.shape[1], fraction)
        partner = torch.arange(gains.shape[1])
        partner[:turned] = partner[:turned].roll(turned // 2)
        self._partner = partner.to(gains.device)
        self._first = -TURNS

    def at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Factors `[2, 1, head_dim]` of each dimension and of its partner, and which its partner is, for `_turned`."""
        if not self._first <= position < self._first + TURNS:
            self._first = position
            head_dim = self._gains.shape[1]
            cos, sin = rotation(torch.arange(position, position + TURNS), head_dim, self._fraction)
            rest = head_dim - 2 * cos.shape[-1]
            own = F.pad(torch.cat([cos, cos], dim=-1), (0, rest), value=1.0).to(self._gains.device)
            partners = F.pad(torch.cat([-sin, sin], dim=-1), (0, rest)).to(self._gains.device)
            self._own = own[:, None, None] * self._gains[:, None]
            self._partners = partners[:, None, None] * self._gains[:, self._partner][:, None]
        return self._own[position - self._first], self._partners[position - self._first], self._partner


def num_turned(head_dim: int, fraction: float) -> int:
    """How many dimensions of a head are turned by position: the first ones."""
    return 2 * rotation(torch.zeros(1), head_dim, fraction)[0].shape[-1]


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`rotated` for queries and keys `[batch, 2, heads, head_dim]` of one position, times their gains."""
    own, partners, partner = turn
    return torch.addcmul(heads * own, heads.index_select(-1, partner), partners)


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """RMS norm over the last axis, without gain and as a unit vector: `x / sqrt(sum(x²) + least²)`.

    What is missing, the square root of the width, stands in the weights behind it. Three operations in place of six.
    """
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(least)


def _least(like: Tensor, width: int, eps: float) -> Tensor:
    """What keeps `_unit` from dividing by zero, as `eps` does in a norm of a mean."""
    return like.new_full((1,), (eps * width) ** 0.5)
