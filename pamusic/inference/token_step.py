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

from pamusic.inference.compact_cache import Attended, ByteCache, ByteContextCache, ContextCache
from pamusic.inference.int8 import ByteBlock, ByteMatrix, Kernel, Turn, turned, unit
from pamusic.inference.precision import product
from pamusic.model.cache import KeyValueCache, spare
from pamusic.model.ledger import Entries
from pamusic.model.perceiver_ar import Block, Caches, PerceiverAR
from pamusic.model.recall import Memory
from pamusic.model.rotary import rotated, rotation

Norm = Callable[[Tensor], Tensor]
Addition = Callable[[Tensor, Tensor], Tensor]
Factors = tuple[Tensor, Tensor]  # `[n, head_dim]` each, of `n` positions: of each dimension and of its partner

TURNS = 128  # positions whose rotation is computed at a time
KEPT_TURNS = 32  # times so many are kept: readers of the same weights may stand far apart


class Operations:
    """In which operations a step is written: in the fewest of a CPU's."""

    @staticmethod
    def norm(width: int, eps: float, like: Tensor) -> Norm:
        """RMS norm over a last axis of so many, as a unit vector: what is missing stands in the weights behind it."""
        return partial(unit, least=like.new_full((1,), (eps * width) ** 0.5))

    @staticmethod
    def adding(weight: Tensor, precision: str) -> Addition:
        """`x` `[rows, out]` and the product of a weight `[out, in]` with `y` `[rows, in]`; `x` may be overwritten."""
        multiplied = product(weight, precision)
        return lambda x, y: x + multiplied(y)


class Stepper:
    """`read`, and `latents` and `logits` for one token a row. Holds a copy of the weights as they were at first."""

    operations: type[Operations] = Operations

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR, precision: str = "fp32", kernel: Kernel | None = None) -> None:
        """Copies weights.

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
        self._cross_turn = Turns(embedding.new_ones(2, cross.head_dim), fraction)
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
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, slack: int = 0
    ) -> Caches:
        """Empty caches, as the model's own `new_caches` but smaller; the model's own `logits` can go on with them."""
        config = self._config.resized(context_length=context_length, num_latents=num_latents)
        device, dtype, room = self._keys.device, self._keys.dtype, spare(config.context_length)
        of_ids, size = (self._keys, self._values, self._num_turned, batch), config.context_length
        cross = (
            ContextCache(*of_ids, window=size, slack=room)
            if self._kernel is None
            else ByteContextCache(*of_ids, self._kernel, window=size, slack=room)
        )
        shape, how = (batch, config.num_heads, config.d_model // config.num_heads), {"window": config.num_latents}
        layers = [
            KeyValueCache(*shape, **how, slack=slack, device=device, dtype=dtype)
            if self._kernel is None
            else ByteCache(*shape, **how, slack=slack)
            for _ in self._layers
        ]
        return Caches(cross, layers, entries=self._entries(batch), memory=self._memory(batch, size))

    def _entries(self, batch: int) -> Entries | None:
        return None if self._ledger is None else self._ledger.new_entries(batch)

    def _memory(self, batch: int, window: int) -> Memory | None:
        return None if self._recall is None else Memory(self._recall, batch, window)

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Takes `[batch, n]` tokens into the context alone: all that is computed is the turn of their keys."""
        assert isinstance(caches.cross, ContextCache)
        positions = torch.arange(caches.position, caches.position + tokens.shape[1], device=tokens.device)
        keys = looked_up(self._keys, tokens)[..., : self._num_turned].transpose(1, 2)
        caches.cross.append(tokens, rotated(keys, rotation(positions, self._num_turned, 1.0)))
        caches.position += tokens.shape[1]
        if self._ledger is not None and caches.entries is not None:
            self._ledger.enter(tokens, caches.entries)
        if caches.memory is not None:
            caches.memory.enter(tokens)

    @torch.inference_mode()
    def latents(self, ids: Tensor, caches: Caches) -> Tensor:
        """Takes the next ids `[batch]` into the context; what the layers begin with there, `[batch, d]`."""
        assert isinstance(caches.cross, ContextCache)
        queries, keys = turned(looked_up(self._queries_keys, ids), self._cross_turn.at(caches.position)).unbind(1)
        caches.cross.append(ids[:, None], keys[:, :, None, : self._num_turned])
        x = self._cross_tail(looked_up(self._latents, ids), caches.cross.attended(queries))
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
            x = layer(x, layer.turn.at(caches.position - 1), cache)
        head = self._head(self._norm(x))
        return head if caches.memory is None else self._said(head, caches.memory.shares())

    def _said(self, head: Tensor, shares: Tensor) -> Tensor:
        """Logits `[batch, vocab]` of what the head gives: those of the layers, then the gate of what is recalled."""
        assert self._recall is not None
        logits, gate = head.split([self._config.vocab_size, 1], dim=1)
        return self._recall.mixed(logits, gate + self._recall.gate.bias, shares)


