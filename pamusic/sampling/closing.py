"""Rows of a batch brought to a close, when `ending.py` says so. Knows numbers only.

A breath comes with an id that waits, and it is looked for before that id is taken, while something can still be done
about it: after a short wait the rules allow no other and no end, and something would have to follow that was not meant.

- Where something goes on, the longest wait that there is comes in its place. From then on nothing new is opened; what
  goes on is held for a moment, then let go as the model likes, and the end is taken as soon as all is done.
- Where nothing does, and the breath is long enough for a rest, the end comes in its place.
- Where nothing does for less than that, as in the gaps of a quick, dry passage, to stop would be to break off. So what
  is opened after it is the last, and it is that which is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from pamusic.sampling.constraints import Rules
from pamusic.sampling.ending import Ending, Pauses

TOUCH = 1e-6  # seconds by which sums of them may be off


class Stage(NamedTuple):
    """How far rows are, `[rows]` each.

    Attributes:
        shares: of the wanted length that have passed.
        waited: seconds since something was opened.
        closes: whether nothing new is opened.
        done: whether nothing goes on.
        raised: whether the end is raised: in a rest, and while it closes.
    """

    shares: Tensor
    waited: Tensor
    closes: Tensor
    done: Tensor
    raised: Tensor


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
        # Whether what is opened next is the last, and whether it was; the second of the opening before it.
        self._is_last, self._was_last = (torch.zeros(num_rows, dtype=torch.bool, device=device) for _ in range(2))
        self._last_before = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._pauses: Pauses | None = None
        if rules is not None and seconds_of_id is not None:
            self._pauses = Pauses(rules, seconds_of_id, prime_ids, num_rows, device)

    def stage(self, done: Tensor | None) -> Stage:
        """Where rows are before the next id; `done`, `[rows]`, bool, tells where nothing goes on."""
        shares = torch.maximum(self._count / self._length, self._passed / self._wanted)
        if self._pauses is None or done is None:
            nothing = torch.zeros_like(shares)
            closes = self._ending.closes(shares, nothing, nothing + 1)
            return Stage(shares, nothing, closes, nothing > 0, nothing == 0)
        waited = self._pauses.waited()
        closes = self._was_last | (self._ending.closes(shares, waited, self._pauses.longest()) & ~self._is_last)
        return Stage(shares, waited, closes, done, closes | (~self._is_last & (waited > self._ending.rest - TOUCH)))

    def hurries(self, stage: Stage, is_open: Tensor | None) -> Tensor:
        """What is barred in rows that close, so that nothing has to follow it at once, `[rows, vocab]`, bool.

        Where what goes on is held, that is all but the longest wait; where no slot is open (`is_open`, `[rows, slots]`)
        but something lingers, all shorter waits: there may be nothing else that the rules allow behind them.
        """
        if self._pauses is None or is_open is None:
            return self._is_shorter & False
        holding = stage.closes & ~stage.done & self._ending.holding(stage.shares, stage.waited)
        lingers = stage.closes & ~is_open.any(1)
        return self._is_shorter & (holding[:, None] | (self._waits & lingers[:, None]))

    def raised(self, stage: Stage) -> Tensor:
        """What is added to the logit of the end, `[rows]`, float32."""
        bias = self._ending.bias(stage.shares, stage.closes)
        return torch.where(stage.raised, bias, bias.clamp(max=0.0)).float()

    def urged(self, logits: Tensor, stage: Stage) -> Tensor:
        """Logits, `[rows, vocab]`, with waiting the rarer the longer what goes on could have been let go."""
        by = self._ending.urges * (stage.waited - self._ending.holds).clamp(min=0) * stage.closes
        return logits - by.to(logits)[:, None] * self._waits

    def settled(self, ids: Tensor, stage: Stage) -> Tensor:
        """What is taken in place of ids that were drawn, `[rows]`, int64."""
        if self._pauses is None:
            return ids
        ending, waits = self._ending, self._waits[ids]
        shares = torch.maximum((self._count + 1) / self._length, (self._passed + self._seconds[ids]) / self._wanted)
        waited, longest = self._pauses.after(ids)
        is_rest = waits & (waited > ending.rest - TOUCH)
        silent = is_rest & (shares >= 1) & self._is_last  # nothing was opened after all
        breath = waits & ending.closes(shares, waited, longest) & (~self._is_last | silent) & ~stage.closes
        opened = (self._pauses.last() > self._last_before) & ~stage.done & (waited > ending.spread)
        last_opened = waits & self._is_last & ~stage.closes & opened
        ends = stage.done & ((breath & is_rest) | (waits & stage.closes))
        holds = ~stage.done & (breath | last_opened)
        becomes_last = breath & stage.done & ~is_rest
        self._last_before.copy_(torch.where(becomes_last, self._pauses.last(), self._last_before))
        self._is_last |= becomes_last
        self._was_last |= last_opened | (breath & silent & ~stage.done)
        return torch.where(holds, self._longest_wait, ids).masked_fill(ends, self._end_id)

    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        self._count += 1
        self._passed += self._seconds[ids]
        if self._pauses is not None:
            self._pauses.advance(ids)

    def states(self) -> list[Tensor]:
        """The tensors that change as ids are followed."""
        own = [self._count, self._passed, self._is_last, self._was_last, self._last_before]
        return own + (self._pauses.states() if self._pauses is not None else [])

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        own = (self._passed, self._is_last, self._was_last, self._last_before)
        self._passed, self._is_last, self._was_last, self._last_before = (each[rows] for each in own)
        if self._pauses is not None:
            self._pauses.select(rows)
