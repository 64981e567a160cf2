"""How a piece is brought to a close near the length that was wanted. Knows numbers only.

Lengths are shares of the wanted one, whether that was told in ids or in seconds. Before it the end is barred; from
there on its logit is raised, more and more; then nothing new is opened, what is open is let go, and the end is taken as
soon as the rules allow it; and at the deadline it stops, with what is open left for its reader to close.
"""

from __future__ import annotations

from dataclasses import dataclass

BARRED = float("-inf")
SURE = 1e4  # more than logits differ by


@dataclass(frozen=True, kw_only=True)
class Ending:
    """When and how much.

    Attributes:
        most: nats by which the end has become likelier than the model thinks when closing begins; they grow evenly
            from 0 at the wanted length.
        closing: from this share of it on nothing new is opened.
        deadline: at this share it stops, come what may.
    """

    most: float = 20.0
    closing: float = 1.2
    deadline: float = 1.25

    def __post_init__(self) -> None:
        if not 1 < self.closing <= self.deadline:
            raise ValueError(f"1 < closing <= deadline, not {self.closing} and {self.deadline}")

    def bias(self, share: float) -> float:
        """What is added to the logit of the end when this share of the wanted length has passed."""
        if share < 1:
            return BARRED
        return SURE if share >= self.closing else self.most * (share - 1) / (self.closing - 1)
