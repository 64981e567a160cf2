"""Prime ids -> more ids, one at a time, for as long as one likes.

Knows a model and who reads for it (`model.reader`); never what the ids mean: which ids are barred, by what rules others
are, which one ends a piece, and how many seconds pass with each comes from the caller. Memory and time per token do not
grow with what was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.filters import filtered
from pamusic.generation.grammar import Row, Rules
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.reader import Reader


def generate(
    model: PerceiverAR,
    prime_ids: Sequence[int],
    *,
    seed: int,
    length: int | None = None,
    seconds: float | None = None,
    seconds_of_id: Sequence[float] | None = None,
    sampling: SamplingConfig | None = None,
    barred_ids: Iterable[int] = (),
    rules: Rules | None = None,
    end_id: int | None = None,
    end_after: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    refill: str | int = "half",
) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is drawn. The same arguments give the same ids.

    Args:
        model: in evaluation mode.
        prime_ids: at least one; the last `context_length` of them are read.
        seed: of the draws.
        length: how many ids to yield at most; without it and without `seconds`, there is no end.
        seconds: stops after the id with which this many have passed.
        seconds_of_id: `[vocab]`, seconds that pass with each id; needed for `seconds`.
        sampling: how an id is drawn.
        barred_ids: are never drawn.
        rules: of what may follow what, the prime's ids first, which are followed even where they break them.
        end_id: ends the piece, and is not yielded itself.
        end_after: how many ids must precede the end; None bars it.
        num_latents: N, the most positions worked on at a time; the configuration's by default.
        context_length: how many tokens are seen; the configuration's by default.
        refill: how many of the last positions become latents when N are in use: one of `REFILLS`, or a number.

    Raises:
        ValueError: the arguments do not fit together.
        PamusicError: while drawing: the model's logits are not numbers.
    """
    if not len(prime_ids):
        raise ValueError("a prime has at least one token: the start token")
    if length is not None and length < 1:
        raise ValueError(f"length is 1 or more, not {length}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is above 0, not {seconds}")
    if seconds is not None and seconds_of_id is None:
        raise ValueError("to stop after some seconds, seconds_of_id must be given")
    barred = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    barred[list(barred_ids)] = True
    if (barred.sum() + (end_id is not None and not barred[end_id])) == len(barred):
        raise ValueError("every id is barred")
    if rules is not None and len(rules.column_of_id) != len(barred):
        raise ValueError(f"the rules are for {len(rules.column_of_id)} ids, the model has {len(barred)}")
    reader = Reader(model, num_latents=num_latents, context_length=context_length, refill=refill)

    def drawn() -> Iterator[int]:
        randomness = torch.Generator().manual_seed(seed)
        (logits,) = reader.read(prime_ids)
        row = Row(rules) if rules is not None else None
        if row is not None:
            row.advance(prime_ids)
        count, passed = 0, 0.0
        while True:
            out = barred.clone() if row is None else row.barred().logical_or_(barred)
            if end_id is not None and (end_after is None or count < end_after):
                out[end_id] = True
            id = _draw(logits, out, sampling or SamplingConfig(), randomness)
            if id == end_id:
                return
            yield id
            if row is not None:
                row.advance((id,))
            count += 1
            if seconds is not None and seconds_of_id is not None:
                passed += seconds_of_id[id]
                if passed >= seconds:
                    return
            if count == length:
                return
            (logits,) = reader.step([id])

    return drawn()


@torch.inference_mode()
def _draw(logits: Tensor, barred: Tensor, sampling: SamplingConfig, randomness: torch.Generator) -> int:
    if logits.sum().isnan():
        raise PamusicError("the model's logits are not numbers; its training went astray, so take another checkpoint")
    logits = filtered(logits.masked_fill(barred, float("-inf"))[None], sampling)
    return int(torch.multinomial(logits.softmax(-1)[0], 1, generator=randomness))
