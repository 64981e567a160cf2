"""Raise the logits of closing slots that have been open for long.

Knows slots, which some ids open and some close, and the seconds that pass with each id; not what a slot is.

While generating, a model meets states that it never saw in training, and loses track of the slots that it left open. So
a closing id gets a bias that grows with the age of its slot: 0 up to `MIN_AGE_SECONDS`, then more with each doubling,
up to `MAX_AGE_SECONDS`. Above `CROWD_SIZE` open slots, where a model begins to leave ever more of them open, the bias
also grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np
import torch
from torch import Tensor

from pamusic.sampling.constraints import GrammarTables

MIN_AGE_SECONDS, MAX_AGE_SECONDS = 0.5, 4.0
CROWD_SIZE = 8  # slots: about the notes of two hands and a pedal
CROWD_FACTOR = 5.0  # growth of the bias per further slot, as a multiple of the bias itself


class ReleaseBias:
    """The release bias of rows with the same prime, from the time of each slot's last opening."""

    def __init__(
        self,
        grammar: GrammarTables,
        seconds_of_id: Sequence[float],
        prime_ids: Sequence[int],
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        slots = grammar.num_slots
        self._closings = grammar.slots.closings
        slot_of_id = np.full(len(grammar.column_of_id), slots)  # the last slot is a dummy
        slot_of_id[grammar.slots.openings] = np.arange(slots)
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
        """Consume one more id in each row; `[rows]`, int64."""
        ids = ids[:, None]
        self._now += self._seconds[ids]
        self._opened.scatter_(1, self._slot_of_id[ids], self._now)

    def states(self) -> list[Tensor]:
        """Return the tensors that `advance` changes."""
        return [self._now, self._opened]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        self._now, self._opened = (each[rows] for each in self.states())

    def apply_bias(self, logits: Tensor, bias: float, is_open: Tensor) -> Tensor:
        """Return logits with a bias on closings, which grows with the age of a slot and the number of open slots.

        Args:
            logits: Logits of the model, `[rows, vocab]`.
            bias: Bias, in nats, for slots of at least `MAX_AGE_SECONDS` while at most `CROWD_SIZE` are open; younger
                slots get less.
            is_open: Mask of open slots, `[rows, slots]`.
        """
        age = (self._now - self._opened[:, :-1]).clamp(MIN_AGE_SECONDS, MAX_AGE_SECONDS)
        crowd = (is_open.sum(1, keepdim=True) - CROWD_SIZE).clamp(min=0) * CROWD_FACTOR
        weight = (age / MIN_AGE_SECONDS).log2() * (bias / log2(MAX_AGE_SECONDS / MIN_AGE_SECONDS)) * (1 + crowd)
        logits = logits.clone()
        logits[:, self._closings] += weight.to(logits)
        return logits
