"""`pamusic train`: corpus -> run. Knows options and words."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from pamusic.cli.interrupting import INTERRUPTED
from pamusic.cli.terminal import log_if_slow, result
from pamusic.errors import UsageError

Recipe = partial(Option, rich_help_panel="How it learns")
Machine = partial(Option, rich_help_panel="This machine")


def train(
    corpus: Annotated[Path | None, Argument(help="The corpus' folder. (default: corpus)")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="The run's folder. (default: new, in runs/)")] = None,
    size: Annotated[str | None, Option(help="tiny, small, medium or base. (default: what suits here)")] = None,
    steps: Annotated[int | None, Option(help="Updates in all. (default: 6000)")] = None,
    max_minutes: Annotated[float | None, Option(min=0.0, help="Stop in order after this long.")] = None,
    resume: Annotated[Path | None, Option(help="Go on from this run; with --out, in a folder of its own.")] = None,
    weights: Annotated[str | None, Option("--from", help="Tune this checkpoint: its name or folder.")] = None,
    batch_size: Annotated[int | None, Option(help="Windows an update. (default: 8)")] = None,
    context_length: Annotated[int | None, Option(help="Tokens the model sees.")] = None,
    num_latents: Annotated[int | None, Option(help="Positions worked on and trained, at its end.")] = None,
    seed: Annotated[int | None, Option(help="Of weights, windows and augmentation. (default: 1)")] = None,
    force: Annotated[bool, Option("--force", help="Replace a run that is in the way.")] = False,
    config: Annotated[Path | None, Recipe(help="A TOML file with any setting; options come before it.")] = None,
    lr: Annotated[float | None, Recipe(help="Peak learning rate of the matrices. (default: 0.02)")] = None,
    cooldown_steps: Annotated[
        int | None, Recipe(help="Last updates, with a falling rate; with --resume: begin now.")
    ] = None,
    warmup_steps: Annotated[int | None, Recipe(help="First updates, with a rising rate.")] = None,
    ema_decay: Annotated[float | None, Recipe(help="Of the averaged weights; 0: none. (default: 0.999)")] = None,
    patience: Annotated[int | None, Recipe(help="End after so many validations without a new best.")] = None,
    num_layers: Annotated[int | None, Recipe(help="Layers of the stack; with --from: more than there are.")] = None,
    prefix_dropout: Annotated[float | None, Recipe(help="Share of the prefix left out of a window.")] = None,
    dropout: Annotated[float | None, Recipe(help="Of what layers add to the stream.")] = None,
    ledger: Annotated[bool | None, Recipe(help="Tell the model which keys are down. (default: yes)")] = None,
    recall: Annotated[bool | None, Recipe(help="Copy what followed like music far back. (default: no)")] = None,
    only: Annotated[str | None, Recipe(help="Train this part alone: recall, ledger, head … (default: all)")] = None,
    transpose: Annotated[int | None, Recipe(min=0, help="Move windows by at most this many semitones.")] = None,
    stretch: Annotated[float | None, Recipe(help="Play windows at most this share slower or faster.")] = None,
    mistakes: Annotated[float | None, Recipe(help="Share of a cooldown's windows with mistakes to mend.")] = None,
    validate_every: Annotated[int | None, Recipe(help="Updates between validations.")] = None,
    sample_every: Annotated[int | None, Recipe(min=1, help="Updates between samples to listen to.")] = None,
    device: Annotated[str, Machine(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str | None, Machine(help="auto, bf16, fp16, fp32.")] = None,
    micro_batch: Annotated[int | None, Machine(help="Windows computed at once.")] = None,
    recompute: Annotated[bool | None, Machine(help="Spare memory by computing layers twice.")] = None,
    shard: Annotated[bool | None, Machine(help="Spread the weights over the processes of torchrun.")] = None,
    compile: Annotated[bool | None, Machine(help="Compile the model first.")] = None,
) -> None:
    """Train a model on a corpus. Stopped at any time, it leaves a checkpoint to sample from and to go on from."""
    options = {**locals()}
    with log_if_slow("loading PyTorch and its compiler"):
        from pamusic.cli.progress import TrainingProgress
        from pamusic.cli.reports.training import print_plan, print_result
        from pamusic.training.config_file import read_settings
        from pamusic.training.run_plan import plan_run
        from pamusic.training.settings import RunRequest, RunSettings
        from pamusic.training.trainer import Trainer

    asked = RunSettings.from_options({**options, "transpose_down": transpose, "transpose_up": transpose})
    settings = asked if config is None else read_settings(config).updated(asked)
    request = RunRequest(
        settings=settings, corpus=corpus, out=out, init_from=weights, resume_from=resume, device=device,
        compile=compile, overwrite=force,
    )  # fmt: skip
    trainer = Trainer(plan_run(request))
    if sample_every is not None and trainer.training.shard and trainer.ranks.size > 1:
        raise UsageError("--sample-every needs the whole model in one process; leave it out, or --shard")
    if not trainer.ranks.first:  # of several processes, one speaks
        trainer.train(max_minutes=max_minutes)
        return
    print_plan(trainer)
    with closing(TrainingProgress(trainer, sample_every)) as shown:
        outcome = trainer.train(shown, max_minutes=max_minutes, on_stop=shown.on_stop)
    print_result(trainer, outcome)
    result(trainer.run)
    if outcome.interrupted and not outcome.complete:
        raise Exit(INTERRUPTED)
