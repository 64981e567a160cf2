"""When what is open was opened, and how much likelier that makes it to be closed.

Knows slots, which some ids open and some close, and the seconds that pass with each id; not what a slot is.

A model that composes meets states that no piece showed it, and loses track of what it left open: of a slot that was
left open by mistake it has little to go by. So a closing id can be given a weight that grows with the age of its slot:
none up to `YOUNG` seconds, then the more by each doubling, up to `OLD`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pamusic.generation.grammar import Rules

YOUNG, OLD = 0.5, 4.0  # seconds


class Held:
    """When the slots of some rows were opened last; the rows begin alike."""

    def __init__(self, rules: Rules, seconds_of_id: Sequence[float], prime_ids: Iterable[int], num_rows: int) -> None:
        self._rules, self._seconds = rules, seconds_of_id
        self._now, self._last = np.zeros(1), np.zeros(1)  # and the last opening of any slot, in seconds
        self._opened = np.zeros((1, rules.num_slots))
        for id in prime_ids:
            self.advance([id])
        self.select([0] * num_rows)

    def advance(self, ids: Sequence[int]) -> None:
        """Follows one more id in each row."""
        for row, id in enumerate(ids):
            self._now[row] += self._seconds[id]
            if 0 <= id - self._rules.first_opening < self._rules.num_slots:
                self._opened[row, id - self._rules.first_opening] = self._last[row] = self._now[row]

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these rows."""
        self._now, self._last, self._opened = (each[list(rows)] for each in (self._now, self._last, self._opened))

    def waited(self) -> list[float]:
        """Seconds since something was opened last, for each row; since the beginning where nothing was."""
        return (self._now - self._last).tolist()

    def favoured(self, logits: Tensor, let_go: float) -> Tensor:
        """Logits `[rows, vocab]` with closing the likelier the longer ago a slot was opened last.

        Args:
            logits: of a model.
            let_go: by how much ids that close slots of at least `OLD` seconds are raised; those of younger ones less.
        """
        age = np.clip(self._now[:, None] - self._opened, YOUNG, OLD)
        weight = let_go * np.log2(age / YOUNG) / np.log2(OLD / YOUNG)
        logits = logits.clone()
        closings = slice(self._rules.first_closing, self._rules.first_closing + self._rules.num_slots)
        logits[:, closings] += torch.from_numpy(weight).to(logits)
        return logits
