"""Trainers for tests: from the values of a plan, and from what one would ask for."""

from dataclasses import fields
from pathlib import Path

from pamusic.training.run_plan import RunPlan, plan_run
from pamusic.training.settings import RunRequest, RunSettings
from pamusic.training.trainer import Trainer


def make_trainer(run, corpus, model, training, machine, **more):
    """A trainer of a plan with these values."""
    return Trainer(RunPlan(out=run, corpus=corpus, model=model, training=training, machine=machine, **more))


def request_for(**asked):
    """A request in which settings stand beside the rest, by name."""
    names = {field.name for field in fields(RunSettings)}
    settings = RunSettings(**{name: value for name, value in asked.items() if name in names})
    return RunRequest(settings=settings, **{name: value for name, value in asked.items() if name not in names})


def new_run(corpus, **asked):
    """A trainer of a new run."""
    return Trainer(plan_run(request_for(corpus=Path(corpus), **asked)))


def resumed_run(run, **asked):
    """A trainer of a resumed run."""
    return Trainer(plan_run(request_for(resume_from=run, **asked)))
