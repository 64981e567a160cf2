"""Print the plan of a training, and its result. Knows trainers and words; trains nothing."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pamusic.cli.terminal import log

if TYPE_CHECKING:
    from pamusic.training.reports import RunResult
    from pamusic.training.trainer import Trainer


def print_plan(trainer: Trainer) -> None:
    """Print the plan of a run."""
    for line in plan_lines(trainer):
        log(line)


def plan_lines(trainer: Trainer) -> list[str]:
    """Return the plan of a run, line by line."""
    from pamusic.device import describe
    from pamusic.model.config import PERCEIVER_AR

    plan, model, training = trainer.plan, trainer.model.config, trainer.training
    tokens = sum(plan.corpus.pieces[piece].num_tokens for piece in plan.corpus.split("train"))
    latents = (training.steps - trainer.step) * training.batch_size * model.num_targets
    is_split = training.micro_batch not in (None, len(trainer.learner.rows))
    at_once = f" ({training.micro_batch} at once)" if is_split else ""
    lines = [f"corpus {plan.corpus.path}: {tokens:,} tokens to train on, vocabulary {plan.corpus.tokenizer.name}"]
    if plan.started_from is not None and not trainer.step:
        lines.append(f"starts from the weights of {plan.started_from}")
    kind = "" if model.architecture == PERCEIVER_AR else f"{model.architecture}, "
    lines.append(
        f"model: {kind}{trainer.model.num_parameters() / 1e6:.1f} M parameters, {model.num_layers} layers of width"
        f" {model.d_model}, context {model.context_length:,}, {model.num_latents:,} latents"
    )
    if training.only:
        learned = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        lines.append(f"trains only its {training.only}, {learned:,} parameters")
    lines.append(f"on {describe(trainer.machine)}")
    lines.append(
        f"steps {trainer.step} to {training.steps} of {training.batch_size} windows{at_once}, {latents / tokens:.1f}"
        f" times the corpus; into {trainer.run}"
    )
    if trainer.machine.compile:
        lines.append("the first step compiles the model, which can take a minute")
    if plan.differences:
        lines.append(f"changed settings: {', '.join(plan.differences)}")
    if plan.resumes_live_run:
        lines.append(
            f"{plan.resume_from} is still being trained; this resumes from its last state, at step {trainer.step}"
        )
    if not trainer.has_validation:
        lines.append("the corpus has no validation pieces: the last weights are kept, not the best")
    return lines


def print_result(trainer: Trainer, result: RunResult) -> None:
    """Print how a training ended, how to resume it, and how to sample from it."""
    from pamusic.checkpoint import LATEST, RUNS

    best = "" if result.best_nats is None else f", best validation {result.best_nats:.3f} nats per token"
    log(f"{'done' if result.complete else 'stopped'} at step {result.step}{best}")
    if not result.complete:
        cooldown = f"; to finish with a cooldown, add --cooldown-steps {max(1, result.step // 2)}"
        log(f"continue with --resume {trainer.run}{'' if trainer.in_cooldown else cooldown}")
    newest = f" (or --checkpoint {LATEST}, the newest run)" if trainer.run.parent == RUNS else ""
    log(f"sample from it with: pamusic sample --checkpoint {shlex.quote(str(trainer.run))}{newest}")
