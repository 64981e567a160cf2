"""`pamusic train`: corpus -> run. Knows options and words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from pamusic.cli.terminal import result, say
from pamusic.errors import UsageError

RECIPE = "How it learns"
MACHINE = "This machine"


def train(
    corpus: Annotated[Path | None, typer.Argument(help="The corpus' folder. (default: corpus)")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. (default: a free name under runs/)")] = None,
    size: Annotated[str | None, typer.Option(help="tiny, small, medium or base. (default: what suits here)")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates in all. (default: 6000)")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop in order after this long.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this run; with --out, in a folder of its own.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows an update. (default: 8)")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens the model sees.")] = None,
    num_latents: Annotated[int | None, typer.Option(help="Positions worked on and trained, at its end.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the matrices. (default: 0.02)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, windows and augmentation. (default: 1)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that is in the way.")] = False,
    cooldown_steps: Annotated[
        int | None,
        typer.Option(help="Last updates, with a falling rate; with --resume: begin now.", rich_help_panel=RECIPE),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="First updates, with a rising rate.", rich_help_panel=RECIPE)
    ] = None,
    prefix_dropout: Annotated[
        float | None, typer.Option(help="Share of the prefix left out of a window.", rich_help_panel=RECIPE)
    ] = None,
    transpose: Annotated[
        int | None, typer.Option(min=0, help="Move windows by at most this many semitones.", rich_help_panel=RECIPE)
    ] = None,
    stretch: Annotated[
        float | None, typer.Option(help="Play windows at most this share slower or faster.", rich_help_panel=RECIPE)
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Updates between validations.", rich_help_panel=RECIPE)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16, fp32.", rich_help_panel=MACHINE)] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Windows computed at once.", rich_help_panel=MACHINE)] = None,
    compile: Annotated[bool | None, typer.Option(help="Compile the model first.", rich_help_panel=MACHINE)] = None,
) -> None:
    """Train a model on a corpus. Stopped at any time, it leaves a checkpoint to sample from and to go on from."""
    from pamusic.cli.telling import TrainingTeller
    from pamusic.training.runs import new_run, resumed_run

    changes: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "context_length": context_length, "num_latents": num_latents,
        "lr": lr, "seed": seed, "cooldown_steps": cooldown_steps, "warmup_steps": warmup_steps,
        "prefix_dropout": prefix_dropout, "transpose_down": transpose, "transpose_up": transpose, "stretch": stretch,
        "validate_every": validate_every, "precision": precision, "micro_batch": micro_batch,
    }  # fmt: skip
    where: dict[str, Any] = {"out": out, "device": device, "compile": compile, "force": force}
    if resume is not None:
        if size is not None:
            raise UsageError("a resumed run keeps its size; leave --size out")
        trainer = resumed_run(resume, corpus_path=corpus, **where, **changes)
    else:
        trainer = new_run(corpus or Path("corpus"), size=size, **where, **changes)
    for line in trainer.plan():
        say(line)
    with closing(TrainingTeller(trainer.training.steps, trainer.step)) as teller:
        outcome = trainer.train(teller, max_minutes=max_minutes, stopping=teller.stopping)
    best = "" if outcome.best_nats is None else f", best validation {outcome.best_nats:.3f} nats per token"
    say(f"{'done' if outcome.complete else 'stopped'} at step {outcome.step}{best}")
    if not outcome.complete:
        ending = f"; to end it well, add --cooldown-steps {max(1, outcome.step // 2)}" if not trainer.cools else ""
        say(f"go on with --resume {trainer.run}{ending}")
    result(trainer.run)
    if outcome.interrupted and not outcome.complete:
        raise typer.Exit(130)
