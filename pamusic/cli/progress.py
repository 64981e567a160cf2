"""How a training and a tokenizing are told on a terminal. Knows reports, summaries and words."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pamusic.cli.interrupting import end_soon
from pamusic.cli.midi_input import tell_left_out
from pamusic.cli.terminal import console, progress, say

if TYPE_CHECKING:
    from pamusic.corpus.build import SplitCount, Summary
    from pamusic.training.reports import Report, RunResult
    from pamusic.training.trainer import Trainer

TIMED_AFTER = 30  # steps: the first of them compile
SAMPLED_SECONDS = 30.0
MOST_TOLD = 20  # refusals and duplicates told on a terminal; all of them stand in the corpus


class TrainingTeller:
    """Tells the run's progress: a bar on a terminal, and a line at each validation."""

    def __init__(self, trainer: Trainer, sample_every: int | None = None) -> None:
        self._trainer, self._sample_every, self._sampled = trainer, sample_every, trainer.step
        self._bar = progress(total=trainer.training.steps, what="train", unit="step")
        self._bar.update(trainer.step)
        self._time_at = trainer.step + TIMED_AFTER

    def __call__(self, report: Report) -> None:
        self._bar.set_postfix_str(f"{report.train_nats:.3f} nats, {report.tokens_per_second:,.0f} tokens/s")
        self._bar.update(report.step - self._bar.n)
        if report.note is not None:
            self._bar.clear()
            say(report.note)
        if report.step >= self._time_at:
            self._time_at = report.steps + 1
            self._bar.clear()
            say(f"at {report.tokens_per_second:,.0f} tokens/s the rest takes about {duration(report.seconds_left)}")
        if report.validation_nats is not None:
            self._bar.clear()
            say(
                f"step {report.step}: train {report.train_nats:.3f}, validation {report.validation_nats:.3f}"
                " nats per token"
            )

        if self._sample_every is not None and report.step // self._sample_every > self._sampled // self._sample_every:
            self._sampled = report.step
            self._sample(report.step)

    def _sample(self, step: int) -> None:
        """Leaves some seconds of the model's music in the run's folder; the training takes no notice."""
        from pamusic.checkpoint import Checkpoint
        from pamusic.compose.token_stream import compose
        from pamusic.files import written_atomically
        from pamusic.music.midi import midi_bytes
        from pamusic.music.synthesis import synthesize, wav_bytes
        from pamusic.tokens.continuation import continuation

        trainer = self._trainer
        composer = Checkpoint(trainer.run, trainer.model.eval(), trainer.corpus.tokenizer, {})
        ids = list(compose(composer, seed=trainer.training.seed, seconds=SAMPLED_SECONDS))
        music = continuation(composer.tokenizer, ids, seconds=SAMPLED_SECONDS)
        path = trainer.run / "samples" / f"step-{step:06}"
        with written_atomically(path.with_suffix(".mid")) as file:
            file.write_bytes(midi_bytes(music))
        if len(music):
            with written_atomically(path.with_suffix(".wav")) as file:
                file.write_bytes(wav_bytes(synthesize(music)))

    def stopping(self, in_order: bool) -> None:
        """Say that a signal has come; see to it that the process ends soon where it stops amid a step."""
        self._bar.clear()
        if in_order:
            say("stopping after this step, with a checkpoint; Ctrl-C once more stops at once, without")
            return
        end_soon()
        self._trainer.discard()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


def tell_outcome(trainer: Trainer, outcome: RunResult) -> None:
    """Tell how a training ended, how to resume it, and how to sample from it."""
    from pamusic.checkpoint import LATEST, RUNS

    best = "" if outcome.best_nats is None else f", best validation {outcome.best_nats:.3f} nats per token"
    say(f"{'done' if outcome.complete else 'stopped'} at step {outcome.step}{best}")
    if not outcome.complete:
        ending = (
            f"; to end it well, add --cooldown-steps {max(1, outcome.step // 2)}" if not trainer.in_cooldown else ""
        )
        say(f"go on with --resume {trainer.run}{ending}")
    newest = f" (or --checkpoint {LATEST}, the newest run)" if trainer.run.parent == RUNS else ""
    say(f"sample from it with: pamusic sample --checkpoint {shlex.quote(str(trainer.run))}{newest}")


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


def tell_corpus(summary: Summary, out: Path) -> None:
    """Tells what a corpus holds, and what was refused, doubled or done before."""
    from rich.table import Table

    table = Table()
    for column in ("split", "files", "notes", "hours", "tokens", "tokens a note"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, count in summary.splits.items():
        table.add_row(split, *_columns(count))
    table.add_section()
    table.add_row("in all", *_columns(summary.in_all))
    console().print(table)

    if not summary.splits["train"].num_files:
        say("there is nothing to train on: of few files, their contents may send none there; add some")
    elif not summary.splits["validation"].num_files:
        say(
            f"warning: there is no validation piece, so training cannot tell which weights are best; {_remedy(summary)}"
        )
    if summary.num_resumed:
        say(f"{summary.num_resumed:,} files had been done before an interruption")
    tell_left_out(summary.left_out)
    _tell_some([f"repaired: {name}: {words}" for name, words in summary.repaired], out)
    _tell_some([f"refused: {each.name}: {each.reason}" for each in summary.refused], out)
    crossing = [each for each in summary.duplicates if each.crosses_splits]
    if summary.duplicates:
        across = f", {len(crossing):,} of them in another split" if crossing else ""
        say(f"{len(summary.duplicates):,} pieces have the same notes as another{across}; --drop-duplicates drops them")
    rest = [each for each in summary.duplicates if not each.crosses_splits]
    _tell_some([f"same notes: {e.name} ({e.split}) and {e.of} ({e.of_split})" for e in crossing + rest], out)
    if summary.num_repairs:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in summary.num_repairs.most_common())
        say(f"repaired in {len(summary.repaired):,} of {summary.in_all.num_files:,} files: {counts}")


def _remedy(summary: Summary) -> str:
    """Return what to do so that a corpus has a validation piece; it depends on why it has none."""
    from pamusic.corpus.sources import MIN_PIECES_TO_VALIDATE

    num_pieces = summary.in_all.num_files
    if summary.num_official == num_pieces:
        return "the table of the splits has none; add a row with the split validation, or files that have no row"
    if num_pieces < MIN_PIECES_TO_VALIDATE:
        return f"add pieces (from {MIN_PIECES_TO_VALIDATE} different ones up a folder has one)"
    return "each piece that may be one has the same notes as another; add different pieces"


def _tell_some(lines: list[str], out: Path) -> None:
    for line in lines[:MOST_TOLD]:
        say(line)
    if len(lines) > MOST_TOLD:
        say(f"… and {len(lines) - MOST_TOLD} more, in {out / 'corpus.json'}")


def _columns(count: SplitCount) -> list[str]:
    ratio = f"{count.num_tokens / count.num_notes:.2f}" if count.num_notes else "–"
    return [
        f"{count.num_files:,}",
        f"{count.num_notes:,}",
        f"{count.seconds / 3600:.2f}",
        f"{count.num_tokens:,}",
        ratio,
    ]
