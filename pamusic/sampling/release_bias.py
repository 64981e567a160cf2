"""When what is open was opened, and how much likelier that makes it to be closed.

Knows slots, which some ids open and some close, and the seconds that pass with each id; not what a slot is.

A model that composes meets states that no piece showed it, and loses track of what it left open: of a slot that was
left open by mistake it has little to go by. So a closing id can be given a weight that grows with the age of its slot:
none up to `YOUNG` seconds, then the more by each doubling, up to `OLD`. Where more than `MANY` slots are open, which
is when a model begins to leave ever more of them, the weight of each grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np
import torch
from torch import Tensor

from pamusic.sampling.constraints import Rules

YOUNG, OLD = 0.5, 4.0  # seconds
MANY = 8  # slots; a hand or two, and what a pedal holds
CROWDED = 5.0  # times more, for each of them beyond


class Held:
    """When the slots of some rows were opened last; the rows begin alike."""

    def __init__(
        self,
        rules: Rules,
        seconds_of_id: Sequence[float],
        prime_ids: Sequence[int],
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        slots = rules.num_slots
        self._closings = slice(rules.first_closing, rules.first_closing + slots)
        slot_of_id = np.full(len(rules.column_of_id), slots)  # the last slot is nobody's
        slot_of_id[rules.first_opening : rules.first_opening + slots] = np.arange(slots)
        prime = np.array(prime_ids, dtype=np.int64)
        passed, slot = np.cumsum(np.array(seconds_of_id)[prime]), slot_of_id[prime]
        opened = np.zeros(slots + 1)
        np.maximum.at(opened, slot, passed)

        def of_rows(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device).repeat(num_rows, 1)

        self._slot_of_id = torch.from_numpy(slot_of_id).to(device)
        self._seconds = torch.tensor(seconds_of_id, dtype=torch.float64, device=device)
        # The seconds now, `[rows, 1]`, and at the last opening of each slot, `[rows, slots + 1]`.
        self._now, self._opened = of_rows(passed[-1:] if len(passed) else np.zeros(1)), of_rows(opened)

    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        ids = ids[:, None]
        self._now += self._seconds[ids]
        self._opened.scatter_(1, self._slot_of_id[ids], self._now)

    def states(self) -> list[Tensor]:
        """The tensors that change as ids are followed."""
        return [self._now, self._opened]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        self._now, self._opened = (each[rows] for each in self.states())

    def favoured(self, logits: Tensor, let_go: float, is_open: Tensor) -> Tensor:
        """Logits `[rows, vocab]` with closing the likelier the longer ago a slot was opened, and the more are open.

        Args:
            logits: of a model.
            let_go: by how much ids that close slots of at least `OLD` seconds are raised, where no more than `MANY` are
                open; those of younger ones less.
            is_open: which slots are, `[rows, slots]`.
        """
        age = (self._now - self._opened[:, :-1]).clamp(YOUNG, OLD)
        crowd = (is_open.sum(1, keepdim=True) - MANY).clamp(min=0) * CROWDED
        weight = (age / YOUNG).log2() * (let_go / log2(OLD / YOUNG)) * (1 + crowd)
        logits = logits.clone()
        logits[:, self._closings] += weight.to(logits)
        return logits
