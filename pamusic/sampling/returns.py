"""Return to earlier passages, and keep exact repetition rare, as in real music.

Knows numbers: keys, seconds and logits; never what they mean. For vocabularies with several fields a position.

Why: a model returns to a passage only where its predictions happen to lead there. The probability of a whole passage is
the product over its notes, so long returns hardly ever begin. But once a short figure repeats, each repetition makes
the next one likelier, up to loops.

Returns begin at random, at a rate per second for each range of lags. The passage is drawn from that range, uniformly in
time except that a likely first key and a like pace count more. Then each note there is a target. Until the return ends,
the probability of the times near the target's is raised to a chance. Where the time has come, so is the probability of
its key among all keys. A bias has at most `max_bias` nats, and if the first key is not drawn, there is no return: the
model can refuse. A return ends at random, or after several other keys in a row.

A limit works against loops: where the last 8 keys have been played before in this order, the key that followed then has
at most the probability that it has on average in real music. The target of a return is raised after this limit.

Everything else is drawn as it is: velocities, lengths, pedals, and times and keys within their two groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pamusic.errors import UsageError
from pamusic.model.fields import KEY
from pamusic.sampling.constraints import PositionConstraints, PrimeTokens

NUM_NUMBERS = 3  # random numbers of a position: whether a return begins, where it leads, whether it ends
AHEAD = 3  # next notes of a passage; one of them has to come, so two can be left out
PACED = 16  # notes whose pace is compared
FIGURE, REST = 8, 5  # keys of a figure, 7 bits each in an int64; keys before it in a longer one
EPSILON = 1e-6

T = TypeVar("T", int, Tensor)


@dataclass(frozen=True, kw_only=True)
class ReturnsConfig:
    """Settings of returns (measured in `docs/experiments.md`).

    Attributes:
        lags: Lower borders of the ranges of lags, in seconds; each range ends where the next begins. None: no returns,
            and only the limit on exact repetition.
        rates: Attempts to return, per second of music, in each range.
        first_chance: Chance of the first key of a return.
        chance: Chance of the keys that follow.
        time_chance: Chance of the times near the time that passed there.
        near: Distance of these times: this share of the time that passed, but at least `near_seconds`.
        near_seconds: See `near`.
        pace: Power of the ratio of two paces, there and here, with which a passage counts when one is drawn.
        max_bias: Largest bias of a return, in nats.
        mean_keys: Mean number of keys after which a return ends by itself.
        max_misses: Number of other keys in a row that do not end a return.
        limit, long_limit: Largest probability of a key that continues an exact repetition of 8 keys, and of 13.
        memory: Number of last notes to which a return can lead.

    Raises:
        UsageError: The numbers of lags and rates differ, or a number is not in its range.
    """

    lags: Sequence[float] = (2.0, 12.0, 60.0)
    rates: Sequence[float] = (0.06, 0.09, 0.09)
    first_chance: float = 0.45
    chance: float = 0.97
    time_chance: float = 0.95
    near: float = 0.05
    near_seconds: float = 0.015
    pace: float = 2.0
    max_bias: float = 6.0
    mean_keys: float = 32.0
    max_misses: int = 2
    limit: float = 0.78
    long_limit: float = 0.84
    memory: int = 4096

    def __post_init__(self) -> None:
        if len(self.lags) != len(self.rates):
            raise UsageError(f"returns need as many rates as lags, got {self.rates} and {self.lags}")
        chances = (self.first_chance, self.chance, self.time_chance, self.limit, self.long_limit)
        if not all(0 < chance < 1 for chance in chances):
            raise UsageError(f"chances and limits of returns must be above 0 and below 1, got {chances}")
        if self.mean_keys < 1 or self.memory < 2 * (FIGURE + REST):
            raise UsageError(
                f"returns need mean_keys of at least 1 and memory of at least {2 * (FIGURE + REST)}, got"
                f" {self.mean_keys} and {self.memory}"
            )


class Returns:
    """The returns of rows that continue the same prime."""

    def __init__(
        self,
        prime: PrimeTokens,
        constraints: PositionConstraints,
        config: ReturnsConfig,
        *,
        num_rows: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begin after a prime, to whose notes returns can lead."""
        self._config = config
        slot_of_id, seconds = np.asarray(constraints.slot_of_id), np.asarray(constraints.seconds_of_id, np.float64)
        self._slot_of_id, self._seconds = torch.from_numpy(slot_of_id).to(device), torch.from_numpy(seconds).to(device)
        self._lags = torch.tensor([*config.lags, inf], dtype=torch.float64, device=device)
        self._rates = torch.tensor(config.rates, dtype=torch.float64, device=device)

        ids = np.array(prime.ids, np.int64)
        now = seconds[ids].sum(-1).cumsum()
        is_note = slot_of_id[ids].max(-1) >= 0
        keys, onsets = ids[is_note, KEY], now[is_note]
        figure, figures = 0, np.zeros(len(keys), np.int64)
        for number, slot in enumerate(slot_of_id[keys].tolist()):
            figures[number] = figure = _next_figure(figure, slot)
        # Note number i is at place i modulo `memory`: its key, its onset, and the figure that ends with it.
        self._keys, self._figures = (torch.zeros(num_rows, config.memory, dtype=torch.int64) for _ in range(2))
        self._onsets = torch.zeros(num_rows, config.memory, dtype=torch.float64)
        kept = np.arange(len(keys))[-config.memory :]
        for ring, values in ((self._keys, keys), (self._onsets, onsets), (self._figures, figures)):
            ring[:, kept % config.memory] = torch.from_numpy(values[kept])
        self._keys, self._onsets = self._keys.to(device), self._onsets.to(device)
        self._figures = self._figures.to(device)

        def of_rows(value: float) -> Tensor:
            return torch.full(
                (num_rows, 1), value, dtype=torch.float64 if isinstance(value, float) else torch.int64, device=device
            )

        self._count, self._figure = of_rows(len(keys)), of_rows(int(figure))
        self._now, self._last = of_rows(float(now[-1])), of_rows(float(onsets[-1] if len(keys) else now[-1]))
        # Of a return: number of the target note, -1 for none; keys that came; other keys in a row; when the last came.
        self._target, self._followed, self._misses = of_rows(-1), of_rows(0), of_rows(0)
        self._came = of_rows(0.0)

    _STATES = (
        *("_keys", "_onsets", "_figures", "_count", "_figure", "_now", "_last"),
        *("_target", "_followed", "_misses", "_came"),
    )

    def favour_time(self, logits: Tensor, ids: slice) -> Tensor:
        """Return the logits of time shifts `[rows, size]`, with those near the target's time raised.

        Args:
            logits: Logits of the field; -inf for what cannot be drawn.
            ids: Ids of the field.
        """
        is_on = self._followed.bool() & (self._target > 0)
        if _is_nowhere(is_on):
            return logits
        passed, due = self._due()
        due = (due - self._now).clamp(min=0)
        seconds = self._seconds[ids]
        near = (seconds - due).abs() <= (self._config.near * passed).clamp(min=self._config.near_seconds) + EPSILON
        at_once = passed < EPSILON  # notes of a chord stay together, others apart
        near = torch.where(at_once, seconds == 0, near & ((seconds > 0) | (due < EPSILON)))
        every = torch.ones_like(near)
        return _moved(logits, near & is_on, self._config.time_chance, every, highest=self._config.max_bias)

    def favour_key(self, logits: Tensor, ids: slice, shifts: Tensor, numbers: Tensor) -> Tensor:
        """Return the logits of keys `[rows, size]`, with limits and with the target raised; a return may begin.

        Args:
            logits: Logits of the field; -inf for what cannot be drawn.
            ids: Ids of the field.
            shifts: Ids of the time that passes first, `[rows]`.
            numbers: Uniform random numbers, `[rows, NUM_NUMBERS]`.
        """
        is_key = (self._slot_of_id[ids] >= 0).expand(len(logits), -1)
        every = torch.arange(ids.start, ids.stop, device=logits.device)
        repeated, is_long = self._repeated()
        if not _is_nowhere(repeated >= 0):
            limit = torch.where(is_long, self._config.long_limit, self._config.limit)
            logits = _moved(logits, every == repeated, limit, is_key, lowest=-inf)
        now = self._now + self._seconds[shifts][:, None]
        self._begin(logits, is_key, ids, now, numbers)
        if _is_nowhere(self._target >= 0):
            return logits
        passed, due = self._due()
        is_early = due - now > (self._config.near * passed).clamp(min=self._config.near_seconds) + EPSILON
        is_on = (self._target >= 0) & ((self._followed == 0) | ~is_early)
        if _is_nowhere(is_on):
            return logits
        chance = torch.where(self._followed > 0, self._config.chance, self._config.first_chance)
        is_target = (every == self._at(self._keys, self._target)) & is_on
        return _moved(logits, is_target, chance, is_key, highest=self._config.max_bias)

    def advance(self, positions: Tensor, numbers: Tensor) -> None:
        """Consume one more position of each row, `[rows, fields]`; random numbers as for `favour_key`."""
        self._now = self._now + self._seconds[positions].sum(-1, keepdim=True)
        key = positions[:, KEY : KEY + 1]
        slot = self._slot_of_id[key]
        is_note = slot >= 0

        is_on = is_note & (self._target >= 0)
        if not _is_nowhere(is_on):
            self._follow(key, is_on, numbers)

        self._figure = torch.where(is_note, _next_figure(self._figure, slot), self._figure)
        place = self._count % self._config.memory
        for ring, value in ((self._keys, key), (self._onsets, self._now), (self._figures, self._figure)):
            ring.scatter_(1, place, torch.where(is_note, value, ring.gather(1, place)))
        self._count = self._count + is_note
        self._last = torch.where(is_note, self._now, self._last)

    def _follow(self, key: Tensor, is_on: Tensor, numbers: Tensor) -> None:
        """Move the returns `is_on`, `[rows, 1]`, on by one key; arguments as for `advance`."""
        ahead = self._target + torch.arange(AHEAD, device=key.device)
        is_next = (self._at(self._keys, ahead) == key) & (ahead < self._count)
        came = is_next.any(1, keepdim=True)
        misses = torch.where(came, 0, self._misses + 1)
        ends = torch.where(
            came,
            numbers[:, 2:3] * self._config.mean_keys < 1,
            (self._followed == 0) | (misses > self._config.max_misses),
        )
        target = torch.where(came, self._target + 1 + is_next.int().argmax(1, keepdim=True), self._target)
        self._target = torch.where(is_on, target.masked_fill(ends, -1), self._target)
        self._followed = self._followed + (is_on & came)
        self._misses = torch.where(is_on, misses, self._misses)
        self._came = torch.where(is_on & came, self._now, self._came)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        for name in self._STATES:
            setattr(self, name, getattr(self, name)[rows])

    def _repeated(self) -> tuple[Tensor, Tensor]:
        """Return the key that followed the last exact repetition, `[rows, 1]`, -1 for none, and whether it is long."""
        same = self._figures == self._figure
        same.scatter_(1, (self._count - 1) % self._config.memory, False)  # the last keys themselves
        if _is_nowhere(same):
            return torch.full_like(self._count, -1), torch.zeros_like(same[:, :1])
        number = self._numbers()
        same &= (number >= FIGURE - 1) & (number < self._count - 1)
        before = self._at(self._figures, self._count - 1 - REST)
        is_long = same & (self._figures.roll(REST, 1) == before) & (number >= FIGURE + REST - 1)
        is_long &= number >= self._count - self._config.memory + REST
        has_long = is_long.any(1, keepdim=True)
        latest = torch.where(torch.where(has_long, is_long, same), number, -1).amax(1, keepdim=True)
        return torch.where(latest >= 0, self._at(self._keys, latest + 1), -1), has_long

    def _begin(self, logits: Tensor, is_key: Tensor, ids: slice, now: Tensor, numbers: Tensor) -> None:
        """Begin returns by chance; arguments as for `favour_key`, with the seconds up to the next position."""
        if not self._config.rates:
            return
        waited = now - self._last
        bounds = (self._rates * waited).cumsum(1)  # [rows, ranges]
        number = numbers[:, :1].double()
        begins = (number < bounds[:, -1:]) & (waited > self._config.near_seconds) & (self._target < 0)
        if _is_nowhere(begins):
            return
        which = (number >= bounds).sum(1, keepdim=True).clamp(max=len(self._rates) - 1)
        lag, of_ring = now - self._onsets, self._numbers()
        passed = self._onsets - self._onsets.roll(1, 1)
        there = (of_ring > self._count - self._config.memory) & (of_ring > 0) & (of_ring < self._count - PACED)
        there &= passed > self._config.near_seconds
        there &= (lag >= self._lags[which]) & (lag < self._lags[which + 1])
        p = logits.masked_fill(~is_key, -inf).softmax(-1).gather(1, (self._keys - ids.start).clamp(min=0))
        # The time that the notes after each note took, and that the last notes took here.
        paces = (self._onsets.roll(-PACED, 1) - self._onsets).clamp(min=EPSILON)
        pace = (now - self._at(self._onsets, self._count - PACED)).clamp(min=EPSILON)
        alike = torch.minimum(paces / pace, pace / paces) ** self._config.pace
        weights = (p * alike * passed.clamp(max=1.0) * there).cumsum(1)
        place = torch.searchsorted(weights, numbers[:, 1:2].double() * weights[:, -1:], right=True)
        begins &= weights[:, -1:] > 0
        target = of_ring.gather(1, place.clamp(max=self._config.memory - 1))
        self._target = torch.where(begins, target, self._target)
        self._followed, self._misses = (each.masked_fill(begins, 0) for each in (self._followed, self._misses))

    def _due(self) -> tuple[Tensor, Tensor]:
        """Return the seconds that passed before the target note, and when it is due, `[rows, 1]` each."""
        passed = self._at(self._onsets, self._target) - self._at(self._onsets, self._target - 1)
        return passed, self._came + passed

    def _numbers(self) -> Tensor:
        """Return the number of the note at each place, `[rows, memory]`; below 0 where there is none yet."""
        newest = self._count - 1
        return newest - (newest - torch.arange(self._config.memory, device=newest.device)) % self._config.memory

    def _at(self, ring: Tensor, number: Tensor) -> Tensor:
        """Return the values of notes by number, `[rows, n]`."""
        return ring.gather(1, number.clamp(min=0) % self._config.memory)


