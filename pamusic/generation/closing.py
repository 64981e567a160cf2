"""Rows of a batch brought to a close, when `ending.py` says so. Knows numbers only.

From the breath on nothing new is opened. What goes on is held for a moment, then let go as the model likes, and the end
is taken as soon as all is done.

A breath comes with an id that waits, and it is looked for before that id is taken. After a short wait the rules allow
no other and no end, so something would have to follow at once that was not meant: in place of it comes the end where
all is done, and else the longest wait that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from pamusic.generation.ending import Ending, Pauses
from pamusic.generation.grammar import Rules


class Stage(NamedTuple):
    """How far rows are, `[rows]` each.

    Attributes:
        shares: of the wanted length that have passed.
        waited: seconds since something was opened.
        closes: whether nothing new is opened.
        done: whether nothing goes on.
    """

    shares: Tensor
    waited: Tensor
    closes: Tensor
    done: Tensor


class Closing:
    """Some rows, all of which follow the same prime."""

    def __init__(
        self,
        ending: Ending,
        prime_ids: Sequence[int],
        *,
        vocab_size: int,
        num_rows: int,
        end_id: int,
        length: int | None,
        seconds: float | None,
        num_drawn: int = 0,
        passed: float = 0.0,
        rules: Rules | None = None,
        seconds_of_id: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begins after a prime. Without rules, or without seconds, only lengths count, and the end alone closes.

        Args:
            ending: when.
            length, seconds: what is wanted, whichever comes first.
            num_drawn, passed: how many of the prime's last ids were drawn, and the seconds that passed with those.
            prime_ids, num_rows, end_id, rules, seconds_of_id: as for `generate_rows`.
        """
        self._ending, self._end_id, self._length, self._wanted = ending, end_id, length or inf, seconds or inf
        self._count = torch.full((1,), num_drawn, dtype=torch.float64, device=device)
        self._passed = torch.full((num_rows,), passed, dtype=torch.float64, device=device)
        self._seconds = torch.tensor(seconds_of_id or [0.0] * vocab_size, dtype=torch.float64, device=device)
        self._waits = self._seconds > 0
        self._longest_wait = self._seconds.argmax()
        self._is_shorter = torch.arange(vocab_size, device=device) != self._longest_wait
        self._pauses: Pauses | None = None
        if rules is not None and seconds_of_id is not None:
            self._pauses = Pauses(rules, seconds_of_id, prime_ids, num_rows, device)

    def stage(self, done: Tensor | None) -> Stage:
        """Where rows are before the next id; `done`, `[rows]`, bool, tells where nothing goes on."""
        shares = torch.maximum(self._count / self._length, self._passed / self._wanted)
        if self._pauses is None or done is None:
            nothing = torch.zeros_like(shares)
            return Stage(shares, nothing, self._ending.closes(shares, nothing, nothing + 1), nothing > 0)
        waited = self._pauses.waited()
        return Stage(shares, waited, self._ending.closes(shares, waited, self._pauses.longest()), done)

    def hurries(self, stage: Stage) -> Tensor:
        """What does not hold what goes on, `[rows, vocab]`, bool, where that is to be held."""
        if self._pauses is None:
            return self._is_shorter & False
        holding = stage.closes & ~stage.done & self._ending.holding(stage.shares, stage.waited)
        return self._is_shorter & holding[:, None]

    def raised(self, stage: Stage) -> Tensor:
        """What is added to the logit of the end, `[rows]`, float32."""
        return self._ending.bias(stage.shares, stage.closes).float()

    def urged(self, logits: Tensor, stage: Stage) -> Tensor:
        """Logits, `[rows, vocab]`, with waiting the rarer the longer what goes on could have been let go."""
        by = self._ending.urges * (stage.waited - self._ending.holds).clamp(min=0) * stage.closes
        return logits - by.to(logits)[:, None] * self._waits

    def settled(self, ids: Tensor, stage: Stage) -> Tensor:
        """What is taken in place of ids that were drawn, `[rows]`, int64."""
        if self._pauses is None:
            return ids
        shares = torch.maximum((self._count + 1) / self._length, (self._passed + self._seconds[ids]) / self._wanted)
        breath = self._waits[ids] & self._ending.closes(shares, *self._pauses.after(ids))
        ids = torch.where(breath & ~stage.closes, self._longest_wait, ids)
        return ids.masked_fill(breath & stage.done, self._end_id)

    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        self._count += 1
        self._passed += self._seconds[ids]
        if self._pauses is not None:
            self._pauses.advance(ids)

    def states(self) -> list[Tensor]:
        """The tensors that change as ids are followed."""
        return [self._count, self._passed, *(self._pauses.states() if self._pauses is not None else [])]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        self._passed = self._passed[rows]
        if self._pauses is not None:
            self._pauses.select(rows)
