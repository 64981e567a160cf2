"""Which run: a new one, or one that goes on. Knows run folders and configurations; the trainer does the work.

A resumed run takes everything from the `run.json` of the one it goes on from, save what is asked to change.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pamusic.checkpoint import RUNS, Checkpoint, find_checkpoint, load_checkpoint
from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.device import PRECISIONS, Machine, choose_machine, has_fast_bf16
from pamusic.errors import PamusicError, UsageError
from pamusic.files import REMEDIES, free_folder
from pamusic.model.config import ClockConfig, LedgerConfig, ModelConfig, OffsetsConfig, RecallConfig, preset
from pamusic.tokens.grammar import ledger_ranges, recall_ranges
from pamusic.tokens.positions import offset_edges
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import Vocabulary
from pamusic.training.carrying import transfer_vocabulary
from pamusic.training.config import TrainingConfig
from pamusic.training.config_file import SHAPE
from pamusic.training.distributed import ProcessGroup, join, local_device, rank_from_environment, ranks_on_this_machine
from pamusic.training.growing import grown
from pamusic.training.memory import available_memory, memory_needed
from pamusic.training.run_dir import FORMAT, STATE, trained_in
from pamusic.training.schedule import rate
from pamusic.training.trainer import Trainer

COOLDOWN_SHARE = 0.4  # of a new run's steps: in trials the last third of a decay to zero still brought 0.15 nats
MODEL_CHANGES = ("context_length", "num_latents", "dropout")  # what may differ between weights and their use
WORTH_COMPILING = 300  # steps: compiling takes about as long as 100 of them do without (two CPU cores, size small)


def new_run(
    corpus_path: Path,
    *,
    out: Path | None = None,
    size: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    compile: bool | None = None,
    force: bool = False,
    **changes: Any,
) -> Trainer:
    """A run that begins with random weights, or with those of a checkpoint.

    Args:
        corpus_path: the corpus' folder.
        out: the run's folder; by default a free name under `runs/`.
        size: a name of `PRESETS`; by default `medium` on a CUDA card, else `small`.
        weights: a checkpoint's name or folder, to be tuned on this corpus; it decides the size. Where the corpus was
            made with another tokenizer, what the ids mean is carried over.
        device: as for `choose_machine`.
        compile: by default where there is a compiler, for runs that are long enough to be worth it.
        force: replace a run that is there.
        changes: fields of `TrainingConfig` and of `ModelConfig`; None leaves the default. `ledger` is whether there is
            one; by default there is, or with `weights` whatever they have. They can be given one that they had not.
            `recall` is whether there is that; by default there is not, or with `weights` as they have it. Of several
            fields a position, `offsets` and `clock` are whether there are those, by default yes; `conv_width` is 4.
            `num_layers` may be more than the weights have: they are grown.

    Raises:
        PamusicError: the corpus, the weights or the place do not serve.
        UsageError: the options do not.
    """
    corpus = open_corpus(corpus_path)
    changes = {name: value for name, value in changes.items() if value is not None}
    source = None if weights is None else load_checkpoint(find_checkpoint(weights))
    started_from, carries = None, False
    if source is not None:
        started_from = source.title
        _refuse_other_fields(source, corpus)
        if source.tokenizer.fingerprint != corpus.tokenizer.fingerprint:
            started_from += f", carried over from {_names(source.tokenizer, corpus.tokenizer)} events"
            if changes.get("only"):
                raise UsageError(
                    f"{corpus.path} has events that {weights} has yet to learn, with all of it, not its"
                    f" {changes['only']} alone; leave --only out"
                )
            source, carries = transfer_vocabulary(source, corpus.tokenizer), True
        changes = {**_for_tuning(corpus, source.model.config, changes, carries), **changes}
    if compile is None and changes.get("steps", TrainingConfig.steps) < WORTH_COMPILING:
        compile = False
    ranks = rank_from_environment()
    machine = choose_machine(device, changes.get("precision", "auto"), compile, probe=True)
    machine = replace(machine, device=local_device(machine.device))
    size = size or ("medium" if machine.device.type == "cuda" else "small")
    shape = {name: changes.pop(name) for name in SHAPE if name in changes}
    vocabulary = corpus.tokenizer.vocabulary
    _refuse_parts({**shape, **changes}, corpus)
    if vocabulary.shape:
        changes = {"mistakes": 0.0, **changes}
    shape = _with_parts({**(_usual_parts(vocabulary) if source is None else {}), **shape}, vocabulary)
    try:
        if source is None:
            sizes = tuple(field.size for field in vocabulary.fields) if vocabulary.shape else ()
            pad_id = int(vocabulary.id("pad"))
            model = preset(size, vocab_size=len(vocabulary), pad_id=pad_id, field_sizes=sizes, **shape)
        else:
            before = source.model.config  # it can be given what it had not: at first that says next to nothing
            ledger, recall = (getattr(before, name) or shape.get(name) for name in ("ledger", "recall"))
            num_layers = max(before.num_layers, shape.get("num_layers", 0))
            model = _changed(replace(before, ledger=ledger, recall=recall, num_layers=num_layers), shape)
            if num_layers > before.num_layers:
                started_from = f"{started_from}, grown from {before.num_layers} to {num_layers} layers"
        steps = changes.get("steps", TrainingConfig.steps)
        training = TrainingConfig(**{"cooldown_steps": int(COOLDOWN_SHARE * steps), **changes})
    except (ValueError, OverflowError) as error:
        raise UsageError(f"cannot train so: {error}") from None
    if training.precision == "auto":
        machine = _agreed(machine, ranks)
    if training.micro_batch is None:
        training = replace(training, micro_batch=_what_fits(model, training, machine, ranks))
    if out is not None and ranks.first:
        _check_place(out, force=force)
    begin = None if source is None else grown(source, model.num_layers).model.state_dict()
    trainer = Trainer(out or RUNS / size, corpus, model, training, machine, weights=begin, ranks=ranks)
    trainer.started_from = started_from
    if out is not None and ranks.first:
        _clear(out)
    elif ranks.first:
        trainer.move_to(free_folder(RUNS / size))
    return trainer


def resumed_run(
    run: Path,
    *,
    out: Path | None = None,
    corpus_path: Path | None = None,
    device: str = "auto",
    compile: bool | None = None,
    force: bool = False,
    **changes: Any,
) -> Trainer:
    """A run that goes on from the last state of another, in its folder or, as a branch, in a folder of its own.

    Args:
        run: the folder of the run to go on from.
        out: the folder of the branch; by default the run itself goes on.
        corpus_path: where the corpus is now, if it was moved.
        device, compile, force, changes: as for `new_run`. `cooldown_steps` without `steps` begins a cooldown now.

    Raises:
        PamusicError: there is no such run, or its corpus is another.
        UsageError: the options do not serve.
    """
    about = _read_about(run)
    corpus = open_corpus(corpus_path or _corpus_of(run, about))
    if corpus.fingerprint != about["corpus"]["fingerprint"]:
        raise PamusicError(
            f"{corpus.path}: is not the corpus that {run} was trained on; give that one, or start anew: pamusic train"
        )
    changes = {name: value for name, value in changes.items() if value is not None}
    try:
        model_before, before = ModelConfig.from_json(about["model"]), TrainingConfig(**about["training"])
        shape = {name: changes.pop(name) for name in SHAPE if name in changes}
        _refuse_parts({**shape, **changes}, corpus)
        model = _changed(model_before, _with_parts(shape, corpus.tokenizer.vocabulary))
        if changes.get("cooldown_steps"):
            step = _step_of(run)
            steps = changes.setdefault("steps", step + changes["cooldown_steps"])
            changes["cooldown_from"] = rate(step, replace(before, warmup_steps=0)) or 1.0
            if changes["cooldown_from"] < 1:  # it has begun: it goes on from the rate it has
                changes["cooldown_steps"] = max(1, steps - step)
        if changes.get("only", before.only) != before.only:
            raise UsageError(f"a run keeps the part that it trains; begin another: --from {run}")
        training = replace(before, **changes)
    except (ValueError, TypeError) as error:
        raise UsageError(f"cannot go on so: {error}") from None
    machine = _machine_as_before(about["machine"], device, changes.get("precision"), before.precision, compile)
    ranks = rank_from_environment()
    machine = replace(machine, device=local_device(machine.device))
    if "precision" not in changes:
        machine = _agreed(machine, ranks)
    branches = out is not None and out.resolve() != run.resolve()
    if out is not None and branches and ranks.first:
        _check_place(out, force=force)
    goes_on = branches and ranks.first and trained_in(run)
    trainer = Trainer(out or run, corpus, model, training, machine, resume_from=run, ranks=ranks)
    now = {"training": asdict(training), "model": asdict(model), "machine": machine.about()}
    trainer.started_from = about["started_from"]
    if goes_on:
        trainer.notice = f"{run} is still being trained; this goes on from what it saved last, at step {trainer.step}"
    trainer.differences = _differences({**about, "training": asdict(before), "model": asdict(model_before)}, now)
    if model != model_before:
        trainer.best_nats = math.inf  # it was measured on other windows
    if trainer.step >= training.steps:
        raise PamusicError(
            f"{run}: has made all of its {training.steps} steps; ask for more with --steps, or branch off with --out"
        )
    if out is not None and branches and ranks.first:
        _clear(out)
    return trainer


def _refuse_parts(asked: dict[str, Any], corpus: Corpus) -> None:
    """Refuse what only a model of another kind of vocabulary can have or learn."""
    tokenizer = corpus.tokenizer
    if tokenizer.vocabulary.shape:
        of_events = next((name for name in ("ledger", "recall", "mistakes") if asked.get(name)), None)
        if of_events is not None:
            raise UsageError(
                f"{corpus.path} has {tokenizer.name}, with {len(tokenizer.vocabulary.fields)} fields a position;"
                f" --{of_events} is for events, one id a position, so leave it out"
            )
    if asked.get("offsets") and not tokenizer.vocabulary.has("length"):
        raise UsageError(f"{corpus.path} has {tokenizer.name}, which has no lengths; leave offsets out")
    is_asked = {"clock": bool(asked.get("clock")), "conv_width": asked.get("conv_width", 1) != 1}
    of_fields = next((name for name, is_it in is_asked.items() if is_it), None)
    if of_fields is not None and not tokenizer.vocabulary.shape:
        raise UsageError(f"{corpus.path} has {tokenizer.name}, one id a position; leave {of_fields} out")


def _names(before: Tokenizer, now: Tokenizer) -> str:
    """From which tokenizer to which; their fingerprints, too, where one would take them for the same."""
    if before.name != now.name:
        return f"{before.name} to {now.name}"
    return f"{before.name} ({before.fingerprint}) to {now.name} ({now.fingerprint})"


def _refuse_other_fields(source: Checkpoint, corpus: Corpus) -> None:
    """Refuse to carry weights over from or to a vocabulary of several fields."""
    before, now = source.tokenizer, corpus.tokenizer
    several = before.vocabulary.shape or now.vocabulary.shape
    if several and before.fingerprint != now.fingerprint:
        raise UsageError(
            f"{source.path} reads {_fields(before)}, {corpus.path} has {_fields(now)}; weights are carried over between"
            " tokenizers of one id a position alone, so leave --from out"
        )


def _fields(tokenizer: Tokenizer) -> str:
    """The tokenizer's name, and how many ids a position has."""
    num_fields = len(tokenizer.vocabulary.fields)
    return f"{tokenizer.name} ({num_fields} ids a position)" if num_fields > 1 else f"{tokenizer.name} (one a position)"


