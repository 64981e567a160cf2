"""Measure how fast a checkpoint generates, and compare this with the limit of the machine's memory.

Knows checkpoints and the sampler, and draws like `pamusic sample`, with the vocabulary's grammar; knows no terminal.
A decode step has to read the weights and the caches. Their bytes and the measured memory bandwidth give the limit of
speed. It ignores the processor's own caches, and refills, which read little and compute much.
"""

from __future__ import annotations

import mmap
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pamusic.checkpoint import Checkpoint
from pamusic.compose.token_stream import constraints_of
from pamusic.errors import UsageError
from pamusic.inference.int8 import Kernel
from pamusic.inference.memory_traffic import step_bytes
from pamusic.inference.precision import resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.generate import generate
from pamusic.tokens.tokenizer import NOTE_ON
from pamusic.tokens.vocabulary import Position

OWN_IDS = 256  # ids that the model draws; their repetition is the prime of a measurement


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The measured speed at one length of context and number of pieces.

    Attributes:
        context_length: Number of tokens that the model sees.
        prime_length: Number of tokens in the prime.
        num: Number of pieces at once.
        first_token_seconds: Seconds from the request to the first token, prefill included.
        tokens_per_second, notes_per_second: Speed of all pieces together, by the clock.
        tokens_per_cpu_second: Tokens of all pieces per second of CPU time of all threads, which depends less on other
            programs. None if too few tokens were drawn for the system's clock of CPU time to advance.
        times_real_time: Seconds of music of all pieces per second.
        memory_mib: Memory of the process after the measurement; on a GPU, its peak there.
        mib_per_token: Memory to read per token.
        limit: Tokens per second of all pieces if only reading took time.
        share_of_limit: Measured speed as a share of the limit.
    """

    context_length: int
    prime_length: int
    num: int
    first_token_seconds: float
    tokens_per_second: float
    tokens_per_cpu_second: float | None
    notes_per_second: float
    times_real_time: float
    memory_mib: float
    mib_per_token: float
    limit: float
    share_of_limit: float


@dataclass(frozen=True)
class Stretch:
    """The speed in a window of a long piece.

    Attributes:
        place: Number of the token in its middle, from 1.
        ms, cpu_ms: Milliseconds per token, by the clock and of CPU time.
        memory_mib: Memory of the process.
    """

    place: int
    ms: float
    cpu_ms: float
    memory_mib: float


def speed(
    checkpoint: Checkpoint,
    *,
    context_length: int,
    num: int,
    bandwidth: float,
    prime_length: int | None = None,
    tokens: int | None = None,
    precision: str = "auto",
    kernel: Kernel | None = None,
) -> Speed:
    """Measure the speed of drawing tokens after a prime.

    Args:
        checkpoint: Checkpoint to measure.
        context_length: Number of tokens that the model sees.
        num: Number of pieces at once.
        bandwidth: Memory bandwidth in bytes per second.
        prime_length: Number of tokens in the prime; by default they fill the context.
        tokens: Number of tokens per piece; by default one refill cycle, so that each token has its share of a refill.
        precision, kernel: As in `InferenceSession`.

    Raises:
        UsageError: The arguments do not fit together.
    """
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens must be at least 1, got {tokens}")
    config = checkpoint.model.config.resized(context_length=context_length)
    precision = _resolved(checkpoint, precision, kernel)
    prime = own_ids(checkpoint, prime_length or context_length, precision)
    refill = max(1, config.num_latents // 2)
    tokens = config.num_latents - refill + 1 if tokens is None else tokens
    begun = time.perf_counter()
    drawn = _sample(checkpoint, prime, num=num, context_length=context_length, precision=precision, kernel=kernel)
    next(drawn)
    first = time.perf_counter() - begun
    next(drawn)  # the first step also prepares rotations and weights
    ids, took, cpu = _timed(islice(drawn, tokens))
    vocabulary, device = checkpoint.tokenizer.vocabulary, checkpoint.model.head.weight.device
    in_use = (min(refill, len(prime)) + min(config.num_latents, len(prime) + tokens)) / 2
    seen, in_bytes = min(context_length, len(prime) + tokens // 2), kernel is not None and precision == "int8"
    how = {"in_bytes": in_bytes, "recorded": device.type == "cuda"}
    read = step_bytes(config, precision, num_rows=num, num_latents=in_use, num_seen=seen, **how) / num
    return Speed(
        context_length=context_length,
        prime_length=len(prime),
        num=num,
        first_token_seconds=first,
        tokens_per_second=len(ids) / took,
        tokens_per_cpu_second=len(ids) / cpu if cpu > 0 else None,
        notes_per_second=float((vocabulary.kind_of_id[np.array(ids)] == NOTE_ON).sum() / took),
        times_real_time=float(vocabulary.seconds_of_id[np.array(ids)].sum() / took),
        memory_mib=memory_mib(device),
        mib_per_token=read / 2**20,
        limit=bandwidth / read,
        share_of_limit=len(ids) / took * read / bandwidth,
    )


def _timed(drawn: Iterable[Sequence[Position | None]]) -> tuple[list[Position], float, float]:
    """Return the ids of all rows, and the time to draw them, by the clock and of CPU time."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    ids = [id for row in drawn for id in row if id is not None]
    return ids, time.perf_counter() - begun, time.process_time() - cpu_begun


