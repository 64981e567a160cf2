"""Choose the number of CPU threads of a step by measuring: one, or as many as torch has.

Knows clocks; knows no tensors. Two threads read memory faster than one, unless another program uses one of their cores.
Then each product waits for that core, and a step takes ten times as long. So both are timed again now and then. The
result of a step does not depend on the choice: threads share a product by rows, and one thread sums each row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

TRIAL = 8  # steps to time with each number of threads
SOONEST, LATEST = 32, 4096  # fewest and most steps between trials; the number doubles after a trial without a change
GAIN = 0.92  # share of one thread's time that more threads must stay below to be chosen
TOO_LONG = 2.5  # multiple of one thread's time at which a step shows that threads wait for a core


class Threads:
    """A chooser of threads for steps that all cost about the same."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._single: list[float] = []  # seconds of the last steps with one thread and with many
        self._many: list[float] = []
        self.is_single, self._in_trial = True, False
        self._pause, self._since = SOONEST, 0

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Set the chosen number of threads, and time the step, for the duration of the context."""
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
        """Record the time of a step, and start or end a trial."""
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
