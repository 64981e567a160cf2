"""What followed where the music stood as it does now: copied from far back in the context, as far as that is trusted.

Knows ids that open a slot and the kinds of ids; not what they are.

Why: a key of the cross-attention is made of one id and its place, and so is a query. So it can find an id, or a
distance, but no passage: what was played before when these notes had just been played (that takes a match of several
ids, which attention needs two layers for, and here only the latents have more than one). All that a trained model read
beyond its latents was worth 0.001 nats to it (`docs/experiments.md`). Music repeats itself over minutes; hence this.

How: a state is the slots opened last, each weighing `decay` times what the next one does. Where the state of an earlier
position is like that of a later one, by their cosine, and the last id is of the same kind, what followed there is a
copy of what may follow here. Copies are weighted by likeness, against a doubt that weighs as much as one copy at a
likeness of `like`; a gate learned from the latent says how far to trust what is left, and the rest is what the layers
say: a pointer mixture (See et al. 2017, arXiv:1704.04368), over a cache as of Grave et al. 2017 (arXiv:1612.04426).
States are counted, not learned: all that is trained is the gate. What is nearer than `far` is left to the latents: a
state changes only where a slot is opened, so between two openings everything would look like a copy of itself.

Past the end of the context an entry of a `Memory` still knows the whole state in which it followed, where one pass over
what is visible has to begin with none: the two differ by what left the window while a state still weighs it.

One id at a time, nothing is looked through again: when a slot is opened, the product of the state with every earlier
one is `decay` times what it was plus what that one has of this slot (`Memory`).

Shapes: `batch`; `m` positions, of which the last `n` are asked for; `slots`; `vocab` ids.
"""

from __future__ import annotations

from copy import copy
from math import ceil, exp, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.cache import Kept, spare
from pamusic.model.config import RecallConfig

FORGOTTEN = 1e-7  # of a state: openings that weigh less are more than float32 tells
DOUBT = -4.0  # of the gate at first, as a logit
LEAST = -30.0  # nats: what weighs less weighs nothing; exponentials of still less are slow to compute
MOST_WHOLE = 2.0**40  # of a weight as a whole number: with room in 64 bits for the sum of 2 ** 22
QUERIES = 256  # positions that are asked for at a time: their likenesses with the whole context are held at once


