"""The benchmark `copy_task.py` asks for what it says, and an interrupted row ends as it would have."""

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pamusic.device import Machine
from pamusic.training.learner import Learner

FOLDER = Path(__file__).parents[1] / "benchmarks" / "paper"
CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")
TIMES = ("seconds", "date", "machine")


@pytest.fixture(scope="module")
def copy_task():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("copy_task")
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


class Numbers:
    """Random numbers that are known."""

    def __init__(self, symbols, end):
        self.symbols, self.end = symbols, end

    def integers(self, low, high, size=None):
        if size is None:
            assert low <= self.end < high
            return self.end
        return np.array(self.symbols[:size])

    def random(self, size):
        return np.arange(size) / size


def test_a_batch_asks_for_the_symbol_half_a_sequence_earlier(copy_task):
    task = copy_task.Task(length=8, context=8, latents=2, symbols=4)

    at_end = task.batch(Numbers([3, 0, 2], end=8), 1)
    before = task.batch(Numbers([3, 0, 2], end=6), 1)

    assert at_end.tokens.tolist() == [[4, 3, 0, 2, 4, 3, 0, 2]]
    assert at_end.targets.tolist() == [[2, 4]]  # the token after 0, and after the last symbol the marker
    assert before.tokens.tolist() == [[4, 3, 0, 2, 4, 3]]
    assert before.targets.tolist() == [[3, 0]]
    assert at_end.prefix_indices is None


def test_the_curriculum_shows_the_sources_first(copy_task):
    task = copy_task.Task(length=16, context=16, latents=2, symbols=4)
    symbols = [3, 0, 2, 1, 1, 0, 3]

    sources = task.batch(Numbers(symbols, end=12), 1, visible=2)
    more = task.batch(Numbers(symbols, end=12), 1, visible=4)
    every = task.batch(Numbers(symbols, end=12), 1, visible=10)

    assert sources.tokens.tolist() == [[4, 3, 0, 2, 1, 1, 0, 3, 4, 3, 0, 2]]
    assert sources.targets.tolist() == [[2, 1]]
    assert sources.prefix_indices.tolist() == [[3, 4]]  # the 2 and the 1 of the first half
    assert more.prefix_indices.tolist() == [[0, 1, 3, 4]]
    assert every.prefix_indices is None


def test_the_control_sees_no_source(copy_task):
    task = copy_task.Task(length=16, context=4, latents=2, symbols=4)

    batch = task.batch(Numbers([3, 0, 2, 1, 1, 0, 3], end=16), 1)

    assert batch.tokens.tolist() == [[1, 1, 0, 3]]
    assert batch.targets.tolist() == [[3, 4]]


def test_sequences_that_are_scored_are_not_trained_on(copy_task):
    task = copy_task.Task(length=64, context=64, latents=8, symbols=16)
    streams = (copy_task.TRAIN, copy_task.CHECK, copy_task.FINAL)

    seen = {
        tuple(task.sequence(copy_task.random(1, stream, number)).tolist()) for stream in streams for number in (0, 1)
    }

    assert len(seen) == 6


@pytest.mark.slow
def test_an_interrupted_row_continues_to_the_same_numbers(copy_task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(copy_task, "STEPS_OF_CHECK", 4)
    monkeypatch.setattr(copy_task, "MORE_KEYS", 10.0)  # more keys at every check
    task = copy_task.Task(length=64, context=64, latents=8, symbols=4)
    setting = replace(copy_task.SMOKE, name="copy-test", latents=8, symbols=4, d_model=16, batch_size=2)
    asked = argparse.Namespace(runs=tmp_path, save_minutes=0.0, threads=1, max_gib=4.0)
    whole = copy_task.measured(setting, task, "keys", 1, 16, replace_runs(asked, tmp_path / "other"), CPU)
    made, update = [], Learner.update

    def interrupted(learner, batch):
        if learner.step == 10:
            raise KeyboardInterrupt
        made.append(learner.step)
        return update(learner, batch)

    monkeypatch.setattr(Learner, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy_task.measured(setting, task, "keys", 1, 16, asked, CPU)
    monkeypatch.setattr(Learner, "update", update)
    resumed = copy_task.measured(setting, task, "keys", 1, 16, asked, CPU)

    assert made == list(range(10))
    assert "seed 1: from step 8" in capsys.readouterr().out
    assert whole["steps"] == 16
    assert whole["steps_with_all_keys"] == 8
    assert {k: v for k, v in resumed.items() if k not in TIMES} == {k: v for k, v in whole.items() if k not in TIMES}


def replace_runs(asked, folder):
    folder.mkdir()
    return argparse.Namespace(**{**vars(asked), "runs": folder})
