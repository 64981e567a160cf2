"""Record a decode step as a CUDA graph and replay it: one launch per token instead of about a hundred.

On a GPU, a step of a single piece is limited by the number of kernel launches, not by memory traffic. A CUDA graph
replays fixed shapes and addresses. Therefore:
- A step attends over the whole cache buffer with a mask. Indices live in tensors.
- Rotary factors come from a table of `ROTARY_BLOCK` positions. The index into it is a tensor, and the host overwrites
  the table when the block is used up.
- The context is stored as keys and values, read in a fixed order. `TokenStep` sums by id, which a GPU does in a random
  order, but the same seed must give the same music.
- After a selection of rows, the step is recorded again, since the caches have new addresses.
Refill and prefill are not recorded: they are rare, and long enough to hide their launches.

On other devices nothing is recorded, and the same operations run one by one. So tests can compare them with `TokenStep`
without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.inference.int8 import Rotary, apply_rotary
from pamusic.inference.precision import product
from pamusic.inference.token_step import ROTARY_BLOCK, Addition, Norm, RotaryTable, StepOps, TokenStep, lookup
from pamusic.model.cache import KeyValueCache
from pamusic.model.caches import Caches
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.rotary import rotate, rotation

WARMUP_RUNS = 2  # before recording, because libraries allocate memory on their first calls


@dataclass
class CudaGraphCaches(Caches):
    """Caches, with the recording of a step on them.

    Attributes:
        recording: Recorded step; None before the first step and after a selection of rows.
    """

    recording: CapturedStep | None = None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, like `Caches.select`; the next step is recorded again."""
        super().select(rows)
        self.recording = None


class FusedOps(StepOps):
    """The operations of a step with the fewest GPU kernels, since each launch takes microseconds."""

    @staticmethod
    def norm(width: int, eps: float, like: Tensor) -> Norm:
        """Return the norm of `StepOps` as one kernel."""
        weight = like.new_full((width,), width**-0.5)
        return lambda x: F.rms_norm(x, (width,), weight, eps)

    @staticmethod
    def adding(weight: Tensor, precision: str) -> Addition:
        """Return the addition of `StepOps`, as one kernel if the weights are float32; `x` is overwritten."""
        if precision == "fp32":
            transposed = weight.clone().t()
            return lambda x, y: x.addmm_(y, transposed)
        multiplied = product(weight, precision)
        return lambda x, y: x.add_(multiplied(y))


