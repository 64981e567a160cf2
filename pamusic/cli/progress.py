"""Show the progress of a training on a terminal. Knows reports and words; trains nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamusic.cli.interrupting import end_soon
from pamusic.cli.terminal import log, progress

if TYPE_CHECKING:
    from pamusic.training.reports import Report
    from pamusic.training.trainer import Trainer

TIMED_AFTER_STEPS = 30  # the first steps include compilation
SAMPLED_SECONDS = 30.0


class TrainingProgress:
    """A progress bar, a line per validation, and audible samples; call the object with each report."""

    def __init__(self, trainer: Trainer, sample_every: int | None = None) -> None:
        self._trainer, self._sample_every, self._sampled = trainer, sample_every, trainer.step
        self._bar = progress(total=trainer.training.steps, what="train", unit="step")
        self._bar.update(trainer.step)
        self._time_at = trainer.step + TIMED_AFTER_STEPS

    def __call__(self, report: Report) -> None:
        self._bar.set_postfix_str(f"{report.train_nats:.3f} nats, {report.tokens_per_second:,.0f} tokens/s")
        self._bar.update(report.step - self._bar.n)
        if report.note is not None:
            self._bar.clear()
            log(report.note)
        if report.step >= self._time_at:
            self._time_at = report.steps + 1
            self._bar.clear()
            log(f"at {report.tokens_per_second:,.0f} tokens/s the rest takes about {duration(report.seconds_left)}")
        if report.validation_nats is not None:
            self._bar.clear()
            log(
                f"step {report.step}: train {report.train_nats:.3f}, validation {report.validation_nats:.3f}"
                " nats per token"
            )

        if self._sample_every is not None and report.step // self._sample_every > self._sampled // self._sample_every:
            self._sampled = report.step
            self._sample(report.step)

    def _sample(self, step: int) -> None:
        """Write a sample of the model's music to the run's folder; it does not affect the training."""
        from pamusic.checkpoint import Checkpoint
        from pamusic.compose.token_stream import StreamConfig, stream_piece
        from pamusic.files import written_atomically
        from pamusic.music.midi import midi_bytes
        from pamusic.music.synthesis import synthesize, wav_bytes
        from pamusic.sampling.ending import StopCondition
        from pamusic.tokens.continuation import continuation

        trainer = self._trainer
        composer = Checkpoint(trainer.run, trainer.model.eval(), trainer.corpus.tokenizer, {})
        config = StreamConfig(seed=trainer.training.seed, stop=StopCondition(seconds=SAMPLED_SECONDS))
        ids = list(stream_piece(composer, None, config))
        music = continuation(composer.tokenizer, ids, seconds=SAMPLED_SECONDS)
        path = trainer.run / "samples" / f"step-{step:06}"
        with written_atomically(path.with_suffix(".mid")) as file:
            file.write_bytes(midi_bytes(music))
        if len(music):
            with written_atomically(path.with_suffix(".wav")) as file:
                file.write_bytes(wav_bytes(synthesize(music)))

    def on_stop(self, in_order: bool) -> None:
        """Log that a signal has arrived; if it cannot stop after a whole step, end the process soon."""
        self._bar.clear()
        if in_order:
            log("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once, without one")
            return
        end_soon()
        self._trainer.discard()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Return a duration in hours and minutes, or in seconds below half a minute."""
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )
