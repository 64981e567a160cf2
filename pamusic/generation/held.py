"""What is open in each row and since when, and how much likelier that makes it to be closed.

Knows slots, which some ids open and some close, and the seconds that pass with each id; not what a slot is.

A model that composes meets states that no piece showed it. It loses track of what it left open, and two things follow,
both of which can be put right here:
- it wants to close what is closed. Barring that alone would leave less closing than the model had in mind, so more and
  more stays open; what it gave to closed slots goes to the open ones, in proportion (in four pieces that `small`
  invented that was 4 to 29 in a hundred of all closing; in four real ones 2 to 10);
- of a slot that was left open by mistake it has little to go by. So a closing id can be given a weight that grows with
  the age of its slot: none up to `YOUNG` seconds, then the more by each doubling, up to `OLD`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pamusic.generation.grammar import Rules

YOUNG, OLD = 0.5, 4.0  # seconds


class Held:
    """Since when the slots of some rows are open; the rows begin alike."""

    def __init__(self, rules: Rules, seconds_of_id: Sequence[float], prime_ids: Iterable[int], num_rows: int) -> None:
        self._rules, self._seconds = rules, seconds_of_id
        self._now, self._last = np.zeros(1), np.zeros(1)  # the last opening, in seconds
        self._opened = np.full((1, rules.num_slots), np.inf)  # when, in seconds; never, where it is closed
        for id in prime_ids:
            self.advance([id])
        self.select([0] * num_rows)

    def advance(self, ids: Sequence[int]) -> None:
        """Follows one more id in each row."""
        rules = self._rules
        for row, id in enumerate(ids):
            self._now[row] += self._seconds[id]
            if 0 <= id - rules.first_opening < rules.num_slots:
                self._opened[row, id - rules.first_opening] = self._last[row] = self._now[row]
            elif 0 <= id - rules.first_closing < rules.num_slots:
                self._opened[row, id - rules.first_closing] = np.inf

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these rows."""
        self._now, self._last, self._opened = (each[list(rows)] for each in (self._now, self._last, self._opened))

    def waited(self) -> list[float]:
        """Seconds since something was opened last, for each row; since the beginning where nothing was."""
        return (self._now - self._last).tolist()

    def favoured(self, logits: Tensor, let_go: float) -> Tensor:
        """Logits `[rows, vocab]` with all closing given to what is open, the more the older.

        Args:
            logits: of a model.
            let_go: by how much ids that close slots of at least `OLD` seconds are raised; those of younger ones less.
        """
        age = np.maximum(self._now[:, None] - self._opened, YOUNG)  # of what is closed: minus infinity
        weight = let_go * np.log2(np.minimum(age, OLD) / YOUNG) / np.log2(OLD / YOUNG)
        logits = logits.clone()
        closing = logits[:, self._rules.first_closing : self._rules.first_closing + self._rules.num_slots]
        given = closing.double().softmax(-1).numpy()  # numpy, for so few numbers, is the quicker
        of_open = (given * np.isfinite(self._opened)).sum(1, keepdims=True)
        weight -= np.log(np.where(of_open > 0, of_open, 1.0))  # so that with all that goes to closed slots it is 1
        closing += torch.from_numpy(weight).to(logits)
        return logits