class CudaGraphStep(TokenStep):
    """A `TokenStep` that records its `latents` and `logits`."""

    operations = FusedOps

    def __init__(
        self,
        model: PerceiverAR,
        precision: str = "fp32",
        record: Callable[[Callable[[], Tensor], torch.device, Sequence[Tensor]], Callable[[], Tensor]] | None = None,
    ) -> None:
        """Copy the weights; `record` is `capture` by default."""
        super().__init__(model, precision)
        self.record = record or capture
        self.cross_rotary = self._cross_rotary
        gains = [layer.rotary.gains for layer in self._layers]
        self.layers_rotary = RotaryTable(torch.stack(gains), self._config.rotary_fraction) if gains else None

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> CudaGraphCaches:
        """Return empty caches; the model's own `logits` can use them too."""
        config = self._config.resized(context_length=context_length, num_latents=num_latents)
        caches = CudaGraphCaches.empty(config, batch, headroom, self._keys)
        caches.entries, caches.memory = self._entries(batch), self._memory(batch, config.context_length)
        return caches

    @torch.inference_mode()
    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append tokens `[batch, n]` to the context only."""
        assert isinstance(caches.cross, KeyValueCache)
        assert caches.ids is not None
        positions = torch.arange(caches.position, caches.position + tokens.shape[1], device=tokens.device)
        keys, values = (lookup(table, tokens).transpose(1, 2) for table in (self._keys, self._values))
        fraction = self._config.rotary_fraction
        caches.cross.append(rotate(keys, rotation(positions, keys.shape[-1], fraction)), values)
        caches.ids.append(tokens)
        caches.position += tokens.shape[1]
        if self._ledger is not None and caches.entries is not None:
            self._ledger.enter(tokens, caches.entries)
        if caches.memory is not None:
            caches.memory.enter(tokens)

    @torch.inference_mode()
    def latents(self, ids: Tensor, caches: Caches) -> Tensor:
        """Compute `TokenStep.latents`; the caller owns the result."""
        assert isinstance(caches, CudaGraphCaches)
        assert isinstance(caches.cross, KeyValueCache)
        assert caches.ids is not None
        caches.ids.append(ids[:, None])
        place = caches.cross.reserve()
        caches.recording = caches.recording or CapturedStep(self, caches, ids)
        x = caches.recording.latents(ids, place, caches.position).clone()
        caches.position += 1
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor, caches: Caches) -> Tensor:
        """Compute `TokenStep.logits` of the last result of `latents`; on CUDA, the next call overwrites the result."""
        assert isinstance(caches, CudaGraphCaches)
        assert caches.recording is not None
        places = [cache.reserve() for cache in caches.layers]
        return caches.recording.logits(x, max(places, default=0))

    def latents_of(self, at: StaticInputs, caches: CudaGraphCaches) -> Tensor:
        """Compute the recorded part of `latents`, `[rows, d]`, from static inputs."""
        cross = caches.cross
        assert isinstance(cross, KeyValueCache)
        queries, keys = apply_rotary(lookup(self._queries_keys, at.ids), at.rotary_of_cross()).unbind(1)
        whole = StaticCacheView(cross, at.in_context, hidden(cross, at.places_of_context, at.in_context))
        whole.append(keys[:, :, None], lookup(self._values, at.ids)[:, :, None])
        x = self._cross_tail(lookup(self._latents, at.ids), whole.attend(queries))
        if caches.memory is not None:
            caches.memory.step_at(at.in_memory, at.ids)
        if self._ledger is None or caches.entries is None:
            return x
        return x + self._ledger.step(at.ids, caches.entries, cross.window)

    def logits_of(self, x: Tensor, at: StaticInputs, caches: CudaGraphCaches) -> Tensor:
        """Compute the recorded part of `logits`: `[rows, d]` to `[rows, vocab]`."""
        x = x.clone()  # the layers overwrite it
        if caches.layers:
            unseen = hidden(caches.layers[0], at.places_of_layers, at.in_layers)
        for layer, cache, rotary in zip(self._layers, caches.layers, at.rotary_of_layers(), strict=True):
            x = layer(x, rotary, StaticCacheView(cache, at.in_layers, unseen))
        head = self._head(self._norm(x))
        return head if caches.memory is None else self._mix_recall(head, caches.memory.copy_probs_at(at.in_memory))


class StaticInputs:
    """The inputs of a step, at fixed addresses.

    Attributes:
        ids: Last ids, `[rows]`.
        in_context, in_layers, in_memory: Index of the last ids in each of the caches, `[1]`.
        places_of_context, places_of_layers: All indices of the caches' buffers, from 0, `[capacity]`.
    """

    def __init__(self, stepper: CudaGraphStep, caches: CudaGraphCaches, ids: Tensor) -> None:
        """Allocate the inputs, without a position yet; later ids have the shape of `ids`, `[rows]`."""
        self.ids = ids.clone()
        self.in_context, self.in_layers, self.in_memory, self._in_table = (ids.new_zeros(1) for _ in range(4))
        self.places_of_context, self.places_of_layers = (
            torch.arange(cache.memory[0].shape[2] if isinstance(cache, KeyValueCache) else 0, device=ids.device)
            for cache in (caches.cross, caches.layers[0] if caches.layers else None)
        )
        self._rotary = [rotary for rotary in (stepper.cross_rotary, stepper.layers_rotary) if rotary is not None]
        self._around = -1
        self._tables: list[Rotary] = []

    def move_to(self, position: int) -> None:
        """Select the rotation of a position."""
        if position // ROTARY_BLOCK != self._around:
            self._around = position // ROTARY_BLOCK
            tables = [rotary.around(position) for rotary in self._rotary]
            self._tables = self._tables or [(own.clone(), of.clone(), partner) for own, of, partner in tables]
            for kept, new in zip(self._tables, tables, strict=True):
                kept[0].copy_(new[0])
                kept[1].copy_(new[1])
        self._in_table.fill_(position % ROTARY_BLOCK)

    def rotary_of_cross(self) -> Rotary:
        """Return the rotation of the cross-attention."""
        own, of_partners, partner = self._tables[0]
        return own.index_select(0, self._in_table)[0], of_partners.index_select(0, self._in_table)[0], partner

    def rotary_of_layers(self) -> list[Rotary]:
        """Return the rotation of each layer."""
        if len(self._tables) < 2:
            return []
        own, of_partners, partner = self._tables[1]
        here = (each.index_select(0, self._in_table)[0] for each in (own, of_partners))
        return [(own, of_partners, partner) for own, of_partners in zip(*here, strict=True)]


class CapturedStep:
    """A recorded step on some caches."""

    def __init__(self, stepper: CudaGraphStep, caches: CudaGraphCaches, ids: Tensor) -> None:
        """Allocate the inputs, but record nothing yet; later ids have the shape of `ids`, `[rows]`."""
        self._stepper, self._caches, self._at = stepper, caches, StaticInputs(stepper, caches, ids)
        self._x: Tensor | None = None
        self._play_latents: Callable[[], Tensor] | None = None
        self._play_logits: Callable[[], Tensor] | None = None

    def latents(self, ids: Tensor, place: int, position: int) -> Tensor:
        """Return the latents of ids `[rows]` at a position; `place` is their index in the context's cache."""
        self._at.ids.copy_(ids)
        self._at.in_context.fill_(place)
        self._at.move_to(position)
        entries, memory = self._caches.entries, self._caches.memory
        if memory is not None:
            self._at.in_memory.fill_(memory.reserve())
        if self._play_latents is None:
            changed = [] if entries is None else [entries.position, entries.now, entries.opened, entries.opened_at]
            changed += [] if memory is None else memory.changing()
            work = partial(self._stepper.latents_of, self._at, self._caches)
            self._play_latents = self._stepper.record(work, ids.device, changed)
        return self._play_latents()

    def logits(self, x: Tensor, place: int) -> Tensor:
        """Return the logits of latents; `place` is their index in the layers' caches."""
        self._x = x.clone() if self._x is None else self._x.copy_(x)
        self._at.in_layers.fill_(place)
        if self._play_logits is None:
            work = partial(self._stepper.logits_of, self._x, self._at, self._caches)
            self._play_logits = self._stepper.record(work, x.device, ())
        return self._play_logits()


