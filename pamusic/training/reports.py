"""Values that a run reports: on its way, at a validation, at its end. Knows numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What happened since the last report.

    Attributes:
        step, steps: updates made, and planned.
        train_nats: mean nats per token since the last report, over latents, as trained (with dropout).
        validation_nats: nats per token on the fixed windows, of the weights or of their average, whichever is better,
            when this report brings a validation.
        tokens_per_second: latent tokens trained per second.
        seconds_left: until the last step, at this speed.
        note: a message for a person; each comes once.
    """

    step: int
    steps: int
    train_nats: float
    validation_nats: float | None
    tokens_per_second: float
    seconds_left: float
    note: str | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: updates made.
        complete: whether all steps are done, or validation has not improved for as long as the run has patience.
        interrupted: whether a signal (Ctrl-C, SIGTERM) stopped it.
        best_nats: the best validation, in nats per token; None if there was none.
    """

    step: int
    complete: bool
    interrupted: bool
    best_nats: float | None


@dataclass(frozen=True)
class ValidationResult:
    """Nats per token on the fixed windows.

    Attributes:
        nats: of the weights as they are.
        averaged: of their moving average; None where there is none.
    """

    nats: float
    averaged: float | None = None

    @property
    def best(self) -> float:
        """The lower of the two."""
        return self.nats if self.averaged is None else min(self.nats, self.averaged)
