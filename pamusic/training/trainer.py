"""One run: batches in, better weights out, on disk at all times.

Knows a learner, batches and the run's folder; knows no terminal: it reports through a callback.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

import pamusic
from pamusic.checkpoint import BEST, LAST, save_checkpoint
from pamusic.corpus.corpus import Corpus
from pamusic.device import Machine, describe
from pamusic.errors import PamusicError
from pamusic.model.config import ModelConfig
from pamusic.model.fields import by_field
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.training.config import TrainingConfig
from pamusic.training.data import NOT_SCORED, Batch, TrainingBatches, validation_batches
from pamusic.training.distributed import SINGLE_PROCESS, ProcessGroup, is_about_ranks, joined
from pamusic.training.fsdp import gathered
from pamusic.training.learner import Learner
from pamusic.training.metrics import AVERAGED, TRAIN, VALIDATION, Row
from pamusic.training.reports import Report, RunResult, ValidationResult
from pamusic.training.run_dir import FORMAT, RunFolder, read_state
from pamusic.training.schedule import rate
from pamusic.training.signals import stop_requests

REPORT_EVERY = 10  # steps


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
        weights: dict[str, Tensor] | None = None,
        ranks: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Builds the model in memory; `train` begins to write.

        Args:
            run: the folder of this run.
            resume_from: the run whose state is gone on from: this one, or one that this one branches off.
            weights: what a new run begins with, by name; random ones by default.
            ranks: this process among those that share the work of each step.

        Raises:
            PamusicError: the corpus does not fit, or the state to resume from cannot be read.
            UsageError: a batch cannot be shared among so many ranks.
        """
        self.learner = Learner(model, training, machine, weights=weights, ranks=ranks, changed=self._changed)
        self._folder, self.corpus = RunFolder(run, ranks), corpus
        self.differences: list[str] = []  # from the run that this one goes on from
        self.started_from: str | None = None  # for people: what a run began with
        self.notice: str | None = None  # for people, too, on what this one goes on from
        self.latent_tokens, self.seconds, self.best_nats = 0, 0.0, math.inf
        self._best_step = 0
        self._losses: list[Tensor] = []  # since the last row at a fixed step
        self._steps_timed = 0
        self._batches = TrainingBatches(corpus, model, training)
        self._validation = validation_batches(
            corpus, model, training.validation_windows, max(1, training.windows_at_once // 2)
        )
        self._note: str | None = None
        if resume_from is not None:
            self._load_state(resume_from)

    @property
    def run(self) -> Path:
        """The folder of this run."""
        return self._folder.path

    @property
    def model(self) -> PerceiverAR:
        return self.learner.model

    @property
    def training(self) -> TrainingConfig:
        return self.learner.training

    @property
    def machine(self) -> Machine:
        return self.learner.machine

    @property
    def ranks(self) -> ProcessGroup:
        return self.learner.ranks

    @property
    def step(self) -> int:
        """Updates made."""
        return self.learner.step

    def move_to(self, run: Path) -> None:
        """Names the folder anew, before anything was written."""
        self._folder = RunFolder(run, self.ranks)

    def discard(self) -> None:
        """Take the folder away, unless it has a checkpoint or a state."""
        self._folder.discard()

    @property
    def in_cooldown(self) -> bool:
        """Whether the cooldown has begun."""
        return rate(self.step, replace(self.training, warmup_steps=0)) < 1

    def plan(self) -> list[str]:
        """What this run will do, line by line, for a person to read."""
        model, training = self.model.config, self.training
        tokens = sum(self.corpus.pieces[piece].num_tokens for piece in self.corpus.split("train"))
        latents = (training.steps - self.step) * training.batch_size * model.num_latents
        at_once = (
            f" ({training.micro_batch} at once)" if training.micro_batch not in (None, len(self.learner.rows)) else ""
        )
        lines = [
            f"corpus {self.corpus.path}: {tokens:,} tokens to train on, {self.corpus.tokenizer.name} events",
            f"model: {self.model.num_parameters() / 1e6:.1f} M parameters, {model.num_layers} layers of width"
            f" {model.d_model}, context {model.context_length:,}, {model.num_latents:,} latents",
            f"on {describe(self.machine)}",
            f"steps {self.step} to {training.steps} of {training.batch_size} windows{at_once}, {latents / tokens:.1f}"
            f" times the corpus; into {self.run}",
        ]
        if training.only:
            learned = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
            lines.insert(2, f"trains its {training.only} alone, {learned:,} numbers")
        if self.started_from is not None and not self.step:
            lines.insert(1, f"begins with the weights of {self.started_from}")
        if self.machine.compile:
            lines.append("the first step compiles the model, which can take a minute")
        if self.differences:
            lines.append(f"otherwise than before: {', '.join(self.differences)}")
        if self.notice is not None:
            lines.append(self.notice)
        if not self._validation:
            lines.append("the corpus has no validation pieces: the last weights are kept, not the best")
        return lines

    def train(
        self,
        report: Callable[[Report], None] = lambda report: None,
        *,
        max_minutes: float | None = None,
        stopping: Callable[[bool], None] = lambda in_order: None,
    ) -> RunResult:
        """Trains until the last step, the time limit, or a signal (Ctrl-C, SIGTERM), and leaves a usable checkpoint.

        Args:
            report: is told what happened, every few steps.
            max_minutes: the time limit.
            stopping: is called when a signal has come: with True where the present step is finished first, with False
                where a second Ctrl-C interrupts it, which a compiler may take long to notice.

        Raises:
            PamusicError: the loss is no number any more, or the run's folder cannot be written.
        """
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        save_at = time.monotonic() + 60 * self.training.save_every_minutes
        patient, device = True, self.machine.device
        with (
            stop_requests(stopping) as stop_requested,
            joined(self.ranks, device),
            self._folder.begun(self.step, self._about()),
            self._save_on_lost_peer(),
            ThreadPoolExecutor(1, "batches") as pool,
        ):
            self.learner.share_gradients()
            batches = self._prefetched(pool)
            since, waited = time.monotonic(), 0.0
            while self.step < self.training.steps and patient:
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                self._losses.append(self.learner.update(batch))
                self.latent_tokens += self.training.batch_size * self.model.config.num_latents
                self._steps_timed += 1
                ended = self.step == self.training.steps
                if self.ranks.size == 1 or self.step % REPORT_EVERY == 0:  # ranks must agree, and talking takes time
                    wanted = stop_requested() or time.monotonic() > deadline
                    ended = ended or self.ranks.any(wanted, device)
                validates = self.step % self.training.validate_every == 0 or ended
                if not validates and self.step % REPORT_EVERY:
                    continue
                spent = time.monotonic() - since
                self.seconds += spent
                validated = self._validate() if validates else None
                patient = self._should_continue()
                ended = ended or not patient
                due = self._report(spent, waited, validated, ended=ended)
                if self.ranks.any(ended or time.monotonic() > save_at, device):  # what was reported was good
                    self._save()
                    if self.ranks.first:
                        self._folder.metrics.draw()
                    save_at = time.monotonic() + 60 * self.training.save_every_minutes
                report(due)
                if ended:
                    break
                since, waited = time.monotonic(), 0.0
        self._folder.finish()
        best = None if math.isinf(self.best_nats) else self.best_nats
        return RunResult(self.step, self.step >= self.training.steps or not patient, stop_requested(), best)

    def _should_continue(self) -> bool:
        """Whether the last validations give reason to go on."""
        patience = self.training.patience
        if patience is None or not self._validation:
            return True
        return self.step - self._best_step < patience * self.training.validate_every

    def _validate(self) -> ValidationResult | None:
        """Nats per token on the fixed windows; keeps the weights, or their average, if they are the best so far."""
        if not self._validation:
            return None
        nats, averaged = self._nats_on_fixed_windows(), None
        if self.learner.average is not None:
            with self.learner.average.in_place():
                averaged = self._nats_on_fixed_windows()
        validated = ValidationResult(nats, averaged)
        if validated.best < self.best_nats:
            self.best_nats, self._best_step = validated.best, self.step
            self._save_checkpoint(BEST, validated)
        return validated

    @torch.inference_mode()
    def _nats_on_fixed_windows(self) -> float:
        self.model.eval()
        nats, tokens = 0.0, 0
        # Where the weights are spread, each forward pass needs all ranks; else each scores its share of the batches.
        alone = isinstance(self.model, FSDPModule)
        for batch in self._validation if alone else self._validation[self.ranks.rank :: self.ranks.size]:
            batch = batch.to(self.machine.device)
            sizes = self.model.config.field_sizes
            with self.machine.autocast():
                logits = self.model(batch.tokens, following=batch.targets.clamp(min=0) if sizes else None).float()
            for of_field, target in by_field(logits.flatten(0, 1), batch.targets.flatten(0, 1), sizes):
                nats += F.cross_entropy(of_field, target, ignore_index=NOT_SCORED, reduction="sum").item()
            tokens += int(batch.num_scored)
        if not alone:
            nats, tokens = self.ranks.sum(torch.tensor([nats, tokens], device=self.machine.device)).tolist()
        return nats / tokens

    def _report(self, seconds: float, waited: float, validated: ValidationResult | None, *, ended: bool) -> Report:
        """Writes down what came since the last report, and says it.

        Rows stand at fixed steps, whenever a run was stopped; a stop in between adds one of its own.
        """
        nats, norm = torch.stack(self._losses).mean().item(), float(self.learner.grad_norm)
        self._check_numbers(nats, norm)
        speed = self._steps_timed * self.training.batch_size * self.model.config.num_latents / seconds
        common: dict[str, Any] = {
            "step": self.step,
            "latent_tokens": self.latent_tokens,
            "seconds": round(self.seconds, 1),
            "rate": round(rate(self.step - 1, self.training), 5),
        }
        rows = []
        if self.step % REPORT_EVERY == 0 or ended:
            row = Row(**common, split=TRAIN, nats_per_token=nats, grad_norm=round(norm, 4))
            rows.append(replace(row, tokens_per_second=round(speed, 1), waited=round(waited / seconds, 4)))
        if validated is not None:
            rows.append(Row(**common, split=VALIDATION, nats_per_token=round(validated.nats, 7)))
            if validated.averaged is not None:
                rows.append(Row(**common, split=AVERAGED, nats_per_token=round(validated.averaged, 7)))
        if self.ranks.first:
            self._folder.metrics.add(rows)
        left = (self.training.steps - self.step) * seconds / self._steps_timed
        note, self._note = self._note, None
        best = None if validated is None else validated.best
        if self.step % REPORT_EVERY == 0:
            self._losses = []
        self._steps_timed = 0
        return Report(self.step, self.training.steps, nats, best, speed, left, note)

    def _check_numbers(self, nats: float, norm: float) -> None:
        astray = next((value for value in (nats, norm) if not math.isfinite(value)), None)
        passed_over = self.learner.scaler.is_enabled()  # a step whose gradients are no numbers
        if astray is nats or (astray is norm and not passed_over):
            what = "loss" if astray is nats else "norm of the gradients"
            lower = f"--lr {self.training.lr / 2:g}"
            raise PamusicError(
                f"the {what} became {astray} between steps {self.step - len(self._losses)} and {self.step}; "
                + (
                    f"{self.run} keeps its last good state; go on from it at a lower rate: pamusic train --resume"
                    f" {self.run} {lower}"
                    if self._folder.has_state
                    else f"start anew at a lower rate: pamusic train {lower}"
                )
            )

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """The batches from the present step on, each made while the one before it is worked on."""
        following = pool.submit(self._batches.batch, self.step, self.learner.rows)
        for step in range(self.step + 1, self.training.steps + 1):
            batch = following.result()
            if step < self.training.steps:
                following = pool.submit(self._batches.batch, step, self.learner.rows)
            yield batch

    @contextmanager
    def _save_on_lost_peer(self) -> Iterator[None]:
        """Where another rank is gone, keeps what was done: no rank moves its weights before all have answered."""
        try:
            yield
        except RuntimeError as error:
            if self.ranks.size == 1 or not is_about_ranks(error):
                raise
            whole = not self.training.shard  # each rank has all there is to save
            if self.ranks.first and self.step and whole:
                self._save()
            why = str(error).partition("\n")[0][:160]
            kept = f"the state of step {self.step}" if whole else "what was saved last"
            raise PamusicError(
                f"another of the {self.ranks.size} processes is gone ({why}); {self.run} keeps {kept}; go on with"
                f" --resume {self.run}"
            ) from None

    def _changed(self, words: str) -> None:
        """Records that the learner had to change what it computes with, and tells it with the next report."""
        self._note = words
        self._folder.write_about(self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "training": asdict(self.training),
            "model": asdict(self.model.config),
            "num_parameters": self.model.num_parameters(),
            "started_from": self.started_from,
            "corpus": {
                "path": str(self.corpus.path),
                "path_from_run": self._folder.way_to(self.corpus.path),
                "fingerprint": self.corpus.fingerprint,
                "tokenizer": self.corpus.tokenizer.name,
            },
            "machine": self.machine.about(),
            "versions": {"pamusic": pamusic.__version__, "torch": torch.__version__},
        }

    def _save(self) -> None:
        """The state that resuming needs, whole or not at all, then a checkpoint of the same weights.

        Where weights are spread over the ranks, all of them must call this; the first one writes.
        """
        state = {
            **self.learner.state_dict(),
            "losses": [loss.cpu() for loss in self._losses],
            "best_step": self._best_step,
            "latent_tokens": self.latent_tokens,
            "seconds": self.seconds,
            "best_nats": self.best_nats,
        }
        self._folder.write_state(state)
        self._save_checkpoint(LAST, None)

    def _save_checkpoint(self, which: str, validated: ValidationResult | None) -> None:
        averaged = self.learner.average if validated is not None and validated.best == validated.averaged else None
        trained = {
            "step": self.step,
            "latent_tokens": self.latent_tokens,
            "seconds": round(self.seconds, 1),
            "weights": "averaged" if averaged is not None else "as trained",
            "validation_windows_nats": None if validated is None else validated.best,
        }
        weights = gathered((averaged or self.model).state_dict())
        if self.ranks.first:
            about = {**trained, "run": self._about()}
            save_checkpoint(self.run / which, self.model, self.corpus.tokenizer, about=about, weights=weights)

    def _load_state(self, run: Path) -> None:
        with read_state(run, self.machine.device) as state:
            self.learner.load_state_dict(state)
            self._losses = [loss.to(self.machine.device) for loss in state.get("losses", [])]
            self.seconds = state["seconds"]
            as_now = self.step * self.training.batch_size * self.model.config.num_latents
            self.latent_tokens = state.get("latent_tokens", as_now)
            if run.resolve() == self.run.resolve():  # a branch keeps the best of its own
                self.best_nats, self._best_step = state["best_nats"], state.get("best_step", self.step)
            else:
                self._best_step = self.step