def along(
    checkpoint: Checkpoint, places: Sequence[int], window: int, precision: str = "auto", kernel: Kernel | None = None
) -> Iterator[Stretch]:
    """Draw one long piece without a prime, and yield the speed in windows around some of its tokens."""
    start: Position = checkpoint.tokenizer.vocabulary.border("start").tolist()
    precision = _resolved(checkpoint, precision, kernel)
    begun: dict[int, tuple[float, float]] = {}
    for count, _ in enumerate(_sample(checkpoint, [start], precision=precision, kernel=kernel), start=1):
        for place in places:
            if count == place - window // 2:
                begun[place] = time.perf_counter(), time.process_time()
            elif count == place + window // 2:
                clock, cpu = begun[place]
                clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                memory = memory_mib(checkpoint.model.head.weight.device)
                yield Stretch(place, clock / window * 1000, cpu / window * 1000, memory)
        if count == max(places) + window // 2:
            return


def own_ids(checkpoint: Checkpoint, length: int, precision: str = "fp32") -> list[Position]:
    """Return a prime of `length` tokens, start included: a few tokens drawn by the model, repeated."""
    start: Position = checkpoint.tokenizer.vocabulary.border("start").tolist()
    drawn = islice(_sample(checkpoint, [start], precision=precision), min(OWN_IDS, max(1, length - 1)))
    own = [id for (id,) in drawn if id is not None]
    return [start, *(own * (length // len(own) + 1))[: length - 1]]


def read_bandwidth(device: torch.device | str = "cpu") -> float:
    """Measure memory bandwidth with all threads, in bytes per second: the best of some sums over 256 MiB."""
    numbers, best = torch.ones(64 * 2**20, device=device), float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        numbers.sum().item()
        best = min(best, time.perf_counter() - begun)
    return numbers.nbytes / best


def memory_mib(device: torch.device | str = "cpu") -> float:
    """Return the memory of this process, or its peak on a GPU; 0 if the system does not report it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE / 2**20 if statm.exists() else 0.0


def machine() -> str:
    """Return one line that describes this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()
    return f"{name}, {sys.platform}, Python {platform.python_version()}, torch {torch.__version__}"


def _resolved(checkpoint: Checkpoint, precision: str, kernel: Kernel | None) -> str:
    """Return the precision of a checkpoint's steps, never `auto`."""
    model = checkpoint.model
    return resolve_precision(precision, model.head.weight.device, kernel is not None, model.config.architecture)


def _sample(
    checkpoint: Checkpoint,
    prime: Iterable[Position],
    *,
    num: int = 1,
    context_length: int | None = None,
    precision: str,
    kernel: Kernel | None = None,
) -> Iterator[list[Position | None]]:
    """Return an iterator over the ids of endless pieces, drawn like `pamusic sample`."""
    inference = InferenceConfig(context_length=context_length, precision=precision)
    decoding = DecodingConfig(constraints=constraints_of(checkpoint.tokenizer.vocabulary))
    session = InferenceSession(checkpoint.model, inference, kernel)
    return generate(session, PrimeTokens(list(prime)), decoding, seed=0, num_rows=num)
