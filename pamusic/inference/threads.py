"""How many CPU threads a step takes: one, or as many as torch has, whichever are the faster here and now.

Knows clocks; knows no tensors. Two threads read memory faster than one, until another program has one of their cores:
then each product waits until that core is free, and a step takes ten times as long. So time decides, and is asked again
now and then. What a step computes does not depend on it: products are shared by rows, each of which one thread adds up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

TRIAL = 8  # steps that are timed with either number
SOONEST, LATEST = 32, 4096  # steps from one trial to the next: twice as many each time that it changes nothing
GAIN = 0.92  # of the time of one thread: what more threads must stay below to be taken
TOO_LONG = 2.5  # times what a step takes with one thread: then the others are waited for


class Threads:
    """Chooses for steps that all cost about the same."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._single: list[float] = []  # what the last steps of either kind took
        self._many: list[float] = []
        self.is_single, self._in_trial = True, False
        self._pause, self._since = SOONEST, 0

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Let torch use so many threads meanwhile."""
        before = torch.get_num_threads()
        if before == 1:
            yield
            return
        if self.is_single:
            torch.set_num_threads(1)
        begun = self._clock()
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self.took(self._clock() - begun)

    def took(self, seconds: float) -> None:
        """Learn from a step."""
        times = self._single if self.is_single else self._many
        times.append(seconds)
        del times[:-TRIAL]
        self._since += 1
        if not self.is_single and self._single and seconds > TOO_LONG * median(self._single):
            self._end_trial(is_single=True)
        elif self._in_trial and self._since == TRIAL:
            self._end_trial(is_single=median(self._many) > GAIN * median(self._single))
        elif not self._in_trial and self._since >= self._pause:
            self._in_trial, self._since = True, 0
            self._was_single, self.is_single = self.is_single, not self.is_single

    def _end_trial(self, is_single: bool) -> None:
        was_single = self._was_single if self._in_trial else self.is_single
        self._pause = min(2 * self._pause, LATEST) if is_single == was_single else SOONEST
        self.is_single, self._in_trial, self._since = is_single, False, 0
