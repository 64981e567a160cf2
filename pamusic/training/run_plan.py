"""Plan a run: turn a request into a value with everything that the run depends on.

Knows requests, corpora, checkpoints and records of runs; builds no trainer and writes nothing. `trainer.Trainer`
executes a plan. A resumed run takes everything from its record, except the settings in the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pamusic.checkpoint import Checkpoint, check_corpus, find_checkpoint, load_checkpoint
from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.device import Machine, choose_machine
from pamusic.errors import PamusicError, UsageError
from pamusic.model.config import PERCEIVER_AR, ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.distributed import SINGLE_PROCESS, ProcessGroup, local_device, rank_from_environment
from pamusic.training.machine_choice import agree_on_precision, fitting_micro_batch, machine_as_before
from pamusic.training.model_shape import (
    new_shape,
    refuse_foreign_parts,
    refuse_foreign_settings,
    resumed_shape,
    tuned_shape,
)
from pamusic.training.run_dir import is_training, read_step, refuse_occupied
from pamusic.training.run_record import RunRecord, read_record
from pamusic.training.schedule import rate
from pamusic.training.settings import RunRequest, RunSettings

DEFAULT_CORPUS = Path("corpus")
COOLDOWN_SHARE = 0.4  # share of a new run's steps; in trials, the last third of a decay to zero still gained 0.15 nats
MIN_STEPS_TO_COMPILE = 300  # compiling takes as long as about 100 uncompiled steps (two CPU cores, size small)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """The plan of a run, new or resumed.

    Attributes:
        out: Folder of the run; None for a free name under `runs/`.
        name: Beginning of that name.
        clear_out: True if the contents of `out` are removed before the run begins.
        corpus: Corpus to train on.
        model: Shape of the model.
        training: Settings of training.
        machine: Device and arithmetic.
        ranks: Processes that share each step.
        initial_weights: Weights of a new run, by name; None for random ones.
        started_from: Description of the checkpoint that the run, or the resumed run, began with; None for random
            weights.
        resume_from: Run to resume: the one in `out`, or one that this run branches off.
        resumes_live_run: True if another process still trains in `resume_from`.
        keep_best: True if the best validation of the resumed run still counts; a model of another shape has other
            windows.
        differences: Settings that differ from the resumed run, as `name old -> new`.
    """

    out: Path | None = None
    name: str = "run"
    clear_out: bool = False
    corpus: Corpus = field(repr=False)
    model: ModelConfig
    training: TrainingConfig
    machine: Machine
    ranks: ProcessGroup = SINGLE_PROCESS
    initial_weights: Mapping[str, Tensor] | None = field(default=None, repr=False)
    started_from: str | None = None
    resume_from: Path | None = None
    resumes_live_run: bool = False
    keep_best: bool = True
    differences: tuple[str, ...] = ()


def plan_run(request: RunRequest) -> RunPlan:
    """Return the plan of a requested run, new or resumed.

    Raises:
        PamusicError: Corpus, weights, run or folder cannot be used.
        UsageError: The settings are invalid, or do not fit together.
    """
    return plan_new_run(request) if request.resume_from is None else plan_resumed_run(request)


def plan_new_run(request: RunRequest) -> RunPlan:
    """Return the plan of a run that begins with random weights or with a checkpoint.

    Trained weights keep their size, their parts and their vocabulary. A ledger and recall can be added.

    Raises:
        PamusicError: Corpus, weights or folder cannot be used.
        UsageError: The settings are invalid, or do not fit together.
    """
    corpus = open_corpus(request.corpus or DEFAULT_CORPUS)
    settings, vocabulary = request.settings, corpus.tokenizer.vocabulary
    source = None if request.init_from is None else _load_source(request.init_from, corpus)
    if source is not None:
        settings = _tuning_defaults(corpus, source, settings).updated(settings)
    ranks = rank_from_environment()
    machine = _new_machine(request, settings)
    size = settings.size or ("medium" if machine.device.type == "cuda" else "small")
    refuse_foreign_parts(settings, corpus)
    try:
        if source is None:
            model = new_shape(size, settings, vocabulary)
        else:
            model = tuned_shape(source.model.config, settings, vocabulary)
        refuse_foreign_settings(settings, model)
        training = _new_training(settings, model)
        _check_latents(model, training)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"cannot train with these settings: {error}") from None
    if training.precision == "auto":
        machine = agree_on_precision(machine, ranks)
    fits = fitting_micro_batch(model, training, machine, ranks)  # raises an error if not even one window fits
    if training.micro_batch is None:
        training = replace(training, micro_batch=fits)
    if request.out is not None and ranks.first:
        refuse_occupied(request.out, overwrite=request.overwrite)
    return RunPlan(
        out=request.out,
        name=size,
        clear_out=request.out is not None,
        corpus=corpus,
        model=model,
        training=training,
        machine=machine,
        ranks=ranks,
        initial_weights=None if source is None else source.model.state_dict(),
        started_from=None if source is None else source.title,
    )


def plan_resumed_run(request: RunRequest) -> RunPlan:
    """Return the plan of a run that resumes the last state of another, in its folder or as a branch in `out`.

    `cooldown_steps` without `steps` begins a cooldown now.

    Raises:
        PamusicError: The run does not exist, its corpus has changed, or the folder cannot be used.
        UsageError: The settings are invalid, or do not fit together.
    """
    run, settings = request.resume_from, request.settings
    assert run is not None
    record = read_record(run)
    corpus = _open_same_corpus(record, request.corpus)
    refuse_foreign_parts(settings, corpus)
    if settings.only is not None and settings.only != record.training.get("only", TrainingConfig.only):
        raise UsageError(f"a resumed run keeps the part that it trains; start a new run with --init-from {run}")
    try:
        model_before, training_before = ModelConfig.from_json({**record.model}), _training_of(record)
        model = resumed_shape(model_before, settings, corpus.tokenizer.vocabulary)
        refuse_foreign_settings(settings, model)
        training = _resumed_training(run, settings, training_before)
        _check_latents(model, training)
    except (ValueError, TypeError) as error:
        raise UsageError(f"cannot resume with these settings: {error}") from None
    ranks = rank_from_environment()
    machine = _resumed_machine(request, record, training_before.precision, ranks)
    if model != model_before:
        fits = fitting_micro_batch(model, training, machine, ranks)
        if settings.micro_batch is None and fits is not None and fits < training.windows_at_once:
            training = replace(training, micro_batch=fits)
    is_branch = request.out is not None and request.out.resolve() != run.resolve()
    if request.out is not None and is_branch and ranks.first:
        refuse_occupied(request.out, overwrite=request.overwrite)
    return RunPlan(
        out=request.out or run,
        clear_out=is_branch,
        corpus=corpus,
        model=model,
        training=training,
        machine=machine,
        ranks=ranks,
        started_from=record.started_from,
        resume_from=run,
        resumes_live_run=is_branch and ranks.first and is_training(run),
        keep_best=model == model_before,
        differences=_differences(
            {"training": asdict(training_before), "model": asdict(model_before), "machine": record.machine},
            {"training": asdict(training), "model": asdict(model), "machine": machine.about()},
        ),
    )


def _load_source(name: str, corpus: Corpus) -> Checkpoint:
    checkpoint = load_checkpoint(find_checkpoint(name))
    check_corpus(checkpoint, corpus)
    return checkpoint


def _tuning_defaults(corpus: Corpus, source: Checkpoint, settings: RunSettings) -> RunSettings:
    """Return default settings for fine-tuning on a small corpus: a low rate, few steps, early stopping.

    Dropout is for music that is seen several times. A corpus too large for one pass gets none.
    """
    tokens = sum(corpus.pieces[piece].num_tokens for piece in corpus.split("train"))
    model = source.model.config.resized(context_length=settings.context_length, num_latents=settings.num_latents)
    tokens_per_step = (settings.batch_size or TrainingConfig.batch_size) * model.num_targets
    steps = min(2000, max(100, 10 * tokens // tokens_per_step))
    is_seen_again = (settings.steps or steps) * tokens_per_step > tokens
    return RunSettings(
        steps=steps,
        lr=TrainingConfig.lr * 0.1,
        warmup_steps=20,
        validate_every=max(10, steps // 20),
        patience=5,
        ema_decay=0.99,
        dropout=0.1 if is_seen_again else 0.0,
    )


def _new_machine(request: RunRequest, settings: RunSettings) -> Machine:
    """Choose this rank's machine; short runs are compiled only on request."""
    compile, steps = request.compile, TrainingConfig.steps if settings.steps is None else settings.steps
    if compile is None and steps < MIN_STEPS_TO_COMPILE:
        compile = False
    precision = "auto" if settings.precision is None else settings.precision
    machine = choose_machine(request.device, precision, compile, probe=True)
    return replace(machine, device=local_device(machine.device))


