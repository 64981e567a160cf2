"""Read tokens one after the other, and return the logits of the next one after each, from caches of fixed size.

Knows a model, its caches, and the refill of latents; neither drawing nor scoring, which both read through a session.
What follows is about Perceiver AR. In a Transformer, all positions of the context are latents in this sense: when they
fill the context, the layers run again without the oldest N - R. A Transformer-XL carries its caches along and needs no
refill. Both compute with PyTorch's own operations (`inference.plain_step`).

The keys and values of latents are cached until all N latents are in use. Then there are two policies.

Refill: the layers clear their caches, and one parallel pass makes the last R positions latents again. N - R more tokens
can follow (Hawthorne et al. 2022, arXiv:2202.07765, section 3.2; their code: R = N / 2; flaxformer: R = N - 128). Every
logit then equals the logit of one parallel pass with as many latents. R = N refills at each token: it uses the most
latents, but takes by far the most work. Our difference: the cross-attention is not recomputed. Its keys and values, and
its output at the last R positions, are kept; only the layers run again. In a piece longer than the context, a latent
has thus seen a whole context up to itself, not only the part that is left at the refill. Recall also keeps a little
that has left the context (`model.recall`).

Slide: the oldest latent is dropped, and every token costs the same, as live play needs. But the keys and values of the
remaining latents were computed while older latents were visible. So from the second layer on, a latent indirectly sees
latents beyond the last N, which never happens in training. Only with at most one layer do the logits equal those of a
parallel pass. The cost of both in likelihood is measured by `evaluation/cache_drift.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pamusic.device import has_fast_bf16
from pamusic.errors import UsageError
from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.field_step import FieldStep
from pamusic.inference.int8 import Kernel
from pamusic.inference.plain_step import PlainStep
from pamusic.inference.precision import resolve_precision
from pamusic.inference.prediction import FieldPrediction, Prediction
from pamusic.inference.threads import Threads
from pamusic.inference.token_step import TokenStep
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.sequence_model import SequenceModel

# Rows of a refill at once on a CPU, limited by its caches. With 512 latents, a width of 512 and 8 layers, a row takes
# 140 ms alone, 119 ms with one other row, 103 ms with three, 155 ms with fifteen.
ROWS_AT_ONCE = 4

REFILLS = ("half", "last-128", "slide", "all")  # policies with a name
SLIDE = 0  # the R of sliding: no latent is recomputed

# Up to this product of width and rows, a step uses one CPU thread: its products are too short to share. Above it, a
# step uses all threads, except that `Threads` measures the best number for a single row. Measured on two cores with one
# row and PyTorch's operations: a width of 256 takes 2.4 to 3.2 ms with one thread and 2.9 to 3.0 ms with two.
ONE_THREAD_UP_TO = 512
ONE_ROW_UP_TO = 256  # width up to which a single row uses one thread without measuring


def refill_of(policy: str | int, num_latents: int) -> int:
    """Return R for a policy: one of `REFILLS`, or R itself as a number or in digits.

    `half` is N / 2, `last-128` N - 128, `all` N, `slide` 0 (`SLIDE`).

    Raises:
        UsageError: The policy is unknown, or does not fit the number of latents.
    """
    named = {"half": max(1, num_latents // 2), "last-128": num_latents - 128, "slide": SLIDE, "all": num_latents}
    if policy in named:
        refill = named[str(policy)]
        if refill < 0 or (refill == 0 and policy != "slide"):
            raise UsageError(f"refill last-128 needs more than 128 latents, got {num_latents}; use half")
        return refill
    if not str(policy).isdecimal():
        raise UsageError(f"refill must be {', '.join(REFILLS)} or a number, got {policy!r}")
    if not 1 <= int(policy) <= num_latents:
        raise UsageError(f"refill must be between 1 and num_latents ({num_latents}), got {policy}")
    return int(policy)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Settings of inference: the amount of computation per token, and its precision.

    Attributes:
        context_length: Number of tokens that the model sees; the model's own by default.
        num_latents: Largest number N of latents; the model's own by default.
        refill: Policy when N latents are in use, as for `refill_of`.
        precision: Precision of the weights, one of `inference.precision`; fp32 leaves them unchanged. Any other also
            refills in bfloat16, if the device multiplies that fast.
    """

    context_length: int | None = None
    num_latents: int | None = None
    refill: str | int = "half"
    precision: str = "fp32"


