"""One token at a time: what `read` and `extend` of a model compute for a single token, in fewer operations.

Knows a model's weights and caches; knows no sampling. The model is the plain twin; the tests hold the two together.
A step on a CPU is bound by the memory it reads and by the number of operations it starts, so:
- what the cross-attention makes of a token (its latent, query, key, value) depends on its id alone, up to the turn
  by position: it is looked up in a table `[vocab, ...]` computed once;
- the gain of a norm is multiplied into the weights behind it, the scale of attention into the gain of the queries;
- queries, keys and values come from one product, and weights lie so that their longer side is contiguous, which
  reads them about twice as fast on the CPUs we measured.

Shapes: `batch`; `heads` of width `head_dim`; `m` positions in a cache; `d` width; `vocab` ids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.model.cache import KeyValueCache
from pamusic.model.perceiver_ar import Block, Caches, PerceiverAR
from pamusic.model.rotary import rotation

TURNS = 1024  # positions whose rotation is computed at a time


class Stepper:
    """`read` and `extend` in one, for one token a row. Holds a copy of the weights as they were when it was made."""

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR) -> None:
        cross, eps = model.cross.attention, model.norm.eps
        assert eps is not None
        self._eps = model.head.weight.new_full((1,), eps)
        embedding = model.embedding.weight
        self._latents = model.to_latents(embedding)  # [vocab, d]
        context = model.context_norm(embedding)
        shape = (len(embedding), cross.num_heads, cross.head_dim)
        queries = cross.query_norm(cross.query(model.cross.attention_norm(self._latents)).view(shape))
        keys = cross.key_norm(cross.key(context).view(shape))
        self._queries_keys = torch.cat([queries * cross.head_dim**-0.5, keys], dim=1)  # [vocab, 2 heads, head_dim]
        self._values = cross.value(context).view(shape)
        self._cross_turn = _Turn(cross.head_dim, model.config.rotary_fraction, embedding.device)
        self._cross_tail = _Tail(model.cross)
        self._layers = [_Layer(layer) for layer in model.layers if isinstance(layer, Block)]
        head_dim = model.config.d_model // model.config.num_heads
        self._turn = _Turn(head_dim, model.config.rotary_fraction, embedding.device)
        self._head = _wide(model.head.weight * model.norm.weight)

    def __call__(self, ids: Tensor, caches: Caches) -> Tensor:
        """Logits `[batch, vocab]` after the next ids `[batch]`; the caches' layers have room for one more latent."""
        turn = self._cross_turn.at(caches.position)
        queries, keys = _turned(self._queries_keys[ids], turn).chunk(2, dim=1)
        caches.cross.append(keys[:, :, None], self._values[ids][:, :, None])
        heads = _attended(queries[:, :, None], caches.cross)
        x = self._cross_tail(self._latents[ids], heads, self._eps)
        turn = self._turn.at(caches.position)
        for layer, cache in zip(self._layers, caches.layers, strict=True):
            x = layer(x, turn, cache, self._eps)
        caches.position += 1
        return F.linear(_normed(x, self._eps), self._head)


class _Layer:
    """A self-attention block, for one token."""

    def __init__(self, block: Block) -> None:
        attention, gain = block.attention, block.attention_norm.weight
        self._num_heads, self._head_dim = attention.num_heads, attention.head_dim
        projections = [attention.query.weight, attention.key.weight, attention.value.weight]
        self._project = _wide(torch.cat(projections) * gain)
        gains = [attention.query_norm.weight * self._head_dim**-0.5, attention.key_norm.weight]
        self._gain = torch.stack(gains).repeat_interleave(self._num_heads, dim=0)  # [2 heads, head_dim]
        self._tail = _Tail(block)

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor, Tensor], cache: KeyValueCache, eps: Tensor) -> Tensor:
        projected = F.linear(_normed(x, eps), self._project).view(len(x), 3 * self._num_heads, self._head_dim)
        queries_keys, values = projected.split([2 * self._num_heads, self._num_heads], dim=1)
        queries_keys = _turned(_normed(queries_keys, eps) * self._gain, turn)
        queries, keys = queries_keys.chunk(2, dim=1)
        cache.append(keys[:, :, None], values[:, :, None])
        return self._tail(x, _attended(queries[:, :, None], cache), eps)


class _Tail:
    """What follows the heads of a block: their output, the MLP, and the residual stream around both."""

    def __init__(self, block: Block) -> None:
        self._output = _wide(block.attention.output.weight)
        self._up = _wide(block.mlp.up.weight * block.mlp_norm.weight)
        self._down = _wide(block.mlp.down.weight)

    def __call__(self, x: Tensor, heads: Tensor, eps: Tensor) -> Tensor:
        x = x + F.linear(heads.flatten(1), self._output)
        return x + F.linear(F.linear(_normed(x, eps), self._up).relu_().square_(), self._down)


class _Turn:
    """Rotations of one head's width at any position, computed `TURNS` at a time."""

    def __init__(self, head_dim: int, fraction: float, device: torch.device) -> None:
        self._head_dim, self._fraction, self._device = head_dim, fraction, device
        pairs = rotation(torch.zeros(1), head_dim, fraction)[0].shape[-1]
        partner = torch.arange(head_dim)
        partner[: 2 * pairs] = partner[: 2 * pairs].roll(pairs)
        self._partner = partner.to(device)
        self._first = -TURNS

    def at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Factors `[head_dim]` of each dimension and of its partner, and which its partner is, for `_turned`."""
        if not self._first <= position < self._first + TURNS:
            self._first = position
            cos, sin = rotation(torch.arange(position, position + TURNS), self._head_dim, self._fraction)
            rest = self._head_dim - 2 * cos.shape[-1]
            self._own = F.pad(torch.cat([cos, cos], dim=-1), (0, rest), value=1.0).to(self._device)
            self._partners = F.pad(torch.cat([-sin, sin], dim=-1), (0, rest)).to(self._device)
        return self._own[position - self._first], self._partners[position - self._first], self._partner


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`rotated` for heads `[batch, heads, head_dim]` of one position."""
    own, partners, partner = turn
    return torch.addcmul(heads * own, heads.index_select(-1, partner), partners)


def _attended(queries: Tensor, cache: KeyValueCache) -> Tensor:
    """Scaled queries `[batch, heads, 1, head_dim]` -> `[batch, heads, 1, head_dim]`, over all that a cache holds."""
    keys, values = cache.last(len(cache))
    return (queries @ keys.mT).softmax(-1) @ values


def _normed(x: Tensor, eps: Tensor) -> Tensor:
    """RMS norm without gain over the last axis: `x / sqrt(mean(x²) + eps)`, in three operations instead of six."""
    rows = x.reshape(-1, 1, x.shape[-1])
    return x * torch.baddbmm(eps, rows, rows.mT, alpha=1 / x.shape[-1]).rsqrt_().view(*x.shape[:-1], 1)


def _wide(weight: Tensor) -> Tensor:
    """A weight `[out, in]` for `F.linear`, laid out so that its longer side is contiguous."""
    return weight.t().contiguous().t() if weight.shape[0] > weight.shape[1] else weight.contiguous()
