"""Run `pamusic train`: train a model on a corpus. Knows options and words."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from pamusic.cli.interrupting import INTERRUPTED
from pamusic.cli.option_values import read_values
from pamusic.cli.terminal import log_if_slow, result
from pamusic.errors import UsageError

Recipe = partial(Option, rich_help_panel="Training recipe")
Parts = partial(Option, rich_help_panel="Model parts")
Machine = partial(Option, rich_help_panel="Hardware")


def train(
    corpus: Annotated[Path | None, Argument(help="Train on this corpus folder. (default: corpus)")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Write the run here. (default: new, in runs/)")] = None,
    size: Annotated[str | None, Option(help="Use tiny, small, medium or base. (default: by hardware)")] = None,
    steps: Annotated[int | None, Option(help="Make this many updates in all. (default: 6000)")] = None,
    max_minutes: Annotated[float | None, Option(min=0.0, help="Stop with a checkpoint after this long.")] = None,
    resume: Annotated[Path | None, Option(help="Continue this run; with --out, as a branch.")] = None,
    init_from: Annotated[str | None, Option(help="Fine-tune this checkpoint: a name or a folder.")] = None,
    batch_size: Annotated[int | None, Option(help="Use this many windows per update. (default: 8)")] = None,
    seed: Annotated[int | None, Option(help="Seed weights, windows and augmentation. (default: 1)")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a run in the output folder.")] = False,
    config: Annotated[Path | None, Option(help="Read any setting from this TOML file; options win.")] = None,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="Set any setting; repeatable.")
    ] = None,
    lr: Annotated[float | None, Recipe(help="Set the peak learning rate of matrices. (default: 0.02)")] = None,
    cooldown_steps: Annotated[int | None, Recipe(help="Decay the rate over the last N; resumed: now.")] = None,
    warmup_steps: Annotated[int | None, Recipe(help="Raise the rate over the first N updates.")] = None,
    ema_decay: Annotated[float | None, Recipe(help="Average weights with this EMA; 0: off. (default: 0.999)")] = None,
    patience: Annotated[int | None, Recipe(help="Stop after N validations without a new best.")] = None,
    prefix_dropout: Annotated[float | None, Recipe(help="Drop this fraction of each window's prefix.")] = None,
    dropout: Annotated[float | None, Recipe(help="Drop this fraction of each layer's output.")] = None,
    transpose: Annotated[int | None, Recipe(min=0, help="Transpose windows by up to N semitones.")] = None,
    stretch: Annotated[float | None, Recipe(help="Change window tempo by up to this fraction.")] = None,
    validate_every: Annotated[int | None, Recipe(help="Validate every N updates.")] = None,
    sample_every: Annotated[int | None, Recipe(min=1, help="Write a sample every N updates.")] = None,
    architecture: Annotated[
        str | None, Parts(help="Use perceiver-ar, transformer or transformer-xl. (default: perceiver-ar)")
    ] = None,
    context_length: Annotated[int | None, Parts(help="Read this many tokens of context.")] = None,
    num_latents: Annotated[int | None, Parts(help="Train on this many last positions; XL: a segment.")] = None,
    num_layers: Annotated[int | None, Parts(help="Set the number of layers.")] = None,
    ledger: Annotated[bool | None, Parts(help="Embed the sounding notes and their ages. (default: yes)")] = None,
    recall: Annotated[bool | None, Parts(help="Mix in copies from the context. (default: no)")] = None,
    only: Annotated[str | None, Parts("--train-only", help="Train only: recall, ledger, head … (default: all)")] = None,
    device: Annotated[str, Machine(help="Compute on: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str | None, Machine(help="Compute in: auto, bf16, fp16, fp32.")] = None,
    micro_batch: Annotated[int | None, Machine(help="Compute this many windows at once.")] = None,
    recompute: Annotated[
        bool | None, Machine("--activation-checkpointing/--no-activation-checkpointing", help="Trade time for memory.")
    ] = None,
    shard: Annotated[bool | None, Machine("--fsdp/--no-fsdp", help="Shard weights over torchrun processes.")] = None,
    compile: Annotated[bool | None, Machine(help="Compile the model.")] = None,
) -> None:
    """Train a model on a corpus. Stopped at any time, the run keeps a checkpoint to sample from and to resume."""
    options = {**locals()}
    with log_if_slow("loading PyTorch and its compiler"):
        from pamusic.cli.progress import TrainingProgress
        from pamusic.cli.reports.training import print_plan, print_result
        from pamusic.training.config_file import settings_of
        from pamusic.training.run_plan import plan_run
        from pamusic.training.settings import RunRequest, RunSettings
        from pamusic.training.trainer import Trainer

    asked = RunSettings.from_options({**options, "transpose_down": transpose, "transpose_up": transpose})
    of_file = settings_of(read_values(config, []), str(config))
    settings = of_file.updated(settings_of(read_values(None, set_ or []), "--set")).updated(asked)
    request = RunRequest(
        settings=settings, corpus=corpus, out=out, init_from=init_from, resume_from=resume, device=device,
        compile=compile, overwrite=overwrite,
    )  # fmt: skip
    trainer = Trainer(plan_run(request))
    if sample_every is not None and trainer.training.shard and trainer.ranks.size > 1:
        raise UsageError("--sample-every needs the whole model in one process; leave it out, or --fsdp")
    if not trainer.ranks.first:  # only one of several processes reports
        trainer.train(max_minutes=max_minutes)
        return
    print_plan(trainer)
    with closing(TrainingProgress(trainer, sample_every)) as shown:
        outcome = trainer.train(shown, max_minutes=max_minutes, on_stop=shown.on_stop)
    print_result(trainer, outcome)
    result(trainer.run)
    if outcome.interrupted and not outcome.complete:
        raise Exit(INTERRUPTED)
