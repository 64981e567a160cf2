"""A run is planned as a value: what is asked for gives what is done, and planning writes nothing."""

import json
import multiprocessing
import os
import shutil
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from corpora import small_corpus
from models import tiny_model
from trainers import request_for

from pamusic.checkpoint import save_checkpoint
from pamusic.errors import PamusicError, UsageError
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.config import TrainingConfig
from pamusic.training.distributed import SINGLE_PROCESS, ProcessGroup
from pamusic.training.run_plan import plan_new_run, plan_resumed_run, plan_run
from pamusic.training.settings import RunRequest, RunSettings
from pamusic.training.trainer import Trainer

HERE = {"device": "cpu", "precision": "fp32", "compile": False}
TINY = {"size": "tiny", "context_length": 32, "num_latents": 8, "batch_size": 2, "validation_windows": 2, **HERE}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus at its default place in the present folder."""
    monkeypatch.chdir(tmp_path)
    return small_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    small_corpus(folder / "corpus")
    Trainer(plan_run(request_for(corpus=folder / "corpus", out=folder / "run", steps=4, **TINY))).train()
    return folder / "run"


@pytest.fixture
def run(trained_run, corpus):
    """A finished run of four steps, in the present folder."""
    shutil.copytree(trained_run, "run")
    return Path("run")


@pytest.fixture
def trained(tmp_path):
    """A checkpoint without a ledger."""
    save_checkpoint(tmp_path / "trained", tiny_model(), load_tokenizer("performance"), metadata={})
    return tmp_path / "trained"


def test_a_new_run_takes_what_is_asked_for_and_else_the_defaults(corpus, tmp_path):
    plan = plan_run(request_for(steps=1000, lr=0.01, dropout=0.2, **TINY))

    assert plan.training == TrainingConfig(
        steps=1000, lr=0.01, cooldown_steps=400, batch_size=2, precision="fp32", validation_windows=2
    )
    model = plan.model
    assert (model.d_model, model.context_length, model.num_latents, model.dropout) == (128, 32, 8, 0.2)
    assert (model.ledger.num_slots, model.recall) == (128, None)
    assert (plan.machine.device, plan.machine.precision, plan.machine.compile) == (torch.device("cpu"), "fp32", False)
    assert (plan.corpus.fingerprint, plan.ranks) == (corpus.fingerprint, SINGLE_PROCESS)
    assert (plan.out, plan.name, plan.clear_out) == (None, "tiny", False)
    assert (plan.initial_weights, plan.started_from, plan.resume_from, plan.differences) == (None, None, None, ())
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_plan_cannot_be_changed_and_prints_settings_but_no_weights(corpus, trained):
    plan = plan_run(request_for(init_from=str(trained), steps=9, **HERE))

    assert "steps=9" in repr(plan)
    assert "tensor" not in repr(plan)
    with pytest.raises(FrozenInstanceError):
        plan.started_from = "elsewhere"


def test_trained_weights_are_planned_to_be_tuned_gently(corpus, trained):
    plan = plan_run(request_for(init_from=str(trained), **HERE))

    assert plan.started_from == str(trained)
    assert all(torch.equal(plan.initial_weights[name], weight) for name, weight in tiny_model().state_dict().items())
    training = plan.training
    assert (training.warmup_steps, training.patience, training.ema_decay) == (20, 5, 0.99)
    assert training.lr == pytest.approx(0.002)
    assert plan.model == replace(tiny_model().config, dropout=0.1)
    assert plan_run(request_for(init_from=str(trained), steps=1, **HERE)).model.dropout == 0  # less than one pass
    asked = plan_run(request_for(init_from=str(trained), steps=7, patience=2, dropout=0.0, **HERE))
    assert (asked.training.steps, asked.training.patience, asked.model.dropout) == (7, 2, 0.0)


def test_a_short_run_is_not_compiled_and_a_long_one_where_there_is_a_compiler(corpus, monkeypatch):
    monkeypatch.setattr("pamusic.device.has_compiler", lambda: True)
    asked = {**TINY, "compile": None}

    compiled = [plan_run(request_for(steps=steps, **asked)).machine.compile for steps in (299, 300)]
    assert compiled == [False, True]
    assert plan_run(request_for(steps=2, **{**asked, "compile": True})).machine.compile


def test_a_run_resumed_in_its_folder_differs_in_what_is_asked_for_alone(run, corpus):
    before = json.loads((run / "run.json").read_text())
    plan = plan_run(request_for(resume_from=run, steps=6, lr=0.01))

    assert plan.training == TrainingConfig(**{**before["training"], "steps": 6, "lr": 0.01})
    assert plan.differences == ("steps 4 -> 6", "lr 0.02 -> 0.01")
    assert (plan.out, plan.clear_out, plan.resume_from) == (run, False, run)
    assert (plan.keep_best, plan.resumes_live_run, plan.initial_weights) == (True, False, None)
    assert plan.corpus.fingerprint == corpus.fingerprint


def test_a_branch_is_planned_into_a_folder_of_its_own(run, tmp_path):
    plan = plan_run(request_for(resume_from=run, out=Path("branch"), cooldown_steps=3, num_latents=4))

    assert (plan.out, plan.clear_out, plan.resume_from) == (Path("branch"), True, run)
    assert (plan.training.steps, plan.training.cooldown_steps, plan.training.cooldown_from) == (7, 3, 1.0)
    assert not plan.keep_best  # other windows
    assert not (tmp_path / "branch").exists()
    again = plan_run(request_for(resume_from=run, out=run / ".." / "run", steps=6))
    assert not again.clear_out


def test_what_an_older_version_did_not_record_is_no_difference(run):
    record = json.loads((run / "run.json").read_text())
    del record["machine"]["threads"], record["training"]["stretch"], record["started_from"]
    (run / "run.json").write_text(json.dumps(record))

    plan = plan_run(request_for(resume_from=run, steps=6))
    assert (plan.differences, plan.started_from) == (("steps 4 -> 6",), None)


def test_a_run_with_corruption_which_is_gone_is_not_resumed_in_silence(run):
    record = json.loads((run / "run.json").read_text())
    for share in (0.0, 0.5):
        (run / "run.json").write_text(json.dumps({**record, "training": {**record["training"], "mistakes": share}}))
        if not share:
            assert plan_run(request_for(resume_from=run, steps=6)).differences == ("steps 4 -> 6",)
    with pytest.raises(UsageError, match=r"was trained with --corruption, .* pamusic train --init-from run"):
        plan_run(request_for(resume_from=run, steps=6))


@pytest.mark.parametrize(
    ("asked", "error", "reason"),
    [
        ({"resume_from": Path("run"), "init_from": "small"}, UsageError, "pass one of them"),
        ({"resume_from": Path("run"), "size": "tiny"}, UsageError, "trained weights keep their size"),
        ({"init_from": "small", "size": "tiny"}, UsageError, "trained weights keep their size"),
        ({"corpus": Path("nowhere")}, PamusicError, "no corpus there"),
        ({"size": "huge"}, UsageError, "cannot train with these settings: unknown size 'huge'"),
        ({**TINY, "steps": 0}, UsageError, "cannot train with these settings: steps must be at least 1, got 0"),
        ({**TINY, "steps": -5}, UsageError, "cannot train with these settings: steps must be at least 1, got -5"),
        (
            {**TINY, "num_latents": 33},
            UsageError,
            "cannot train with these settings: num_latents must be between 1 and context",
        ),
        ({**TINY, "clock": True}, UsageError, "one id a position; leave clock out"),
        ({**TINY, "out": Path("mine")}, PamusicError, "exists and is not a run"),
        ({**TINY, "out": Path("mine"), "overwrite": True}, PamusicError, "exists and is not a run"),
        ({**TINY, "out": Path("run")}, PamusicError, "there is a run already"),
        ({"resume_from": Path("mine")}, PamusicError, "no run to resume; available runs: none"),
        (
            {"resume_from": Path("run"), "num_layers": 3},
            UsageError,
            "cannot resume with these settings: trained weights keep",
        ),
        (
            {"resume_from": Path("run"), "lr": 0.0},
            UsageError,
            "cannot resume with these settings: lr must be above 0, got 0.0",
        ),
        ({"resume_from": Path("run"), "clock": True}, UsageError, "^[^:]+ has performance, .*; leave clock out"),
        ({"resume_from": Path("run"), "only": "head"}, UsageError, "^a resumed run keeps the part that it trains"),
        ({"resume_from": Path("run"), "cooldown_steps": 2}, PamusicError, "its state cannot be read"),
        ({"resume_from": Path("run"), "out": Path("mine")}, PamusicError, "exists and is not a run"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_written(run, tmp_path, asked, error, reason):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (run / "state.pt").write_text("broken")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    with pytest.raises(error, match=reason) as refused:
        plan_run(request_for(**asked))

    assert refused.type is error
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_is_cleared_only_after_the_trainer_could_be_built(run, corpus):
    Trainer(plan_run(request_for(out=Path("other"), steps=4, **TINY))).train()
    (run / "state.pt").write_text("broken")
    branch = plan_run(request_for(resume_from=run, out=Path("other"), steps=6, overwrite=True))

    with pytest.raises(PamusicError, match="cannot load the state"):
        Trainer(branch)

    assert Path("other", "state.pt").is_file()
    shared = replace(plan_run(request_for(out=Path("other"), overwrite=True, **TINY)), ranks=ProcessGroup(0, 3))
    with pytest.raises(UsageError, match="cannot be shared equally among 3 processes"):
        Trainer(shared)
    assert Path("other", "state.pt").is_file()


def test_a_trainer_takes_a_free_name_and_does_not_hold_the_weights_that_it_began_with(corpus, trained):
    plan = replace(plan_run(request_for(init_from=str(trained), steps=2, **HERE)), name="tuned")

    first, second = Trainer(plan), Trainer(plan)

    assert (first.run, second.run) == (Path("runs", "tuned"), Path("runs", "tuned-2"))
    assert first.plan.initial_weights is None
    assert first.plan.started_from == str(trained)


def test_only_the_first_of_several_processes_looks_at_the_folder(run, corpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("pamusic.training.machine_choice.join", lambda ranks, device: None)
    monkeypatch.setattr(ProcessGroup, "min", lambda self, number, device: number)

    plan = plan_new_run(request_for(out=run, steps=4, **TINY))  # rank 0 refuses it

    assert plan.ranks == ProcessGroup(1, 2)
    Trainer(plan)
    assert (run / "state.pt").is_file()


def hold(path, held, over):
    from pamusic.files import locked

    with path.open("ab") as file:
        assert locked(file)
        held.set()
        over.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks as POSIX does")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_branch_from_a_run_that_is_still_trained_is_planned_as_such(run):
    fork = multiprocessing.get_context("fork")
    held, over = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(run / "lock", held, over))
    other.start()
    try:
        assert held.wait(60)
        assert plan_resumed_run(request_for(resume_from=run, out=Path("branch"), steps=6)).resumes_live_run
        assert not plan_resumed_run(request_for(resume_from=run, steps=6)).resumes_live_run  # the lock will refuse it
    finally:
        over.set()
        other.join()


def test_a_request_without_anything_is_a_new_run_of_the_default_corpus():
    assert RunRequest() == RunRequest(settings=RunSettings(), corpus=None, device="auto", overwrite=False)
