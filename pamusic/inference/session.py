"""Tokens one after the other -> after each, the logits of the next one, from caches of fixed size.

Knows a model, its caches, and when latents are made anew; neither drawing nor scoring, which both read through it.

What a latent computes is kept until all N latents are in use. Then one of two things happens.

Refill: the layers forget their latents, and one parallel pass makes the last R positions latents again; there is room
for N - R more tokens (Hawthorne et al. 2022, arXiv:2202.07765, section 3.2; their code: R = N / 2; flaxformer:
R = N - 128). Every logit is then what one parallel pass with as many latents gives. R = N does so at each token: the
most that the model can see, and by far the most work. Where we differ: the cross-attention never goes stale: its keys
and values are kept, and what it gave each of the last R positions, too; only the layers run again. In a piece longer
than the context, a latent has then seen a whole context up to itself, in place of what is left of it at the refill, and
what is recalled knows a little of what has left it (`model.recall`).

Slide: the oldest latent is dropped, and a token always costs the same, which live play needs. What it carries: the keys
and values of the latents that stay were computed while older ones were alive, and are kept. So from the second layer on
a latent hears, through those that stay, of latents beyond the last N, which no training ever showed; only with one
layer or fewer are the logits those of a parallel pass. What each costs in likelihood: `evaluation/cache_drift.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from pamusic.device import has_fast_bf16
from pamusic.errors import UsageError
from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.int8 import Kernel
from pamusic.inference.precision import resolve_precision
from pamusic.inference.threads import Threads
from pamusic.inference.token_step import TokenStep
from pamusic.model.perceiver_ar import Caches, PerceiverAR

# Of a refill on a CPU, whose own caches do not hold more. A row of 512 latents of a width of 512, with 8 layers, takes
# 140 ms alone, 119 with another, 103 with three, 155 with fifteen.
ROWS_AT_ONCE = 4

REFILLS = ("half", "last-128", "slide", "all")  # those that have a name
SLIDE = 0  # as R: nothing is made anew

# Up to this width times rows one CPU thread reads: products so short are hardly worth sharing. Above it all do; but one
# row alone, whose steps are short enough to try, has as many as are the faster just then. Measured on two cores, one
# row, by PyTorch's operations: a width of 256 takes 2.4 to 3.2 ms with one thread and 2.9 to 3.0 with two.
ONE_THREAD_UP_TO = 512
ONE_ROW_UP_TO = 256  # width from which on it is tried


def refill_of(policy: str | int, num_latents: int) -> int:
    """Return R of a policy: one of `REFILLS`, or R itself, as a number or in digits.

    `half` is N / 2, `last-128` N - 128, `all` N, `slide` 0 (`SLIDE`).

    Raises:
        UsageError: there is no such policy, or it does not fit the number of latents.
    """
    named = {"half": max(1, num_latents // 2), "last-128": num_latents - 128, "slide": SLIDE, "all": num_latents}
    if policy in named:
        refill = named[str(policy)]
        if refill < 0 or (refill == 0 and policy != "slide"):
            raise UsageError(f"to refill last-128 takes more than 128 latents, not {num_latents}; take half")
        return refill
    if not str(policy).isdecimal():
        raise UsageError(f"refill is {', '.join(REFILLS)} or a number, not {policy!r}")
    if not 1 <= int(policy) <= num_latents:
        raise UsageError(f"refill is 1 to num_latents ({num_latents}), not {policy}")
    return int(policy)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How much is computed for a token, and in which precision.

    Attributes:
        context_length: how many tokens are seen; the model's own by default.
        num_latents: N, the most positions worked on at a time; the model's own by default.
        refill: what happens when N latents are in use, as for `refill_of`.
        precision: of the weights, one of `inference.precision`; fp32 takes them as the model has them. Any other
            computes latents anew in bfloat16, where the device multiplies that.
    """

    context_length: int | None = None
    num_latents: int | None = None
    refill: str | int = "half"
    precision: str = "fp32"