def _next_figure(figure: T, slot: T) -> T:
    """Return the last `FIGURE` slots as one number, one slot later."""
    return ((figure << 7) | slot) & ((1 << 7 * FIGURE) - 1)


def _is_nowhere(mask: Tensor) -> bool:
    """Return whether a mask is known to be false everywhere; on a GPU it is not read, which would stall."""
    return mask.device.type == "cpu" and not bool(mask.any())


def _moved(
    logits: Tensor, inside: Tensor, chance: Tensor | float, among: Tensor, *, lowest: float = 0.0, highest: float = 0.0
) -> Tensor:
    """Move the probability of the ids `inside`, among the ids `among`, to a chance; the sum over `among` stays.

    Args:
        logits: `[rows, size]`.
        inside, among: Masks `[rows, size]`.
        chance: `[rows, 1]`, or one for all.
        lowest, highest: Bounds of the bias, in nats.
    """
    log_p = logits.masked_fill(~among, -inf).log_softmax(-1)
    p = log_p.masked_fill(~inside, -inf).exp().sum(-1, keepdim=True)
    wanted = torch.as_tensor(chance, dtype=p.dtype, device=p.device).logit()
    bias = (wanted - p.clamp(EPSILON, 1 - EPSILON).logit()).clamp(lowest, highest)
    bias = torch.where(p > 0, bias, 0.0)
    moved = logits + bias * inside - torch.log1p(p * bias.expm1())
    return torch.where(among & (bias != 0), moved, logits)
