"""When a piece is brought to a close, near the length that was wanted. Knows numbers only; `closing.py` does it.

Lengths are shares of the wanted one, whether that was told in ids or in seconds. Before it the end is barred, but for a
silence that lasts until then; from there on its logit is raised in rests, more and more, and the piece closes at the
next breath: once nothing was opened for as long as its pauses are lately, or, the later it is, for less. At the
deadline it stops, with what is open left for its reader to close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pamusic.sampling.constraints import Rules

BARRED = float("-inf")
SURE = 1e4  # more than logits differ by
FADES = 30.0  # seconds in which a pause counts for 1/e of what it did


@dataclass(frozen=True, kw_only=True)
class Ending:
    """When and how much.

    Attributes:
        most: nats by which the end has become likelier than the model thinks when closing begins; they grow evenly
            from 0 at the wanted length.
        closing: at this share of it closing begins in any case; from the wanted length on the pause that it takes
            falls evenly to 0.
        holds: seconds from the last opening to when what goes on then is let go, or less where the deadline comes
            before. In MAESTRO's validation and test pieces it is 2.6 in the median, 1.0 to 5.0 in the middle half.
        urges: nats by which ids that wait become less likely with each second after that.
        rest: seconds from the last opening after which a silence is a rest, and the piece may end where it stands.
        spread: seconds within which openings belong together.
        deadline: at this share it stops, come what may.
    """

    most: float = 20.0
    closing: float = 1.15
    holds: float = 2.5
    urges: float = 2.0
    rest: float = 1.0
    spread: float = 0.05
    deadline: float = 1.25

    def __post_init__(self) -> None:
        if not 1 < self.closing <= self.deadline:
            raise ValueError(f"1 < closing <= deadline, not {self.closing} and {self.deadline}")

    def closes(self, shares: Tensor, waited: Tensor, longest: Tensor) -> Tensor:
        """Whether nothing new is opened, `[rows]`, bool.

        Args:
            shares: of the wanted length that have passed, `[rows]`.
            waited, longest: as of `Pauses`, `[rows]`.
        """
        return (shares >= 1) & (waited >= longest * (self.closing - shares) / (self.closing - 1))

    def holding(self, shares: Tensor, waited: Tensor) -> Tensor:
        """Whether what goes on in a row that closes is held, `[rows]`, bool; arguments as for `closes`."""
        return (waited < self.holds) & (shares < (self.closing + self.deadline) / 2)

    def bias(self, shares: Tensor, closes: Tensor) -> Tensor:
        """What is added to the logit of the end, `[rows]`, at these shares of the wanted length, `[rows]`."""
        likelier = (self.most * (shares - 1) / (self.closing - 1)).masked_fill(closes, SURE)
        return likelier.masked_fill(shares < 1, BARRED)


class Pauses:
    """The seconds between what is opened and what is opened next, in some rows that begin alike."""

    def __init__(
        self,
        rules: Rules,
        seconds_of_id: Sequence[float],
        prime_ids: Sequence[int],
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        opens = np.zeros(len(rules.column_of_id), dtype=bool)
        opens[rules.first_opening : rules.first_opening + rules.num_slots] = True
        prime, seconds = np.array(prime_ids, dtype=np.int64), np.array(seconds_of_id)
        passed = np.cumsum(seconds[prime])
        now, openings = passed[-1:].sum(), np.append(0.0, passed[opens[prime]])
        longest = np.max(np.diff(openings) * np.exp((openings[1:] - now) / FADES), initial=0.0)

        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self._opens, self._seconds = on_device(opens), on_device(seconds)
        self._fading = on_device(np.exp(-seconds / FADES))
        # The seconds now, at the last opening, and those of the longest pause, `[rows]` each.
        self._now, self._last, self._longest = (
            on_device(np.full(num_rows, value)) for value in (now, openings[-1], longest)
        )

    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        opens = self._opens[ids]
        self._now += self._seconds[ids]
        self._longest *= self._fading[ids]
        torch.maximum(self._longest, self.waited().masked_fill(~opens, 0.0), out=self._longest)
        self._last.copy_(torch.where(opens, self._now, self._last))

    def states(self) -> list[Tensor]:
        """The tensors that change as ids are followed."""
        return [self._now, self._last, self._longest]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        self._now, self._last, self._longest = (each[rows] for each in self.states())

    def after(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`waited` and `longest` as they would be after ids, `[rows]`, int64, that open nothing."""
        return self.waited() + self._seconds[ids], self._longest * self._fading[ids]

    def last(self) -> Tensor:
        """`[rows]`, float64: the second of the last opening; 0 where there was none."""
        return self._last

    def waited(self) -> Tensor:
        """`[rows]`, float64: seconds since something was opened last; since the beginning where nothing was."""
        return self._now - self._last

    def longest(self) -> Tensor:
        """`[rows]`, float64: seconds of the longest pause before an opening, where each fades from then on."""
        return self._longest
