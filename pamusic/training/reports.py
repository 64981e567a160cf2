"""Define the reports of a run: while training, at a validation, at the end. Knows numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """The progress of a run since its last report.

    Attributes:
        step, steps: Number of updates made, and planned.
        train_nats: Mean nats per token since the last report, over latents, in training mode (with dropout).
        validation_nats: Nats per token on the fixed windows, from the weights or their average, whichever is better;
            None without a validation in this report.
        tokens_per_second: Latent tokens trained per second.
        seconds_left: Seconds until the last step, at this speed.
        note: Message for a person, or None; each message comes once.
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
    """The end of a run.

    Attributes:
        step: Number of updates made.
        complete: True if all steps are done, or `patience` ended the run.
        interrupted: True if a signal (Ctrl-C, SIGTERM) stopped the run.
        best_nats: Best validation in nats per token; None if there was none.
    """

    step: int
    complete: bool
    interrupted: bool
    best_nats: float | None


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation, in nats per token on the fixed windows.

    Attributes:
        nats: Result of the weights as they are.
        averaged: Result of their moving average; None without an average.
    """

    nats: float
    averaged: float | None = None

    @property
    def best(self) -> float:
        """Lower of the two results."""
        return self.nats if self.averaged is None else min(self.nats, self.averaged)
