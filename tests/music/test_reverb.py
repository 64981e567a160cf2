"""A room is a convolution with decaying noise: the same each time, wide, and short."""

import numpy as np
import pytest

from pamusic.music import reverb
from pamusic.music.reverb import LEVEL, PREDELAY, in_a_room

RATE = 8000


def whole(samples):
    return np.concatenate([block for _, block in in_a_room(samples, RATE)])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few seconds, so that a short signal has several."""
    reverb._spectrum.cache_clear()
    monkeypatch.setattr(reverb, "FFT_SIZE", 1 << 15)
    yield
    reverb._spectrum.cache_clear()


def test_blocks_are_the_whole_convolution(small_blocks):
    """The plain twin: every sample of the sum of both channels adds the response, scaled, behind it."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (60_000, 2)).astype(np.int16)
    middle = samples.mean(axis=1)
    tails = [np.convolve(middle, reverb._response(RATE)[:, channel])[: len(samples)] for channel in (0, 1)]

    assert len(list(in_a_room(samples, RATE))) > 2
    np.testing.assert_allclose(whole(samples), samples + np.stack(tails, axis=1), atol=0.5)


def test_an_impulse_rings_later_wider_and_for_a_second_or_two():
    impulse = np.zeros((3 * RATE, 2), np.int16)
    impulse[0] = 20_000
    tail = whole(impulse)[1:].astype(float) / 20_000

    assert np.abs(tail[: int(PREDELAY * RATE) - 1]).max() < 1e-8
    np.testing.assert_allclose((tail**2).sum(axis=0), LEVEL**2, rtol=1e-3)
    assert abs(np.corrcoef(tail.T)[0, 1]) < 0.1
    energy = np.cumsum((tail**2).sum(axis=1)[::-1])[::-1]  # Schroeder's backward integration
    decibels = 10 * np.log10(energy / energy[0] + 1e-12)
    assert 0.8 < np.argmax(decibels < -60) / RATE < 1.6


def test_it_is_the_same_each_time_and_nothing_for_nothing():
    noise = np.random.default_rng(1).integers(-99, 99, (RATE, 2)).astype(np.int16)

    assert np.array_equal(whole(noise), whole(noise))
    assert not whole(np.zeros((RATE, 2), np.int16)).any()
    assert list(in_a_room(np.zeros((0, 2), np.int16), RATE)) == []
