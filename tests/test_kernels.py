"""Caches in bytes say nearly what whole ones do, a compiled step what a plain one does, and nobody waits in vain."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from models import START, N, outspoken_model, piece

from pamusic.generation.sampler import generate_rows
from pamusic.kernels import AFTER, Kernels, default_folder
from pamusic.model.cache import ByteCache, KeyValueCache
from pamusic.model.heads import Shape, as_bytes, gathered
from pamusic.model.reader import Reader
from pamusic.model.threads import GAIN, LATEST, SOONEST, TOO_LONG, TRIAL, Threads
from pamusic.training.machine import has_compiler

WHERE_COMPILED = pytest.mark.skipif(sys.platform == "win32" or not has_compiler(), reason="there is no C++ compiler")


class Plain:
    """A forge whose kernels are the plain function."""

    is_used = True

    def __init__(self, after=0, gather=gathered):
        self.after, self.order_at, self.gather, self.ordered, self.asked = after, after // 2, gather, [], []

    def order(self, shape):
        self.ordered.append(shape)

    def made(self, shape):
        self.asked.append(shape)
        return self.gather


def wide(**changes):
    return outspoken_model(num_layers=3, d_model=64, num_heads=2, **changes)


def steps(reader, prime, ids, num_rows=1):
    reader.read(prime)
    if num_rows > 1:
        reader.select([0] * num_rows)
    return torch.stack([reader.step([(id + row) % START for row in range(num_rows)]) for id in ids])


def test_the_largest_number_of_each_key_is_127_and_none_is_off_by_more_than_half_a_step():
    x = torch.randn(3, 5, 64)
    bytes, scales = as_bytes(x)

    assert bytes.dtype == torch.int8
    assert (bytes.abs().amax(-1) == 127).all()
    assert ((bytes * scales[..., None] - x).abs() <= scales[..., None] * 0.5001).all()
    zeros, scales = as_bytes(torch.zeros(2, 4))
    assert not zeros.any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("policy", ["half", "slide", 1])
def test_caches_in_bytes_say_nearly_what_whole_ones_do(policy):
    model, prime, ids = wide(), piece(20), piece(60, seed=2)
    whole = steps(Reader(model, refill=policy, precision="int8"), prime, ids)
    reader = Reader(model, refill=policy, precision="int8", forge=Plain(after=3))

    found = steps(reader, prime, ids)

    assert all(isinstance(layer, ByteCache) for layer in reader.caches.layers)
    assert torch.equal(found[:3], whole[:3])
    assert not torch.equal(found[3:], whole[3:])
    distance = (found.softmax(-1) - whole.softmax(-1)).abs().sum(-1).mean()
    assert distance < 0.1 * (whole.softmax(-1) - whole.roll(1, 0).softmax(-1)).abs().sum(-1).mean()


def test_what_a_byte_cache_gives_back_is_what_it_took():
    cache = KeyValueCache(2, 2, 16, window=5, slack=2, device=torch.device("cpu"), dtype=torch.float32)
    keys, values = torch.randn(2, 2, 2, 4, 16)
    cache.append(keys, values)
    held = ByteCache(cache)
    more = torch.randn(2, 2, 2, 3, 16)
    held.append(*more)

    found = held.last(len(held))

    assert len(held) == 5
    for each, before, after in zip(found, (keys, values), more, strict=True):
        assert torch.allclose(each, torch.cat([before, after], dim=2)[:, :, -5:], atol=0.02)
    row = held.row(1)
    assert isinstance(row, ByteCache)
    assert torch.equal(row.last(5)[0], found[0][1:])


def test_kernels_are_ordered_for_a_batch_and_for_its_last_row_and_used_after_some_steps():
    forge = Plain(after=6)
    reader = Reader(wide(), precision="int8", forge=forge)
    one = Shape(num_heads=2, head_dim=32, room=N + 1, is_batch=False)
    many = Shape(num_heads=2, head_dim=32, room=N + 1, is_batch=True)

    reader.read(piece(4))
    reader.select([0, 0])
    for count in range(6):
        assert len(forge.ordered) == (2 if count > 3 else 0)
        assert forge.asked == []
        reader.step([1, 2])
    reader.step([1, 2])
    assert set(forge.ordered) == {one, many}
    assert forge.asked == [many]
    reader.select([1])
    reader.step([3])
    assert set(forge.asked[1:]) == {one}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_none_are_used_for_weights_that_are_not_in_bytes(precision):
    forge = Plain()
    steps(Reader(wide(), precision=precision, forge=forge), piece(4), piece(5))

    assert (forge.ordered, forge.asked) == ([], [])


def test_where_none_can_be_made_steps_go_on_as_they_were():
    model, prime, ids = wide(), piece(20), piece(30, seed=2)

    found = steps(Reader(model, precision="int8", forge=Plain(gather=None)), prime, ids)

    assert torch.equal(found, steps(Reader(model, precision="int8"), prime, ids))


def test_another_reader_counts_its_own_steps():
    model, forge = wide(), Plain(after=2)
    first = Reader(model, precision="int8", forge=forge)
    expected = steps(first, piece(9), piece(8))

    assert torch.equal(steps(first.another(), piece(9), piece(8)), expected)


def test_the_same_seed_gives_the_same_ids_whether_a_kernel_was_there_or_was_waited_for():
    def drawn(forge):
        ids = generate_rows(wide(), [START], seed=3, num_rows=2, precision="int8", forge=forge)
        return list(islice(ids, 40))

    assert drawn(Plain(after=10)) == drawn(Plain(after=10))


@WHERE_COMPILED
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_compiled_step_says_what_the_plain_function_says(num_rows):
    model, prime, ids = wide(), piece(20), piece(3 * N, seed=2)
    forge = Kernels(after=0)
    expected = steps(Reader(model, precision="int8", forge=Plain()), prime, ids, num_rows)

    found = steps(Reader(model, precision="int8", forge=forge), prime, ids, num_rows)

    assert forge.is_used
    # Not to the last bit: sums in another order round a few numbers to the next byte.
    assert torch.allclose(found, expected, atol=0.05, rtol=0.02)
    assert (found - expected).abs().median() < 1e-4


@WHERE_COMPILED
def test_a_kernel_is_made_once_and_found_again():
    shape = Shape(num_heads=2, head_dim=32, room=N + 1, is_batch=False)
    first = Kernels()
    assert first.made(shape) is not None
    made = first.path(shape).stat().st_mtime_ns

    again = Kernels(told=lambda text: pytest.fail("it did not wait"))

    assert again.made(shape) is not None
    assert again.path(shape).stat().st_mtime_ns == made


def test_a_kernel_that_is_broken_or_missing_is_done_without(tmp_path, monkeypatch):
    shape = Shape(num_heads=2, head_dim=32, room=N + 1, is_batch=False)
    broken = Kernels(0, tmp_path)
    broken.path(shape).write_bytes(b"PK no kernel")
    assert broken.made(shape) is None

    monkeypatch.setattr("pamusic.kernels.has_compiler", lambda: False)
    without = Kernels(0, tmp_path / "none")
    assert without.made(shape) is None
    assert not without.is_used
    assert not (tmp_path / "none").exists()


def test_for_whoever_must_not_wait_kernels_are_ordered_at_once():
    assert (Kernels().order_at, Kernels(early=True).order_at) == (AFTER * 3 // 4, 0)
    assert Kernels(early=True).after == Kernels().after  # so the music is the same


def test_kernels_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PAMUSIC_KERNELS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("PAMUSIC_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pamusic" / "kernels"


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


def test_a_wide_step_computes_the_same_with_one_thread_and_with_two(two_threads):
    model = outspoken_model(
        num_layers=2, d_model=512, num_heads=8, cross_num_heads=4, num_latents=64, context_length=256
    )
    prime, ids, found = piece(80), piece(30, seed=2), []
    for single in (True, False):
        reader = Reader(model, precision="int8", forge=Plain(after=10))
        reader._chooser.took = lambda seconds: None
        reader._chooser.is_single = single
        found.append(steps(reader, prime, ids))

    assert torch.equal(*found)


@WHERE_COMPILED
def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path):
    target = tmp_path / "no" / "kernel.pt2"
    words = [sys.executable, "-m", "pamusic.kernels", "2", "12", "1", "0", str(target)]  # no room for two positions
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, timeout=120, check=False)

    assert done.returncode != 0
    assert not target.exists()
