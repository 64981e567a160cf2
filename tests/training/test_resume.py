"""A run that is killed, whenever, goes on as if it never had been."""

import json
import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from corpora import small_corpus
from models import tiny_config
from trainers import make_trainer, resumed_run

from pamusic.checkpoint import find_checkpoint, load_checkpoint
from pamusic.cli.reports.training import plan_lines
from pamusic.device import Machine
from pamusic.errors import PamusicError
from pamusic.files import locked
from pamusic.training.config import TrainingConfig
from pamusic.training.metrics import TRAIN, read_metrics
from pamusic.training.run_dir import LOCK, STATE

CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")
SETTINGS = TrainingConfig(
    steps=60, batch_size=2, warmup_steps=5, cooldown_steps=20, validate_every=15, validation_windows=4,
    save_every_minutes=0.0, stretch=0.05, precision="fp32",
)  # fmt: skip
SHAPE = tiny_config(dropout=0.1)
KILLS = 20


def begun_or_resumed(run, corpus):
    """What the shell would do: `train`, and after that `train --resume`, which refuses after the last step."""
    resume_from = run if (run / STATE).is_file() else None
    try:
        make_trainer(run, corpus, SHAPE, SETTINGS, CPU, resume_from=resume_from).train()
    except PamusicError as error:
        if "has made all of its" not in str(error):
            raise


def train_rows(run):
    return [
        (row.step, row.nats_per_token, row.grad_norm) for row in read_metrics(run / "metrics.csv") if row.split == TRAIN
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_killed_twenty_times_has_the_losses_of_one_that_never_was(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    began = time.monotonic()
    begun_or_resumed(tmp_path / "whole", corpus)
    took = time.monotonic() - began
    fork, rng, killed = multiprocessing.get_context("fork"), random.Random(0), 0

    while killed < KILLS:
        process = fork.Process(target=begun_or_resumed, args=(tmp_path / "killed", corpus))
        process.start()
        process.join(rng.uniform(0, took / 4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        elif process.exitcode == 0:  # it came to its end before we came to ours: once more from the start
            (tmp_path / "killed" / STATE).unlink()
        for which in ("best", "last"):
            if (tmp_path / "killed" / which).is_dir():
                load_checkpoint(tmp_path / "killed" / which)
    begun_or_resumed(tmp_path / "killed", corpus)

    assert train_rows(tmp_path / "killed") == train_rows(tmp_path / "whole")
    for which in ("best", "last"):
        killed, whole = (load_checkpoint(tmp_path / name / which).model.state_dict() for name in ("killed", "whole"))
        assert all(torch.equal(killed[name], whole[name]) for name in whole)
    assert find_checkpoint(str(tmp_path / "killed")) == tmp_path / "killed" / "best"


def holding(path, held, over):
    with path.open("ab") as file:
        assert locked(file)
        held.set()
        over.wait()


@contextmanager
def trained_in_elsewhere(run):
    """Another process holds the lock of a run's folder."""
    fork = multiprocessing.get_context("fork")
    held, over = fork.Event(), fork.Event()
    other = fork.Process(target=holding, args=(run / LOCK, held, over))
    other.start()
    try:
        assert held.wait(60)
        yield
    finally:
        over.set()
        other.join()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks as POSIX does")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_only_one_process_at_a_time_trains_in_a_folder(tmp_path):
    corpus, run = small_corpus(tmp_path / "c"), tmp_path / "run"
    run.mkdir()
    with trained_in_elsewhere(run):
        with pytest.raises(PamusicError, match="another process still trains in it"):
            begun_or_resumed(run, corpus)
        assert [path.name for path in run.iterdir()] == [LOCK]
    begun_or_resumed(run, corpus)
    assert train_rows(run)[-1][0] == SETTINGS.steps


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks as POSIX does")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_branch_from_a_run_that_still_goes_on_says_from_where_it_begins(tmp_path):
    corpus, run = small_corpus(tmp_path / "c"), tmp_path / "run"
    begun_or_resumed(run, corpus)
    more = {"out": tmp_path / "branch", "steps": SETTINGS.steps + 5}
    told = f"{run} is still being trained; this resumes from its last state, at step {SETTINGS.steps}"
    assert told not in plan_lines(resumed_run(run, **more))
    with trained_in_elsewhere(run):
        assert told in plan_lines(resumed_run(run, **more))


@pytest.mark.slow
def test_a_run_stopped_between_two_rows_of_its_table_loses_none(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    begun_or_resumed(tmp_path / "whole", corpus)
    trainer = make_trainer(tmp_path / "run", corpus, SHAPE, SETTINGS, CPU)
    trainer.train(lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 15 else None)
    assert trainer.step == 16
    begun_or_resumed(tmp_path / "run", corpus)

    rows = {step: nats for step, nats, _ in train_rows(tmp_path / "run")}
    assert rows.pop(16) > 0
    assert rows == {step: nats for step, nats, _ in train_rows(tmp_path / "whole")}


def test_a_resumed_run_computes_as_before_and_says_what_is_set_otherwise(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "run", corpus, SHAPE, SETTINGS, CPU).train(max_minutes=0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        as_before = resumed_run(tmp_path / "run")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert as_before.machine == Machine(torch.device("cpu"), "fp32", False, "as asked")
    assert as_before.plan.differences == ()
    assert not any("otherwise" in line for line in plan_lines(as_before))

    otherwise = resumed_run(tmp_path / "run", steps=200, context_length=32, precision="bf16")
    assert otherwise.plan.differences == (
        "steps 60 -> 200",
        "precision fp32 -> bf16",
        "context_length 64 -> 32",
        "precision fp32 -> bf16",
    )
    assert "changed settings: steps 60 -> 200" in plan_lines(otherwise)[-1]
    with pytest.raises(PamusicError, match="trained weights keep their num_layers"):
        resumed_run(tmp_path / "run", num_layers=9)


@pytest.mark.parametrize(
    ("asked", "before", "units", "now"),
    [
        ("auto", "bf16", "", "fp32"),  # from a processor with bf16 units to one without
        ("auto", "fp32", "AMX", "bf16"),
        ("bf16", "bf16", "", "fp32"),
        ("bf16", "bf16", "AMX", "bf16"),
        ("fp32", "fp32", "AMX", "fp32"),  # what was asked for stays, where it is no burden
        ("fp16", "fp16", "", "fp32"),  # begun on a GPU
    ],
)
def test_a_resumed_run_takes_the_fastest_precision_of_this_machine_and_says_so(
    tmp_path, monkeypatch, asked, before, units, now
):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "run", corpus, SHAPE, replace(SETTINGS, precision=asked), CPU).train(max_minutes=0)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["machine"]["precision"] = before
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    monkeypatch.setattr("pamusic.device.cpu_bf16_units", lambda: units)

    resumed = resumed_run(tmp_path / "run")

    assert resumed.machine.precision == now
    assert resumed.plan.differences == (() if before == now else (f"precision {before} -> {now}",))
    assert any(f"precision {before} -> {now}" in line for line in plan_lines(resumed)) == (before != now)
