"""How fast a checkpoint composes, and how far that is from what the machine's memory allows.

Knows checkpoints and the sampler, and draws as `pamusic sample` does, by the vocabulary's grammar; knows no terminal.
A step has to read the weights and the caches. So their bytes over the measured bandwidth of the memory is the limit,
but for what stays in the processor's own caches, and for refills, which read little and compute much.
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

import torch

from pamusic.checkpoint import Checkpoint
from pamusic.compose.token_stream import constraints_of
from pamusic.errors import UsageError
from pamusic.inference.int8 import Kernel
from pamusic.inference.memory_traffic import step_bytes
from pamusic.inference.precision import resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.generate import generate
from pamusic.sampling.token_sampler import DecodingConfig
from pamusic.tokens.tokenizer import NOTE_ON

OWN_IDS = 256  # of the model's own, repeated, are the context that is measured with


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured at one context and number of pieces.

    Attributes:
        context_length: tokens that the model sees.
        prime_length: tokens that precede the first one that is drawn.
        num: pieces at once.
        first_token_seconds: from being asked to the first token, with the prime read in between.
        tokens_per_second, notes_per_second: of all pieces together, by the clock.
        tokens_per_cpu_second: of all pieces, for each second of CPU time of all threads; what other programs do on this
            machine changes it less. None where too few were drawn for this system's clock of CPU time to move.
        times_real_time: seconds of music of all pieces in a second.
        memory_mib: held by the process afterwards; on a GPU, the most that it held there.
        mib_per_token: that have to be read.
        limit: tokens a second of all pieces, if nothing but reading took time.
        share_of_limit: how near to that we are.
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
    """A window around one place of a long piece.

    Attributes:
        place: the token in its middle, counted from 1.
        ms, cpu_ms: a token, by the clock and of CPU time.
        memory_mib: held by the process.
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
    """Draw some tokens after a prime.

    Args:
        checkpoint: the model that composes.
        context_length: tokens it sees.
        num: pieces at once.
        bandwidth: of the memory, in bytes a second.
        prime_length: tokens before them; by default they fill the context.
        tokens: of each piece; by default as many as lie between two refills, so that each costs its share of one.
        precision, kernel: as in `InferenceSession`.

    Raises:
        UsageError: the arguments do not fit together.
    """
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens is 1 or more, not {tokens}")
    config = checkpoint.model.config.resized(context_length=context_length)
    precision = resolve_precision(precision, checkpoint.model.head.weight.device, kernel is not None)
    prime = own_ids(checkpoint, prime_length or context_length, precision)
    refill = max(1, config.num_latents // 2)
    tokens = config.num_latents - refill + 1 if tokens is None else tokens
    begun = time.perf_counter()
    drawn = _sample(checkpoint, prime, num=num, context_length=context_length, precision=precision, kernel=kernel)
    next(drawn)
    first = time.perf_counter() - begun
    next(drawn)  # the first step makes what the others find: rotations, and weights laid out for a kernel
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
        notes_per_second=float((vocabulary.kind_of_id[ids] == NOTE_ON).sum() / took),
        times_real_time=float(vocabulary.seconds_of_id[ids].sum() / took),
        memory_mib=memory_mib(device),
        mib_per_token=read / 2**20,
        limit=bandwidth / read,
        share_of_limit=len(ids) / took * read / bandwidth,
    )


def _timed(drawn: Iterable[Sequence[int | None]]) -> tuple[list[int], float, float]:
    """Return the ids of all rows, and the seconds that they took by the clock and of CPU time."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    ids = [id for row in drawn for id in row if id is not None]
    return ids, time.perf_counter() - begun, time.process_time() - cpu_begun


def along(
    checkpoint: Checkpoint, places: Sequence[int], window: int, precision: str = "auto", kernel: Kernel | None = None
) -> Iterator[Stretch]:
    """Draw one long piece from nothing, and yields what the windows around some of its tokens cost."""
    start = checkpoint.tokenizer.vocabulary.id("start")
    precision = resolve_precision(precision, checkpoint.model.head.weight.device, kernel is not None)
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


def own_ids(checkpoint: Checkpoint, length: int, precision: str = "fp32") -> list[int]:
    """Return a prime of some tokens, start included: a few that the model draws, over and over."""
    start = checkpoint.tokenizer.vocabulary.id("start")
    drawn = islice(_sample(checkpoint, [start], precision=precision), min(OWN_IDS, max(1, length - 1)))
    own = [id for (id,) in drawn if id is not None]
    return [start, *(own * (length // len(own) + 1))[: length - 1]]


def read_bandwidth(device: torch.device | str = "cpu") -> float:
    """Return bytes of memory that can be read in a second, with all threads: the best of some sums over 256 MiB."""
    numbers, best = torch.ones(64 * 2**20, device=device), float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        numbers.sum().item()
        best = min(best, time.perf_counter() - begun)
    return numbers.nbytes / best


def memory_mib(device: torch.device | str = "cpu") -> float:
    """Memory that this process holds now, or on a GPU has held there at most; where the system does not tell, 0."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE / 2**20 if statm.exists() else 0.0


def machine() -> str:
    """Return one line: what this was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()
    return f"{name}, {sys.platform}, Python {platform.python_version()}, torch {torch.__version__}"


def _sample(
    checkpoint: Checkpoint,
    prime: Iterable[int],
    *,
    num: int = 1,
    context_length: int | None = None,
    precision: str,
    kernel: Kernel | None = None,
) -> Iterator[list[int | None]]:
    """Pieces without end, as `pamusic sample` draws them."""
    inference = InferenceConfig(context_length=context_length, precision=precision)
    decoding = DecodingConfig(constraints=constraints_of(checkpoint.tokenizer.vocabulary))
    session = InferenceSession(checkpoint.model, inference, kernel)
    return generate(session, PrimeTokens(list(prime)), decoding, seed=0, num_rows=num)
