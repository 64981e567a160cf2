"""Mix the prediction with copies of what followed similar passages, far back in the context.

Knows ids that open a slot or close it and ids that are numbers; not what they are.

Why: keys and queries of the cross-attention come from one id and its position. So it can find an id or a distance, but
not a passage: what was played before when these notes had just been played. Matching several ids takes two layers of
attention, and only the latents have more than one. In a trained model, everything beyond the latents was worth at most
0.003 nats (`docs/experiments.md`). Music repeats itself over minutes; hence recall.

How:
- A state describes the last opened slots, as distances from the last one. Each weighs `decay` times the next one. So a
  passage has the same states in every transposition.
- The id that followed an earlier position is a copy, a candidate for the next id here. It is moved by the number of
  slots between the two passages.
- Its weight grows with the cosine of the two states and with the nearness of its preceding id, moved, to the last id
  here. Ids are near if they are equal, or numbers a few steps apart.
- Copies compete with a doubt, which weighs as much as one copy at a cosine of `like`.
- Copied numbers spread some probability to neighbouring values, since no repetition is exact.
- A gate, learned from the latent, says how much to trust the copies. The layers predict the rest: a pointer mixture
  (See et al. 2017, arXiv:1704.04368) over a cache as in Grave et al. 2017 (arXiv:1612.04426). States are counted, not
  learned: only the gate is trained.
- Ids nearer than `far` are left to the latents. A state changes only when a slot is opened, so between two openings
  everything would look like a copy of itself.

When the context is full, an entry of a `RecallCache` still keeps the whole state in which it followed. A single pass
over the visible ids begins with an empty state instead. The two differ by the openings that left the window while a
state still weighs them. A `RecallCache` compares states only when a slot is opened, as they do not change in between.

Shapes: `batch`; `m` positions, the last `n` of them returned; `slots`; `width` of a state (`2 * reach + 1`); `vocab`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import ceil, exp, log
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.cache import SlidingBuffer, context_headroom
from pamusic.model.config import RecallConfig
from pamusic.model.slots import NoteSlots

FORGOTTEN = 1e-7  # a state ignores openings of lower weight: float32 cannot resolve them
DOUBT = -4.0  # initial logit of the gate
NEXT_TO_NOTHING = 2e-9  # copies of lower weight are ignored: a context full of them would weigh 1e-5 of doubt
MIN_LOG_WEIGHT = -30.0  # nats; lower weights do not matter, and their exponentials are slow to compute
MAX_FIXED_POINT = 2.0**40  # largest weight as a whole number: the sum of 2 ** 22 of them fits in 64 bits
QUERIES = 256  # positions at a time: their cosines with the whole context are in memory at once


class Recall(nn.Module):
    """Copy probabilities of the next id, from what followed similar states, and the gate that mixes them in."""

    slot_of_id: Tensor
    moved: Tensor
    beside: Tensor
    parts: Tensor
    distances: Tensor

    def __init__(self, config: RecallConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        slot_of_id = NoteSlots.of(config).opened_by(vocab_size)
        moved, beside = _moved(config, vocab_size).flatten(), _beside(config, vocab_size)
        parts = beside[:-1, :-1] / beside[:-1, :-1].sum(0)  # `[vocab, vocab copied]`
        tables = {"slot_of_id": slot_of_id, "moved": moved, "beside": beside, "parts": parts}
        tables["distances"] = torch.arange(2 * config.reach + 1)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.config, self.num_slots, self.vocab_size = config, config.num_slots, vocab_size
        self.width = 2 * config.reach + 1
        self.lags = ceil(log(FORGOTTEN) / log(config.decay))  # number of openings in a state
        self.gate = nn.Linear(d_model, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, DOUBT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` as any module does, but keep the tables of shares in float32: they change only their device."""
        exact = {"beside": self.beside, "parts": self.parts}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in exact.items():
            setattr(self, name, table.to(self.slot_of_id.device))
        return self

    @torch.no_grad()
    def forward(self, ids: Tensor, n: int) -> Tensor:
        """Return copy probabilities `[batch, n, vocab]`, float32, after the last `n` positions.

        They sum to less than 1; the rest is doubt.

        Args:
            ids: All visible ids, `[batch, m]`.
            n: Number of last positions.
        """
        with torch.autocast(ids.device.type, enabled=False):  # bfloat16 cannot distinguish the cosines
            return torch.stack([self._shares(row, n) for row in ids])

    def mix(self, logits: Tensor, gate: Tensor, shares: Tensor) -> Tensor:
        """Return float32 logits `[..., vocab]` of the mixture of prediction and copies, with the same normaliser.

        Args:
            logits: Prediction of the layers, `[..., vocab]`.
            gate: Output of `self.gate`, `[..., 1]`.
            shares: Copy probabilities from `forward` or a `RecallCache`, `[..., vocab]`.
        """
        logits, trusted = logits.float(), shares * gate.float().sigmoid()
        own = logits + torch.log1p(-trusted.sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        return torch.logaddexp(own, trusted.clamp(min=1e-30).log() + logits.logsumexp(-1, keepdim=True))

    def _shares(self, ids: Tensor, n: int) -> Tensor:
        """Compute `forward` for one row."""
        m, far, shares = len(ids), self.config.far, torch.zeros(n, self.vocab_size, device=ids.device)
        states, last, number = self.states(ids)
        states, last = F.normalize(self.around(states, last), dim=1), last[number]
        before, told = self.told(ids[:-1], last[:-1]), self.told(ids[1:], last[:-1])
        for first in range(max(m - n, far), m, QUERIES):  # before `far` there is nothing to copy
            stop = min(first + QUERIES, m)
            asked, seen = torch.arange(first, stop, device=ids.device), torch.arange(stop - far, device=ids.device)
            if _can_be_looked_at(ids):  # states change only at openings: fewer to compare
                begin, end = int(number[first]), int(number[stop - 1]) + 1
                weights = self.weights(_products(states[begin:end], states))[number[asked] - begin]
            else:
                weights = self.weights(_products(states[number[asked]], states))
            weights = weights.index_select(1, number[seen])
            weights.masked_fill_(seen > asked[:, None] - far, 0)
            now = (ids[asked, None], last[asked, None])
            shares[asked - (m - n)] = self.shared(before[seen], told[seen], *now, weights, look=_can_be_looked_at(ids))
        return shares

    def weights(self, like: Tensor) -> Tensor:
        """Turn cosines of states into weights of copies, in place."""
        return like.sub_(self.config.like).mul_(self.config.sharp).clamp_(min=MIN_LOG_WEIGHT).exp_()

    def told(self, ids: Tensor, last: Tensor) -> Tensor:
        """Encode ids and the slots last opened at their positions for `shared`, all int64 of one shape.

        The code plus the slot last opened now is the index, in `moved`, of the moved id.
        """
        return ids * (2 * self.num_slots - 1) + (self.num_slots - 1) - last

    def shared(self, before: Tensor, told: Tensor, ids: Tensor, last: Tensor, weights: Tensor, *, look: bool) -> Tensor:
        """Return copy probabilities `[n, vocab]`: the weights of copies, normalised together with doubt.

        Args:
            before: Codes (see `told`) of the ids that precede the copies, `[n, k]` or `[k]`.
            told: Codes of the copies, likewise.
            ids: Last ids now, `[n, 1]`.
            last: Slots last opened now, `[n, 1]`.
            weights: Weights by the cosines of states, `[n, k]`.
            look: Read values on the host and skip negligible copies. This is faster on a CPU, since few copies matter.
        """
        n, room = len(weights), self.vocab_size + 1
        if look:
            rows, places = (weights > NEXT_TO_NOTHING).nonzero(as_tuple=True)
        else:
            rows, places = (torch.arange(size, device=ids.device) for size in weights.shape)
            rows = rows[:, None]
        weights, before, told = (each.expand(n, -1)[rows, places] for each in (weights, before, told))
        ids, last = ids[rows, 0], last[rows, 0]
        weights = weights * self.beside[ids, self.moved[before + last]]
        copies = (rows * room + self.moved[told + last]).flatten()
        if _adds_in_any_order(weights):  # whole numbers sum to the same in any order
            one = MAX_FIXED_POINT / exp(self.config.sharp * (1 - self.config.like))
            whole = torch.zeros(n * room, dtype=torch.int64, device=ids.device)
            summed = (whole.scatter_add_(0, copies, (weights.flatten().double() * one).long()).double() / one).float()
        else:
            summed = torch.zeros(n * room, device=ids.device).scatter_add_(0, copies, weights.flatten())
        summed = summed.view(n, room)
        summed = _products(summed[:, :-1], self.parts)
        return summed / (1 + summed.sum(1, keepdim=True))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of slots and the last opened slot after 0, 1, 2 … openings, and the openings so far.

        Args:
            ids: One row of ids, `[m]`.

        Returns:
            Weights of slots, `[k, slots]`, float32; last opened slot, `[k]`, int64, 0 after no opening; and the number
            of openings up to each id, `[m]`, int64.
        """
        slots = self.slot_of_id[ids]
        number = (slots < self.num_slots).cumsum(0)
        num = int(number[-1]) if _can_be_looked_at(ids) else len(ids)
        opened = slots.new_full((self.lags + num + 1,), self.num_slots)
        opened.scatter_(0, torch.where(slots < self.num_slots, number + self.lags, 0), slots)
        weights = self.config.decay ** torch.arange(self.lags - 1, -1, -1, device=ids.device, dtype=torch.float32)
        states = torch.zeros(num + 1, self.num_slots + 1, device=ids.device)
        for before, weight in zip(opened.unfold(0, self.lags, 1)[1:].T, weights, strict=True):
            states.scatter_add_(1, before[:, None], weight.expand(num + 1, 1))  # one each: fixed order on GPUs
        last = opened[self.lags :]
        return states[:, :-1], torch.where(last < self.num_slots, last, 0), number

    def around(self, states: Tensor, last: Tensor) -> Tensor:
        """Return states `[k, width]`: the weights of slots, `[k, slots]`, by distance from the last opened, `[k]`."""
        places = last[:, None] + self.distances
        return F.pad(states, (self.config.reach, self.config.reach)).gather(1, places)


class RecallCache:
    """Entries of recall, extended id by id, with one row per row of the batch.

    An entry is an id, the id before it, and the state in which it followed.
    """

    def __init__(self, recall: Recall, batch: int, window: int) -> None:
        """Create an empty cache with `window` visible ids."""
        device, room = recall.slot_of_id.device, window + context_headroom(window)
        self._recall = recall
        states = torch.zeros(batch, room, recall.width, device=device)
        numbers = [torch.zeros(batch, room, device=device) for _ in range(2)]  # norms, and products with the state
        before, told = (torch.zeros(batch, room, dtype=torch.int64, device=device) for _ in range(2))
        self._places = torch.arange(room, device=device)
        self._kept = SlidingBuffer([states, *numbers, before, told], (1, 1, 1, 1, 1), window)
        self._slots = torch.zeros(batch, recall.num_slots + 1, device=device)  # weights; the last is a dummy
        self._last = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._id = torch.full((batch, 1), recall.vocab_size, device=device)  # none
        self._current: tuple[Tensor, Tensor] | None = None  # the state and its norm, until an opening changes them

    @torch.no_grad()
    def enter(self, ids: Tensor) -> None:
        """Append the next ids, `[batch, m]`, all at once."""
        recall = self._recall
        before, all_states, told, slots, lasts = torch.cat([self._id, ids[:, :-1]], dim=1), [], [], [], []
        for row, before_row, own, last_slot in zip(ids, before, self._slots, self._last, strict=True):
            states, last, number = recall.states(row)
            last = torch.where(torch.arange(len(last), device=ids.device) > 0, last, last_slot)
            faded = recall.config.decay ** torch.arange(len(states), device=ids.device, dtype=torch.float32)
            states = states + faded[:, None] * own[:-1]
            number = F.pad(number, (1, 0))
            all_states.append(recall.around(states, last)[number[:-1]])
            told.append(recall.told(torch.stack([before_row, row]), last[number[:-1]]))
            slots.append(states[number[-1:]][0])
            lasts.append(last[number[-1:]])
        self._slots, self._last, self._id = F.pad(torch.stack(slots), (0, 1)), torch.stack(lasts), ids[:, -1:].clone()
        self._current = None
        states = torch.stack(all_states)
        norms = torch.linalg.vector_norm(states, dim=2)
        self._kept.append(states, norms, torch.zeros_like(norms), *torch.stack(told, dim=1))
        self._compare(self._states_and_products(), self._state()[0])

    @torch.no_grad()
    def step(self, ids: Tensor) -> None:
        """Append one id per row, `[batch]`."""
        place = torch.tensor([self.reserve()], device=ids.device)
        state, norm = self._state()
        opens = self._write(place, ids, state, norm)
        if not _can_be_looked_at(ids):
            self._current = None
            self._compare(self._states_and_products(), self._state()[0])
        elif opens.any():
            self._current = None
            self._compare(self._states_and_products(), self._state()[0], opens[:, 0].nonzero()[:, 0].tolist())

    @torch.no_grad()
    def copy_probs(self) -> Tensor:
        """Return the copy probabilities of the next id, `[batch, vocab]`, as in `Recall`."""
        num = len(self._kept) - (self._recall.config.far - 1)
        if num <= 0:
            return torch.zeros(len(self._slots), self._recall.vocab_size, device=self._slots.device)
        first = self._kept.stop - len(self._kept)
        seen = [each.narrow(1, first, num) for each in self._kept.tensors[1:]]
        return self._shares(seen, self._state()[1])

    def reserve(self) -> int:
        """Count one more entry, which `step_at` writes, and return its index."""
        self._kept.reserve(1)
        return self._kept.stop - 1

    @torch.no_grad()
    def step_at(self, place: Tensor, ids: Tensor) -> None:
        """Do `step` at a given index, `[1]`, changing tensors in place.

        It reads no value on the host and compares the whole buffer, so a CUDA graph can record it and replay it at any
        index.
        """
        self._write(place, ids, *self._fresh_state())
        states, _, products, *_ = self._kept.tensors
        self._compare((states, products), self._fresh_state()[0])

    def _write(self, place: Tensor, ids: Tensor, state: Tensor, norm: Tensor) -> Tensor:
        """Write the entry of the next ids, `[batch]`, update the state, and return which are openings, `[batch, 1]`."""
        recall = self._recall
        told = (recall.told(each, self._last) for each in (self._id, ids[:, None]))
        entry = (state[:, None], norm, norm.square(), *told)
        for tensor, axis, new in zip(self._kept.tensors, self._kept.axes, entry, strict=True):
            tensor.index_copy_(axis, place, new)
        slots = recall.slot_of_id[ids][:, None]
        opens = slots < recall.num_slots
        self._slots.mul_(torch.where(opens, recall.config.decay, 1.0)).scatter_add_(1, slots, torch.ones_like(norm))
        self._slots[:, -1] = 0
        self._last.copy_(torch.where(opens, slots, self._last))
        self._id.copy_(ids[:, None])
        return opens

    @torch.no_grad()
    def copy_probs_at(self, place: Tensor) -> Tensor:
        """Return `copy_probs` when the last entry has this index, `[1]`; a CUDA graph can record it, like `step_at`."""
        near, gone = place - (self._recall.config.far - 1), place - self._kept.window
        hidden = (self._places > near) | (self._places <= gone)
        return self._shares(self._kept.tensors[1:], self._fresh_state()[1], hidden)

    def changing(self) -> list[Tensor]:
        """Return the tensors for which repeating `step_at` is not idempotent."""
        return [self._slots, self._last, self._id]

    def _state(self) -> tuple[Tensor, Tensor]:
        """Return the state `[batch, width]` and its norm `[batch, 1]`, cached until the next opening."""
        if self._current is None:
            self._current = self._fresh_state()
        return self._current

    def _fresh_state(self) -> tuple[Tensor, Tensor]:
        state = self._recall.around(self._slots[:, :-1], self._last[:, 0])
        return state, torch.linalg.vector_norm(state, dim=1, keepdim=True)

    def _states_and_products(self) -> tuple[Tensor, Tensor]:
        """Return the states of all visible entries, and their products with the current state."""
        first, num = self._kept.stop - len(self._kept), len(self._kept)
        states, _, products, *_ = self._kept.tensors
        return states.narrow(1, first, num), products.narrow(1, first, num)

    def _compare(self, entries: tuple[Tensor, Tensor], state: Tensor, rows: list[int] | None = None) -> None:
        """Write the products of the state `[batch, width]` with those of entries, for some rows or all."""
        states, products = entries
        state = state[:, :, None]
        if rows is None or len(rows) == len(states):
            products.copy_(torch.bmm(states, state)[:, :, 0])
        else:  # the other rows have not changed
            for row in rows:
                torch.mv(states[row], state[row, :, 0], out=products[row])

    def _shares(self, entries: list[Tensor], norm: Tensor, hidden: Tensor | None = None) -> Tensor:
        norms, products, before, told = entries
        weights = self._recall.weights(products / (norms * norm).clamp(min=1e-12))
        if hidden is not None:
            weights.masked_fill_(hidden, 0)
        look = hidden is None and _can_be_looked_at(weights)
        return self._recall.shared(before, told, self._id, self._last, weights, look=look)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        self._kept.select(rows)
        self._slots, self._last, self._id = self._slots[rows], self._last[rows], self._id[rows]
        self._current = None

    def rows(self, rows: slice) -> RecallCache:
        """Return a read-only cache of some rows, in the same memory."""
        some = copy(self)
        some._kept, some._id = self._kept.rows(rows), self._id[rows]
        some._slots, some._last = self._slots[rows], self._last[rows]
        some._current = None
        return some


def _moved(config: RecallConfig, vocab_size: int) -> Tensor:
    """Return each id moved by each number of slots, `[vocab + 1, 2 * slots - 1]`; `vocab_size` stands for no id."""
    ids, by = torch.arange(vocab_size + 1)[:, None], torch.arange(1 - config.num_slots, config.num_slots)
    moved = ids.expand(-1, len(by))
    for first in (config.first_opening, config.first_closing):
        slots = ids - first
        is_slot = (0 <= slots) & (slots < config.num_slots)
        is_there = (0 <= slots + by) & (slots + by < config.num_slots)
        moved = torch.where(is_slot, torch.where(is_there, ids + by, vocab_size), moved)
    return moved


def _beside(config: RecallConfig, vocab_size: int) -> Tensor:
    """Return the nearness of each pair of ids, 0 to 1, `[vocab + 1, vocab + 1]`; the last row, for no id, is zero."""
    beside = torch.eye(vocab_size + 1)
    beside[-1] = 0
    for first, count in config.numbers if config.spread else ():
        places = torch.arange(count)
        beside[first : first + count, first : first + count] = (-(places - places[:, None]).abs() / config.spread).exp()
    return beside


def _products(some: Tensor, others: Tensor) -> Tensor:
    """Multiply `[a, slots]` by `[b, slots]` to `[a, b]`; on a GPU in float64, because TF32 would round the factors."""
    return (some.double() @ others.double().T).float() if some.is_cuda else some @ others.T


def _adds_in_any_order(ids: Tensor) -> bool:
    return ids.is_cuda


def _can_be_looked_at(ids: Tensor) -> bool:
    """Return whether code may read values: not on a GPU, which would stall, nor of shape-only (fake) tensors."""
    return ids.device.type == "cpu" and type(ids) is Tensor