class Recall(nn.Module):
    """Which ids follow, judged by what followed what is like the present; and the gate that trusts it."""

    slot_of_id: Tensor
    kind_of_id: Tensor

    def __init__(self, config: RecallConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        slot_of_id = torch.full((vocab_size,), config.num_slots)  # the last slot is nobody's
        slot_of_id[config.first_opening : config.first_opening + config.num_slots] = torch.arange(config.num_slots)
        kind_of_id = torch.bucketize(torch.arange(vocab_size), torch.tensor(config.first_of_kinds), right=True)
        for name, table in {"slot_of_id": slot_of_id, "kind_of_id": kind_of_id}.items():
            self.register_buffer(name, table, persistent=False)
        self.config, self.num_slots, self.vocab_size = config, config.num_slots, vocab_size
        self.lags = ceil(log(FORGOTTEN) / log(config.decay))  # openings of which a state consists
        self.gate = nn.Linear(d_model, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, DOUBT)

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, ids: Tensor, n: int) -> Tensor:
        """Shares of the ids that followed, `[batch, n, vocab]`, float32, for the last `n` of all that is visible.

        What they lack to 1 is doubt.

        Args:
            ids: `[batch, m]`.
            n: how many.
        """
        with torch.autocast(ids.device.type, enabled=False):  # bfloat16 cannot tell likenesses apart
            return torch.stack([self._shares(row, n) for row in ids])

    def mixed(self, logits: Tensor, gate: Tensor, shares: Tensor) -> Tensor:
        """Logits `[..., vocab]`, float32, of the mixture of what logits say and of copies; it has their normaliser.

        Args:
            logits: `[..., vocab]`.
            gate: `[..., 1]`, what `self.gate` says.
            shares: `[..., vocab]`, of `forward` or of a `Memory`.
        """
        logits, trusted = logits.float(), shares * gate.float().sigmoid()
        own = logits + torch.log1p(-trusted.sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        return torch.logaddexp(own, trusted.clamp(min=1e-30).log() + logits.logsumexp(-1, keepdim=True))

    def _shares(self, ids: Tensor, n: int) -> Tensor:
        """`forward` of one row."""
        m, far, shares = len(ids), self.config.far, torch.zeros(n, self.vocab_size, device=ids.device)
        states, number = self.states(ids)
        states, kinds = F.normalize(states, dim=1), self.kind_of_id[ids]
        for first in range(max(m - n, far), m, QUERIES):  # before `far` there is nothing to look back to
            stop = min(first + QUERIES, m)
            asked, seen = torch.arange(first, stop, device=ids.device), torch.arange(stop - far, device=ids.device)
            if _can_be_looked_at(ids):  # between two openings the state is the same: there are fewer states to compare
                begin, end = int(number[first]), int(number[stop - 1]) + 1
                weights = self.weights(_products(states[begin:end], states))[number[asked] - begin]
            else:
                weights = self.weights(_products(states[number[asked]], states))
            weights = weights.index_select(1, number[seen])
            weights.masked_fill_((kinds[seen] != kinds[asked, None]) | (seen > asked[:, None] - far), 0)
            shares[asked - (m - n)] = self.shared(ids[seen + 1].expand_as(weights), weights)
        return shares

    def weights(self, like: Tensor) -> Tensor:
        """Of copies by the cosines of states, in their place."""
        return like.sub_(self.config.like).mul_(self.config.sharp).clamp_(min=LEAST).exp_()

    def shared(self, ids: Tensor, weights: Tensor) -> Tensor:
        """`[n, vocab]`: what each id has of all that its copies, `[n, k]` ids and weights, and doubt weigh together."""
        if _adds_in_any_order(ids):  # then whole numbers, whose sum is the same in each
            one = MOST_WHOLE / exp(self.config.sharp * (1 - self.config.like))
            whole = torch.zeros(len(ids), self.vocab_size, dtype=torch.int64, device=ids.device)
            summed = (whole.scatter_add_(1, ids, (weights.double() * one).long()).double() / one).float()
        else:
            summed = torch.zeros(len(ids), self.vocab_size, device=ids.device).scatter_add_(1, ids, weights)
        return summed / (1 + summed.sum(1, keepdim=True))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states after each number of openings in a row, and those numbers after each id.

        Args:
            ids: `[m]`.

        Returns:
            `[k, slots]`, float32, of 0 openings, 1, 2 … and `[m]`, int64.
        """
        slots = self.slot_of_id[ids]
        number = (slots < self.num_slots).cumsum(0)
        num = int(number[-1]) if _can_be_looked_at(ids) else len(ids)
        opened = slots.new_full((self.lags + num + 1,), self.num_slots)
        opened.scatter_(0, torch.where(slots < self.num_slots, number + self.lags, 0), slots)
        weights = self.config.decay ** torch.arange(self.lags - 1, -1, -1, device=ids.device, dtype=torch.float32)
        states = torch.zeros(num + 1, self.num_slots + 1, device=ids.device)
        for before, weight in zip(opened.unfold(0, self.lags, 1)[1:].T, weights, strict=True):
            states.scatter_add_(1, before[:, None], weight.expand(num + 1, 1))  # one each: a card keeps to their order
        return states[:, :-1], number


class Memory:
    """What can be recalled, one id after the other; one row for each of a batch.

    An entry is an id, the kind of the one before it, and the state in which it followed.
    """

    def __init__(self, recall: Recall, batch: int, window: int) -> None:
        """Begins empty; the last `window` ids are visible."""
        device, room = recall.slot_of_id.device, window + spare(window)
        self._recall = recall
        states = torch.zeros(batch, recall.num_slots + 1, room, device=device)
        numbers = [torch.zeros(batch, room, device=device) for _ in range(2)]  # norms, and products with the state
        ids = [torch.zeros(batch, room, dtype=torch.int64, device=device) for _ in range(2)]  # and kinds
        self._places = torch.arange(room, device=device)
        self._kept = Kept([states, *numbers, *ids], (2, 1, 1, 1, 1), window)
        self._state = torch.zeros(batch, recall.num_slots + 1, device=device)
        self._kind = torch.full((batch, 1), -1, device=device)

    @torch.no_grad()
    def enter(self, ids: Tensor) -> None:
        """Takes the next ids, `[batch, m]`, all at once."""
        recall = self._recall
        before, ends = [], []
        for row, state in zip(ids, self._state, strict=True):
            states, number = recall.states(row)
            faded = recall.config.decay ** torch.arange(len(states), device=ids.device, dtype=torch.float32)
            states = F.pad(states, (0, 1)) + faded[:, None] * state
            number = F.pad(number, (1, 0))
            before.append(states[number[:-1]])
            ends.append(states[number[-1]])
        states, self._state = torch.stack(before).mT, torch.stack(ends)
        kinds = torch.cat([self._kind, recall.kind_of_id[ids]], dim=1)
        self._kind = kinds[:, -1:].clone()
        norms = torch.linalg.vector_norm(states, dim=1)
        self._kept.append(states, norms, torch.zeros_like(norms), ids, kinds[:, :-1])
        states, _, products, *_ = self._kept.last(len(self._kept))
        products.copy_((self._state[:, None] @ states)[:, 0])

    @torch.no_grad()
    def step(self, ids: Tensor) -> None:
        """Takes one more id a row, `[batch]`."""
        place = torch.tensor([self.make_room()], device=ids.device)
        self.step_at(place, ids, self._kept.last(len(self._kept)))

    @torch.no_grad()
    def shares(self) -> Tensor:
        """`[batch, vocab]`, of what follows now, as of `Recall`."""
        num = len(self._kept) - (self._recall.config.far - 1)
        if num <= 0:
            return torch.zeros(len(self._state), self._recall.vocab_size, device=self._state.device)
        seen = self._kept.last(len(self._kept))
        return self._shares([each.narrow(axis, 0, num) for each, axis in zip(seen, self._kept.axes, strict=True)])

    def make_room(self) -> int:
        """Counts one more entry, which `step_at` writes; its place."""
        self._kept.make_room(1)
        return self._kept.stop - 1

    @torch.no_grad()
    def step_at(self, place: Tensor, ids: Tensor, seen: list[Tensor] | None = None) -> None:
        """`step` at a place, `[1]`, changing all in place and looking at no number; `seen` is all there is, by default.

        It can be recorded, and then does what it has to at any place.
        """
        recall, whole = self._recall, self._kept.tensors
        slots = recall.slot_of_id[ids][:, None]
        norm = torch.linalg.vector_norm(self._state, dim=1, keepdim=True)
        entry = (self._state[:, :, None], norm, norm.square(), ids[:, None], self._kind)
        for tensor, axis, new in zip(whole, self._kept.axes, entry, strict=True):
            tensor.index_copy_(axis, place, new)
        fades = torch.where(slots < recall.num_slots, recall.config.decay, 1.0)
        states, _, products, *_ = seen or whole
        products.mul_(fades).add_(states[torch.arange(len(ids), device=ids.device), slots[:, 0]])
        self._state.mul_(fades).scatter_add_(1, slots, torch.ones_like(norm))
        self._state[:, -1] = 0
        self._kind.copy_(recall.kind_of_id[ids][:, None])

    @torch.no_grad()
    def shares_at(self, place: Tensor) -> Tensor:
        """`shares` where the last entry stands at a place, `[1]`; it can be recorded as `step_at` can."""
        near, gone = place - (self._recall.config.far - 1), place - self._kept.window
        hidden = (self._places > near) | (self._places <= gone)
        return self._shares(self._kept.tensors, hidden)

    def changing(self) -> list[Tensor]:
        """What `step_at` changes in such a way that to do it twice is not to do it once."""
        return [self._state, self._kind, self._kept.tensors[2]]

    def _shares(self, entries: list[Tensor], hidden: Tensor | None = None) -> Tensor:
        _, norms, products, ids, kinds = entries
        norm = torch.linalg.vector_norm(self._state, dim=1, keepdim=True)
        weights = self._recall.weights(products / (norms * norm).clamp(min=1e-12))
        other = kinds != self._kind
        return self._recall.shared(ids, weights.masked_fill_(other if hidden is None else other | hidden, 0))

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        self._kept.select(rows)
        self._state, self._kind = self._state[rows], self._kind[rows]

    def rows(self, rows: slice) -> Memory:
        """Some rows, in the same memory, to be asked."""
        some = copy(self)
        some._kept, some._state, some._kind = self._kept.rows(rows), self._state[rows], self._kind[rows]
        return some


def _products(some: Tensor, others: Tensor) -> Tensor:
    """`[a, slots]`, `[b, slots]` -> `[a, b]`; a card would round what it multiplies (TF32), so there in float64."""
    return (some.double() @ others.double().T).float() if some.is_cuda else some @ others.T


def _adds_in_any_order(ids: Tensor) -> bool:
    return ids.is_cuda


def _can_be_looked_at(ids: Tensor) -> bool:
    """Not on a card, which would be waited for, and not where there are but shapes, to see what they take."""
    return ids.device.type == "cpu" and type(ids) is Tensor
