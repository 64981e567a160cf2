"""Logits -> the next id of each row, token after token, without a look at any number: what is drawn stays where it is.

Knows numbers: which ids are forbidden, always or by a grammar, how much closings and the end are raised, what the
filters leave, and where a number of each row's own randomness falls in that. All that changes from token to token
stands in tensors on one device, so a CUDA card records a draw once and plays it again, as it does a step
(`inference.cuda_graph`), and nobody waits for it to say what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pamusic.errors import UsageError
from pamusic.inference.cuda_graph import capture
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Grammar, PrimeTokens, TokenConstraints
from pamusic.sampling.ending import FORBIDDEN, EndingTracker, StopCondition
from pamusic.sampling.filters import apply_filters
from pamusic.sampling.release_bias import ReleaseBias

NON_FINITE = -1  # in place of an id: the logits were not numbers
RANDOM_BLOCK = 256  # random numbers, for each row, that are made at a time

Record = Callable[[Callable[[], Tensor], torch.device, Sequence[Tensor]], Callable[[], Tensor]]


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How ids are chosen, and for how long.

    Attributes:
        constraints: what the vocabulary allows.
        sampling: how an id is drawn from what is allowed.
        stop: when a row ends.

    Raises:
        UsageError: there is an ending, and no id for it.
    """

    constraints: TokenConstraints = TokenConstraints()
    sampling: SamplingConfig = SamplingConfig()
    stop: StopCondition = StopCondition()

    def __post_init__(self) -> None:
        if self.stop.seconds is not None and self.constraints.seconds_of_id is None:
            raise UsageError("to stop after some seconds, seconds_of_id must be given")
        if self.stop.ending is not None and self.constraints.end_id is None:
            raise UsageError("to bring a piece to a close, end_id must be given")


class TokenSampler:
    """Draws ids for some rows, which all follow the same prime; each row has randomness of its own."""

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
            prime: what comes before.
            decoding: how ids are chosen.
            vocab_size: how many there are.
            seed: of the randomness of the first row; that of row `i` has `seed + i`.
            num_rows: how many rows follow the prime.
            device: where all of it is done; one that knows float64.
            record: makes of a piece of work what plays it again.

        Raises:
            UsageError: every id is forbidden, or the constraints are of another vocabulary.
        """
        self._device = torch.device(device)
        self._constraints, self._sampling, self._stop = decoding.constraints, decoding.sampling, decoding.stop
        self._record = record
        self._randomness = [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]
        self._num_drawn, self._num_left = prime.num_resumed, 0  # ids, and random numbers
        constraints = decoding.constraints
        self._forbidden = constraints.forbidden(vocab_size).to(self._device)
        # Before the end may come it is forbidden in addition; whether it is by itself, for when it may.
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
        """Make those that follow the ids of each row."""
        constraints, device = self._constraints, self._device
        self._grammar: Grammar | None = None
        self._release_bias: ReleaseBias | None = None
        self._ending: EndingTracker | None = None
        if constraints.grammar is not None:
            self._needs_opening = torch.from_numpy(constraints.grammar.needs_opening).to(device)
            self._grammar = Grammar(constraints.grammar, prime.ids, num_rows, device)
            if constraints.seconds_of_id is not None and self._sampling.release_bias:
                self._release_bias = ReleaseBias(
                    constraints.grammar, constraints.seconds_of_id, prime.ids, num_rows, device
                )
        if self._stop.ending is not None:
            self._ending = EndingTracker(
                prime, constraints, self._stop, vocab_size=vocab_size, num_rows=num_rows, device=device
            )

    @torch.inference_mode()
    def sample(self, logits: Tensor) -> Tensor:
        """Return the ids that follow, `[rows]`, int64, `NON_FINITE` where logits are not numbers.

        On CUDA the next call overwrites what it gives.

        Args:
            logits: `[rows, vocab]`, float, on any device.
        """
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
        """Go on with these rows of more than one."""
        index = torch.tensor(rows, device=self._device)
        self._randomness = [self._randomness[row] for row in rows]
        self._numbers = self._numbers[index]
        for follower in self._followers():
            follower.select(index)
        self._logits = self._play = None

    def _let_end_come(self) -> None:
        """Allow the end from its place on, in the tensors that a recorded draw reads."""
        least = self._stop.min_tokens_before_end
        if self._end_may_come or least is None or self._num_drawn < least:
            return
        self._end_may_come = True
        self._end_bias.zero_()
        if self._end_forbidden is not None and self._constraints.end_id is not None:
            self._forbidden[self._constraints.end_id] = self._end_forbidden

    def _changing(self) -> list[Tensor]:
        """Return what another draw changes."""
        states = (state for each in self._followers() for state in each.states())
        return [self._place, *states]

    def _followers(self) -> list[Grammar | ReleaseBias | EndingTracker]:
        """Return those who follow the ids of each row."""
        return [each for each in (self._grammar, self._release_bias, self._ending) if each is not None]

    def _sample(self, at_first: Tensor | None = None) -> Tensor:
        """Draw once; recorded where it is without `at_first`: ids, `[vocab]`, that are forbidden in addition, once."""
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
        """Return the ids that open slots, `[rows, slots]` -> `[rows, vocab]`; of all slots, also what needs one."""
        grammar = self._constraints.grammar
        assert grammar is not None
        ids = self._needs_opening & slots.all(1, keepdim=True)
        ids[:, grammar.slots.openings] = slots
        return ids


def inverse_cdf(logits: Tensor, numbers: Tensor) -> Tensor:
    """Return one id for each row of logits `[rows, vocab]`: where a number below 1, `[rows, 1]`, falls."""
    summed = logits.softmax(-1).double().cumsum(-1)
    # In float32 the number is below 1 by more than a product in float64 is rounded by, so it falls on an id.
    ids = torch.searchsorted(summed, numbers * summed[:, -1:], right=True)[:, 0]
    return ids.clamp(max=logits.shape[-1] - 1)  # where nothing may follow, as after an end: it is not looked at


def _unless_all(forbidden: Tensor, more: Tensor) -> Tensor:
    """Return what is forbidden, `[rows, vocab]`, and `more`, unless nothing else may follow in a row."""
    both = forbidden | more
    return torch.where(both.all(1, keepdim=True), forbidden, both)
