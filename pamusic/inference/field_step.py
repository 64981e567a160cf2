"""Compute one position at a time of a model with several fields, in fewer operations than the model.

Knows a model's weights and caches; knows no sampling. `TokenStep` does this for models with one id a position. There a
token's keys and values are looked up by its id. Here they depend on several ids of several positions, so each step
computes them, and the cache of the context keeps them all. The model is the plain reference; the tests compare the two.

Shapes: `rows`; `fields`; `heads` of width `head_dim`; `d` width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.inference.compact_cache import Int8Cache
from pamusic.inference.int8 import Int8Block, Int8Matrix, Kernel, Rotary, apply_rotary
from pamusic.inference.precision import product
from pamusic.inference.token_step import Norm, StepOps, Tail, gains_of, in_int8, projection
from pamusic.model.blocks import Block
from pamusic.model.cache import KeyValueCache, SlidingBuffer, context_headroom
from pamusic.model.caches import Caches
from pamusic.model.fields import FieldHeads, FieldMLP, Hints
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.rotary import rotation


class FieldStep:
    """`read`, and `latents` and `states` of one position of each row. Holds a copy of the weights."""

    @torch.inference_mode()
    def __init__(self, model: PerceiverAR, precision: str = "fp32", kernel: Kernel | None = None) -> None:
        """Copy weights.

        Args:
            model: The model.
            precision: Precision of the weights: one of `inference.precision`, resolved.
            kernel: Kernel that computes blocks on a CPU, with int8 weights.
        """
        config, eps = model.config, model.norm.eps
        assert eps is not None
        assert config.num_heads == config.cross_num_heads or kernel is None, "a kernel has one width of heads"
        self._model, self._config, self._kernel, self._eps = model, config, kernel, eps
        self._embedding = model.embedding.weight * len(config.field_sizes) ** -0.5
        self._conv = None if model.conv is None else model.conv.weight
        self._to_latents = product(model.to_latents.weight, "fp32" if precision == "int8" else precision)
        self._norm = StepOps.norm(config.d_model, eps, model.embedding.weight)
        self._gain = model.norm.weight * config.d_model**0.5
        blocks = [model.cross, *(layer for layer in model.layers if isinstance(layer, Block))]
        self._blocks: list[_Layer | _KernelLayer] = [
            _Layer(block, self._norm, precision, eps, gain)
            if kernel is None
            else _KernelLayer(block, eps, kernel, gain)
            for block, gain in zip(blocks, [model.context_norm.weight, *[None] * len(model.layers)], strict=True)
        ]
        assert model.fields is not None
        self.heads: FieldHeads | _KernelHeads = (
            model.fields if kernel is None else _KernelHeads(model.fields, config.d_model, kernel)
        )
        # Gains of queries and keys of the cross-attention, `[1, 2, head_dim]`, and of the layers.
        gains = [gains_of(block) for block in blocks]
        self._gains = [torch.stack(each) for each in (gains[:1], gains[1:]) if each]
        self._rotations: dict[int, Rotary] = {}  # at the last position that `latents` took, by width of a head
        self._partners: dict[int, Tensor] = {}

    def new_caches(self, batch: int, num_latents: int, context_length: int, headroom: int = 0) -> Caches:
        """Return empty caches, like `PerceiverAR.new_caches`; in int8 with a kernel."""
        caches = self._model.new_caches(batch, num_latents, context_length, headroom)
        if self._kernel is None:
            return caches
        config = self._config.resized(context_length=context_length, num_latents=num_latents)
        shape = (batch, config.num_heads, config.d_model // config.num_heads)
        room = context_headroom(config.context_length)
        caches.cross = Int8Cache(*shape, window=config.context_length, headroom=room)
        caches.layers = [Int8Cache(*shape, window=config.num_latents, headroom=headroom) for _ in caches.layers]
        return caches

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append positions `[rows, n, fields]` to the context, without latents."""
        self._model.read(tokens, caches)

    @torch.inference_mode()
    def latents(self, ids: Tensor, caches: Caches) -> Tensor:
        """Append a position `[rows, fields]` to the context; return the input of the layers there, `[rows, d]`."""
        assert caches.ids is not None
        assert isinstance(caches.cross, KeyValueCache)
        caches.ids.append(ids[:, None])
        if self._model.clock is not None:
            assert caches.now is not None
            caches.now = caches.now + self._model.clock.ticks[ids[:, 0]]
        caches.position += 1
        embedded = self._embedded(caches.ids)
        cross, *_ = self._blocks
        widths = {gains.shape[-1] for gains in self._gains}
        self._rotations = {head_dim: self._rotation_at(caches, head_dim) for head_dim in widths}
        (rotary,) = self._with_gains(self._gains[0])
        return cross(self._to_latents(embedded).to(embedded.dtype), rotary, caches.cross, embedded)

    @torch.inference_mode()
    def states(self, x: Tensor, caches: Caches) -> Tensor:
        """Return the input of the heads for the output `[rows, d]` of `latents`; appends a latent to each layer."""
        if self._kernel is not None:
            x = x.clone(memory_format=torch.contiguous_format)  # the kernel writes into it
        if caches.layers:
            rotaries = self._with_gains(self._gains[1])
            for layer, cache, rotary in zip(self._blocks[1:], caches.layers, rotaries, strict=True):
                x = layer(x, rotary, cache)
        return self._norm(x) * self._gain

    def _embedded(self, ids: SlidingBuffer) -> Tensor:
        """Return the embedding of the last position, mixed with those before it, `[rows, d]`."""
        width = 1 if self._conv is None else 1 + len(self._conv)
        (last,) = ids.last(min(width, len(ids)))  # [rows, n, fields]
        embedded = self._embedding.index_select(0, last.flatten()).view(*last.shape, -1).sum(2)
        if self._conv is None:
            return embedded[:, 0]
        before = embedded[:, :-1].flip(1)
        return embedded[:, -1] + (before * self._conv[: before.shape[1]]).sum(1)

    def _rotation_at(self, caches: Caches, head_dim: int) -> Rotary:
        """Return the rotation of a head at the last position: factors `[rows or 1, head_dim]`, and partners."""
        device = self._embedding.device
        cos, sin = rotation(torch.tensor([caches.position - 1], device=device), head_dim, self._config.rotary_fraction)
        if self._model.clock is not None and caches.now is not None:
            also = rotation(caches.now, head_dim, self._model.clock.fraction)
            of_both = zip((cos, sin), also, strict=True)
            cos, sin = (torch.cat([one.expand(len(two), -1), two], dim=-1) for one, two in of_both)
        rest = (0, head_dim - 2 * cos.shape[-1])
        own, partners = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return F.pad(own, rest, value=1.0), F.pad(partners, rest), self._partner(head_dim, cos.shape[-1])

    def _with_gains(self, gains: Tensor) -> list[Rotary]:
        """Return the rotation for blocks with gains `[blocks, 2, head_dim]`: factors `[rows or 1, 2, 1, head_dim]`."""
        own, partners, partner = self._rotations[gains.shape[-1]]
        factors = (
            own[:, None, None] * gains[:, None, :, None],
            partners[:, None, None] * gains[..., partner][:, None, :, None],
        )
        return [(*each, partner) for each in zip(*(of_all.unbind() for of_all in factors), strict=True)]

    def _partner(self, head_dim: int, pairs: int) -> Tensor:
        """Return the partner of each dimension in a rotation, `[head_dim]`."""
        if pairs not in self._partners:
            partner = torch.arange(head_dim, device=self._embedding.device)
            partner[: 2 * pairs] = partner[: 2 * pairs].roll(pairs)
            self._partners[pairs] = partner
        return self._partners[pairs]