class StaticCacheView:
    """A cache as a recorded step sees it: the whole buffer, with a mask."""

    def __init__(self, cache: KeyValueCache, place: Tensor, hidden: Tensor) -> None:
        self._keys, self._values = cache.memory
        self._place, self._hidden = place, hidden

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._keys.index_copy_(2, self._place, keys)
        self._values.index_copy_(2, self._place, values)

    def attend(self, queries: Tensor) -> Tensor:
        scores = (queries[:, :, None] @ self._keys.mT).masked_fill(self._hidden, -inf)
        return (scores.softmax(-1) @ self._values)[:, :, 0]


def hidden(cache: KeyValueCache, places: Tensor, place: Tensor) -> Tensor:
    """Return the mask `[capacity]` of indices that a token does not see: after its own, or out of the window.

    Args:
        cache: The cache.
        places: All indices of its buffer, `[capacity]`.
        place: Index of the token.
    """
    return (places > place) | (places <= place - cache.window)


def capture(work: Callable[[], Tensor], device: torch.device, changed: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Return a function that does some work and returns its result in place; on CUDA it replays a recording.

    Args:
        work: Computation with fixed shapes and addresses that reads no value on the host.
        device: Device of the computation.
        changed: Tensors for which repeating the work is not idempotent; warmup restores them.
    """
    if device.type != "cuda":
        return work
    with torch.cuda.device(device):
        before = [tensor.clone() for tensor in changed]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, was in zip(changed, before, strict=True):
            tensor.copy_(was)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()

    def played() -> Tensor:
        graph.replay()
        return result

    return played
