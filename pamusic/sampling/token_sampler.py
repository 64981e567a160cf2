"""Draw the next id of each row from logits, without reading any value on the host.

Knows numbers: forbidden ids, the grammar, biases on closings and on the end, the filters, and random numbers of each
row. All state stands in tensors on one device. So a CUDA graph can record a draw once and replay it, like a decode step
(`inference.cuda_graph`), and the host need not wait for the drawn ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pamusic.inference.cuda_graph import capture
from pamusic.inference.prediction import Prediction
from pamusic.sampling.constraints import PrimeTokens, TokenConstraints
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.ending import FORBIDDEN, EndingTracker
from pamusic.sampling.filters import apply_filters
from pamusic.sampling.grammar_state import Grammar
from pamusic.sampling.release_bias import ReleaseBias

NON_FINITE = -1  # stands for an id if the logits are not numbers
RANDOM_BLOCK = 256  # random numbers per row to generate at a time

Record = Callable[[Callable[[], Tensor], torch.device, Sequence[Tensor]], Callable[[], Tensor]]


class TokenSampler:
    """A sampler for rows with the same prime, each with its own random numbers."""

    def __init__(
        self,
        prime: PrimeTokens,
        decoding: DecodingConfig,
        *,
        vocab_size: int,
        seed: int,
        num_rows: int = 1,
        device: torch.device | str = "cpu",
        record: Record = capture,
    ) -> None:
        """Begin after a prime.

        Args:
            prime: Ids that the rows continue.
            decoding: Settings of decoding.
            vocab_size: Number of ids.
            seed: Seed of the first row; row `i` has `seed + i`.
            num_rows: Number of rows.
            device: Device of all tensors; it must support float64.
            record: Function that records a computation and returns a function that replays it.

        Raises:
            UsageError: All ids are forbidden, or the constraints belong to another vocabulary.
        """
        self._device = torch.device(device)
        constraints = decoding.constraints
        assert isinstance(constraints, TokenConstraints)
        self._constraints, self._sampling, self._stop = constraints, decoding.sampling, decoding.stop
        self._record = record
        self._randomness = [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]
        self._num_drawn, self._num_left = prime.num_resumed, 0  # ids, and random numbers
        self._forbidden = constraints.forbidden(vocab_size).to(self._device)
        # The end is forbidden until it is allowed; `_end_forbidden` keeps its own state until then.
        self._end_forbidden: Tensor | None = None
        if constraints.end_id is not None and self._stop.ending is None:
            self._end_forbidden = self._forbidden[constraints.end_id].clone()
            self._forbidden[constraints.end_id] = True
        self._end_may_come = False
        self._at_first: Tensor | None = None
        if prime.forbidden_next:
            self._at_first = torch.zeros(vocab_size, dtype=torch.bool)
            self._at_first[list(prime.forbidden_next)] = True
            self._at_first = self._at_first.to(self._device)
        self._classes: Tensor | None = None
        if constraints.class_of_id is not None:
            self._classes = torch.as_tensor(constraints.class_of_id).to(self._device, torch.int64)
        self._end_bias = torch.tensor([FORBIDDEN], device=self._device)
        self._numbers = torch.zeros(num_rows, RANDOM_BLOCK, device=self._device)
        self._place = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._follow(prime, vocab_size, num_rows)
        self._logits: Tensor | None = None
        self._play: Callable[[], Tensor] | None = None

    def _follow(self, prime: PrimeTokens, vocab_size: int, num_rows: int) -> None:
        """Create the grammar, release bias and ending that track the ids of each row."""
        constraints, device = self._constraints, self._device
        self._grammar: Grammar | None = None
        self._release_bias: ReleaseBias | None = None
        self._ending: EndingTracker | None = None
        if constraints.grammar is not None:
            self._needs_opening = torch.from_numpy(constraints.grammar.needs_opening).to(device)
            self._grammar = Grammar(constraints.grammar, prime.tokens, num_rows, device)
            if constraints.seconds_of_id is not None and self._sampling.release_bias:
                self._release_bias = ReleaseBias(
                    constraints.grammar, constraints.seconds_of_id, prime.tokens, num_rows, device
                )
        if self._stop.ending is not None:
            self._ending = EndingTracker(
                prime, constraints, self._stop, vocab_size=vocab_size, num_rows=num_rows, device=device
            )

    @torch.inference_mode()
    def sample(self, logits: Prediction) -> Tensor:
        """Return the next ids, `[rows]`, int64, with `NON_FINITE` where logits are not numbers.

        On CUDA, the next call overwrites the result.

        Args:
            logits: `[rows, vocab]`, float, on any device.
        """
        assert isinstance(logits, Tensor)
        if not self._num_left:
            numbers = [torch.rand(RANDOM_BLOCK, generator=each, dtype=torch.float32) for each in self._randomness]
            self._numbers.copy_(torch.stack(numbers))
            self._place.zero_()
            self._num_left = RANDOM_BLOCK
        self._let_end_come()
        self._num_left -= 1
        self._num_drawn += 1
        logits = logits.to(self._device)
        self._logits = logits.clone() if self._logits is None else self._logits.copy_(logits)
        if self._at_first is not None:
            ids, self._at_first = self._sample(self._at_first), None
            return ids
        if self._play is None:
            self._play = self._record(self._sample, self._device, self._changing())
        return self._play()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows; there must be more than one."""
        index = torch.tensor(rows, device=self._device)
        self._randomness = [self._randomness[row] for row in rows]
        self._numbers = self._numbers[index]
        for follower in self._followers():
            follower.select(index)
        self._logits = self._play = None

    def _let_end_come(self) -> None:
        """Allow the end once enough ids are drawn, in the tensors that a recorded draw reads."""
        least = self._stop.min_tokens_before_end
        if self._end_may_come or least is None or self._num_drawn < least:
            return
        self._end_may_come = True
        self._end_bias.zero_()
        if self._end_forbidden is not None and self._constraints.end_id is not None:
            self._forbidden[self._constraints.end_id] = self._end_forbidden

    def _changing(self) -> list[Tensor]:
        """Return the tensors that a draw changes."""
        states = (state for each in self._followers() for state in each.states())
        return [self._place, *states]

    def _followers(self) -> list[Grammar | ReleaseBias | EndingTracker]:
        """Return the grammar, release bias and ending, as far as they exist."""
        return [each for each in (self._grammar, self._release_bias, self._ending) if each is not None]

    def _sample(self, at_first: Tensor | None = None) -> Tensor:
        """Draw once. Without `at_first`, ids `[vocab]` that are forbidden only this time, a draw can be recorded."""
        assert self._logits is not None
        logits, ending, end_id = self._logits, self._ending, self._constraints.end_id
        forbidden = self._forbidden.expand(len(logits), -1)
        forbidden = forbidden.clone() if self._grammar is None else forbidden | self._grammar.forbidden()
        if ending is not None:
            state = ending.state(None if self._grammar is None else self._grammar.is_silent())
            end_bias = torch.maximum(self._end_bias, ending.end_bias(state))
            forbidden[:, end_id] |= end_bias == FORBIDDEN
        if at_first is not None:
            forbidden = _unless_all(forbidden, at_first)
        is_open: Tensor | None = None
        if self._grammar is not None:
            is_open = self._grammar.is_open()
            forbidden = _unless_all(forbidden, self._openings(is_open))
        if ending is not None:
            if self._grammar is not None and is_open is not None:
                closes = state.closes[:, None]
                new = self._openings(closes.expand_as(is_open)) | (self._grammar.raises_pedal() & closes)
                forbidden = _unless_all(forbidden, new)
            forbidden = _unless_all(forbidden, ending.forbid_short_waits(state, is_open))
        biased = logits
        if self._release_bias is not None and is_open is not None:
            biased = self._release_bias.apply_bias(logits, self._sampling.release_bias, is_open)
        left = biased.masked_fill(forbidden, FORBIDDEN)
        if ending is not None:
            left = ending.penalize_waiting(left, state)
            left[:, end_id] += end_bias
        kept = apply_filters(left, self._sampling, self._classes)
        ids = inverse_cdf(kept, self._numbers.index_select(1, self._place))
        if ending is not None:
            ids = ending.override(ids, state)
        self._place += 1
        for follower in self._followers():
            follower.advance(ids)
        return ids.masked_fill(logits.sum(-1).isnan(), NON_FINITE)

    def _openings(self, slots: Tensor) -> Tensor:
        """Return the ids that open these slots, `[rows, slots]` to `[rows, vocab]`.

        For all slots, this includes the ids that need an opening.
        """
        grammar = self._constraints.grammar
        assert grammar is not None
        ids = self._needs_opening & slots.all(1, keepdim=True)
        ids[:, grammar.slots.openings] = slots
        return ids


def inverse_cdf(logits: Tensor, numbers: Tensor) -> Tensor:
    """Draw one id for each row of logits `[rows, vocab]` by inverting the CDF at numbers below 1, `[rows, 1]`."""
    summed = logits.softmax(-1).double().cumsum(-1)
    # A float32 number below 1 is further from 1 than the rounding error of the float64 product, so it falls on an id.
    ids = torch.searchsorted(summed, numbers * summed[:, -1:], right=True)[:, 0]
    return ids.clamp(max=logits.shape[-1] - 1)  # after an end nothing may follow; the id is unused


def _unless_all(forbidden: Tensor, more: Tensor) -> Tensor:
    """Return the union of two masks `[rows, vocab]`, or only the first in rows where the union would forbid all."""
    both = forbidden | more
    return torch.where(both.all(1, keepdim=True), forbidden, both)