class InferenceSession:
    """A session that reads tokens one after the other and returns the next logits after each, for one row or many."""

    def __init__(
        self, model: SequenceModel, inference: InferenceConfig = InferenceConfig(), kernel: Kernel | None = None
    ) -> None:
        """Begin with one row.

        Args:
            model: Model in evaluation mode.
            inference: Settings.
            kernel: Kernel that computes the blocks of a step if the weights are int8.

        Raises:
            UsageError: There are more latents than context, or the refill or precision is unknown.
        """
        assert not model.training, "dropout would spoil the caches: model.eval() first"
        config = model.config.resized(context_length=inference.context_length, num_latents=inference.num_latents)
        self.context_length, self.vocab_size = config.context_length, config.vocab_size
        held, refill = model.num_held(config), refill_of(inference.refill, config.num_latents)
        self.num_latents = config.context_length if held is None else held
        is_sliding = held is None or refill == SLIDE
        self.refill = SLIDE if is_sliding else refill + self.num_latents - config.num_latents
        self._segment = config.num_latents
        # When a cache is full, sliding moves the remaining latents to its front: once in this many tokens.
        self._headroom = max(64, config.num_latents // 4) if self.refill == SLIDE else 0
        device = model.head.weight.device
        precision = resolve_precision(inference.precision, device, kernel is not None, config.architecture)
        is_halved = precision != "fp32" and has_fast_bf16(device)
        self._parallel = deepcopy(model).to(torch.bfloat16) if is_halved else model
        self._model = model
        self._stepper: TokenStep | FieldStep | PlainStep
        if not isinstance(model, PerceiverAR):
            self._stepper = PlainStep(self._parallel, model.fields, model.head.weight)
        elif model.fields is not None:
            self._stepper = FieldStep(model, precision, kernel if precision == "int8" else None)
        elif device.type == "cuda":
            self._stepper = CudaGraphStep(model, precision)
        else:
            self._stepper = TokenStep(model, precision, kernel if precision == "int8" else None)
        self.device, self._dtype, self._width = device, model.head.weight.dtype, config.d_model
        self._chooser = Threads()
        self._begin()

    def fork(self) -> InferenceSession:
        """Return a session with the same settings that has read nothing yet; it shares the weights."""
        other = copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self.caches = self._stepper.new_caches(1, self._segment, self.context_length, headroom=self._headroom)
        self._recent: deque[Tensor] = deque(maxlen=self.refill)  # input of a refill, `[rows, d]` each

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int | list[int]]) -> Prediction:
        """Read the last `context_length` of the first ids and return the next logits, `[rows, vocab]`, float32.

        Where a position has several ids, these are lists, and the result is a `FieldPrediction`. The last R positions
        become latents, or the last N with the policy `slide`.
        """
        tokens = torch.from_numpy(np.array([ids[-self.context_length :]], np.int64)).to(self.device)
        self._stepper.read(tokens, self.caches)
        latents = self._parallel.latents(tokens[:, -(self.refill or self.num_latents) :], self.caches)
        self._recent.extend(latents.to(self._dtype).unbind(1))
        return self._refill(latents)

    @torch.inference_mode()
    def step(self, ids: Sequence[int] | Tensor) -> Prediction:
        """Read one more id, or position, in each row and return the next logits like `prefill`.

        The next call may overwrite the result.
        """
        tokens = torch.as_tensor(ids).to(self.device)
        if self.refill != SLIDE and self.caches.num_latents == self.num_latents:
            self._recent.append(self._stepper.latents(tokens, self.caches))
            for cache in self.caches.layers:
                cache.clear()
            return self._refill(torch.stack(list(self._recent), dim=1))
        with self._threads(len(ids)):
            latents = self._stepper.latents(tokens, self.caches)
            self._recent.append(latents)
            if self._model.fields is not None:
                assert not isinstance(self._stepper, TokenStep)
                return self._of_fields(self._stepper.states(latents, self.caches))
            assert not isinstance(self._stepper, FieldStep)
            return self._stepper.logits(latents, self.caches).to(torch.float32)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows: `[0] * n` makes `n` copies of a single row, and rows left out are finished."""
        index = torch.tensor(rows).to(self.device)
        self.caches.select(index)
        self._recent = deque((latents[index] for latents in self._recent), maxlen=self.refill)

    def _of_fields(self, states: Tensor) -> FieldPrediction:
        """Return the prediction of a position with several fields from the layers' output `[rows, d]`."""
        assert not isinstance(self._stepper, TokenStep)
        hints = self._model.hints(self.caches.visible_ids(), 1).changed(lambda hint: hint[:, 0])
        return FieldPrediction(states.to(self._dtype), hints, self._stepper.heads, self._model.head.weight)

    def _refill(self, latents: Tensor) -> Prediction:
        """Run the layers on latents `[rows, n, d]` in one parallel pass; return the last logits like `prefill`."""
        latents = latents.to(self._parallel.head.weight.dtype)
        at_once = ROWS_AT_ONCE if self.device.type == "cpu" else len(latents)
        predict = self._parallel.logits if self._model.fields is None else self._parallel.states
        predicted = []
        for first in range(0, len(latents), at_once):
            rows = slice(first, first + at_once)
            caches = self.caches.rows(rows)
            predicted.append(predict(latents[rows], caches, last_only=True)[:, 0])
        for cache, filled in zip(self.caches.layers, caches.layers, strict=True):
            cache.follow(filled)
        together = torch.cat(predicted)
        return together.to(torch.float32) if self._model.fields is None else self._of_fields(together)

    @contextmanager
    def _threads(self, num_rows: int) -> Iterator[None]:
        """Set the number of CPU threads that suits a step, for the duration of the context."""
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
