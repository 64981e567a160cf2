"""How a piece is brought to a close near the length that was wanted. Knows numbers only.

Lengths are shares of the wanted one, whether that was told in ids or in seconds. Before it the end is barred; from
there on its logit is raised, more and more, and the piece closes at the next breath: once nothing was opened for some
seconds, which get fewer, nothing new is opened, what is open is let go, and the end is taken as soon as the rules allow
it. At the deadline it stops, with what is open left for its reader to close.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BARRED = float("-inf")
SURE = 1e4  # more than logits differ by


@dataclass(frozen=True, kw_only=True)
class Ending:
    """When and how much.

    Attributes:
        most: nats by which the end has become likelier than the model thinks when closing begins; they grow evenly
            from 0 at the wanted length.
        breath: seconds without an opening after which closing begins at the wanted length; they fall evenly to 0.
        closing: at this share of it closing begins in any case.
        deadline: at this share it stops, come what may.
    """

    most: float = 20.0
    breath: float = 2.0
    closing: float = 1.2
    deadline: float = 1.25

    def __post_init__(self) -> None:
        if not 1 < self.closing <= self.deadline:
            raise ValueError(f"1 < closing <= deadline, not {self.closing} and {self.deadline}")

    def closes(self, shares: Tensor, waited: Tensor) -> Tensor:
        """Whether nothing new is opened, `[rows]`, bool.

        Args:
            shares: of the wanted length that have passed, `[rows]`.
            waited: seconds since something was opened, `[rows]`.
        """
        return (shares >= 1) & (waited >= self.breath * (self.closing - shares) / (self.closing - 1))

    def bias(self, shares: Tensor, closes: Tensor) -> Tensor:
        """What is added to the logit of the end, `[rows]`, at these shares of the wanted length, `[rows]`."""
        likelier = (self.most * (shares - 1) / (self.closing - 1)).masked_fill(closes, SURE)
        return likelier.masked_fill(shares < 1, BARRED)
