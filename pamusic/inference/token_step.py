"""One token at a time: what `latents` and `logits` of a model compute for a single token, in fewer operations.

Knows a model's weights and caches; knows no sampling. The model is the plain twin; the tests hold the two together.
A step on a CPU is bound by the memory it reads and by the number of operations it starts, so:
- what the cross-attention makes of a token (its latent, query, key, value) depends on its id alone, up to the turn
  by position: it is looked up in a table `[vocab, ...]` computed once, and of the context little but ids is kept;
- the gain of a norm is multiplied into the weights behind it, or into the turn of queries and keys, and the scale of
  attention into that of queries;
- queries, keys and values come from one product, and weights are held as `inference.precision` has it;
- given a kernel, all of a block is one call, with weights, keys and values in bytes (`inference.int8`).

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
from pamusic.model.cache import KeyValueCache, context_headroom
from pamusic.model.ledger import LedgerState
from pamusic.model.perceiver_ar import Block, Caches, PerceiverAR
from pamusic.model.recall import RecallCache
from pamusic.model.rotary import rotate, rotation

Norm = Callable[[Tensor], Tensor]
Addition = Callable[[Tensor, Tensor], Tensor]
Factors = tuple[Tensor, Tensor]  # `[n, head_dim]` each, of `n` positions: of each dimension and of its partner

ROTARY_BLOCK = 128  # positions whose rotation is computed at a time
MAX_ROTARY_BLOCKS = 32  # times so many are kept: readers of the same weights may stand far apart


class StepOps:
    """In which operations a step is written: in the fewest of a CPU's."""

    @staticmethod
    def norm(width: int, eps: float, like: Tensor) -> Norm:
        """RMS norm over a last axis of so many, as a unit vector: what is missing stands in the weights behind it."""
        return partial(unit_rms, least=like.new_full((1,), (eps * width) ** 0.5))

    @staticmethod
    def adding(weight: Tensor, precision: str) -> Addition:
        """`x` `[rows, out]` and the product of a weight `[out, in]` with `y` `[rows, in]`; `x` may be overwritten."""
        multiplied = product(weight, precision)
        return lambda x, y: x + multiplied(y)