def _new_training(settings: RunSettings, model: ModelConfig) -> TrainingConfig:
    steps = TrainingConfig.steps if settings.steps is None else settings.steps
    prefix_dropout = None if model.architecture == PERCEIVER_AR else 0.0
    defaults = RunSettings(cooldown_steps=int(COOLDOWN_SHARE * steps), prefix_dropout=prefix_dropout)
    return defaults.updated(settings).training_config()


def _check_latents(model: ModelConfig, training: TrainingConfig) -> None:
    """Raise an error if the smallest number of latents is above the model's.

    Raises:
        UsageError: It is.
    """
    if training.min_latents is not None and training.min_latents > model.num_latents:
        raise UsageError(f"min_latents must be at most num_latents ({model.num_latents}), got {training.min_latents}")


def _open_same_corpus(record: RunRecord, path: Path | None) -> Corpus:
    """Open the corpus of a run, by default at its recorded path.

    Raises:
        PamusicError: The corpus cannot be opened, or is another one.
    """
    corpus = open_corpus(path or record.corpus_path)
    if corpus.fingerprint != record.corpus["fingerprint"]:
        raise PamusicError(
            f"{corpus.path}: is not the corpus that {record.run} was trained on; pass that one, or start a new run:"
            " pamusic train"
        )
    return corpus


