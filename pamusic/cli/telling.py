"""How the progress of a training is told on a terminal. Knows reports and words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamusic.cli.terminal import progress, say

if TYPE_CHECKING:
    from pamusic.training.trainer import Report

TIMED_AFTER = 30  # steps: the first of them compile


class TrainingTeller:
    """Tells the run's progress: a bar on a terminal, and a line at each validation."""

    def __init__(self, steps: int, step: int) -> None:
        self._bar = progress(total=steps, what="train", unit="step")
        self._bar.update(step)
        self._time_at = step + TIMED_AFTER

    def __call__(self, report: Report) -> None:
        self._bar.set_postfix_str(f"{report.train_nats:.3f} nats, {report.tokens_per_second:,.0f} tokens/s")
        self._bar.update(report.step - self._bar.n)
        if report.note is not None:
            self._bar.clear()
            say(report.note)
        if report.step >= self._time_at:
            self._time_at = report.steps + 1
            self._bar.clear()
            say(f"at {report.tokens_per_second:,.0f} tokens/s the rest takes about {_duration(report.seconds_left)}")
        if report.validation_nats is not None:
            self._bar.clear()
            say(
                f"step {report.step}: train {report.train_nats:.3f}, validation {report.validation_nats:.3f}"
                " nats per token"
            )

    def stopping(self) -> None:
        """Tells that a signal was heard."""
        self._bar.clear()
        say("stopping after this step, with a checkpoint; Ctrl-C once more stops at once, without")

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
