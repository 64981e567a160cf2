"""Prime ids -> more ids, one at a time, for as long as one likes; one piece, or many at once in one batch.

Knows a model and who reads for it (`inference.session`); never what the ids mean: which ids are barred, by what rules
others are, which one ends a piece, and how many seconds pass with each comes from the caller. Memory and time per token
do not grow with what was sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.inference.int8 import Kernel
from pamusic.inference.session import Reader
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Rules
from pamusic.sampling.ending import Ending
from pamusic.sampling.token_sampler import ASTRAY, Draws

# Tokens that a device may be asked for before anybody looks at the first of them; those of a row that turns out to have
# ended are forgotten. By kind of device; elsewhere each is looked at before the next is begun.
AHEAD = {"cuda": 16}


def generate(model: PerceiverAR, prime_ids: Sequence[int], *, seed: int, **how: Any) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is known. The same arguments give the same ids.

    The arguments are those of `generate_rows`, for one row.
    """
    return (id for (id,) in generate_rows(model, prime_ids, seed=seed, **how) if id is not None)


def generate_rows(
    model: PerceiverAR,
    prime_ids: Sequence[int],
    *,
    seed: int,
    num_rows: int = 1,
    length: int | None = None,
    seconds: float | None = None,
    seconds_of_id: Sequence[float] | None = None,
    sampling: SamplingConfig | None = None,
    class_of_id: Sequence[int] | None = None,
    barred_ids: Iterable[int] = (),
    barred_at_first: Iterable[int] = (),
    num_drawn: int = 0,
    rules: Rules | None = None,
    end_id: int | None = None,
    end_after: int | None = None,
    ending: Ending | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    refill: str | int = "half",
    precision: str = "fp32",
    kernel: Kernel | None = None,
    like: Reader | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next id of each row, all of which follow the same prime; None for a row that has ended.

    Row `i` is, up to the rounding of products over more rows, what `seed + i` gives alone: each has draws of its own.
    A row that has ended is left out of the batch, so the others go on faster.

    Args:
        model: in evaluation mode.
        prime_ids: at least one; the last `context_length` of them are read.
        seed: of the draws of the first row; those of row `i` have `seed + i`.
        num_rows: how many pieces.
        length: how many ids of each to yield at most; without it and without `seconds`, there is no end.
        seconds: stops after the id with which this many have passed.
        seconds_of_id: `[vocab]`, seconds that pass with each id; needed for `seconds`.
        sampling: how an id is drawn.
        class_of_id: `[vocab]`, which of the `class_temperatures` is that of each id; -1 for none.
        barred_ids: are never drawn.
        barred_at_first: are not drawn first, unless nothing else may follow.
        num_drawn: how many of the last of `prime_ids` were drawn before: they count as if they were yielded.
        rules: of what may follow what, the prime's ids first, which are followed even where they break them. What is
            open is not opened again, though they may allow it: in MAESTRO 6 of 7 million openings do so, of those that
            `small` had in mind 26 in a thousand; and as one closing ends but one of them, such a slot is one behind
            from then on, for good.
        end_id: ends the piece, and is not yielded itself.
        end_after: how many ids must precede the end; None bars it, but for `ending`.
        ending: brings each row to a close near `length` or `seconds`, whichever comes first, instead of stopping there.
        num_latents: N, the most positions worked on at a time; the configuration's by default.
        context_length: how many tokens are seen; the configuration's by default.
        refill: how many of the last positions become latents when N are in use: one of `REFILLS`, or a number.
        precision: of the weights, as for `inference.session`.
        kernel: computes steps in bytes, as for `inference.session`.
        like: a reader whose settings and weights are taken, in place of the last five, so that they are held once.

    Raises:
        ValueError: the arguments do not fit together.
        PamusicError: while drawing: the model's logits are not numbers.
    """
    if not len(prime_ids):
        raise ValueError("a prime has at least one token: the start token")
    if length is not None and length < 1:
        raise ValueError(f"length is 1 or more, not {length}")
    if num_rows < 1:
        raise ValueError(f"num_rows is 1 or more, not {num_rows}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is above 0, not {seconds}")
    if ending is not None and (end_id is None or (length is None and seconds is None)):
        raise ValueError("to bring a piece to a close, end_id must be given, and length or seconds")
    if seconds is not None and seconds_of_id is None:
        raise ValueError("to stop after some seconds, seconds_of_id must be given")
    barred = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    barred[list(barred_ids)] = True
    if (barred.sum() + (end_id is not None and not barred[end_id])) == len(barred):
        raise ValueError("every id is barred")
    if rules is not None and len(rules.column_of_id) != len(barred):
        raise ValueError(f"the rules are for {len(rules.column_of_id)} ids, the model has {len(barred)}")
    how: dict[str, Any] = {"num_latents": num_latents, "context_length": context_length, "refill": refill}
    reader = Reader(model, **how, precision=precision, kernel=kernel) if like is None else like.another()

    def drawn() -> Iterator[list[int | None]]:
        # `Draws` counts ids and seconds, too: it is ahead of what is known here.
        before = prime_ids[len(prime_ids) - num_drawn :]
        passed = [sum(seconds_of_id[id] for id in before) if seconds_of_id else 0.0] * num_rows
        draws = Draws(
            prime_ids, num_rows=num_rows, seed=seed, barred=barred, device=_device_of(reader.device), sampling=sampling,
            class_of_id=class_of_id, barred_at_first=barred_at_first, num_drawn=num_drawn, passed=passed[0],
            rules=rules, seconds_of_id=seconds_of_id, length=length, seconds=seconds, end_id=end_id,
            end_after=end_after, ending=ending,
        )  # fmt: skip
        logits = reader.read(prime_ids)
        if num_rows > 1:
            reader.select([0] * num_rows)
            logits = logits.expand(num_rows, -1)
        limit = 1.0 if ending is None else ending.deadline
        rows = list(range(num_rows))  # in the order in which they stand in the batch
        going = set(rows)  # those that are not known to have ended
        under_way: deque[tuple[list[int], _Copy]] = deque()
        count = count_told = num_drawn
        while True:
            ids = draws.draw(logits)
            under_way.append((rows, _Copy(ids)))
            count += 1
            ahead = AHEAD.get(ids.device.type, 0) if count / (length or inf) < limit else 0
            while len(under_way) > ahead and going:
                drawn: list[int | None] = [None] * num_rows
                count_told += 1
                for row, id in zip(*under_way.popleft(), strict=True):
                    if row not in going:
                        continue
                    if id == ASTRAY:
                        raise PamusicError(
                            "the model's logits are not numbers; its training went astray, so take another checkpoint"
                        )
                    if id == end_id:
                        going.remove(row)
                        continue
                    drawn[row] = id
                    passed[row] += 0.0 if seconds_of_id is None else seconds_of_id[id]
                    if max(count_told / (length or inf), passed[row] / (seconds or inf)) >= limit:
                        going.remove(row)
                if any(id is not None for id in drawn):
                    yield drawn
            if not going:
                return
            if len(going) < len(rows):
                places = [place for place, row in enumerate(rows) if row in going]
                rows, ids = [rows[place] for place in places], ids[places]
                reader.select(places)
                draws.select(places)
            logits = reader.step(ids.clamp(min=0))

    return drawn()


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
    """Where ids are drawn: where the model is, but for devices that know no float64 (Metal)."""
    return reads if reads.type == "cuda" else torch.device("cpu")
