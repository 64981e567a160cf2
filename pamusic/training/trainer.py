"""One run: batches in, better weights out, on disk at all times.

Knows model, batches, optimisers and the run's folder; knows no terminal: it reports through a callback. A run's folder
has `run.json` (all that the result depends on), `metrics.csv`, `best/` and `last/` (checkpoints that can be used),
`state.pt` (what `resume` needs, written whole), and `finished` once the run has come to an orderly stop.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pamusic
from pamusic.checkpoint import BEST, LAST, save_checkpoint
from pamusic.errors import PamusicError
from pamusic.files import REMEDIES, written_atomically
from pamusic.model.config import ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.corpus import Corpus
from pamusic.training.batches import NOT_SCORED, Batch, TrainingBatches, validation_batches
from pamusic.training.config import TrainingConfig
from pamusic.training.machine import Machine, describe, keep_freed_memory
from pamusic.training.schedule import rate

COLUMNS = ("step", "latent_tokens", "seconds", "split", "nats_per_token", "rate", "grad_norm", "tokens_per_second")
REPORT_EVERY = 10  # steps
FORMAT = 1
STATE = "state.pt"


@dataclass(frozen=True)
class Report:
    """What happened since the last report.

    Attributes:
        step, steps: updates made, and in all.
        train_nats: mean nats per token since the last report, over latents, as trained (with dropout).
        validation_nats: nats per token on the fixed windows, when this report brings a validation.
        tokens_per_second: latent tokens trained per second.
        seconds_left: until the last step, at this speed.
        note: what else a person should know, once.
    """

    step: int
    steps: int
    train_nats: float
    validation_nats: float | None
    tokens_per_second: float
    seconds_left: float
    note: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run stopped.

    Attributes:
        step: updates made.
        complete: whether those are all.
        interrupted: whether a signal (Ctrl-C, SIGTERM) stopped it.
        best_nats: its best validation, in nats per token; None if there was none.
    """

    step: int
    complete: bool
    interrupted: bool
    best_nats: float | None


