"""Map ids to the slots that they open or close, such as the keys of a piano. Knows ids as numbers.

The ledger, recall, the grammar, the release bias, the ending and the guard all track open slots by this map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class HasSlots(Protocol):
    """A configuration that defines slots: `LedgerConfig`, `RecallConfig`, `sampling.constraints.GrammarTables`."""

    @property
    def num_slots(self) -> int: ...

    @property
    def first_opening(self) -> int: ...

    @property
    def first_closing(self) -> int: ...


@dataclass(frozen=True)
class NoteSlots:
    """Ids that open and close each slot.

    Attributes:
        num_slots: Number of slots.
        first_opening, first_closing: Ids that open and close slot 0; those of the other slots follow one by one.
    """

    num_slots: int
    first_opening: int
    first_closing: int

    @classmethod
    def of(cls, config: HasSlots) -> NoteSlots:
        """Return the slots of a configuration."""
        return cls(config.num_slots, config.first_opening, config.first_closing)

    @property
    def openings(self) -> slice:
        """Ids that open a slot, in the order of slots."""
        return slice(self.first_opening, self.first_opening + self.num_slots)

    @property
    def closings(self) -> slice:
        """Ids that close a slot, in the order of slots."""
        return slice(self.first_closing, self.first_closing + self.num_slots)

    def opened_by(self, vocab_size: int) -> Tensor:
        """Return the slot that each id opens, `[vocab]`, int64; `num_slots`, a dummy, for all other ids."""
        return self._of_ids(self.openings, vocab_size)

    def closed_by(self, vocab_size: int) -> Tensor:
        """Return the slot that each id closes, `[vocab]`, int64; `num_slots` for all other ids."""
        return self._of_ids(self.closings, vocab_size)

    def _of_ids(self, ids: slice, vocab_size: int) -> Tensor:
        slots = torch.full((vocab_size,), self.num_slots)
        slots[ids] = torch.arange(self.num_slots)
        return slots