class _Layer:
    """A self-attention block, for one token."""

    def __init__(
        self, block: Block, fraction: float, norm: Norm, operations: type[Operations], precision: str, eps: float
    ) -> None:
        self._num_heads, self._head_dim = block.attention.num_heads, block.attention.head_dim
        self._norm, self._norm_of_heads = norm, operations.norm(self._head_dim, eps, block.mlp_norm.weight)
        self._project = product(_projection(block), precision)
        self.turn = _turn_of(block, fraction)
        self._tail = _Tail(block, norm, operations, precision)

    def __call__(self, x: Tensor, turn: Turn, cache: Attended) -> Tensor:
        parts = self._project(self._norm(x)).to(x.dtype).view(-1, 3, self._num_heads, self._head_dim)
        queries, keys = turned(self._norm_of_heads(parts[:, :2]), turn).unbind(1)
        cache.append(keys[:, :, None], parts[:, 2, :, None])
        return self._tail(x, cache.attended(queries))


class _Tail:
    """What follows the heads of a block: their output, the MLP, and the residual stream around both."""

    def __init__(self, block: Block, norm: Norm, operations: type[Operations], precision: str) -> None:
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
        self._block, self.turn, self._kernel = _in_bytes(block, eps), _turn_of(block, fraction), kernel

    def __call__(self, x: Tensor, turn: Turn, cache: Attended) -> Tensor:
        assert isinstance(cache, ByteCache)
        return self._kernel.step(self._block, x, cache.opened(), turn)


class _KernelTail:
    """What follows the heads of a block, in bytes, by a kernel."""

    def __init__(self, block: Block, eps: float, kernel: Kernel) -> None:
        self._block, self._kernel = _in_bytes(block, eps), kernel

    def __call__(self, x: Tensor, heads: Tensor) -> Tensor:
        return self._kernel.finish(self._block, x, heads.flatten(1))


def _in_bytes(block: Block, eps: float) -> ByteBlock:
    width, head_dim = len(block.mlp_norm.weight), block.attention.head_dim
    return ByteBlock(
        project=ByteMatrix.of(_projection(block)),
        output=ByteMatrix.of(block.attention.output.weight),
        up=ByteMatrix.of(_up(block)),
        down=ByteMatrix.of(block.mlp.down.weight),
        least=(eps * width) ** 0.5,
        least_of_heads=(eps * head_dim) ** 0.5,
    )


def _projection(block: Block) -> Tensor:
    """The weights of queries, keys and values behind a norm without gain, `[3 * d, d]`."""
    attention, gain = block.attention, block.attention_norm.weight * len(block.attention_norm.weight) ** 0.5
    return torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]) * gain


def _up(block: Block) -> Tensor:
    """Those of the MLP's first layer behind such a norm."""
    return block.mlp.up.weight * block.mlp_norm.weight * len(block.mlp_norm.weight) ** 0.5


def _turn_of(block: Block, fraction: float) -> Turns:
    attention = block.attention
    gains = [attention.query_norm.weight, attention.key_norm.weight * attention.head_dim**0.5]
    return Turns(torch.stack(gains), fraction)


class Turns:
    """Rotations of queries and keys of one head's width at any position, with their gains."""

    def __init__(self, gains: Tensor, fraction: float) -> None:
        """`gains` are those of queries and keys, `[2, head_dim]`, of one layer or of many: `[layers, 2, head_dim]`."""
        self.gains, self._fraction = gains, fraction
        turned = num_turned(gains.shape[-1], fraction)
        partner = torch.arange(gains.shape[-1])
        partner[:turned] = partner[:turned].roll(turned // 2)
        self._partner = partner.to(gains.device)
        self._tables: dict[int, Turn] = {}  # by the number of their first position over `TURNS`
        self._single: tuple[int, list[Turn]] = (-1, [])  # the table of that number, position by position

    def at(self, position: int) -> Turn:
        """Factors `[2, 1, head_dim]` of each dimension and of its partner, and which its partner is, for `turned`."""
        number = position // TURNS
        if self._single[0] != number:
            own, partners, partner = self.around(position)
            self._single = number, [(*each, partner) for each in zip(own.unbind(), partners.unbind(), strict=True)]
        return self._single[1][position % TURNS]

    def around(self, position: int) -> Turn:
        """The same of those `TURNS` positions, one after another from a multiple of it on, among which one is."""
        number = position // TURNS
        return self._tables.get(number) or self._table(number)

    def _table(self, number: int) -> Turn:
        positions = torch.arange(
            number * TURNS, (number + 1) * TURNS, device=self.gains.device
        )  # no card is waited for
        own, partners = factors(positions, self.gains.shape[-1], self._fraction)
        if len(self._tables) == KEPT_TURNS:
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
    """How many dimensions of a head are turned by position: the first ones."""
    return 2 * rotation(torch.zeros(1), head_dim, fraction)[0].shape[-1]


def looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table `[vocab, ...]`. Indexing would take an id below 0 from the table's end; this refuses it."""
    if ids.dim() == 1:
        return table.index_select(0, ids)
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)
