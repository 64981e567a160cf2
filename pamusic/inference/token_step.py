"""Compute `latents` and `logits` of a model for one token at a time, in fewer operations.

Knows a model's weights and caches; knows no sampling. The model is the plain reference; tests compare the two. A step
on a CPU is limited by memory traffic and by the number of operations, so:
- In the cross-attention, the latent, query, key and value of a token depend only on its id, before rotation. They come
  from tables `[vocab, ...]` computed once, and the cache of the context stores little more than ids.
- The gain of a norm is multiplied into the weights that follow, or into the rotation of queries and keys. The scale of
  attention is multiplied into the rotation of queries.
- Queries, keys and values come from one product. `inference.precision` stores the weights.
- With a kernel, a whole block is one call, with weights, keys and values in int8 (`inference.int8`).

Shapes: `batch`; `heads` of width `head_dim`; `d` width; `vocab` ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.inference.compact_cache import Attended, ContextCache, Int8Cache, Int8ContextCache
from pamusic.inference.int8 import Int8Block, Int8Matrix, Kernel, Rotary, apply_rotary, unit_rms
from pamusic.inference.precision import product
from pamusic.model.blocks import Block
from pamusic.model.cache import KeyValueCache, context_headroom
from pamusic.model.caches import Caches
from pamusic.model.key_recall import KeyRecall
from pamusic.model.ledger import LedgerState
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.recall import RecallCache
from pamusic.model.rotary import rotate, rotation

Norm = Callable[[Tensor], Tensor]
Addition = Callable[[Tensor, Tensor], Tensor]
Factors = tuple[Tensor, Tensor]  # of each dimension and of its partner, at `n` positions, `[n, head_dim]` each

ROTARY_BLOCK = 128  # positions whose rotation is computed at a time
MAX_ROTARY_BLOCKS = 32  # blocks to keep, because sessions that share weights may be at distant positions


class StepOps:
    """The operations of a step, chosen to be few on a CPU."""

    @staticmethod
    def norm(width: int, eps: float, like: Tensor) -> Norm:
        """Return an RMS norm over a last axis of `width`, as a unit vector; the weights that follow have the factor."""
        return partial(unit_rms, least=like.new_full((1,), (eps * width) ** 0.5))

    @staticmethod
    def adding(weight: Tensor, precision: str) -> Addition:
        """Return a function that adds, to `x` `[rows, out]`, a weight `[out, in]` times `y` `[rows, in]`.

        It may overwrite `x`.
        """
        multiplied = product(weight, precision)
        return lambda x, y: x + multiplied(y)


class TokenStep:
    """A fast `read`, and `latents` and `logits` for one token a row, on a copy of the model's weights."""

    operations: type[StepOps] = StepOps

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR, precision: str = "fp32", kernel: Kernel | None = None) -> None:
        """Copy the weights.

        Args:
            model: The model.
            precision: Resolved precision of the weights, one of `inference.precision`.
            kernel: Kernel that computes blocks on a CPU, with int8 weights whatever the precision.
        """
        cross, eps, fraction = model.cross.attention, model.norm.eps, model.config.rotary_fraction
        assert eps is not None
        assert kernel is None or model.embedding.weight.dtype == torch.float32, "a kernel needs float32 weights"
        self._config = model.config
        embedding, width = model.embedding.weight, model.config.d_model
        self._norm = self.operations.norm(width, eps, embedding)
        self._latents = model.to_latents(embedding)  # [vocab, d]
        context = model.context_norm(embedding)
        shape = (len(embedding), cross.num_heads, cross.head_dim)
        queries = cross.query_norm(cross.query(model.cross.attention_norm(self._latents)).view(shape))
        self._keys, self._values = cross.key_norm(cross.key(context).view(shape)), cross.value(context).view(shape)
        self._queries_keys = torch.stack([queries * cross.head_dim**-0.5, self._keys], dim=1)
        self._num_turned = num_turned(cross.head_dim, fraction)
        self._cross_rotary = RotaryTable(embedding.new_ones(2, cross.head_dim), fraction)
        self._kernel = kernel
        self._cross_tail: Tail | _KernelTail = (
            Tail(model.cross, self._norm, self.operations, precision)
            if kernel is None
            else _KernelTail(model.cross, eps, kernel)
        )
        assert not isinstance(model.recall, KeyRecall), "recall of keys belongs to several fields"
        self._ledger, self._recall = deepcopy(model.ledger), deepcopy(model.recall)
        blocks = [layer for layer in model.layers if isinstance(layer, Block)]
        self._layers: Sequence[_Layer | _KernelLayer] = (
            [_Layer(block, fraction, self._norm, self.operations, precision, eps) for block in blocks]
            if kernel is None
            else [_KernelLayer(block, fraction, eps, kernel) for block in blocks]
        )
        head = model.head.weight if model.recall is None else torch.cat([model.head.weight, model.recall.gate.weight])
        self._head = product(
            head * model.norm.weight * width**0.5, "fp32"
        )  # always fp32, because ids are drawn from its logits

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> Caches:
        """Return empty caches, smaller than the model's own; the model's `logits` can use them too."""
        config = self._config.resized(context_length=context_length, num_latents=num_latents)
        device, dtype, room = self._keys.device, self._keys.dtype, context_headroom(config.context_length)
        of_ids, size = (self._keys, self._values, self._num_turned, batch), config.context_length
        cross = (
            ContextCache(*of_ids, window=size, headroom=room)
            if self._kernel is None
            else Int8ContextCache(*of_ids, self._kernel, window=size, headroom=room)
        )
        shape, how = (batch, config.num_heads, config.d_model // config.num_heads), {"window": config.num_latents}
        layers = [
            KeyValueCache(*shape, **how, headroom=headroom, device=device, dtype=dtype)
            if self._kernel is None
            else Int8Cache(*shape, **how, headroom=headroom)
            for _ in self._layers
        ]
        return Caches(layers, cross, entries=self._entries(batch), memory=self._memory(batch, size))

    def _entries(self, batch: int) -> LedgerState | None:
        return None if self._ledger is None else self._ledger.new_entries(batch)

    def _memory(self, batch: int, window: int) -> RecallCache | None:
        return None if self._recall is None else RecallCache(self._recall, batch, window)

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append tokens `[batch, n]` to the context only; this computes only the rotation of their keys."""
        assert isinstance(caches.cross, ContextCache)
        positions = torch.arange(caches.position, caches.position + tokens.shape[1], device=tokens.device)
        keys = lookup(self._keys, tokens)[..., : self._num_turned].transpose(1, 2)
        caches.cross.append(tokens, rotate(keys, rotation(positions, self._num_turned, 1.0)))
        caches.position += tokens.shape[1]
        if self._ledger is not None and caches.entries is not None:
            self._ledger.enter(tokens, caches.entries)
        if caches.memory is not None:
            caches.memory.enter(tokens)

    @torch.inference_mode()
    def latents(self, ids: Tensor, caches: Caches) -> Tensor:
        """Append the next ids `[batch]` to the context; return their latents before the first layer, `[batch, d]`."""
        assert isinstance(caches.cross, ContextCache)
        queries, keys = apply_rotary(lookup(self._queries_keys, ids), self._cross_rotary.at(caches.position)).unbind(1)
        caches.cross.append(ids[:, None], keys[:, :, None, : self._num_turned])
        x = self._cross_tail(lookup(self._latents, ids), caches.cross.attend(queries))
        caches.position += 1
        if caches.memory is not None:
            caches.memory.step(ids)
        if self._ledger is None or caches.entries is None:
            return x
        return x + self._ledger.step(ids, caches.entries, caches.cross.window)

    @torch.inference_mode()
    def logits(self, x: Tensor, caches: Caches) -> Tensor:
        """Return the logits `[batch, vocab]` of the last result of `latents`, adding a latent to each layer's cache."""
        if self._kernel is not None:
            x = x.clone(memory_format=torch.contiguous_format)  # the kernel overwrites it
        for layer, cache in zip(self._layers, caches.layers, strict=True):
            x = layer(x, layer.rotary.at(caches.position - 1), cache)
        head = self._head(self._norm(x))
        return head if caches.memory is None else self._mix_recall(head, caches.memory.copy_probs())

    def _mix_recall(self, head: Tensor, shares: Tensor) -> Tensor:
        """Mix copies into the output of the head, which is the layers' logits and the gate; return `[batch, vocab]`."""
        assert self._recall is not None
        logits, gate = head.split([self._config.vocab_size, 1], dim=1)
        return self._recall.mix(logits, gate + self._recall.gate.bias, shares)


class _Layer:
    """A self-attention block for one token."""

    def __init__(
        self, block: Block, fraction: float, norm: Norm, operations: type[StepOps], precision: str, eps: float
    ) -> None:
        self._num_heads, self._head_dim = block.attention.num_heads, block.attention.head_dim
        self._norm, self._norm_of_heads = norm, operations.norm(self._head_dim, eps, block.mlp_norm.weight)
        self._project = product(projection(block), precision)
        self.rotary = _rotary_of(block, fraction)
        self._tail = Tail(block, norm, operations, precision)

    def __call__(self, x: Tensor, rotary: Rotary, cache: Attended) -> Tensor:
        parts = self._project(self._norm(x)).to(x.dtype).view(-1, 3, self._num_heads, self._head_dim)
        queries, keys = apply_rotary(self._norm_of_heads(parts[:, :2]), rotary).unbind(1)
        cache.append(keys[:, :, None], parts[:, 2, :, None])
        return self._tail(x, cache.attend(queries))


class Tail:
    """The rest of a block after its heads: output projection, MLP, and the residual stream around both."""

    def __init__(self, block: Block, norm: Norm, operations: type[StepOps], precision: str) -> None:
        self._norm, self._up = norm, product(_up(block), precision)
        self._with_output, self._with_down = (
            operations.adding(weight, precision) for weight in (block.attention.output.weight, block.mlp.down.weight)
        )

    def __call__(self, x: Tensor, heads: Tensor) -> Tensor:
        x = self._with_output(x, heads.flatten(1))
        return self._with_down(x, self._up(self._norm(x)).relu_().square_())


class _KernelLayer:
    """A self-attention block in int8, computed by a kernel."""

    def __init__(self, block: Block, fraction: float, eps: float, kernel: Kernel) -> None:
        self._block, self.rotary, self._kernel = in_int8(block, eps), _rotary_of(block, fraction), kernel

    def __call__(self, x: Tensor, rotary: Rotary, cache: Attended) -> Tensor:
        assert isinstance(cache, Int8Cache)
        return self._kernel.step(self._block, x, cache.view(), rotary)


class _KernelTail:
    """The rest of a block after its heads, in int8, computed by a kernel."""

    def __init__(self, block: Block, eps: float, kernel: Kernel) -> None:
        self._block, self._kernel = in_int8(block, eps), kernel

    def __call__(self, x: Tensor, heads: Tensor) -> Tensor:
        return self._kernel.finish(self._block, x, heads.flatten(1))


def in_int8(block: Block, eps: float, source_gain: Tensor | None = None) -> Int8Block:
    """Return the weights of a block in int8; `source_gain` is as for `projection`."""
    width, head_dim = len(block.mlp_norm.weight), block.attention.head_dim
    return Int8Block(
        project=Int8Matrix.of(projection(block, source_gain)),
        output=Int8Matrix.of(block.attention.output.weight),
        up=Int8Matrix.of(_up(block)),
        down=Int8Matrix.of(block.mlp.down.weight),
        least=(eps * width) ** 0.5,
        least_of_heads=(eps * head_dim) ** 0.5,
    )


def projection(block: Block, source_gain: Tensor | None = None) -> Tensor:
    """Return the weights of queries, keys and values for an input normalised to unit length, `[3 * d, d]`.

    Keys and values may come from another input, with a norm of its own: `source_gain` is the gain of that.
    """
    attention, gain = block.attention, block.attention_norm.weight
    source_gain = gain if source_gain is None else source_gain
    weights = [attention.query.weight * gain, attention.key.weight * source_gain, attention.value.weight * source_gain]
    return torch.cat(weights) * len(gain) ** 0.5


def _up(block: Block) -> Tensor:
    """Return the weights of the MLP's first layer for an input normalised to unit length."""
    return block.mlp.up.weight * block.mlp_norm.weight * len(block.mlp_norm.weight) ** 0.5


def gains_of(block: Block) -> Tensor:
    """Return the gains of a block's normalised queries and keys, with the scale of attention, `[2, head_dim]`."""
    attention = block.attention
    return torch.stack([attention.query_norm.weight, attention.key_norm.weight * attention.head_dim**0.5])


def _rotary_of(block: Block, fraction: float) -> RotaryTable:
    return RotaryTable(gains_of(block), fraction)


class RotaryTable:
    """A table of rotations of queries and keys at any position, multiplied by their gains."""

    def __init__(self, gains: Tensor, fraction: float) -> None:
        """Create a table for gains of queries and keys, `[2, head_dim]`, or `[layers, 2, head_dim]` for many layers."""
        self.gains, self._fraction = gains, fraction
        turned = num_turned(gains.shape[-1], fraction)
        partner = torch.arange(gains.shape[-1])
        partner[:turned] = partner[:turned].roll(turned // 2)
        self._partner = partner.to(gains.device)
        self._tables: dict[int, Rotary] = {}  # by the number of the block
        self._single: tuple[int, list[Rotary]] = (-1, [])  # number of a block, and its table split by position

    def at(self, position: int) -> Rotary:
        """Return factors `[2, 1, head_dim]` of each dimension and of its partner, and the index of the partner."""
        number = position // ROTARY_BLOCK
        if self._single[0] != number:
            own, partners, partner = self.around(position)
            self._single = number, [(*each, partner) for each in zip(own.unbind(), partners.unbind(), strict=True)]
        return self._single[1][position % ROTARY_BLOCK]

    def around(self, position: int) -> Rotary:
        """Return the factors of all `ROTARY_BLOCK` positions in the block of a position."""
        number = position // ROTARY_BLOCK
        return self._tables.get(number) or self._table(number)

    def _table(self, number: int) -> Rotary:
        positions = torch.arange(
            number * ROTARY_BLOCK, (number + 1) * ROTARY_BLOCK, device=self.gains.device
        )  # made on the device, so the host need not wait
        own, partners = factors(positions, self.gains.shape[-1], self._fraction)
        if len(self._tables) == MAX_ROTARY_BLOCKS:
            del self._tables[next(iter(self._tables))]  # the oldest
        own, partners = (each.view(-1, *[1] * self.gains.dim(), each.shape[-1]) for each in (own, partners))
        gains, of_partners = (each.unsqueeze(-2) for each in (self.gains, self.gains[..., self._partner]))
        self._tables[number] = own * gains, partners * of_partners, self._partner
        return self._tables[number]


def factors(positions: Tensor, head_dim: int, fraction: float) -> Factors:
    """Return the rotation of a head at positions `[n]`: factors of each dimension, and factors of its partner."""
    cos, sin = rotation(positions, head_dim, fraction)
    rest = (0, head_dim - 2 * cos.shape[-1])
    return F.pad(torch.cat([cos, cos], dim=-1), rest, value=1.0), F.pad(torch.cat([-sin, sin], dim=-1), rest)


def num_turned(head_dim: int, fraction: float) -> int:
    """Return the number of rotated dimensions of a head, which are the first ones."""
    return 2 * rotation(torch.zeros(1), head_dim, fraction)[0].shape[-1]


def lookup(table: Tensor, ids: Tensor) -> Tensor:
    """Return rows of a table `[vocab, ...]`; unlike indexing, this raises an error for a negative id."""
    if ids.dim() == 1:
        return table.index_select(0, ids)
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)
