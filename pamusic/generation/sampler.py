"""Prime ids -> more ids, one at a time, for as long as one likes; one piece, or many at once in one batch.

Knows a model and who reads for it (`model.reader`); never what the ids mean: which ids are barred, by what rules others
are, which one ends a piece, and how many seconds pass with each comes from the caller. Memory and time per token do not
grow with what was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.ending import BARRED, Ending
from pamusic.generation.filters import filtered
from pamusic.generation.grammar import Grammar, Rules
from pamusic.generation.held import Held
from pamusic.model.bytewise import Kernel
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.reader import Reader


def generate(model: PerceiverAR, prime_ids: Sequence[int], *, seed: int, **how: Any) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is drawn. The same arguments give the same ids.

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
        precision: of the weights, as for `model.reader`.
        kernel: computes steps in bytes, as for `model.reader`.
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
    sampling = sampling or SamplingConfig()
    classes = None if class_of_id is None else torch.tensor(class_of_id)
    first = torch.zeros_like(barred)
    first[list(barred_at_first)] = True
    how: dict[str, Any] = {"num_latents": num_latents, "context_length": context_length, "refill": refill}
    reader = Reader(model, **how, precision=precision, kernel=kernel) if like is None else like.another()

    def drawn() -> Iterator[list[int | None]]:
        rows = list(range(num_rows))  # those that have not ended, in the order in which they stand in the batch
        randomness = [torch.Generator().manual_seed(seed + row) for row in rows]
        grammar = None if rules is None else Grammar(rules, prime_ids, num_rows)
        held = None
        if (sampling.let_go or ending is not None) and rules is not None and seconds_of_id is not None:
            held = Held(rules, seconds_of_id, prime_ids, num_rows)
        logits = reader.read(prime_ids)
        if num_rows > 1:
            reader.select([0] * num_rows)
            logits = logits.expand(num_rows, -1)
        before = prime_ids[len(prime_ids) - num_drawn :]
        count, passed = num_drawn, [sum(seconds_of_id[id] for id in before) if seconds_of_id else 0.0] * num_rows
        limit = 1.0 if ending is None else ending.deadline
        while True:
            shares = [max(count / (length or inf), passed[row] / (seconds or inf)) for row in rows]
            out = barred.repeat(len(rows), 1) if grammar is None else grammar.barred() | barred
            if count == num_drawn:
                out = _without(out, first)
            if grammar is not None and rules is not None:
                out = _without(out, _openings(rules, grammar.is_open()))
            if ending is not None:
                waited = [0.0] * len(rows) if held is None else held.waited()
                closes = [ending.closes(*how) for how in zip(shares, waited, strict=True)]
                if rules is not None:
                    slots = torch.tensor(closes)[:, None].expand(-1, rules.num_slots)
                    out = _without(out, _openings(rules, slots))
            if logits.sum().isnan():
                raise PamusicError(
                    "the model's logits are not numbers; its training went astray, so take another checkpoint"
                )
            favoured = held.favoured(logits, sampling.let_go) if held is not None and sampling.let_go else logits
            left = favoured.masked_fill(out, BARRED)
            if end_id is not None:
                own = BARRED if end_after is None or count < end_after else 0.0
                raised = [own] * len(rows)
                if ending is not None:
                    raised = [max(own, ending.bias(*how)) for how in zip(shares, closes, strict=True)]
                left[:, end_id] += torch.tensor(raised)
            kept = filtered(left, sampling, classes)
            ids = _drawn(kept, [randomness[row] for row in rows])
            count += 1
            drawn: list[int | None] = [None] * num_rows
            going = []  # places in the batch
            for place, (row, id) in enumerate(zip(rows, ids, strict=True)):
                if id == end_id:
                    continue
                drawn[row] = id
                passed[row] += 0.0 if seconds_of_id is None else seconds_of_id[id]
                if max(count / (length or inf), passed[row] / (seconds or inf)) < limit:
                    going.append(place)
            if any(id is not None for id in drawn):
                yield drawn
            if not going:
                return
            if len(going) < len(rows):
                rows, ids = [rows[place] for place in going], [ids[place] for place in going]
                reader.select(going)
                if grammar is not None:
                    grammar.select(going)
                if held is not None:
                    held.select(going)
            for followed in (grammar, held):
                if followed is not None:
                    followed.advance(ids)
            logits = reader.step(ids)

    return drawn()


def _openings(rules: Rules, slots: Tensor) -> Tensor:
    """The ids that open some slots, `[rows, slots]` -> `[rows, vocab]`, and where those are all, what needs one."""
    ids = torch.from_numpy(rules.needs_opening) & slots.all(1, keepdim=True)
    ids[:, rules.first_opening : rules.first_opening + rules.num_slots] = slots
    return ids


def _without(barred: Tensor, more: Tensor) -> Tensor:
    """What is barred, `[rows, vocab]`, and `more`, unless nothing else may follow in a row."""
    both = barred | more
    return torch.where(both.all(1, keepdim=True), barred, both)


def _drawn(logits: Tensor, randomness: Sequence[torch.Generator]) -> list[int]:
    """One id for each row of logits `[rows, vocab]`: where a number of its randomness falls among the probabilities.

    All rows at once: one by one, 16 took 450 microseconds, and take 75 so.
    """
    summed = logits.softmax(-1).double().cumsum(-1)
    # In float32 the number is below 1 by more than a product in float64 is rounded by, so it falls on an id.
    numbers = torch.stack([torch.rand(1, generator=generator, dtype=torch.float32) for generator in randomness])
    return torch.searchsorted(summed, numbers * summed[:, -1:], right=True)[:, 0].tolist()
