"""Settings of decoding: what is allowed, how it is drawn, and when a row stops. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from pamusic.errors import UsageError
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Constraints, TokenConstraints
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.returns import ReturnsConfig


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Settings of decoding.

    Attributes:
        constraints: Ids, or positions, that the vocabulary allows.
        sampling: Sampling settings for the allowed ids.
        stop: Condition that stops a row.
        returns: Settings of returns to earlier passages, for several fields a position; None for no returns.

    Raises:
        UsageError: The stop condition needs `seconds_of_id` or an end, but the constraints lack it.
    """

    constraints: Constraints = TokenConstraints()
    sampling: SamplingConfig = SamplingConfig()
    stop: StopCondition = StopCondition()
    returns: ReturnsConfig | None = None

    def __post_init__(self) -> None:
        if self.stop.seconds is not None and self.constraints.seconds_of_id is None:
            raise UsageError("to stop after some seconds, seconds_of_id must be given")
        if self.stop.ending is not None and self.constraints.end_id is None:
            raise UsageError("to bring a piece to a close, end_id must be given")
