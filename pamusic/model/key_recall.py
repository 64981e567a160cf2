"""Bias the keys of the next note towards those that followed earlier, similar passages of the context.

Knows ids of keys and of times; knows no music. `model.recall` does this for models with one id a position.

Why: passages return, also transposed and after minutes. A trained model continues what it has in its latents about as
often as real music does. What it reads only by its single cross-attention, it continues much less often
(`docs/experiments.md`).

How: an earlier note matches if the keys up to it are the keys up to the last note, or if only the intervals between
them are (it is then moved). The key that followed it is a candidate, moved likewise. For each key, the longest match
counts, the nearest of equals. Its length and age select a bias on the logit of that key. Only these biases are learned,
about a hundred numbers. Positions that are not notes are passed over.

The biases add to logits, so the layers decide: a key that they exclude stays excluded. The other fields have no such
bias, as it gained nothing there.

Shapes: `batch`; `m` positions, the last `n` of them returned; `fields`; `keys` of notes; `size` of the field of keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.config import KeyRecallConfig
from pamusic.model.fields import KEY, field_slices, ticks_of_ids

NONE = -1000  # the key of what is not a note, and the interval where there are not two notes
PAIRS = 2**21  # pairs of notes that are compared at once; on a GPU each pair takes memory


class KeyRecall(nn.Module):
    """The longest match of each key, as a code, and the bias that each code adds to the key's logit."""

    key_of_id: Tensor
    ticks: Tensor
    lengths: Tensor
    ages: Tensor

    def __init__(self, config: KeyRecallConfig, field_sizes: Sequence[int]) -> None:
        super().__init__()
        vocab_size = sum(field_sizes)
        key_of_id = torch.full((vocab_size,), NONE)
        key_of_id[config.first_key : config.first_key + config.num_keys] = torch.arange(config.num_keys)
        self.register_buffer("key_of_id", key_of_id, persistent=False)
        self.register_buffer("ticks", ticks_of_ids(config.shift_edges, 0, vocab_size), persistent=False)
        self.register_buffer("lengths", torch.tensor(config.lengths), persistent=False)
        self.register_buffer("ages", torch.tensor(config.ages), persistent=False)
        ids = field_slices(field_sizes, vocab_size)[KEY]
        self._others = (config.first_key - ids.start, ids.stop - config.first_key - config.num_keys)  # below, above
        self.config = config
        self.bias_of_code = nn.Embedding(1 + 2 * len(config.lengths) * (1 + len(config.ages)), 1, padding_idx=0)
        nn.init.zeros_(self.bias_of_code.weight)

    @torch.no_grad()
    def forward(self, tokens: Tensor, n: int) -> Tensor:
        """Return codes `[batch, n, 2, keys]`, int64, for the position after each of the last `n`.

        A code stands for the way, the class of length and the class of age of the match of a key; 0 is no match.

        Args:
            tokens: All visible positions, `[batch, m, fields]`.
            n: Number of last positions.
        """
        keys, now, last = self._notes(tokens, n)
        at_once = max(1, PAIRS // keys.numel())
        return torch.cat([self._codes(keys, now, some) for some in last.split(at_once, dim=1)], dim=1)

    def bias(self, codes: Tensor) -> Tensor:
        """Return the bias on the logits of the field of keys, `[..., size]`, for codes `[..., 2, keys]`."""
        of_ways: Tensor = self.bias_of_code(codes)
        return F.pad(of_ways[..., 0].sum(-2), self._others)

    def _notes(self, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the notes among all positions, without the positions between them.

        Returns:
            Keys, `[batch, m]`, aligned to the right, with `NONE` where there are no more notes; onsets, in ticks,
            likewise; and the place of the last note at each of the last `n` positions, `[batch, n]`.
        """
        key = self.key_of_id[tokens[..., KEY]]
        m, number = key.shape[1], (key != NONE).cumsum(1)
        place = m - 1 - number[:, -1:] + number
        at = torch.where(key == NONE, m, place)  # place m is for all that is dropped
        keys = torch.full_like(key, NONE)[:, :1].repeat(1, m + 1).scatter_(1, at, key)
        now = torch.zeros_like(keys).scatter_(1, at, self.ticks[tokens[..., 0]].cumsum(1))
        return keys[:, :m], now[:, :m], place[:, -n:].clamp(min=0)

    def _codes(self, keys: Tensor, now: Tensor, last: Tensor) -> Tensor:
        """Return the codes after the notes at places `last`, `[batch, n]`; the others are results of `_notes`."""
        (batch, m), n, num_keys = keys.shape, last.shape[1], self.config.num_keys
        are_two = (keys[:, :-1] != NONE) & (keys[:, 1:] != NONE)
        intervals = F.pad(torch.where(are_two, keys.diff(), NONE), (1, 0), value=NONE)  # from the note before
        compared = torch.cat([keys, intervals])  # [2 * batch, m], for the same keys and for moved ones
        keys, now, last = (each.repeat(2, 1) for each in (keys, now, last))

        own = compared.gather(1, last)[..., None]
        places = torch.arange(m, device=keys.device)
        equal = (compared[:, None] == own) & (own != NONE) & (places < last[..., None])  # [2 * batch, n, m]
        row, query, place = _pairs(equal)
        end = last[row, query]
        longest = self.config.lengths[-1]
        runs = F.pad(compared, (longest - 1, 0), value=NONE).unfold(1, longest, 1)  # that end at each place
        here, there = runs[row, end], runs[row, place]
        length = ((here == there) & (here != NONE)).flip(1).cumprod(1).sum(1) * equal[row, query, place]

        by = keys[row, end] - keys[row, place]
        key = keys[row, (place + 1).clamp(max=m - 1)] + by
        counts = (length > 0) & (0 <= key) & (key < num_keys) & ((by != 0) | (row < batch))
        score = 1 + (torch.bucketize(length, self.lengths, right=True) - 1) * m + place  # long first, then near
        at = ((row * n + query) * num_keys + key).masked_fill(~counts, 0)
        best = torch.zeros(2 * batch * n * num_keys, dtype=torch.int64, device=keys.device)
        best = best.scatter_reduce_(0, at, score * counts, "amax").view(2 * batch, n, num_keys)

        place = (best - 1).clamp(min=0)
        length_class, place = place // m, place % m
        age = now.gather(1, last)[..., None] - now.gather(1, place.flatten(1)).view_as(place)
        code = 1 + length_class * (1 + len(self.ages)) + torch.bucketize(age, self.ages, right=True)
        same, moved = torch.where(best > 0, code, 0).chunk(2)
        num_codes = len(self.lengths) * (1 + len(self.ages))
        return torch.stack([same, torch.where(moved > 0, moved + num_codes, 0)], dim=2)


def _pairs(equal: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of what is true; of everything where a read value would stall (GPU) or is not there (fake)."""
    if equal.device.type == "cpu" and type(equal) is Tensor:
        return equal.nonzero(as_tuple=True)
    every = torch.meshgrid(*(torch.arange(size, device=equal.device) for size in equal.shape), indexing="ij")
    return tuple(index.flatten() for index in every)