class _Layer:
    """A block, for one position of each row; keys and values may come from another stream than queries."""

    def __init__(self, block: Block, norm: Norm, precision: str, eps: float, source_gain: Tensor | None) -> None:
        self._num_heads, self._head_dim = block.attention.num_heads, block.attention.head_dim
        self._norm, self._norm_of_heads = norm, StepOps.norm(self._head_dim, eps, block.mlp_norm.weight)
        weight = projection(block, source_gain)
        width = weight.shape[1]
        self._project = product(weight, precision) if source_gain is None else product(weight[:width], precision)
        self._of_source = None if source_gain is None else product(weight[width:], precision)
        self._tail = Tail(block, norm, StepOps, precision)

    def __call__(self, x: Tensor, rotary: Rotary, cache: KeyValueCache, source: Tensor | None = None) -> Tensor:
        projected = self._project(self._norm(x)).to(x.dtype)
        if self._of_source is not None:
            assert source is not None
            projected = torch.cat([projected, self._of_source(self._norm(source)).to(x.dtype)], dim=-1)
        parts = projected.view(-1, 3, self._num_heads, self._head_dim)
        queries, keys = apply_rotary(self._norm_of_heads(parts[:, :2]), rotary).unbind(1)
        cache.append(keys[:, :, None], parts[:, 2, :, None])
        return self._tail(x, cache.attend(queries))


class _KernelLayer:
    """The same in int8, by a kernel."""

    def __init__(self, block: Block, eps: float, kernel: Kernel, source_gain: Tensor | None) -> None:
        self._block, self._kernel = in_int8(block, eps, source_gain), kernel

    def __call__(self, x: Tensor, rotary: Rotary, cache: KeyValueCache, source: Tensor | None = None) -> Tensor:
        assert isinstance(cache, Int8Cache)
        return self._kernel.step(self._block, x.contiguous(), cache.view(), rotary, source)


class _KernelHeads:
    """The heads of the fields, with MLPs in int8, by a kernel."""

    def __init__(self, heads: FieldHeads, d_model: int, kernel: Kernel) -> None:
        self.slices: list[slice] = heads.slices
        self._heads, self._kernel, self._scale = heads, kernel, d_model**0.5
        self._norm = StepOps.norm(d_model, 1e-6, heads.chosen.weight)
        none = Int8Matrix.of(torch.zeros(0, d_model))
        self._mlps = [
            Int8Block(
                project=none,
                output=none,
                up=Int8Matrix.of(mlp.up.weight * d_model**0.5),
                down=Int8Matrix.of(mlp.down.weight),
                least=(1e-6 * d_model) ** 0.5,
                least_of_heads=1.0,
            )
            for mlp in heads.mlps
            if isinstance(mlp, FieldMLP)
        ]

    def logits(self, field: int, latents: Tensor, chosen: Tensor, head: Tensor, hints: Hints) -> Tensor:
        """Return logits `[rows, size]` of a field, like `FieldHeads.logits`."""
        if field:
            x = self._norm(latents + self._heads.chosen(chosen).sum(-2)) * self._scale
            latents = self._norm(self._kernel.finish(self._mlps[field - 1], x.contiguous(), None)) * self._scale
        return self._heads.of_states(field, latents, chosen, head, hints)