class TokenStep:
    """`read`, and `latents` and `logits` for one token a row. Holds a copy of the weights as they were at first."""

    operations: type[StepOps] = StepOps

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR, precision: str = "fp32", kernel: Kernel | None = None) -> None:
        """Copy weights.

        Args:
            model: whose.
            precision: of the weights: one of `inference.precision`, resolved.
            kernel: computes blocks, on a CPU, with weights in bytes whatever the precision.
        """
        cross, eps, fraction = model.cross.attention, model.norm.eps, model.config.rotary_fraction
        assert eps is not None
        assert kernel is None or model.embedding.weight.dtype == torch.float32, "a kernel reads no other numbers"
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
        self._cross_tail: _Tail | _KernelTail = (
            _Tail(model.cross, self._norm, self.operations, precision)
            if kernel is None
            else _KernelTail(model.cross, eps, kernel)
        )
        self._ledger, self._recall = deepcopy(model.ledger), deepcopy(model.recall)
        blocks = [layer for layer in model.layers if isinstance(layer, Block)]
        self._layers: Sequence[_Layer | _KernelLayer] = (
            [_Layer(block, fraction, self._norm, self.operations, precision, eps) for block in blocks]
            if kernel is None
            else [_KernelLayer(block, fraction, eps, kernel) for block in blocks]
        )
        head = model.head.weight if model.recall is None else torch.cat([model.head.weight, model.recall.gate.weight])
        self._head = product(head * model.norm.weight * width**0.5, "fp32")  # ids are drawn from it

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> Caches:
        """Empty caches, as the model's own `new_caches` but smaller; the model's own `logits` can go on with them."""
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
        return Caches(cross, layers, entries=self._entries(batch), memory=self._memory(batch, size))

    def _entries(self, batch: int) -> LedgerState | None:
        return None if self._ledger is None else self._ledger.new_entries(batch)

    def _memory(self, batch: int, window: int) -> RecallCache | None:
        return None if self._recall is None else RecallCache(self._recall, batch, window)

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Take `[batch, n]` tokens into the context alone: all that is computed is the turn of their keys."""
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
        """Take the next ids `[batch]` into the context; what the layers begin with there, `[batch, d]`."""
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
        """Logits `[batch, vocab]` of what `latents` gave for the last ids, one more latent in each of the layers."""
        if self._kernel is not None:
            x = x.clone(memory_format=torch.contiguous_format)  # the kernel writes in its place
        for layer, cache in zip(self._layers, caches.layers, strict=True):
            x = layer(x, layer.rotary.at(caches.position - 1), cache)
        head = self._head(self._norm(x))
        return head if caches.memory is None else self._mix_recall(head, caches.memory.copy_probs())

    def _mix_recall(self, head: Tensor, shares: Tensor) -> Tensor:
        """Logits `[batch, vocab]` of what the head gives: those of the layers, then the gate of what is recalled."""
        assert self._recall is not None
        logits, gate = head.split([self._config.vocab_size, 1], dim=1)
        return self._recall.mix(logits, gate + self._recall.gate.bias, shares)


class _Layer:
    """A self-attention block, for one token."""

    def __init__(
        self, block: Block, fraction: float, norm: Norm, operations: type[StepOps], precision: str, eps: float
    ) -> None:
        self._num_heads, self._head_dim = block.attention.num_heads, block.attention.head_dim
        self._norm, self._norm_of_heads = norm, operations.norm(self._head_dim, eps, block.mlp_norm.weight)
        self._project = product(_projection(block), precision)
        self.rotary = _rotary_of(block, fraction)
        self._tail = _Tail(block, norm, operations, precision)

    def __call__(self, x: Tensor, rotary: Rotary, cache: Attended) -> Tensor:
        parts = self._project(self._norm(x)).to(x.dtype).view(-1, 3, self._num_heads, self._head_dim)
        queries, keys = apply_rotary(self._norm_of_heads(parts[:, :2]), rotary).unbind(1)
        cache.append(keys[:, :, None], parts[:, 2, :, None])
        return self._tail(x, cache.attend(queries))


class _Tail:
    """What follows the heads of a block: their output, the MLP, and the residual stream around both."""

    def __init__(self, block: Block, norm: Norm, operations: type[StepOps], precision: str) -> None:
        self._norm, self._up = norm, product(_up(block), precision)
        self._with_output, self._with_down = (
            operations.adding(weight, precision) for weight in (block.attention.output.weight, block.mlp.down.weight)
        )

    def __call__(self, x: Tensor, heads: Tensor) -> Tensor:
        x = self._with_output(x, heads.flatten(1))
        return self._with_down(x, self._up(self._norm(x)).relu_().square_())


class _KernelLayer:
    """A self-attention block in bytes, by a kernel."""

    def __init__(self, block: Block, fraction: float, eps: float, kernel: Kernel) -> None:
        self._block, self.rotary, self._kernel = _in_bytes(block, eps), _rotary_of(block, fraction), kernel

    def __call__(self, x: Tensor, rotary: Rotary, cache: Attended) -> Tensor:
        assert isinstance(cache, Int8Cache)
        return self._kernel.step(self._block, x, cache.view(), rotary)


class _KernelTail:
    """What follows the heads of a block, in bytes, by a kernel."""

    def __init__(self, block: Block, eps: float, kernel: Kernel) -> None:
        self._block, self._kernel = _in_bytes(block, eps), kernel

    def __call__(self, x: Tensor, heads: Tensor) -> Tensor:
        return self._kernel.finish(self._block, x, heads.flatten(1))


def _in_bytes(block: Block, eps: float) -> Int8Block:
    width, head_dim = len(block.mlp_norm.weight), block.attention.head_dim
    return Int8Block(
        project=Int8Matrix.of(_projection(block)),
        output=Int8Matrix.of(block.attention.output.weight),
        up=Int8Matrix.of(_up(block)),
        down=Int8Matrix.of(block.mlp.down.weight),
        least=(eps * width) ** 0.5,
        least_of_heads=(eps * head_dim) ** 0.5,
    )


def _projection(block: Block) -> Tensor:
    """Return the weights of queries, keys and values behind a norm without gain, `[3 * d, d]`."""
    attention, gain = block.attention, block.attention_norm.weight * len(block.attention_norm.weight) ** 0.5
    return torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]) * gain


def _up(block: Block) -> Tensor:
    """Return the weights of the MLP's first layer behind such a norm."""
    return block.mlp.up.weight * block.mlp_norm.weight * len(block.mlp_norm.weight) ** 0.5