class InferenceSession:
    """Reads tokens one after the other and gives the logits of the next one after each; one row, or many at once."""

    def __init__(
        self, model: PerceiverAR, inference: InferenceConfig = InferenceConfig(), kernel: Kernel | None = None
    ) -> None:
        """Begin with one row.

        Args:
            model: in evaluation mode.
            inference: how much is computed.
            kernel: computes the blocks of a step, where weights are in bytes.

        Raises:
            UsageError: more latents than context, or no such refill or precision.
        """
        assert not model.training, "dropout would spoil the caches: model.eval() first"
        config = model.config.resized(context_length=inference.context_length, num_latents=inference.num_latents)
        self.num_latents, self.context_length = config.num_latents, config.context_length
        self.vocab_size = config.vocab_size
        self.refill = refill_of(inference.refill, config.num_latents)
        # Sliding moves what stays to the front of a cache when that is full: once in so many tokens.
        self._headroom = max(64, config.num_latents // 4) if self.refill == SLIDE else 0
        device = model.head.weight.device
        precision = resolve_precision(inference.precision, device, kernel is not None)
        is_halved = precision != "fp32" and has_fast_bf16(device)
        self._parallel = deepcopy(model).to(torch.bfloat16) if is_halved else model
        self._stepper = (
            CudaGraphStep(model, precision)
            if device.type == "cuda"
            else TokenStep(model, precision, kernel if precision == "int8" else None)
        )
        self.device, self._dtype, self._width = device, model.head.weight.dtype, config.d_model
        self._chooser = Threads()
        self._begin()

    def fork(self) -> InferenceSession:
        """Return one that has read nothing yet, of the same settings and the very same weights: they are held once."""
        other = copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self.caches = self._stepper.new_caches(1, self.num_latents, self.context_length, headroom=self._headroom)
        self._recent: deque[Tensor] = deque(maxlen=self.refill)  # `[rows, d]` each: with what a refill begins

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> Tensor:
        """Return logits `[rows, vocab]`, float32, after the first ids, of which the last `context_length` are read.

        The last R positions become latents; where the policy is to slide, the last N.
        """
        tokens = torch.tensor([list(map(int, ids[-self.context_length :]))]).to(self.device)
        self._stepper.read(tokens, self.caches)
        latents = self._parallel.latents(tokens[:, -(self.refill or self.num_latents) :], self.caches)
        self._recent.extend(latents.to(self._dtype).unbind(1))
        return self._refill(latents)

    @torch.inference_mode()
    def step(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Return logits `[rows, vocab]`, float32, after one more id in each row; the next call may overwrite them."""
        tokens = torch.as_tensor(ids).to(self.device)
        if self.refill != SLIDE and self.caches.num_latents == self.num_latents:
            self._recent.append(self._stepper.latents(tokens, self.caches))
            for cache in self.caches.layers:
                cache.clear()
            return self._refill(torch.stack(list(self._recent), dim=1))
        with self._threads(len(ids)):
            latents = self._stepper.latents(tokens, self.caches)
            self._recent.append(latents)
            return self._stepper.logits(latents, self.caches).to(torch.float32)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows: `[0] * n` makes `n` of one that was read, leaving some out finishes them."""
        index = torch.tensor(rows).to(self.device)
        self.caches.select(index)
        self._recent = deque((latents[index] for latents in self._recent), maxlen=self.refill)

    def _refill(self, latents: Tensor) -> Tensor:
        """Logits `[rows, vocab]` after the last of `[rows, n, d]`, which the layers take in one parallel pass."""
        latents = latents.to(self._parallel.head.weight.dtype)
        at_once = ROWS_AT_ONCE if self.device.type == "cpu" else len(latents)
        logits = []
        for first in range(0, len(latents), at_once):
            rows = slice(first, first + at_once)
            layers = [cache.rows(rows) for cache in self.caches.layers]
            memory = None if self.caches.memory is None else self.caches.memory.rows(rows)
            caches = Caches(self.caches.cross, layers, self.caches.position, memory=memory)
            logits.append(self._parallel.logits(latents[rows], caches, last_only=True)[:, 0])
        for cache in self.caches.layers:
            cache.advance(latents.shape[1])
        return torch.cat(logits).to(torch.float32)

    @contextmanager
    def _threads(self, num_rows: int) -> Iterator[None]:
        """Let torch use as many CPU threads meanwhile as pay."""
        if num_rows == 1 and self._width > ONE_ROW_UP_TO:
            with self._chooser.chosen():
                yield
            return
        before = torch.get_num_threads()
        if self._width * num_rows <= ONE_THREAD_UP_TO:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
