"""As many threads take a step as are the faster just then, and what it computes does not depend on them."""

import pytest
import torch
from models import outspoken_model, piece

from pamusic.inference.native_kernel import kernel
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.inference.threads import GAIN, LATEST, SOONEST, TOO_LONG, TRIAL, Threads


class Machine:
    """A clock, and what a step takes with one thread and with all."""

    def __init__(self, single, many):
        self.now, self.single, self.many = 0.0, single, many

    def steps(self, threads, count):
        """How many of so many steps were taken with one thread, and seconds in all."""
        before, alone = self.now, 0
        for _ in range(count):
            alone += threads.is_single
            with threads.chosen():
                self.now += self.single if threads.is_single else self.many
        return alone, self.now - before


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_more_threads_are_taken_where_they_are_faster(two_threads):
    machine, threads = Machine(single=5.0, many=3.0), Threads(clock=lambda: machine.now)

    machine.steps(threads, SOONEST + TRIAL)
    assert not threads.is_single
    alone, _ = machine.steps(threads, 10 * LATEST)
    assert alone < 0.01 * 10 * LATEST


def test_and_left_at_once_where_another_program_has_a_core(two_threads):
    machine = Machine(single=5.0, many=3.0)
    threads = Threads(clock=lambda: machine.now)
    machine.steps(threads, SOONEST + TRIAL)
    machine.many = 60.0

    alone, _ = machine.steps(threads, 50)
    assert alone >= 48  # but for the one that was waited for, and one trial
    _, seconds = machine.steps(threads, 10_000)
    assert seconds < 10_000 * 5.0 * 1.02
    machine.many = 3.0
    machine.steps(threads, 2 * LATEST)
    assert not threads.is_single


def test_a_gain_too_small_is_none(two_threads):
    machine = Machine(single=5.0, many=5.0 * (GAIN + 0.02))
    threads = Threads(clock=lambda: machine.now)

    alone, _ = machine.steps(threads, 1000)

    assert threads.is_single
    assert alone > 1000 - 6 * TRIAL
    assert TOO_LONG > 1


@pytest.mark.parametrize("by", [None, kernel(64)])
def test_a_wide_step_computes_the_same_with_one_thread_and_with_two(two_threads, by):
    model = outspoken_model(
        num_layers=2, d_model=512, num_heads=8, cross_num_heads=4, num_latents=64, context_length=256
    )
    ids, found = piece(30, seed=2), []
    for single in (True, False):
        reader = InferenceSession(model, InferenceConfig(precision="int8"), kernel=by)
        reader._chooser.took = lambda seconds: None
        reader._chooser.is_single = single
        reader.prefill(piece(80))
        found.append(torch.stack([reader.step([id]) for id in ids]))

    assert torch.equal(*found)
