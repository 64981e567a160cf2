"""Continue prime positions that have several fields, for some rows at once.

Knows ids, fields and numbers; never what the ids mean. Arrays say which ids fit in one position, and the seconds that
pass with each. This is the simple path: fp32, the model's own caches, no CUDA graph, no kernel. When all latents are in
use, a refill recomputes the last half of them (the policy of the official code, see `inference.session`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np
import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.model.fields import field_slices
from pamusic.model.perceiver_ar import Caches, PerceiverAR
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.filters import OUT, apply_filters
from pamusic.sampling.token_sampler import RANDOM_BLOCK


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionConstraints:
    """Knowledge of the sampler about a vocabulary with several ids a position.

    Attributes:
        fits: Pairs of ids of different fields that can share a position, `[vocab, vocab]`, bool.
        seconds_of_id: Seconds that pass with each id, `[vocab]`.
        forbidden_ids: Ids that are never drawn.
        end_id: Id whose position ends the row, without being part of the row; None for no end.
    """

    fits: np.ndarray
    seconds_of_id: np.ndarray
    forbidden_ids: Sequence[int] = ()
    end_id: int | None = None


@torch.inference_mode()
def generate_positions(
    model: PerceiverAR,
    prime: np.ndarray,
    constraints: PositionConstraints,
    *,
    sampling: Sequence[SamplingConfig],
    stop: StopCondition,
    seed: int,
    num_rows: int = 1,
) -> Iterator[list[list[int] | None]]:
    """Yield the next position of each row, a list of `fields` ids; None where a row has ended.

    Args:
        model: Model with several fields, in evaluation mode.
        prime: Ids that all rows continue, `[n, fields]`, `n >= 1`.
        constraints: Ids that the vocabulary allows.
        sampling: Sampling settings of each field; class temperatures and the release bias have no effect.
        stop: Stop condition. With `seconds`, a row ends before the first position that would begin later. The end is
            never the first position. An `ending` is not supported.
        seed: Seed of the first row. Row `i` has `seed + i`, so a row is the same alone and among others.
        num_rows: Number of rows.

    Raises:
        PamusicError: The model's logits are not numbers.
    """
    device = model.embedding.weight.device
    fits = torch.from_numpy(np.asarray(constraints.fits, bool)).to(device)
    end_ids = [] if constraints.end_id is None else [constraints.end_id]
    never = end_ids if stop.min_tokens_before_end is None else []
    allowed = _Allowed(fits, [*constraints.forbidden_ids, *never])
    before_end = _Allowed(allowed.beside, end_ids)
    passes = torch.from_numpy(np.asarray(constraints.seconds_of_id, np.float64)).to(device)
    rngs = [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]
    begins = torch.from_numpy(np.asarray(prime, np.int64)).to(device).expand(num_rows, -1, -1)
    reading = _Reading(model, begins)
    rows = torch.arange(num_rows, device=device)  # rows that have not ended
    now = torch.zeros(num_rows, dtype=torch.float64, device=device)
    numbers = torch.empty(0)
    num_fields = len(model.config.field_sizes)
    for place in range(stop.max_tokens) if stop.max_tokens is not None else count():
        if place % RANDOM_BLOCK == 0:
            drawn = [torch.rand(RANDOM_BLOCK, num_fields, generator=rng, dtype=torch.float64) for rng in rngs]
            numbers = torch.stack(drawn, dim=1).to(device)
        may = allowed if place >= (stop.min_tokens_before_end or 1) else before_end
        position = _sample_position(model, reading, numbers[place % RANDOM_BLOCK, rows], may, sampling)
        now = now + passes[position].sum(-1)
        going = now <= (stop.seconds or inf)
        for end_id in end_ids:
            going = going & ~(position == end_id).any(-1)
        if not going.all():
            (kept,) = going.nonzero(as_tuple=True)
            if not len(kept):
                return
            rows, now, position = rows[kept], now[kept], position[kept]
            reading.select(kept)
        of_row = dict(zip(rows.tolist(), position.tolist(), strict=True))
        yield [of_row.get(row) for row in range(num_rows)]
        reading.take(position[:, None])


class _Allowed:
    """The ids that can be drawn.

    Attributes:
        beside: For each id, the ids of other fields that can share its position, `[vocab, vocab]`.
        at_all: Ids that can share a position with at least one id, `[vocab]`.
    """

    def __init__(self, fits: Tensor, forbidden_ids: Sequence[int]) -> None:
        self.beside = fits.clone()
        self.beside[:, list(forbidden_ids)] = False
        self.at_all = self.beside.any(0)


def _sample_position(
    model: PerceiverAR, reading: _Reading, numbers: Tensor, allowed: _Allowed, sampling: Sequence[SamplingConfig]
) -> Tensor:
    """Draw the ids `[rows, fields]` of the next position, field by field.

    Args:
        model: The model.
        reading: Its state after the positions so far.
        numbers: Uniform random numbers from 0 to 1, `[rows, fields]`.
        allowed: Ids that can be drawn.
        sampling: Sampling settings of each field.
    """
    assert model.fields is not None
    states, lasting = reading.states(), reading.lasting()
    chosen = torch.empty(len(states), 0, dtype=torch.int64, device=states.device)
    for field, ids in enumerate(field_slices(model.config.field_sizes, model.config.vocab_size)):
        logits = model.fields.logits(field, states, chosen, model.head.weight, lasting).float()
        if not torch.isfinite(logits).all():
            raise PamusicError("the model's logits are not numbers; its training diverged, use another checkpoint")
        can_stand = allowed.at_all[ids].expand_as(logits)
        for before in chosen.unbind(-1):
            can_stand = can_stand & allowed.beside[before][:, ids]
        left = apply_filters(logits.masked_fill(~can_stand, OUT), sampling[field]).double().softmax(-1)
        cumulative = left.cumsum(-1)
        wanted = numbers[:, field, None] * cumulative[:, -1:]
        place = torch.searchsorted(cumulative, wanted, right=True).clamp(max=left.shape[-1] - 1)
        chosen = torch.cat([chosen, ids.start + place], dim=-1)
    return chosen


class _Reading:
    """A model with its caches, after the positions read so far."""

    def __init__(self, model: PerceiverAR, begins: Tensor) -> None:
        self._model = model
        self._num_latents = model.config.num_latents
        self._caches: Caches = model.new_caches(len(begins))
        self._refill = max(1, self._num_latents // 2)
        self._recent = begins[:, -self._num_latents :]
        model.read(begins, self._caches)
        self._states = self._of(self._recent)

    def take(self, position: Tensor) -> None:
        """Read the next position `[rows, 1, fields]`."""
        self._recent = torch.cat([self._recent[:, 1 - self._num_latents :], position], dim=1)
        self._model.read(position, self._caches)
        if self._caches.num_latents == self._num_latents:
            for layer in self._caches.layers:
                layer.clear()
            position = self._recent[:, -self._refill :]
        self._states = self._of(position)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, `[n]`."""
        self._caches.select(rows)
        self._recent, self._states = self._recent[rows], self._states[rows]

    def states(self) -> Tensor:
        """Return the input of the heads after the last position, `[rows, d]`."""
        return self._states

    def lasting(self) -> Tensor | None:
        """Return `model.fields.Offsets.lasting` of the last position, `[rows, num_positions]`; None without offsets."""
        assert self._model.fields is not None
        offsets = self._model.fields.offsets
        return None if offsets is None else offsets.lasting(self._caches.visible_ids(), 1)[:, 0]

    def _of(self, positions: Tensor) -> Tensor:
        latents = self._model.latents(positions, self._caches)
        return self._model.states(latents, self._caches, last_only=True)[:, 0]
