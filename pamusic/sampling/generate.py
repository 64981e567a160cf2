"""Continue prime ids, one position at a time, without a limit on length; one piece, or many in a batch.

Knows the session that computes logits (`inference.session`); never what the ids mean. The caller passes the forbidden
ids, the grammar, the id that ends a piece, and the seconds that pass with each id. Memory and time per token do not
grow with the length of the row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pamusic.errors import PamusicError, UsageError
from pamusic.inference.session import InferenceSession
from pamusic.sampling.constraints import Position, PositionConstraints, PrimeTokens
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.position_sampler import PositionSampler
from pamusic.sampling.token_sampler import NON_FINITE, TokenSampler

# By kind of device: tokens to enqueue before the host reads the first one. Tokens after the end of a row are dropped.
# On other devices, the host reads each token before the next step.
AHEAD = {"cuda": 16}


def generate(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, *, seed: int, num_rows: int = 1
) -> Iterator[list[Position | None]]:
    """Return an iterator over the next ids of all rows, one per row; None for a row that has ended.

    Where a position has several ids, these are lists with one id per field.

    Rows continue the same prime, each with its own random draws. Row `i` equals the single row of `seed + i`, except
    for the rounding of products over more rows. A row that has ended leaves the batch, which makes the others faster.
    The same arguments give the same ids.

    Args:
        session: A session that has read nothing yet.
        prime: Ids to continue; the last `context_length` are read.
        decoding: Constraints, sampling settings and stop condition; without a length, rows do not stop.
        seed: Seed of the first row; row `i` has `seed + i`.
        num_rows: Number of pieces.

    Raises:
        UsageError: The arguments do not fit together.
        PamusicError: While drawing: the model's logits are not numbers.
    """
    if num_rows < 1:
        raise UsageError(f"num_rows must be at least 1, got {num_rows}")
    decoding.constraints.forbidden(session.vocab_size)
    return _generate(session, prime, decoding, seed, num_rows)


def generate_row(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, *, seed: int
) -> Iterator[Position]:
    """Return an iterator over the ids of one row, each as soon as it is known; otherwise like `generate`."""
    return (id for (id,) in generate(session, prime, decoding, seed=seed) if id is not None)


def _generate(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, seed: int, num_rows: int
) -> Iterator[list[Position | None]]:
    # The sampler keeps its own count of ids and seconds, because it runs ahead of the host.
    of_fields = isinstance(decoding.constraints, PositionConstraints)
    kind: type[PositionSampler | TokenSampler] = PositionSampler if of_fields else TokenSampler
    sampler = kind(
        prime, decoding, vocab_size=session.vocab_size, seed=seed, num_rows=num_rows, device=_device_of(session.device)
    )
    prediction = session.prefill(prime.ids)
    if num_rows > 1:
        session.select([0] * num_rows)
        prediction = prediction.expand(num_rows, -1)
    host = _HostState(prime, decoding, num_rows)
    rows = list(range(num_rows))  # in their order in the batch
    pending: deque[tuple[list[int], _Copy]] = deque()
    count = prime.num_resumed
    while True:
        ids = sampler.sample(prediction)
        pending.append((rows, _Copy(ids)))
        count += 1
        is_last = decoding.stop.share(count, 0.0) >= decoding.stop.deadline
        ahead = 0 if is_last else AHEAD.get(ids.device.type, 0)
        while len(pending) > ahead and host.going:
            drawn = host.take(*pending.popleft())
            if any(id is not None for id in drawn):
                yield drawn
        if not host.going:
            return
        if len(host.going) < len(rows):
            places = [place for place, row in enumerate(rows) if row in host.going]
            rows, ids = [rows[place] for place in places], ids[places]
            session.select(places)
            sampler.select(places)
        prediction = session.step(ids.clamp(min=0))


class _HostState:
    """The host's view of the rows: which still run, and the length of each.

    Attributes:
        going: Rows that are not known to have ended.
    """

    def __init__(self, prime: PrimeTokens, decoding: DecodingConfig, num_rows: int) -> None:
        self._stop, self._constraints, self._num_rows = decoding.stop, decoding.constraints, num_rows
        self._count = prime.num_resumed
        self._passed = [decoding.constraints.seconds_of(prime.resumed) - prime.gap_seconds] * num_rows
        self.going = set(range(num_rows))

    def take(self, rows: list[int], ids: Iterable[Position]) -> list[Position | None]:
        """Return the next id of every row, None for ended ones; `ids` are the new ids of `rows`."""
        drawn: list[Position | None] = [None] * self._num_rows
        self._count += 1
        for row, id in zip(rows, ids, strict=True):
            if row not in self.going:
                continue
            if NON_FINITE in (id if isinstance(id, list) else [id]):
                raise PamusicError("the model's logits are not numbers; its training diverged, use another checkpoint")
            self._passed[row] += self._constraints.seconds_of([id])
            is_late = self._stop.share(0, self._passed[row]) >= self._stop.deadline
            if not (self._constraints.is_end(id) or (is_late and not self._constraints.includes_last)):
                drawn[row] = id
            if drawn[row] is None or self._stop.share(self._count, self._passed[row]) >= self._stop.deadline:
                self.going.remove(row)
        return drawn


class _Copy:
    """An asynchronous copy of drawn ids to the host, which waits only when it reads them."""

    def __init__(self, ids: Tensor) -> None:
        self._ids, self._arrived = ids.to("cpu", non_blocking=True), None
        if ids.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(ids.device))  # its device may not be the current one

    def __iter__(self) -> Iterator[Position]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return iter(self._ids.tolist())


def _device_of(reads: torch.device) -> torch.device:
    """Return the device that draws ids: the model's if it is CUDA, else the CPU (Metal has no float64)."""
    return reads if reads.type == "cuda" else torch.device("cpu")