def _rotary_of(block: Block, fraction: float) -> RotaryTable:
    attention = block.attention
    gains = [attention.query_norm.weight, attention.key_norm.weight * attention.head_dim**0.5]
    return RotaryTable(torch.stack(gains), fraction)


class RotaryTable:
    """Rotations of queries and keys of one head's width at any position, with their gains."""

    def __init__(self, gains: Tensor, fraction: float) -> None:
        """`gains` are those of queries and keys, `[2, head_dim]`, of one layer or of many: `[layers, 2, head_dim]`."""
        self.gains, self._fraction = gains, fraction
        turned = num_turned(gains.shape[-1], fraction)
        partner = torch.arange(gains.shape[-1])
        partner[:turned] = partner[:turned].roll(turned // 2)
        self._partner = partner.to(gains.device)
        self._tables: dict[int, Rotary] = {}  # by the number of their first position over `ROTARY_BLOCK`
        self._single: tuple[int, list[Rotary]] = (-1, [])  # the table of that number, position by position

    def at(self, position: int) -> Rotary:
        """Return factors `[2, 1, head_dim]` of each dimension and of its partner, and which its partner is."""
        number = position // ROTARY_BLOCK
        if self._single[0] != number:
            own, partners, partner = self.around(position)
            self._single = number, [(*each, partner) for each in zip(own.unbind(), partners.unbind(), strict=True)]
        return self._single[1][position % ROTARY_BLOCK]

    def around(self, position: int) -> Rotary:
        """Return the same of the `ROTARY_BLOCK` positions among which one is, from a multiple of it on."""
        number = position // ROTARY_BLOCK
        return self._tables.get(number) or self._table(number)

    def _table(self, number: int) -> Rotary:
        positions = torch.arange(
            number * ROTARY_BLOCK, (number + 1) * ROTARY_BLOCK, device=self.gains.device
        )  # no card is waited for
        own, partners = factors(positions, self.gains.shape[-1], self._fraction)
        if len(self._tables) == MAX_ROTARY_BLOCKS:
            del self._tables[next(iter(self._tables))]  # the oldest
        own, partners = (each.view(-1, *[1] * self.gains.dim(), each.shape[-1]) for each in (own, partners))
        gains, of_partners = (each.unsqueeze(-2) for each in (self.gains, self.gains[..., self._partner]))
        self._tables[number] = own * gains, partners * of_partners, self._partner
        return self._tables[number]


def factors(positions: Tensor, head_dim: int, fraction: float) -> Factors:
    """What turns a head at each of `[n]` positions: what each dimension is multiplied with, and what its partner is."""
    cos, sin = rotation(positions, head_dim, fraction)
    rest = (0, head_dim - 2 * cos.shape[-1])
    return F.pad(torch.cat([cos, cos], dim=-1), rest, value=1.0), F.pad(torch.cat([-sin, sin], dim=-1), rest)


def num_turned(head_dim: int, fraction: float) -> int:
    """Return how many dimensions of a head are turned by position: the first ones."""
    return 2 * rotation(torch.zeros(1), head_dim, fraction)[0].shape[-1]


def lookup(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table `[vocab, ...]`. Indexing would take an id below 0 from the table's end; this refuses it."""
    if ids.dim() == 1:
        return table.index_select(0, ids)
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)