class Trainer:
    """A run, new or resumed."""

    def __init__(
        self,
        run: Path,
        corpus: Corpus,
        model: ModelConfig,
        training: TrainingConfig,
        machine: Machine,
        *,
        resume_from: Path | None = None,
    ) -> None:
        """Builds the model in memory; `train` begins to write.

        Args:
            run: the folder of this run.
            resume_from: the run whose state is gone on from: this one, or one that this one branches off.

        Raises:
            PamusicError: the corpus does not fit, or the state to resume from cannot be read.
        """
        keep_freed_memory()
        torch.manual_seed(training.seed)
        self.run, self.corpus, self.training, self.machine = run, corpus, training, machine
        self.model = PerceiverAR(model).to(machine.device)
        self.optimizers = make_optimizers(self.model, training)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self.step, self.latent_tokens, self.seconds, self.best_nats = 0, 0, 0.0, math.inf
        self._batches = TrainingBatches(corpus, model, training)
        self._validation = validation_batches(
            corpus, model, training.validation_windows, max(1, training.windows_at_once // 2)
        )
        self._compiled = torch.compile(self._eager_loss, dynamic=False) if machine.compile else None
        self._note: str | None = None
        if resume_from is not None:
            self._load_state(resume_from)

    @property
    def cools(self) -> bool:
        """Whether the cooldown has begun."""
        return rate(self.step, replace(self.training, warmup_steps=0)) < 1

    def plan(self) -> list[str]:
        """What this run will do, line by line, for a person to read."""
        model, training = self.model.config, self.training
        tokens = sum(self.corpus.pieces[piece].num_tokens for piece in self.corpus.split("train"))
        latents = (training.steps - self.step) * training.batch_size * model.num_latents
        lines = [
            f"corpus {self.corpus.path}: {tokens:,} tokens to train on, {self.corpus.tokenizer.name} events",
            f"model: {self.model.num_parameters() / 1e6:.1f} M parameters, {model.num_layers} layers of width"
            f" {model.d_model}, context {model.context_length:,}, {model.num_latents:,} latents",
            f"on {describe(self.machine)}",
            f"steps {self.step} to {training.steps} of {training.batch_size} windows, {latents / tokens:.1f} times the"
            f" corpus; into {self.run}",
        ]
        if not self._validation:
            lines.append("the corpus has no validation pieces: the last weights are kept, not the best")
        return lines

    def train(
        self,
        report: Callable[[Report], None] = lambda report: None,
        *,
        max_minutes: float | None = None,
        stopping: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Trains until the last step, the time limit, or a signal (Ctrl-C, SIGTERM), and leaves a usable checkpoint.

        Args:
            report: is told what happened, every few steps.
            max_minutes: the time limit.
            stopping: is called when a signal has come, which the present step is finished before.

        Raises:
            PamusicError: the loss is no number any more, or the run's folder cannot be written.
        """
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        save_at = time.monotonic() + 60 * self.training.save_every_minutes
        losses: list[Tensor] = []
        since, validated = time.monotonic(), None
        with self._folder(), _stop_requests(stopping) as stop_requested, ThreadPoolExecutor(1, "batches") as pool:
            batches = self._prefetched(pool)
            while self.step < self.training.steps:
                losses.append(self._update(next(batches)))
                ended = self.step == self.training.steps or stop_requested() or time.monotonic() > deadline
                if self.step % self.training.validate_every == 0 or ended:
                    validated = self._validate()
                due = None
                if self.step % REPORT_EVERY == 0 or validated is not None or ended:
                    now = time.monotonic()
                    self.seconds += now - since
                    due = self._report(losses, now - since, validated)
                    losses, since, validated = [], time.monotonic(), None
                if due is not None and (ended or time.monotonic() > save_at):  # a report has seen that all is well
                    self._save()
                    save_at = time.monotonic() + 60 * self.training.save_every_minutes
                if due is not None:
                    report(due)
                if ended:
                    break
        with written_atomically(self.run / "finished") as file:
            file.write_text(datetime.now(UTC).isoformat(timespec="seconds") + "\n")
        best = None if math.isinf(self.best_nats) else self.best_nats
        return Outcome(self.step, self.step >= self.training.steps, stop_requested(), best)

    def _update(self, batch: Batch) -> Tensor:
        """One optimiser update; gives the mean nats per scored token."""
        share = rate(self.step, self.training)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        scored = (batch.targets != NOT_SCORED).sum()
        nats = torch.zeros((), device=self.machine.device)
        self.model.train()
        for part in batch.micro(self.training.windows_at_once):
            part = part.to(self.machine.device)
            with self.machine.autocast():
                loss, part_nats = self._loss(part)
            self.scaler.scale(loss / scored).backward()
            nats += part_nats.detach()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.step += 1
        self.latent_tokens += self.training.batch_size * self.model.config.num_latents
        return nats / scored

    def _loss(self, part: Batch) -> tuple[Tensor, Tensor]:
        """`_eager_loss`, compiled; as it stands where it turns out that it cannot be compiled."""
        if self._compiled is not None:
            from torch._dynamo.exc import TorchDynamoException

            try:
                return self._compiled(part.tokens, part.targets, part.kept)
            except TorchDynamoException as error:  # a compiler without its headers, or one that breaks down
                why = " ".join(str(error).split())[:200]
                self._note = f"the model cannot be compiled here, so it goes on more slowly without ({why})"
                self._compiled, self.machine = None, replace(self.machine, compile=False)
                self._write_about()
        return self._eager_loss(part.tokens, part.targets, part.kept)

    def _eager_loss(self, tokens: Tensor, targets: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums over scored tokens: what is minimised (with z-loss), and nats."""
        logits = self.model(tokens, kept=kept).float()
        log_z = logits.logsumexp(-1)
        scored = targets != NOT_SCORED
        chosen = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        nats = ((log_z - chosen) * scored).sum()
        return nats + self.training.z_loss * (log_z.square() * scored).sum(), nats

    @torch.inference_mode()
    def _validate(self) -> float | None:
        """Nats per token on the fixed windows; keeps the weights if they are the best so far."""
        if not self._validation:
            return None
        self.model.eval()
        total, count = 0.0, 0
        for batch in self._validation:
            batch = batch.to(self.machine.device)
            with self.machine.autocast():
                logits = self.model(batch.tokens).float()
            total += F.cross_entropy(
                logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOT_SCORED, reduction="sum"
            ).item()
            count += int((batch.targets != NOT_SCORED).sum())
        nats = total / count
        if nats < self.best_nats:
            self.best_nats = nats
            self._save_checkpoint(BEST, nats)
        return nats

    def _report(self, losses: list[Tensor], seconds: float, validated: float | None) -> Report:
        nats, norm = torch.stack(losses).mean().item(), float(self.grad_norm)
        astray = next((value for value in (nats, norm) if not math.isfinite(value)), None)
        if astray is nats or (astray is norm and not self.scaler.is_enabled()):  # the scaler passes over such a step
            what = "loss" if astray is nats else "norm of the gradients"
            lower = f"--lr {self.training.lr / 2:g}"
            raise PamusicError(
                f"the {what} became {astray} between steps {self.step - len(losses)} and {self.step}; "
                + (
                    f"{self.run} keeps its last good state; go on from it at a lower rate: pamusic train --resume"
                    f" {self.run} {lower}"
                    if (self.run / STATE).is_file()
                    else f"start anew at a lower rate: pamusic train {lower}"
                )
            )
        speed = len(losses) * self.training.batch_size * self.model.config.num_latents / seconds
        share = round(rate(self.step - 1, self.training), 5)
        done, spent = self.latent_tokens, round(self.seconds, 1)
        rows: list[tuple[object, ...]] = [
            (self.step, done, spent, "train", round(nats, 5), share, round(norm, 4), round(speed, 1))
        ]
        if validated is not None:
            rows.append((self.step, done, spent, "validation", round(validated, 5), share, "", ""))
        try:
            with (self.run / "metrics.csv").open("a", newline="") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise PamusicError(
                f"cannot write {self.run / 'metrics.csv'}: {REMEDIES.get(error.errno or 0, error.strerror)}"
            ) from None
        left = (self.training.steps - self.step) * seconds / len(losses)
        note, self._note = self._note, None
        return Report(self.step, self.training.steps, nats, validated, speed, left, note)

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """The batches from the present step on, each made while the one before it is worked on."""
        following = pool.submit(self._batches.batch, self.step)
        for step in range(self.step + 1, self.training.steps + 1):
            batch = following.result()
            if step < self.training.steps:
                following = pool.submit(self._batches.batch, step)
            yield batch

    @contextmanager
    def _folder(self) -> Iterator[None]:
        """The run's folder, taken away again if the run fails before it has anything to show."""
        try:
            self._begin_folder()
            yield
        except BaseException:
            if not any((self.run / name).exists() for name in (BEST, LAST, STATE)):
                shutil.rmtree(self.run, ignore_errors=True)
            raise

    def _begin_folder(self) -> None:
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            (self.run / "finished").unlink(missing_ok=True)
            _truncate_metrics(self.run / "metrics.csv", self.step)
        except OSError as error:
            raise PamusicError(
                f"{self.run}: cannot be written ({error.strerror}); choose another folder with --out"
            ) from None
        self._write_about()

    def _write_about(self) -> None:
        with written_atomically(self.run / "run.json") as file:
            file.write_text(json.dumps(self._about(), indent=2) + "\n")

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "training": asdict(self.training),
            "model": asdict(self.model.config),
            "num_parameters": self.model.num_parameters(),
            "corpus": {
                "path": str(self.corpus.path),
                "path_from_run": _way(self.run, self.corpus.path),
                "fingerprint": self.corpus.fingerprint,
                "tokenizer": self.corpus.tokenizer.name,
            },
            "machine": {
                "device": str(self.machine.device),
                "precision": self.machine.precision,
                "compile": self.machine.compile,
                "threads": torch.get_num_threads(),
            },
            "versions": {"pamusic": pamusic.__version__, "torch": torch.__version__},
        }

    def _save(self) -> None:
        """The state that resuming needs, whole or not at all, then a checkpoint of the same weights."""
        state = {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.machine.device) if self.machine.device.type == "cuda" else None,
            "step": self.step,
            "latent_tokens": self.latent_tokens,
            "seconds": self.seconds,
            "best_nats": self.best_nats,
        }
        with written_atomically(self.run / STATE) as path, path.open("wb") as file:
            torch.save(state, file)  # to a path, a full disk would be a RuntimeError of torch's
        self._save_checkpoint(LAST, None)

    def _save_checkpoint(self, which: str, nats: float | None) -> None:
        trained = {"step": self.step, "seconds": round(self.seconds, 1), "validation_windows_nats": nats}
        save_checkpoint(self.run / which, self.model, self.corpus.tokenizer, about={**trained, "run": self._about()})

    def _load_state(self, run: Path) -> None:
        path = run / STATE
        try:
            state = torch.load(path, map_location=self.machine.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                peaks = [group["peak_lr"] for group in optimizer.param_groups]
                optimizer.load_state_dict(saved)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["peak_lr"] = peak
            if state["scaler"]:  # empty where it was not needed
                self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"].cpu())
            if state.get("cuda_rng") is not None and self.machine.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.machine.device)
            self.step, self.seconds = state["step"], state["seconds"]
            as_now = self.step * self.training.batch_size * self.model.config.num_latents
            self.latent_tokens = state.get("latent_tokens", as_now)
            if run.resolve() == self.run.resolve():  # a branch keeps the best of its own
                self.best_nats = state["best_nats"]
        except FileNotFoundError:
            raise PamusicError(f"{run}: has no state to resume from (no {path.name} in it)") from None
        except (
            *(OSError, RuntimeError, KeyError, ValueError, EOFError, TypeError, AttributeError),
            pickle.UnpicklingError,
        ) as error:
            why = " ".join(str(error).split())[:120] or "it is empty"
            raise PamusicError(f"{path}: cannot be resumed from ({why}); start anew: pamusic train") from None


def make_optimizers(model: PerceiverAR, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the model, AdamW for embedding, head and norms.

    Each parameter group keeps its peak rate as `peak_lr`.
    """
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith(("embedding.", "head."))]
    taken = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95),
        torch.optim.AdamW(outer, lr=config.lr * config.adamw_lr_ratio, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _way(start: Path, to: Path) -> str:
    """How one gets from a folder to a path; from one of Windows' drives to another, only by the path itself."""
    try:
        return os.path.relpath(to, start)
    except ValueError:
        return str(to)


def _truncate_metrics(path: Path, step: int) -> None:
    """Leaves the rows up to `step`: what came after it is about to be computed again."""
    rows: list[list[str]] = []
    if path.is_file() and step > 0:
        with path.open(newline="") as file:
            rows = [
                row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdigit() and int(row[0]) <= step
            ]
    with written_atomically(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


@contextmanager
def _stop_requests(told: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request that the training loop sees; a second Ctrl-C interrupts."""
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not requested:
            told()
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
