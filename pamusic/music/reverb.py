"""Add the reverberation of a small stereo room to a dry recording. Knows NumPy alone.

The tail is exponentially decaying noise; its convolution with a dry signal sounds like a concert hall: J. A. Moorer,
"About This Reverberation Business", Computer Music Journal 3(2), 1979. Left and right use independent noise, so the
tail is wide although its input is the sum of both channels. Three differences from the paper: the noise consists of
bands with different decay rates, since air and walls absorb high frequencies first; there are no early reflections; and
the convolution uses FFTs in blocks (overlap-add), which needs little memory at any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

SEED = 1979
PREDELAY = 0.02  # seconds between the direct sound and the tail in a small hall
LEVEL = 10 ** (-9 / 20)  # tail against direct sound, -9 dB in energy: the room is audible, notes stay clear
ONSET = 0.01  # seconds in which the tail builds up
# Lower edge of each band in Hz, and seconds in which it decays by 60 dB. The tail has nothing below the first edge,
# since it would blur low notes.
BANDS = ((120.0, 1.6), (500.0, 1.5), (2000.0, 1.2), (5000.0, 0.7))
HALVES = np.array([0.5, 0.5], np.float32)  # mixes left and right to the input of the tail
FFT_SIZE = 1 << 18  # samples of a block and its tail: 5.5 seconds


def in_a_room(samples: np.ndarray, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a recording with reverberation, block by block; the reverberation after its end is left out.

    Args:
        samples: Recording, `[num_frames, 2]`, of any type.
        sample_rate: Sample rate in Hz.

    Yields:
        First frame of a block, and the block: `[num_frames_of_block, 2]` float32, in the unit of the samples.
    """
    spectrum = _spectrum(sample_rate)
    num_of_tail = len(_response(sample_rate)) - 1
    step = FFT_SIZE - num_of_tail
    overlap = np.zeros((2, num_of_tail), np.float32)
    for start in range(0, len(samples), step):
        dry = samples[start : start + step].astype(np.float32)
        ringing = np.fft.irfft(np.fft.rfft(dry @ HALVES, FFT_SIZE) * spectrum, FFT_SIZE)
        ringing[:, :num_of_tail] += overlap
        overlap = ringing[:, step:].astype(np.float32)
        dry += ringing[:, : len(dry)].T
        yield start, dry


@cache
def _response(sample_rate: int) -> np.ndarray:
    """Return the tail's impulse response `[num_frames, 2]`, float32; the energy of each channel is `LEVEL` squared."""
    slowest = max(seconds for _, seconds in BANDS)
    time = np.arange(round(slowest * sample_rate)) / sample_rate
    noise = np.random.default_rng(SEED).standard_normal((len(time), 2))
    spectrum, frequency = np.fft.rfft(noise, axis=0), np.fft.rfftfreq(len(time), 1 / sample_rate)
    edges = [first for first, _ in BANDS[1:]] + [np.inf]
    tail = np.zeros_like(noise)
    for (first, seconds), end in zip(BANDS, edges, strict=True):
        band = np.fft.irfft(spectrum * ((first <= frequency) & (frequency < end))[:, None], len(time), axis=0)
        tail += band * (10 ** (-3 * time / seconds))[:, None]  # -60 dB in amplitude: 10 ** -3
    tail *= np.minimum(1, time / ONSET)[:, None]
    tail *= LEVEL / np.sqrt((tail**2).sum(axis=0))
    return np.concatenate([np.zeros((round(PREDELAY * sample_rate), 2)), tail]).astype(np.float32)


@cache
def _spectrum(sample_rate: int) -> np.ndarray:
    """Return the tail's spectrum, `[2, FFT_SIZE / 2 + 1]`."""
    return np.fft.rfft(np.ascontiguousarray(_response(sample_rate).T), FFT_SIZE)
