"""Logits -> the next id of each row, token after token, without a look at any number: what is drawn stays where it is.

Knows numbers: which ids are barred, by what rules others are, how much closings and the end are raised, what the
filters leave, and where a number of each row's own randomness falls in that. All that changes from token to token
stands in tensors on one device, so a CUDA card records a draw once and plays it again, as it does a step
(`inference.cuda_graph`), and nobody waits for it to say what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pamusic.inference.cuda_graph import recorded
from pamusic.sampling.closing import Closing
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Grammar, Rules
from pamusic.sampling.ending import BARRED, Ending
from pamusic.sampling.filters import filtered
from pamusic.sampling.release_bias import Held

ASTRAY = -1  # in place of an id: the logits were not numbers
NUMBERS = 256  # random ones, for each row, that are made at a time


class Draws:
    """Draws ids for some rows, which all follow the same prime; each row has randomness of its own."""

    def __init__(
        self,
        prime_ids: Sequence[int],
        *,
        num_rows: int,
        seed: int,
        barred: Tensor,
        device: torch.device | str = "cpu",
        sampling: SamplingConfig | None = None,
        class_of_id: Sequence[int] | None = None,
        barred_at_first: Iterable[int] = (),
        num_drawn: int = 0,
        passed: float = 0.0,
        rules: Rules | None = None,
        seconds_of_id: Sequence[float] | None = None,
        length: int | None = None,
        seconds: float | None = None,
        end_id: int | None = None,
        end_after: int | None = None,
        ending: Ending | None = None,
        record: Callable[[Callable[[], Tensor], torch.device, Sequence[Tensor]], Callable[[], Tensor]] = recorded,
    ) -> None:
        """Begins after a prime.

        Args:
            prime_ids: what comes before.
            num_rows: how many rows follow it.
            seed: of the randomness of the first row; that of row `i` has `seed + i`.
            barred: `[vocab]`, bool, the ids that are never drawn.
            device: where all of it is done; one that knows float64.
            passed: seconds that passed with the last `num_drawn` of the prime's ids.
            record: makes of a piece of work what plays it again.
            sampling, class_of_id, barred_at_first, num_drawn, rules, seconds_of_id, length, seconds, end_id, end_after,
                ending: as for `generate_rows`, which has looked at them.
        """
        self._device = torch.device(device)
        self._sampling, self._rules = sampling or SamplingConfig(), rules
        self._end_id, self._end_after = end_id, end_after
        self._record = record
        self._randomness = [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]
        self._num_drawn, self._num_left = num_drawn, 0  # ids, and random numbers

        def on_device(values: Sequence[float] | Tensor, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values).to(self._device, dtype)

        self._barred = on_device(barred, torch.bool).clone()
        self._end_barred: Tensor | None = None  # whether it is, once it may come; before, it is
        if end_id is not None and ending is None:
            self._end_barred = self._barred[end_id].clone()
            self._barred[end_id] = True
        self._at_first: Tensor | None = None
        if ids_at_first := list(barred_at_first):
            at_first = torch.zeros_like(barred)
            at_first[ids_at_first] = True
            self._at_first = on_device(at_first, torch.bool)
        self._classes = None if class_of_id is None else on_device(class_of_id, torch.int64)
        self._end_raised = on_device([BARRED], torch.float32)
        self._numbers = torch.zeros(num_rows, NUMBERS, device=self._device)
        self._place = on_device([0], torch.int64)
        self._grammar: Grammar | None = None
        self._held: Held | None = None
        self._closing: Closing | None = None
        if rules is not None:
            self._needs_opening = torch.from_numpy(rules.needs_opening).to(self._device)
            self._grammar = Grammar(rules, prime_ids, num_rows, self._device)
            if seconds_of_id is not None and self._sampling.let_go:
                self._held = Held(rules, seconds_of_id, prime_ids, num_rows, self._device)
        if ending is not None:
            assert end_id is not None
            self._closing = Closing(
                ending, prime_ids, vocab_size=len(barred), num_rows=num_rows, end_id=end_id, length=length,
                seconds=seconds, num_drawn=num_drawn, passed=passed, rules=rules, seconds_of_id=seconds_of_id,
                device=self._device,
            )  # fmt: skip
        self._logits: Tensor | None = None
        self._play: Callable[[], Tensor] | None = None

    @torch.inference_mode()
    def draw(self, logits: Tensor) -> Tensor:
        """The ids that follow, `[rows]`, int64, `ASTRAY` where logits are not numbers.

        On CUDA the next call overwrites what it gives.

        Args:
            logits: `[rows, vocab]`, float, on any device.
        """
        if not self._num_left:
            numbers = [torch.rand(NUMBERS, generator=each, dtype=torch.float32) for each in self._randomness]
            self._numbers.copy_(torch.stack(numbers))
            self._place.zero_()
            self._num_left = NUMBERS
        if self._end_after is not None and self._num_drawn >= self._end_after:
            self._end_raised.zero_()
            self._end_after = None
            if self._end_barred is not None and self._end_id is not None:
                self._barred[self._end_id] = self._end_barred
        self._num_left -= 1
        self._num_drawn += 1
        logits = logits.to(self._device)
        self._logits = logits.clone() if self._logits is None else self._logits.copy_(logits)
        if self._at_first is not None:
            ids, self._at_first = self._drawn(self._at_first), None
            return ids
        if self._play is None:
            self._play = self._record(self._drawn, self._device, self._changing())
        return self._play()

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these rows of more than one."""
        index = torch.tensor(rows, device=self._device)
        self._randomness = [self._randomness[row] for row in rows]
        self._numbers = self._numbers[index]
        for follower in self._followers():
            follower.select(index)
        self._logits = self._play = None

    def _changing(self) -> list[Tensor]:
        """What another draw changes."""
        states = (state for each in self._followers() for state in each.states())
        return [self._place, *states]

    def _followers(self) -> list[Grammar | Held | Closing]:
        """Those who follow the ids of each row."""
        return [each for each in (self._grammar, self._held, self._closing) if each is not None]

    def _drawn(self, at_first: Tensor | None = None) -> Tensor:
        """What is recorded, without `at_first`: ids, `[vocab]`, that are barred in addition, for once."""
        assert self._logits is not None
        logits, closing = self._logits, self._closing
        barred = self._barred.expand(len(logits), -1)
        barred = barred.clone() if self._grammar is None else barred | self._grammar.barred()
        if closing is not None:
            stage = closing.stage(None if self._grammar is None else self._grammar.is_done())
            raised = torch.maximum(self._end_raised, closing.raised(stage))
            barred[:, self._end_id] |= raised == BARRED
        if at_first is not None:
            barred = _without(barred, at_first)
        is_open: Tensor | None = None
        if self._grammar is not None:
            is_open = self._grammar.is_open()
            barred = _without(barred, self._openings(is_open))
        if closing is not None:
            if self._rules is not None and self._grammar is not None:
                closes = stage.closes[:, None]
                new = self._openings(closes.expand(-1, self._rules.num_slots)) | (self._grammar.wakes() & closes)
                barred = _without(barred, new)
            barred = _without(barred, closing.hurries(stage, is_open))
        favoured = logits
        if self._held is not None and is_open is not None:
            favoured = self._held.favoured(logits, self._sampling.let_go, is_open)
        left = favoured.masked_fill(barred, BARRED)
        if closing is not None:
            left = closing.urged(left, stage)
            left[:, self._end_id] += raised
        kept = filtered(left, self._sampling, self._classes)
        ids = _where_it_falls(kept, self._numbers.index_select(1, self._place))
        if closing is not None:
            ids = closing.settled(ids, stage)
        self._place += 1
        for follower in self._followers():
            follower.advance(ids)
        return ids.masked_fill(logits.sum(-1).isnan(), ASTRAY)

    def _openings(self, slots: Tensor) -> Tensor:
        """The ids that open some slots, `[rows, slots]` -> `[rows, vocab]`, and where those are all, what needs one."""
        assert self._rules is not None
        ids, first = self._needs_opening & slots.all(1, keepdim=True), self._rules.first_opening
        ids[:, first : first + self._rules.num_slots] = slots
        return ids


def _without(barred: Tensor, more: Tensor) -> Tensor:
    """What is barred, `[rows, vocab]`, and `more`, unless nothing else may follow in a row."""
    both = barred | more
    return torch.where(both.all(1, keepdim=True), barred, both)


def _where_it_falls(logits: Tensor, numbers: Tensor) -> Tensor:
    """One id for each row of logits `[rows, vocab]`: where a number below 1, `[rows, 1]`, falls among probabilities."""
    summed = logits.softmax(-1).double().cumsum(-1)
    # In float32 the number is below 1 by more than a product in float64 is rounded by, so it falls on an id.
    ids = torch.searchsorted(summed, numbers * summed[:, -1:], right=True)[:, 0]
    return ids.clamp(max=logits.shape[-1] - 1)  # where nothing may follow, as after an end: it is not looked at
