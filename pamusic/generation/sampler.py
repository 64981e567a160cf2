"""Prime ids -> more ids, one at a time, for as long as one likes.

Knows a model and its caches; never what the ids mean: which ids are barred, by what rules others are, which one ends a
piece, and how many seconds pass with each comes from the caller. Memory and time per token do not grow with what was
sampled.

What a latent computes is kept until all N latents are in use. Then the layers forget them, and one parallel pass makes
the last R positions latents again; there is room for N - R more tokens (Hawthorne et al. 2022, section 3.2 and their
code: R = N / 2). Where we differ: the keys and values of the cross-attention never go stale, so a refill keeps them.
Dropping the oldest latent instead would be cheaper, but those that stay would carry what they had learned from it,
which no training ever showed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.filters import filtered
from pamusic.generation.grammar import Row, Rules
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.stepper import Stepper

# Up to this width one CPU thread reads: products so short are hardly worth sharing. Measured for a width of 256 on two
# cores: a step takes 4.0 ms, against 14 if it waits for a second thread while another program has one of the cores.
ONE_THREAD_UP_TO = 512


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
    barred_at_first: Iterable[int] = (),
    rules: Rules | None = None,
    end_id: int | None = None,
    end_after: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    refill: int | None = None,
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
        barred_at_first: are not drawn first.
        rules: of what may follow what, the prime's ids first, which are followed even where they break them.
        end_id: ends the piece, and is not yielded itself.
        end_after: how many ids must precede the end; None bars it.
        num_latents: N, the most positions worked on at a time; the configuration's by default.
        context_length: how many tokens are seen; the configuration's by default.
        refill: R, how many of the last positions become latents when N are in use; N / 2 by default.

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
    first = list(barred_at_first)

    def drawn() -> Iterator[int]:
        randomness = torch.Generator().manual_seed(seed)
        logits = reader.read(prime_ids)
        row = Row(rules) if rules is not None else None
        if row is not None:
            row.advance(prime_ids)
        count, passed = 0, 0.0
        while True:
            out = barred.clone() if row is None else row.barred().logical_or_(barred)
            if count == 0:
                out[first] = True
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
            logits = reader.step(id)

    return drawn()


class Reader:
    """Reads tokens one after the other and knows after each the logits of the next one."""

    def __init__(
        self,
        model: PerceiverAR,
        *,
        num_latents: int | None = None,
        context_length: int | None = None,
        refill: int | None = None,
    ) -> None:
        """The arguments are those of `generate`.

        Raises:
            ValueError: more latents than context, or more to refill than latents.
        """
        assert not model.training, "dropout would spoil the caches: model.eval() first"
        config = model.config.resized(context_length=context_length, num_latents=num_latents)
        if refill is None:
            refill = max(1, config.num_latents // 2)
        if not 1 <= refill <= config.num_latents:
            raise ValueError(f"refill is 1 to num_latents ({config.num_latents}), not {refill}")
        self.num_latents, self.context_length, self.refill = config.num_latents, config.context_length, refill
        self.caches = model.new_caches(1, config.num_latents, config.context_length)
        self._model, self._stepper = model, Stepper(model)
        self._recent: deque[int] = deque(maxlen=refill)  # what a refill works on
        self._num_threads = 1 if config.d_model <= ONE_THREAD_UP_TO else torch.get_num_threads()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Logits `[vocab]`, float32 on the CPU, after the first ids, of which the last `context_length` are read."""
        ids = [int(id) for id in ids[-self.context_length :]]
        self._recent.extend(ids)
        with _threads(self._num_threads):
            self._model.read(self._row(ids), self.caches)
            return self._refilled()

    @torch.inference_mode()
    def step(self, id: int) -> Tensor:
        """Logits `[vocab]`, float32 on the CPU, after one more id."""
        self._recent.append(id)
        with _threads(self._num_threads):
            if self.caches.num_latents < self.num_latents:
                return _to_cpu(self._stepper(self._row([id])[0], self.caches))
            self._model.read(self._row([id]), self.caches)
            return self._refilled()

    def _refilled(self) -> Tensor:
        """Makes the last positions latents, in one parallel pass, in place of those that were."""
        for cache in self.caches.layers:
            cache.clear()
        return _to_cpu(self._model.extend(self._row(self._recent), self.caches)[:, -1])

    def _row(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self._model.head.weight.device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Lets torch use this many CPU threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _to_cpu(logits: Tensor) -> Tensor:
    return logits[0].to("cpu", torch.float32)


@torch.inference_mode()
def _draw(logits: Tensor, barred: Tensor, sampling: SamplingConfig, randomness: torch.Generator) -> int:
    if logits.sum().isnan():
        raise PamusicError("the model's logits are not numbers; its training went astray, so take another checkpoint")
    logits = filtered(logits.masked_fill(barred, float("-inf"))[None], sampling)
    return int(torch.multinomial(logits.softmax(-1)[0], 1, generator=randomness))