def _resumed_machine(request: RunRequest, record: RunRecord, asked_before: str, ranks: ProcessGroup) -> Machine:
    """Choose this rank's machine like the earlier one; if no precision is requested, use one that all ranks support."""
    precision = request.settings.precision
    machine = machine_as_before(record.machine, request.device, precision, asked_before, request.compile)
    machine = replace(machine, device=local_device(machine.device))
    return agree_on_precision(machine, ranks) if precision is None else machine


def _training_of(record: RunRecord) -> TrainingConfig:
    """Return the recorded settings; a setting that no longer exists must be off.

    Raises:
        UsageError: The run used corruption of windows (`mistakes`), which earlier versions had.
    """
    settings = {**record.training}
    if settings.pop("mistakes", 0.0):
        raise UsageError(
            f"{record.run} was trained with --corruption, which this version does not have; start a new run from its"
            f" weights: pamusic train --init-from {record.run}"
        )
    return TrainingConfig(**settings)


def _resumed_training(run: Path, settings: RunSettings, before: TrainingConfig) -> TrainingConfig:
    """Return the earlier configuration with the new settings; a cooldown begins at the run's present rate."""
    if settings.cooldown_steps:
        step = read_step(run)
        steps = step + settings.cooldown_steps if settings.steps is None else settings.steps
        share = rate(step, replace(before, warmup_steps=0)) or 1.0
        cooldown_steps = max(1, steps - step) if share < 1 else settings.cooldown_steps
        settings = replace(settings, steps=steps, cooldown_steps=cooldown_steps, cooldown_from=share)
    return settings.training_config(before)


def _differences(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the values that differ from before, as `name old -> new`."""
    return tuple(
        f"{name} {before[part].get(name)} -> {value}"
        for part in now
        for name, value in now[part].items()
        if name in before[part] and before[part][name] != value
    )
