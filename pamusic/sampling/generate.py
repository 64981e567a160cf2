"""Prime ids -> more ids, one at a time, for as long as one likes; one piece, or many at once in one batch.

Knows who reads for it (`inference.session`); never what the ids mean: which ids are forbidden, by what grammar others
are, which one ends a piece, and how many seconds pass with each comes from the caller. Memory and time per token do not
grow with what was sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pamusic.errors import PamusicError, UsageError
from pamusic.inference.session import InferenceSession
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.token_sampler import NON_FINITE, DecodingConfig, TokenSampler

# Tokens that a device may be asked for before anybody looks at the first of them; those of a row that turns out to have
# ended are forgotten. By kind of device; elsewhere each is looked at before the next is begun.
AHEAD = {"cuda": 16}


def generate(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, *, seed: int, num_rows: int = 1
) -> Iterator[list[int | None]]:
    """Return an iterator over the next id of each row, all of which follow the same prime; None for one that has ended.

    Row `i` is, up to the rounding of products over more rows, what `seed + i` gives alone: each has draws of its own.
    A row that has ended is left out of the batch, so the others go on faster. The same arguments give the same ids.

    Args:
        session: has read nothing yet.
        prime: the last `context_length` of its ids are read.
        decoding: how ids are chosen; without a length there is no end.
        seed: of the draws of the first row; those of row `i` have `seed + i`.
        num_rows: how many pieces.

    Raises:
        UsageError: the arguments do not fit together.
        PamusicError: while drawing: the model's logits are not numbers.
    """
    if num_rows < 1:
        raise UsageError(f"num_rows is 1 or more, not {num_rows}")
    decoding.constraints.forbidden(session.vocab_size)
    return _generate(session, prime, decoding, seed, num_rows)


def generate_row(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, *, seed: int
) -> Iterator[int]:
    """Return an iterator over the ids of one row, each as soon as it is known; else as `generate`."""
    return (id for (id,) in generate(session, prime, decoding, seed=seed) if id is not None)


def _generate(
    session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, seed: int, num_rows: int
) -> Iterator[list[int | None]]:
    # The sampler counts ids and seconds, too: it is ahead of what is known here.
    sampler = TokenSampler(
        prime, decoding, vocab_size=session.vocab_size, seed=seed, num_rows=num_rows, device=_device_of(session.device)
    )
    logits = session.prefill(prime.ids)
    if num_rows > 1:
        session.select([0] * num_rows)
        logits = logits.expand(num_rows, -1)
    host = _HostState(prime, decoding, num_rows)
    rows = list(range(num_rows))  # in the order in which they stand in the batch
    pending: deque[tuple[list[int], _Copy]] = deque()
    count = prime.num_resumed
    while True:
        ids = sampler.sample(logits)
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
        logits = session.step(ids.clamp(min=0))


class _HostState:
    """What the host knows of the rows: which go on, and how long each is.

    Attributes:
        going: rows that are not known to have ended.
    """

    def __init__(self, prime: PrimeTokens, decoding: DecodingConfig, num_rows: int) -> None:
        self._stop, self._end_id = decoding.stop, decoding.constraints.end_id
        self._seconds_of_id, self._num_rows = decoding.constraints.seconds_of_id, num_rows
        self._count = prime.num_resumed
        self._passed = [decoding.constraints.seconds_of(prime.resumed)] * num_rows
        self.going = set(range(num_rows))

    def take(self, rows: list[int], ids: Iterable[int]) -> list[int | None]:
        """Return the next id of each row, None for those that have ended; `ids` are those of `rows`."""
        drawn: list[int | None] = [None] * self._num_rows
        self._count += 1
        for row, id in zip(rows, ids, strict=True):
            if row not in self.going:
                continue
            if id == NON_FINITE:
                raise PamusicError(
                    "the model's logits are not numbers; its training went astray, so take another checkpoint"
                )
            if id == self._end_id:
                self.going.remove(row)
                continue
            drawn[row] = id
            self._passed[row] += 0.0 if self._seconds_of_id is None else self._seconds_of_id[id]
            if self._stop.share(self._count, self._passed[row]) >= self._stop.deadline:
                self.going.remove(row)
        return drawn


class _Copy:
    """What was drawn, on its way to the host, which waits for it when it is looked at."""

    def __init__(self, ids: Tensor) -> None:
        self._ids, self._arrived = ids.to("cpu", non_blocking=True), None
        if ids.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(ids.device))  # which may not be that of the current card

    def __iter__(self) -> Iterator[int]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return iter(self._ids.tolist())


def _device_of(reads: torch.device) -> torch.device:
    """Return where ids are drawn: where the model is, except for devices that know no float64 (Metal)."""
    return reads if reads.type == "cuda" else torch.device("cpu")
