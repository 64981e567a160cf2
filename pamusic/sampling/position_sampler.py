"""Sample the next position of each row from the logits of its fields, one field after the other.

Knows numbers; never what the ids mean. `PositionConstraints` says which ids can stand in one position, in which order
keys follow within a step, and which seconds pass. `TokenSampler` does this for vocabularies with one id a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pamusic.inference.prediction import FieldPrediction, Prediction
from pamusic.model.fields import KEY
from pamusic.sampling.constraints import PositionConstraints, PrimeTokens
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.filters import OUT, apply_filters
from pamusic.sampling.position_ending import PositionEnding
from pamusic.sampling.returns import NUM_NUMBERS, Returns
from pamusic.sampling.token_sampler import NON_FINITE, RANDOM_BLOCK, inverse_cdf

SHIFT = 0  # the field of times


class PositionSampler:
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
    ) -> None:
        """Begin after a prime; arguments and errors are those of `TokenSampler`."""
        constraints = decoding.constraints
        assert isinstance(constraints, PositionConstraints)
        forbidden = constraints.forbidden(vocab_size).to(device)
        self._stop, self._device = decoding.stop, torch.device(device)
        self._end_id = constraints.end_id
        whole = replace(decoding.sampling, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
        self._sampling = [decoding.sampling if is_filtered else whole for is_filtered in constraints.filtered]
        self._fits = torch.from_numpy(constraints.fits).to(device) & ~forbidden  # [vocab, vocab]
        self._possible = self._fits.any(0)  # [vocab]
        self._rank: Tensor | None = None
        if constraints.rank_of_id is not None:
            self._rank = torch.from_numpy(constraints.rank_of_id).to(device, torch.int64)
        self._class_of_id = torch.from_numpy(constraints.class_of_id).to(device, torch.int64)
        self._passes = torch.from_numpy(constraints.seconds_of_id).to(device) > 0
        self._at_first: Tensor | None = None
        if prime.forbidden_next:
            self._at_first = torch.zeros(vocab_size, dtype=torch.bool)
            self._at_first[list(prime.forbidden_next)] = True
            self._at_first = self._at_first.to(device)
        self._last_rank = torch.full((num_rows,), self._rank_after(prime), device=device)
        self._num_drawn, self._num_left = prime.num_resumed, 0
        self._randomness = [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]
        self._numbers = torch.empty(0)
        self._returns: Returns | None = None
        if decoding.returns is not None:
            self._returns = Returns(prime, constraints, decoding.returns, num_rows=num_rows, device=device)
        self._ending: PositionEnding | None = None
        if self._stop.ending is not None:
            self._ending = PositionEnding(prime, constraints, self._stop, num_rows=num_rows, device=device)

    def _rank_after(self, prime: PrimeTokens) -> int:
        """Return the order of the last key of a prime within its step."""
        return -1 if self._rank is None else int(self._rank[torch.tensor(prime.ids[-1])].max())

    @torch.inference_mode()
    def sample(self, prediction: Prediction) -> Tensor:
        """Return the ids of the next position, `[rows, fields]`, int64, with `NON_FINITE` where logits are not numbers.

        Args:
            prediction: The logits of each field, given the fields before it.
        """
        assert isinstance(prediction, FieldPrediction)
        if not self._num_left:
            shape = (RANDOM_BLOCK, len(prediction.slices) + (0 if self._returns is None else NUM_NUMBERS))
            numbers = [torch.rand(shape, generator=each, dtype=torch.float32) for each in self._randomness]
            self._numbers = torch.stack(numbers, dim=1).to(self._device)  # [RANDOM_BLOCK, rows, fields and more]
            self._num_left = RANDOM_BLOCK
        number, of_returns = self._numbers[-self._num_left].tensor_split([len(prediction.slices)], dim=1)
        self._num_left -= 1
        self._num_drawn += 1
        num_rows = number.shape[0]
        chosen = torch.empty(num_rows, 0, dtype=torch.int64, device=self._device)
        allowed = self._allowed(num_rows, prediction.slices[SHIFT])
        total = torch.zeros(num_rows, 1, device=self._device)
        possible = self._possible.expand(num_rows, -1)  # whatever the ending, or who forbids something next, wants
        for field, ids in enumerate(prediction.slices):
            logits = prediction.logits(field, chosen).to(self._device, torch.float32)
            total = total + logits.sum(-1, keepdim=True)
            may = allowed[:, ids]
            if self._at_first is not None or self._ending is not None:
                may = torch.where(may.any(-1, keepdim=True), may, possible[:, ids])
            left = logits.masked_fill(~may, OUT)
            if self._returns is not None and field == SHIFT:
                left = self._returns.favour_time(left, ids)
            if self._returns is not None and field == KEY:
                left = self._returns.favour_key(left, ids, chosen[:, SHIFT], of_returns)
            kept = apply_filters(left, self._sampling[field], self._class_of_id[ids])
            id = ids.start + inverse_cdf(kept, number[:, field, None])
            chosen = torch.cat([chosen, id[:, None]], dim=-1)
            fits = self._fits[id]
            allowed, possible = self._narrowed(allowed & fits, field, id), possible & fits
        if self._ending is not None:
            chosen = self._ending.advance(chosen)
        if self._returns is not None:
            self._returns.advance(chosen, of_returns)
        self._at_first = None
        if self._rank is not None:
            self._last_rank = self._rank[chosen[:, KEY]]
        return chosen.masked_fill(~total.isfinite(), NON_FINITE)

    def _allowed(self, num_rows: int, shifts: slice) -> Tensor:
        """Return the ids that the next position can have, `[rows, vocab]`, bool."""
        allowed = self._possible.expand(num_rows, -1).clone()
        if self._end_id is not None:
            least = self._stop.min_tokens_before_end
            is_free = least is not None and self._num_drawn > max(1, least)
            may_end = torch.full((num_rows,), is_free, device=self._device)
            if self._ending is not None:
                may_end |= self._ending.may_end()
            allowed[:, self._end_id] &= may_end
        if self._rank is not None:  # without time, a key must follow the last one in order; else time must pass
            can_follow = (allowed & (self._rank > self._last_rank[:, None])).any(-1, keepdim=True)
            allowed[:, shifts] &= self._passes[shifts] | can_follow
        return allowed if self._at_first is None else allowed & ~self._at_first

    def _narrowed(self, allowed: Tensor, field: int, id: Tensor) -> Tensor:
        """Return the ids that the next position can have, given one more id of it, `[rows]`."""
        if field == SHIFT and self._rank is not None:
            is_behind = (self._rank <= self._last_rank[:, None]) & (self._rank >= 0)
            allowed = allowed & ~(is_behind & ~self._passes[id][:, None])
        if field == KEY and self._ending is not None:
            allowed = allowed & ~self._ending.unfit_lengths()
        return allowed

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        index = torch.tensor(rows, device=self._device)
        self._randomness = [self._randomness[row] for row in rows]
        self._numbers, self._last_rank = self._numbers[:, index], self._last_rank[index]
        for each in (self._returns, self._ending):
            if each is not None:
                each.select(index)
