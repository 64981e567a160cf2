"""Execute the plan of a run: train, validate, save and report.

Knows a learner, batches and the run's folder; knows no terminal: it reports through callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pamusic.checkpoint import BEST, LAST, save_checkpoint
from pamusic.corpus.corpus import Corpus
from pamusic.device import Machine
from pamusic.errors import PamusicError
from pamusic.model.sequence_model import SequenceModel
from pamusic.training.config import TrainingConfig
from pamusic.training.data import Batch, TrainingBatches, validation_batches
from pamusic.training.distributed import ProcessGroup, is_about_ranks, joined
from pamusic.training.fsdp import gather
from pamusic.training.learner import Learner
from pamusic.training.metrics import AVERAGED, TRAIN, VALIDATION, Row
from pamusic.training.reports import Report, RunResult, ValidationResult
from pamusic.training.run_dir import claim_folder, read_state
from pamusic.training.run_plan import RunPlan
from pamusic.training.run_record import make_record
from pamusic.training.schedule import rate
from pamusic.training.signals import stop_requests
from pamusic.training.validation import score_windows

REPORT_EVERY = 10  # steps


class Trainer:
    """A run, new or resumed.

    Attributes:
        plan: Plan of the run, without its initial weights.
        learner: Learner with the model.
        latent_tokens: Latent tokens trained so far.
        seconds: Training time so far, without validation and saving.
    """

    def __init__(self, plan: RunPlan) -> None:
        """Build the model in memory, then claim the run's folder; `train` begins to write.

        Raises:
            PamusicError: The corpus has no training pieces, the state to resume cannot be read or has no steps left,
                or the folder cannot be written.
            UsageError: A batch cannot be shared equally among the ranks.
        """
        model, training, ranks = plan.model, plan.training, plan.ranks
        self.learner = Learner(
            model, training, plan.machine, weights=plan.initial_weights, ranks=ranks, on_change=self._record_change
        )
        self.plan = replace(plan, initial_weights=None)  # the model has a copy of its own
        self.latent_tokens, self.seconds = 0, 0.0
        self._best_nats, self._best_step = math.inf, 0
        self._losses: list[Tensor] = []  # losses since the last row at a fixed step
        self._steps_timed = self._tokens_timed = 0
        self._batches = TrainingBatches(plan.corpus, model, training)
        self._validation = validation_batches(
            plan.corpus, model, training.validation_windows, max(1, training.windows_at_once // 2)
        )
        self._note: str | None = None
        if plan.resume_from is not None:
            self._resume(plan.resume_from)
        self._folder = claim_folder(plan.out, plan.name, clear=plan.clear_out, ranks=ranks)

    @property
    def run(self) -> Path:
        """Folder of this run."""
        return self._folder.path

    @property
    def corpus(self) -> Corpus:
        return self.plan.corpus

    @property
    def model(self) -> SequenceModel:
        return self.learner.model

    @property
    def training(self) -> TrainingConfig:
        """Settings of training, with the changes that the learner had to make."""
        return self.learner.training

    @property
    def machine(self) -> Machine:
        """Device and arithmetic, with the changes that the learner had to make."""
        return self.learner.machine

    @property
    def ranks(self) -> ProcessGroup:
        return self.learner.ranks

    @property
    def step(self) -> int:
        """Number of updates made."""
        return self.learner.step

    @property
    def best_nats(self) -> float:
        """Best validation so far, in nats per token; infinite before the first one."""
        return self._best_nats

    @property
    def in_cooldown(self) -> bool:
        """True if the cooldown has begun."""
        return rate(self.step, replace(self.training, warmup_steps=0)) < 1

    @property
    def has_validation(self) -> bool:
        """True if the corpus has pieces to validate on."""
        return bool(self._validation)

    def discard(self) -> None:
        """Remove the folder, unless it has a checkpoint or a state."""
        self._folder.discard()

    def train(
        self,
        on_report: Callable[[Report], None] = lambda report: None,
        *,
        max_minutes: float | None = None,
        on_stop: Callable[[bool], None] = lambda in_order: None,
    ) -> RunResult:
        """Train until the last step, the time limit, or a signal (Ctrl-C, SIGTERM), and leave a usable checkpoint.

        Args:
            on_report: Called with a report every few steps.
            max_minutes: Time limit.
            on_stop: Called at a signal: with True if the present step is finished first, with False if a second Ctrl-C
                interrupts it (which can take long while compiling).

        Raises:
            PamusicError: The loss is not a finite number, the run's folder cannot be written, or another rank is lost.
        """
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        with (
            stop_requests(on_stop) as stop_requested,
            joined(self.ranks, self.machine.device),
            self._folder.begun(self.step, self._record()),
            self._save_on_lost_peer(),
            ThreadPoolExecutor(1, "batches") as pool,
        ):
            self.learner.share_gradients()
            improves = self._make_steps(
                self._prefetched(pool), on_report, lambda: stop_requested() or time.monotonic() > deadline
            )
        self._folder.finish()
        best = None if math.isinf(self._best_nats) else self._best_nats
        return RunResult(self.step, self.step >= self.training.steps or not improves, stop_requested(), best)

    def _make_steps(
        self, batches: Iterator[Batch], on_report: Callable[[Report], None], should_stop: Callable[[], bool]
    ) -> bool:
        """Make updates until the run ends; return whether validation still improves."""
        save_at, improves = self._next_save(), True
        since, waited = time.monotonic(), 0.0
        while self.step < self.training.steps and improves:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            self._update(batch)
            ended = self._ends_here(should_stop)
            validates = self.step % self.training.validate_every == 0 or ended
            if not validates and self.step % REPORT_EVERY:
                continue
            spent = time.monotonic() - since
            self.seconds += spent
            validated = self._validate() if validates else None
            improves = self._should_continue()
            ended = ended or not improves
            report = self._report(spent, waited, validated, ended=ended)
            if self.ranks.any(
                ended or time.monotonic() > save_at, self.machine.device
            ):  # the report has checked the loss
                self._save()
                if self.ranks.first:
                    self._folder.metrics.draw()
                save_at = self._next_save()
            on_report(report)
            if ended:
                break
            since, waited = time.monotonic(), 0.0
        return improves

    def _update(self, batch: Batch) -> None:
        """Make one update, and count it."""
        self._losses.append(self.learner.update(batch))
        num_tokens = self.training.batch_size * batch.targets.shape[1]  # `batch` has this rank's rows only
        self.latent_tokens += num_tokens
        self._tokens_timed += num_tokens
        self._steps_timed += 1

    def _ends_here(self, should_stop: Callable[[], bool]) -> bool:
        """Return whether this step is the last, or a stop was requested; every rank gets the same answer."""
        ended = self.step == self.training.steps
        if self.ranks.size == 1 or self.step % REPORT_EVERY == 0:  # ranks must agree, and that takes time
            wanted = should_stop()
            ended = ended or self.ranks.any(wanted, self.machine.device)
        return ended

    def _next_save(self) -> float:
        """Return the time of the next save, on the clock of `time.monotonic`."""
        return time.monotonic() + 60 * self.training.save_every_minutes

    def _should_continue(self) -> bool:
        """Return whether validation has improved recently enough to continue."""
        patience = self.training.patience
        if patience is None or not self._validation:
            return True
        return self.step - self._best_step < patience * self.training.validate_every

    def _validate(self) -> ValidationResult | None:
        """Score the fixed windows, and keep the weights, or their average, if they are the best so far."""
        if not self._validation:
            return None
        nats, averaged = self._score_windows(), None
        if self.learner.average is not None:
            with self.learner.average.in_place():
                averaged = self._score_windows()
        validated = ValidationResult(nats, averaged)
        if validated.best < self._best_nats:
            self._best_nats, self._best_step = validated.best, self.step
            self._save_checkpoint(BEST, validated)
        return validated

    def _score_windows(self) -> float:
        return score_windows(self.model, self._validation, self.machine, self.ranks)

    def _report(self, seconds: float, waited: float, validated: ValidationResult | None, *, ended: bool) -> Report:
        """Write the metrics since the last report, and return a report.

        Rows are at fixed steps, whenever a run was stopped; a stop between them adds an extra row.
        """
        nats, norm = torch.stack(self._losses).mean().item(), float(self.learner.grad_norm)
        self._check_numbers(nats, norm)
        speed = self._tokens_timed / seconds
        row = Row(
            step=self.step,
            latent_tokens=self.latent_tokens,
            seconds=round(self.seconds, 1),
            split=TRAIN,
            nats_per_token=nats,
            rate=round(rate(self.step - 1, self.training), 5),
        )
        rows = []
        if self.step % REPORT_EVERY == 0 or ended:
            waited_share = round(waited / seconds, 4)
            rows.append(replace(row, grad_norm=round(norm, 4), tokens_per_second=round(speed, 1), waited=waited_share))
        if validated is not None:
            rows.append(replace(row, split=VALIDATION, nats_per_token=round(validated.nats, 7)))
            if validated.averaged is not None:
                rows.append(replace(row, split=AVERAGED, nats_per_token=round(validated.averaged, 7)))
        if self.ranks.first:
            self._folder.metrics.add(rows)
        left = (self.training.steps - self.step) * seconds / self._steps_timed
        note, self._note = self._note, None
        best = None if validated is None else validated.best
        if self.step % REPORT_EVERY == 0:
            self._losses = []
        self._steps_timed = self._tokens_timed = 0
        return Report(self.step, self.training.steps, nats, best, speed, left, note)

    def _check_numbers(self, nats: float, norm: float) -> None:
        """Raise an error if the loss or the gradient norm is not finite.

        Raises:
            PamusicError: One of them is not finite.
        """
        astray = next((value for value in (nats, norm) if not math.isfinite(value)), None)
        passed_over = self.learner.scaler.is_enabled()  # the scaler skips steps with gradients that are not finite
        if astray is nats or (astray is norm and not passed_over):
            what = "loss" if astray is nats else "gradient norm"
            lower = f"--lr {self.training.lr / 2:g}"
            raise PamusicError(
                f"the {what} became {astray} between steps {self.step - len(self._losses)} and {self.step}; "
                + (
                    f"{self.run} keeps its last good state; continue at a lower rate: pamusic train --resume"
                    f" {self.run} {lower}"
                    if self._folder.has_state
                    else f"start again at a lower rate: pamusic train {lower}"
                )
            )

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Yield batches from the present step on, making each while the one before it is used."""
        following = pool.submit(self._batches.batch, self.step, self.learner.rows)
        for step in range(self.step + 1, self.training.steps + 1):
            batch = following.result()
            if step < self.training.steps:
                following = pool.submit(self._batches.batch, step, self.learner.rows)
            yield batch

    @contextmanager
    def _save_on_lost_peer(self) -> Iterator[None]:
        """Save the state if another rank is lost; no rank changes its weights before all have answered."""
        try:
            yield
        except RuntimeError as error:
            if self.ranks.size == 1 or not is_about_ranks(error):
                raise
            whole = not self.training.shard  # each rank has the whole state
            if self.ranks.first and self.step and whole:
                self._save()
            why = str(error).partition("\n")[0][:160]
            kept = f"the state of step {self.step}" if whole else "the last saved state"
            raise PamusicError(
                f"lost one of the {self.ranks.size} processes ({why}); {self.run} keeps {kept}; continue with"
                f" --resume {self.run}"
            ) from None

    def _record_change(self, words: str) -> None:
        """Record a change that the learner had to make, and put the message into the next report."""
        self._note = words
        self._folder.write_record(self._record())

    def _record(self) -> dict[str, Any]:
        return make_record(
            self.run,
            corpus=self.corpus,
            model=self.model.config,
            num_parameters=self.model.num_parameters(),
            training=self.training,
            machine=self.machine,
            started_from=self.plan.started_from,
        )

    def _save(self) -> None:
        """Save the state for resuming, atomically, then a checkpoint of the same weights.

        With sharding, all ranks must call this; the first one writes.
        """
        state = {
            **self.learner.state_dict(),
            "losses": [loss.cpu() for loss in self._losses],
            "best_step": self._best_step,
            "latent_tokens": self.latent_tokens,
            "seconds": self.seconds,
            "best_nats": self._best_nats,
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
        weights = gather((averaged or self.model).state_dict())
        if self.ranks.first:
            about = {**trained, "run": self._record()}
            save_checkpoint(self.run / which, self.model, self.corpus.tokenizer, metadata=about, weights=weights)

    def _resume(self, run: Path) -> None:
        """Load the last state of a run; a branch starts without a best validation.

        Raises:
            PamusicError: The state cannot be read, or has no steps left.
        """
        with read_state(run, self.machine.device) as state:
            self.learner.load_state_dict(state)
            self._losses = [loss.to(self.machine.device) for loss in state.get("losses", [])]
            self.seconds = state["seconds"]
            as_now = self.step * self.training.batch_size * self.model.config.num_targets
            self.latent_tokens = state.get("latent_tokens", as_now)
            self._best_step = self.step
            if self.plan.out is not None and run.resolve() == self.plan.out.resolve():
                self._best_nats, self._best_step = state["best_nats"], state.get("best_step", self.step)
        if not self.plan.keep_best:
            self._best_nats = math.inf
        if self.step >= self.training.steps:
            raise PamusicError(
                f"{run}: has made all of its {self.training.steps} steps; use a larger --steps, or branch with --out"
            )
