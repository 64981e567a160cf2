"""Prime positions of several fields -> more positions, for some rows at once.

Knows ids, fields and numbers; never what the ids mean. Arrays say which ids can stand in one position, and how many
seconds pass with each. It is the plain way: fp32, the model's own caches, no recorded steps, no kernel. When all
latents are in use, the last half of them is computed anew (the official code's policy, `inference.session`).
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
    """What the sampler knows of a vocabulary with several ids a position.

    Attributes:
        fits: `[vocab, vocab]`, bool, which ids of different fields can stand in one position.
        seconds_of_id: `[vocab]`, seconds that pass with each id.
        forbidden_ids: are never drawn.
        end_id: a row ends at a position that has this id; it is not part of it. None for no end.
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
        model: in evaluation mode, of several fields.
        prime: `[n, fields]` ids that all rows follow, `n >= 1`.
        constraints: what the vocabulary allows.
        sampling: of each field, what the filters leave; class temperatures and the release bias do not enter.
        stop: how many positions at most. By seconds a row ends before the position that would begin later. The end is
            never the first position; an `ending` is not done here.
        seed: of the first row's random numbers. Row `i` has `seed + i`, so a row is the same alone and among others.
        num_rows: how many rows.

    Raises:
        PamusicError: the model's logits are no numbers.
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
    rows = torch.arange(num_rows, device=device)  # that go on
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
    """Which ids can be drawn.

    Attributes:
        beside: `[vocab, vocab]`, the ids that can stand beside each, which is in another field.
        at_all: `[vocab]`, the ids that can stand beside any.
    """

    def __init__(self, fits: Tensor, forbidden_ids: Sequence[int]) -> None:
        self.beside = fits.clone()
        self.beside[:, list(forbidden_ids)] = False
        self.at_all = self.beside.any(0)


def _sample_position(
    model: PerceiverAR, reading: _Reading, numbers: Tensor, allowed: _Allowed, sampling: Sequence[SamplingConfig]
) -> Tensor:
    """Return the ids `[rows, fields]` of the next position, field by field.

    Args:
        reading: what has been read.
        numbers: `[rows, fields]`, from 0 to 1: where in the distribution each id is.
        allowed: what can be drawn.
        sampling: what is left of the distribution of each field.
    """
    assert model.fields is not None
    states, lasting = reading.states(), reading.lasting()
    chosen = torch.empty(len(states), 0, dtype=torch.int64, device=states.device)
    for field, ids in enumerate(field_slices(model.config.field_sizes, model.config.vocab_size)):
        logits = model.fields.logits(field, states, chosen, model.head.weight, lasting).float()
        if not torch.isfinite(logits).all():
            raise PamusicError(
                "the model's logits are not numbers; its training went astray, so take another checkpoint"
            )
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
    """A model, what it has read, and its caches."""

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
        """Continue with these rows of the batch, `[n]`."""
        self._caches.select(rows)
        self._recent, self._states = self._recent[rows], self._states[rows]

    def states(self) -> Tensor:
        """Return what the heads read after the last position, `[rows, d]`."""
        return self._states

    def lasting(self) -> Tensor | None:
        """What `model.fields.Offsets.lasting` gives for the last position, `[rows, num_positions]`; None without it."""
        assert self._model.fields is not None
        offsets = self._model.fields.offsets
        return None if offsets is None else offsets.lasting(self._caches.visible_ids(), 1)[:, 0]

    def _of(self, positions: Tensor) -> Tensor:
        latents = self._model.latents(positions, self._caches)
        return self._model.states(latents, self._caches, last_only=True)[:, 0]