def _for_tuning(corpus: Corpus, model: ModelConfig, changes: dict[str, Any], carries: bool) -> dict[str, Any]:
    """What serves to tune trained weights on what may be a small corpus: gently, not for long, not past the best.

    Faster where they are carried over to other events, which have to be learned.
    """
    tokens = sum(corpus.pieces[piece].num_tokens for piece in corpus.split("train"))
    a_step = changes.get("batch_size", TrainingConfig.batch_size) * changes.get("num_latents", model.num_latents)
    steps = min(2000, max(100, 10 * tokens // a_step))
    return {
        "steps": steps,
        "lr": TrainingConfig.lr * (0.6 if carries else 0.1),
        "warmup_steps": 20,
        "validate_every": max(10, steps // 20),
        "patience": 5,
        "ema_decay": 0.99,
        "dropout": 0.1,
    }


def _agreed(machine: Machine, ranks: ProcessGroup) -> Machine:
    """Return the machine with the precision that all ranks can compute in: they may be on different processors."""
    if ranks.size == 1:
        return machine
    join(ranks, machine.device)
    precision = PRECISIONS[-1 - ranks.min(PRECISIONS[::-1].index(machine.precision), machine.device)]
    return (
        machine
        if precision == machine.precision
        else replace(machine, precision=precision, precision_reason="as the others")
    )


def _what_fits(model: ModelConfig, training: TrainingConfig, machine: Machine, ranks: ProcessGroup) -> int | None:
    """How many windows each rank computes at once; None for all, also where nobody knows what fits."""
    if training.batch_size % ranks.size:
        return None  # which the trainer refuses
    available, batch_size = available_memory(machine.device), training.batch_size // ranks.size
    fits = batch_size
    if available is not None:
        shared = ranks_on_this_machine() if machine.device.type == "cpu" else 1
        fits = memory_needed(model, training, machine).largest_micro_batch(available // shared, batch_size)
    join(ranks, machine.device)
    fits = ranks.min(fits, machine.device)  # those that share weights compute in step
    return None if fits == batch_size else max(1, fits)


def _usual_parts(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what a new model has unless it is told otherwise: what is worth its time (`docs/experiments.md`)."""
    if not vocabulary.shape:
        return {"ledger": True}
    return {"conv_width": 4, "offsets": vocabulary.has("length"), "clock": True}


def _with_parts(shape: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """A shape in which `ledger` and `recall` are what they are to a model, not whether; None leaves it open."""
    made = {
        "ledger": lambda: LedgerConfig(**ledger_ranges(vocabulary)),
        "recall": lambda: RecallConfig(**recall_ranges(vocabulary)),
        "offsets": lambda: OffsetsConfig(**offset_edges(vocabulary)),  # type: ignore[arg-type]
        "clock": lambda: ClockConfig(shift_edges=offset_edges(vocabulary)["shift_edges"]),
    }
    asked = {name: value for name, value in shape.items() if name not in made or value is not None}
    return {**asked, **{name: make() if asked[name] else None for name, make in made.items() if name in asked}}


def _changed(model: ModelConfig, shape: dict[str, Any]) -> ModelConfig:
    """The same weights in another shape.

    Raises:
        ValueError: these weights cannot have it.
    """
    fixed = {name for name in shape if name not in MODEL_CHANGES and shape[name] != getattr(model, name)}
    if fixed:
        raise ValueError(f"trained weights keep their {', '.join(sorted(fixed))}; leave out what would change that")
    return replace(model, **shape)


def _machine_as_before(
    before: dict[str, Any], device: str, precision: str | None, asked_before: str, compile: bool | None
) -> Machine:
    """Choose the machine that a run was on, as far as it is there and nothing else is asked.

    A precision that was asked for is kept; `auto` is the fastest of this machine, which may differ from the last one's.
    Half precision that was asked for is given up where it is slow or missing.
    """
    torch.set_num_threads(min(before.get("threads") or torch.get_num_threads(), os.cpu_count() or 1))
    if compile is None and not before["compile"]:
        compile = False
    if device == "auto" and before["device"] == "cpu":
        device = "cpu"
    if precision is not None:
        return choose_machine(device, precision, compile)
    machine = choose_machine(device, "auto", compile)
    is_possible = asked_before == "fp32" or (asked_before == "bf16" and has_fast_bf16(machine.device))
    is_possible = is_possible or (asked_before == "fp16" and machine.device.type != "cpu")
    return choose_machine(device, asked_before, compile) if is_possible else machine


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is set otherwise than before, as `name old -> new`."""
    return [
        f"{name} {before[part].get(name)} -> {value}"
        for part in ("training", "model", "machine")
        for name, value in now[part].items()
        if name in before[part] and before[part][name] != value
    ]


def _corpus_of(run: Path, about: dict[str, Any]) -> Path:
    """Where a run's corpus is: by the path it was given as, else by the way that led there from the run's folder."""
    given = Path(about["corpus"]["path"])
    beside = run / about["corpus"].get("path_from_run", given)
    return beside if not given.exists() and beside.exists() else given


def _check_place(out: Path, *, force: bool) -> None:
    """Refuses a place where something precious lies."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "run.json").is_file()):
        raise PamusicError(f"{out}: exists and is not a run; choose another folder with --out")
    if any(out.iterdir()) and not force:
        raise PamusicError(
            f"{out}: there is a run already; go on with --resume {out}, replace it with --force, or choose another"
            " --out"
        )


def _clear(out: Path) -> None:
    """Makes a run's folder, or empties it, but keeps the folder itself: it may be a link, or where we are.

    Raises:
        PamusicError: one cannot write there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for each in out.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
    except OSError as error:
        raise PamusicError(f"cannot write {out}: {REMEDIES.get(error.errno or 0, error.strerror)}") from None


def _read_about(run: Path) -> dict[str, Any]:
    if not (run / "run.json").is_file():
        runs = ", ".join(str(path.parent) for path in sorted(RUNS.glob("*/run.json")))
        raise PamusicError(f"{run}: no run there to resume; there is {runs or 'none'}")
    try:
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise PamusicError(
                f"{run}: is a run of format {about['format']}, we read {FORMAT}; start anew: pamusic train"
            )
        known = {name: about[name] for name in ("training", "model", "corpus", "machine")}
        return {**known, "started_from": about.get("started_from")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PamusicError(f"{run}: run.json is broken ({error}); start anew: pamusic train") from None


def _step_of(run: Path) -> int:
    try:
        return int(torch.load(run / STATE, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception as error:  # torch.load raises a dozen kinds
        raise PamusicError(f"{run}: its state cannot be read ({' '.join(str(error).split())[:100]})") from None
