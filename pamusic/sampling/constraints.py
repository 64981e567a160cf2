"""What the sampler knows of a vocabulary, and of the ids that a piece continues.

Knows arrays; never what the ids mean. `TokenConstraints` is for vocabularies with one id a position,
`PositionConstraints` for those with several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pamusic.errors import UsageError
from pamusic.model.slots import NoteSlots

Position: TypeAlias = int | list[int]  # an id, or one id per field


class SlotEvent(NamedTuple):
    """Part of a position: time that passes, and then a slot that opens or closes.

    Attributes:
        seconds: Seconds that pass first.
        opened: Slot that opens, or None.
        closed: Slot that closes, or None.
        lasts: Seconds for which the opened slot stays open; None if an id closes it.
    """

    seconds: float = 0.0
    opened: int | None = None
    closed: int | None = None
    lasts: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class GrammarTables:
    """Tables of the grammar: which ids may follow.

    Attributes:
        column_of_id: Column of each id in the two tables of states, `[vocab]`, int64.
        first_states: Initial state of each machine, `[machines]`, int64. All machines share one numbering of states.
        next_state: State after each column, `[states, columns]`, int64.
        forbidden: Columns that each state forbids, `[states, columns]`, bool.
        pedal_level: How far a pedal is down in each state, `[states]`, int64.
        first_opening, first_closing: Ids that open and close slot 0; those of the other slots follow one by one.
        num_slots: Number of slots.
        most_open: Largest number of openings of a slot, 1 or 2. With 1, a second opening restarts the slot.
        ascending: True if slots are opened in ascending order between ticks.
        is_tick: Ids that begin a new step, `[vocab]`, bool.
        needs_opening: Ids that are forbidden when no slot can be opened, `[vocab]`, bool.
        needs_all_closed: Ids that are forbidden while a slot is open, `[vocab]`, bool.
    """

    column_of_id: np.ndarray
    first_states: np.ndarray
    next_state: np.ndarray
    forbidden: np.ndarray
    pedal_level: np.ndarray
    first_opening: int
    first_closing: int
    num_slots: int
    most_open: int
    ascending: bool
    is_tick: np.ndarray
    needs_opening: np.ndarray
    needs_all_closed: np.ndarray

    @property
    def slots(self) -> NoteSlots:
        """Ids that open and close each slot."""
        return NoteSlots.of(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenConstraints:
    """Knowledge of the sampler about a vocabulary with one id a position; by default none.

    Attributes:
        grammar: Tables of the ids that may follow. Prime ids are consumed even if they violate them. A sounding note is
            never restarted, even if the grammar allows it: one closing would then end only one of the two. MAESTRO has
            6 such openings in 7 million; an unconstrained `small` has 2.6 %.
        seconds_of_id: Seconds that pass with each id, `[vocab]`.
        class_of_id: Index of each id into `SamplingConfig.class_temperatures`, -1 for none, `[vocab]`.
        forbidden_ids: Ids that are never drawn.
        end_id: Id that ends a piece, without being part of it.
    """

    grammar: GrammarTables | None = None
    seconds_of_id: Sequence[float] | None = None
    class_of_id: Sequence[int] | None = None
    forbidden_ids: Sequence[int] = ()
    end_id: int | None = None

    @property
    def includes_last(self) -> bool:
        """Whether the id that completes the wanted seconds belongs to the row."""
        return True

    @property
    def most_open(self) -> int:
        """Largest number of openings of a slot."""
        return 1 if self.grammar is None else self.grammar.most_open

    def seconds_of(self, positions: Iterable[Position]) -> float:
        """Return the seconds that pass with some ids; 0 without `seconds_of_id`."""
        if self.seconds_of_id is None:
            return 0.0
        return sum((self.seconds_of_id[_id_of(position)] for position in positions), 0.0)

    def is_end(self, position: Position) -> bool:
        """Return whether an id ends a piece."""
        return position == self.end_id

    @property
    def can_guard(self) -> bool:
        """Whether `slot_events` knows slots and seconds."""
        return self.grammar is not None and self.seconds_of_id is not None

    def slot_events(self, position: Position) -> list[SlotEvent]:
        """Return what an id does to slots; needs `can_guard`."""
        assert self.seconds_of_id is not None
        id = _id_of(position)
        opened, closed = (slots.get(id) for slots in self._slots)
        return [SlotEvent(self.seconds_of_id[id], opened, closed)]

    def closings(self, slots: Iterable[int]) -> list[Position]:
        """Return the ids that close slots."""
        assert self.grammar is not None
        return [self.grammar.first_closing + slot for slot in slots]

    def ids_to_forbid(self, position: Position) -> set[int]:
        """Return the ids to forbid so that a position is not drawn again."""
        return {_id_of(position)}

    @cached_property
    def _slots(self) -> tuple[dict[int, int], dict[int, int]]:
        """Slot by opening id, and by closing id."""
        assert self.grammar is not None
        ids = range(len(self.grammar.column_of_id))
        openings, closings = ids[self.grammar.slots.openings], ids[self.grammar.slots.closings]
        return {id: slot for slot, id in enumerate(openings)}, {id: slot for slot, id in enumerate(closings)}

    def forbidden(self, vocab_size: int) -> Tensor:
        """Return the ids that are never drawn, `[vocab]`, bool.

        Raises:
            UsageError: All ids are forbidden, or the constraints belong to another vocabulary.
        """
        forbidden = np.zeros(vocab_size, bool)
        forbidden[list(self.forbidden_ids)] = True
        if forbidden.sum() + (self.end_id is not None and not forbidden[self.end_id]) == vocab_size:
            raise UsageError("every id is forbidden; allow at least one")
        if self.grammar is not None and len(self.grammar.column_of_id) != vocab_size:
            raise UsageError(
                f"the grammar must fit the {vocab_size} ids of the model, got one for {len(self.grammar.column_of_id)}"
            )
        return torch.from_numpy(forbidden)


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionConstraints:
    """Knowledge of the sampler about a vocabulary with several ids a position.

    The first field has the time since the last position, the second the key, the last one the length.

    Attributes:
        fits: Whether two ids of different fields can stand in one position, `[vocab, vocab]`, bool.
        seconds_of_id: Seconds that pass before a position with each id, `[vocab]`; 0 for ids of other fields.
        seconds_lasting: Seconds that a position with each id lasts, `[vocab]`; 0 for ids of other fields.
        rank_of_id: Order of keys within one step, strictly ascending, `[vocab]`, int64; -1 for ids of other fields.
            None for any order.
        slot_of_id: Slot that each id opens, `[vocab]`, int64; -1 for none. A slot is a note.
        sustains: Keys that prolong sounds for their own length, `[vocab]`, bool.
        class_of_id: Index of each id into `SamplingConfig.class_temperatures`, -1 for none, `[vocab]`.
        filtered: Whether top-p and the other filters apply to each field.
        forbidden_ids: Ids that are never drawn.
        end: Ids of the position that ends a piece, without being part of it; None if there is no end.
    """

    fits: np.ndarray
    seconds_of_id: np.ndarray
    seconds_lasting: np.ndarray
    rank_of_id: np.ndarray | None
    slot_of_id: np.ndarray
    sustains: np.ndarray
    class_of_id: np.ndarray
    filtered: Sequence[bool]
    forbidden_ids: Sequence[int] = ()
    end: Sequence[int] | None = None

    @property
    def includes_last(self) -> bool:
        """Whether the position that completes the wanted seconds belongs to the row; it begins too late."""
        return False

    @property
    def most_open(self) -> int:
        """Largest number of openings of a slot."""
        return 1

    @property
    def can_guard(self) -> bool:
        """Whether `slot_events` knows slots and seconds."""
        return True

    @property
    def end_id(self) -> int | None:
        """Key of the end."""
        return None if self.end is None else self.end[1]

    def seconds_of(self, positions: Iterable[Position]) -> float:
        """Return the seconds from the position before the first of some positions to the last one."""
        return sum((self._seconds[id] for position in positions for id in _ids_of(position)), 0.0)

    def is_end(self, position: Position) -> bool:
        """Return whether a position ends a piece."""
        return self.end_id in _ids_of(position)

    def slot_events(self, position: Position) -> list[SlotEvent]:
        """Return what a position does to slots: time passes, then a note may begin."""
        shift, key, *_, length = _ids_of(position)
        events = [SlotEvent(self._seconds[shift])]
        if self._slot[key] >= 0:
            events.append(SlotEvent(opened=self._slot[key], lasts=self._lasting[length]))
        return events

    def closings(self, slots: Iterable[int]) -> list[Position]:
        """Return no positions: a note ends by its length."""
        return []

    def ids_to_forbid(self, position: Position) -> set[int]:
        """Return the key of a position; without it, the position is not drawn again."""
        return {_ids_of(position)[1]}

    def forbidden(self, vocab_size: int) -> Tensor:
        """Return the ids that are never drawn, `[vocab]`, bool.

        Raises:
            UsageError: The constraints belong to another vocabulary.
        """
        if len(self.fits) != vocab_size:
            raise UsageError(f"the constraints must fit the {vocab_size} ids of the model, got {len(self.fits)}")
        forbidden = torch.zeros(vocab_size, dtype=torch.bool)
        forbidden[list(self.forbidden_ids)] = True
        return forbidden

    @cached_property
    def _seconds(self) -> list[float]:
        return np.asarray(self.seconds_of_id, np.float64).tolist()

    @cached_property
    def _lasting(self) -> list[float]:
        return np.asarray(self.seconds_lasting, np.float64).tolist()

    @cached_property
    def _slot(self) -> list[int]:
        return np.asarray(self.slot_of_id, np.int64).tolist()


Constraints: TypeAlias = TokenConstraints | PositionConstraints


def _id_of(position: Position) -> int:
    assert not isinstance(position, list), "a position must have one id"
    return position


def _ids_of(position: Position) -> list[int]:
    assert isinstance(position, list), "a position must have several ids"
    return position


@dataclass(frozen=True)
class PrimeTokens:
    """The ids that all rows continue.

    Attributes:
        ids: Ids of the prime, or positions: at least the start.
        num_resumed: Number of last ids that an earlier call drew; they count as newly drawn.
        forbidden_next: Ids that are not drawn first, unless no other id is allowed.
        gap_seconds: Seconds from the last position to the point where new music begins and its seconds count.

    Raises:
        UsageError: `ids` is empty.
    """

    ids: Sequence[Position]
    num_resumed: int = 0
    forbidden_next: Sequence[int] = ()
    gap_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise UsageError("a prime must have at least one token, the start token; got none")

    @property
    def tokens(self) -> list[int]:
        """Ids of the prime, with one id a position."""
        return [_id_of(position) for position in self.ids]

    @property
    def resumed(self) -> Sequence[Position]:
        """The last `num_resumed` ids."""
        return self.ids[len(self.ids) - self.num_resumed :]
