"""Bring rows of positions to a close near the wanted length. Knows numbers; never what they mean.

`EndingTracker` does this for rows of single ids. Here a note's length is drawn with its beginning, so a row cannot wait
for what sounds. Before the wanted length the end is forbidden. From there on the sampler looks for a pause, as long as
the recent ones or, later, shorter (`EndingConfig.closes`). A time shift that makes this pause becomes the end, if the
last notes ring for `rest_seconds` or the pause is a rest itself. Otherwise to stop would be to break off: the notes
after the pause are the last ones, each at least `hold_seconds` long, and the row ends after them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pamusic.sampling.constraints import PositionConstraints, PrimeTokens
from pamusic.sampling.ending import EPSILON_SECONDS, PAUSE_DECAY_SECONDS, StopCondition

MAX_HOLD = 2.5  # times `hold_seconds`: the longest length of a last note


class PositionEnding:
    """The ending of rows that continue the same prime."""

    def __init__(
        self,
        prime: PrimeTokens,
        constraints: PositionConstraints,
        stop: StopCondition,
        *,
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begin after a prime; its resumed positions count as drawn."""
        assert stop.ending is not None
        assert constraints.end is not None
        self._ending, self._stop = stop.ending, stop
        self._end = torch.tensor(list(constraints.end), device=device)
        ids = np.array(prime.ids, np.int64)
        seconds, lasting = np.asarray(constraints.seconds_of_id), np.asarray(constraints.seconds_lasting)
        is_note = np.asarray(constraints.slot_of_id) >= 0
        sounds = is_note | np.asarray(constraints.sustains)
        now = np.cumsum(seconds[ids].sum(-1))
        onsets = np.append(0.0, now[is_note[ids].any(-1)])
        ends = np.where(sounds[ids].any(-1), now + lasting[ids].sum(-1), 0.0)
        decay = np.exp((onsets[1:] - now[-1]) / PAUSE_DECAY_SECONDS)

        def of_rows(value: float) -> Tensor:
            return torch.full((num_rows,), float(value), dtype=torch.float64, device=device)

        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self._seconds, self._lasting = on_device(seconds), on_device(lasting)
        self._is_note, self._sounds = on_device(is_note), on_device(sounds)
        hold = stop.ending.hold_seconds
        is_unfit = (self._lasting < hold - EPSILON_SECONDS) | (self._lasting > MAX_HOLD * hold)
        self._is_unfit = is_unfit & on_device(lasting > 0)
        self._count = torch.full((1,), prime.num_resumed, dtype=torch.float64, device=device)
        # Seconds: drawn; now; at the last onset; of the longest pause; at the end of what sounds.
        self._passed = of_rows(constraints.seconds_of(prime.resumed) - prime.gap_seconds)
        self._now = of_rows(now[-1])
        self._last, self._until = of_rows(onsets[-1]), of_rows(ends.max(initial=0.0))
        self._longest = of_rows(np.max(np.diff(onsets) * decay, initial=0.0))
        # Whether the next notes are the last ones, and whether one of them has begun.
        self._is_last, self._has_begun = (of_rows(0) > 0 for _ in range(2))

    _STATES = ("_passed", "_now", "_last", "_until", "_longest", "_is_last", "_has_begun")

    def may_end(self) -> Tensor:
        """Return whether the model may end the row, `[rows]`, bool."""
        return self._stop.shares(self._count, self._passed) >= 1

    def unfit_lengths(self) -> Tensor:
        """Return the ids that are too short or too long for the last notes of a row, `[rows, vocab]`, bool."""
        return self._is_unfit & self._is_last[:, None]

    def advance(self, positions: Tensor) -> Tensor:
        """Consume one more position in each row, `[rows, fields]`, int64; return it, or the end in its place."""
        ending = self._ending
        seconds = self._seconds[positions].sum(-1)
        shares = self._stop.shares(self._count + 1, self._passed + seconds)
        waited = self._now + seconds - self._last
        longest = self._longest * torch.exp(-seconds / PAUSE_DECAY_SECONDS)
        has_waited = waited > ending.chord_seconds
        is_pause = ending.closes(shares, waited, longest) & has_waited & ~self._is_last
        rings = self._until - self._last > ending.rest_seconds - EPSILON_SECONDS
        is_rest = waited > ending.rest_seconds - EPSILON_SECONDS
        ends = (is_pause & (rings | is_rest)) | (self._is_last & self._has_begun & has_waited)
        self._is_last |= is_pause & ~ends

        is_note = self._is_note[positions].any(-1)
        lasting = self._lasting[positions].sum(-1).masked_fill(~self._sounds[positions].any(-1), 0.0)
        self._count += 1
        self._passed += seconds
        self._now += seconds
        self._longest = torch.where(is_note, torch.maximum(longest, waited), longest)
        self._until = torch.maximum(self._until, self._now + lasting)
        self._last = torch.where(is_note, self._now, self._last)
        self._has_begun |= self._is_last & is_note
        return torch.where(ends[:, None], self._end, positions)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        for name in self._STATES:
            setattr(self, name, getattr(self, name)[rows])
