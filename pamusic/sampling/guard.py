"""A watch over what is being sampled: caught in a loop, silent, or with a slot stuck open, it is taken back a little.

Knows numbers: which ids open and close slots (`Rules`) and how many seconds pass with each; never what they mean. What
is noticed of one row, `Watch` tells as a `Trouble`. `guarded` then forgets what was drawn since some seconds before the
trouble began, reads what is left anew, as a prime, and goes on with other draws. A slot that stays open is closed:
its beginning is too far back to be forgotten. What a reader of the row has been given is never taken back: an id is let
out when `look_back` seconds have been drawn after it, so a stream comes so much later, or once the row is beyond the
wanted length, where nothing is taken back; `Kept` is what there is already.
All draws, also those after a trouble, follow from the seed. What is kept grows with the row, by its ids.

A loop is told from openings alone. Those of one moment are a chord; a loop is the same chords coming again at the same
distances, three times or more and for long enough. The numbers are such that real performances trip the watch less than
once an hour (`benchmarks/guard.py`): they pause for long between movements, but hardly ever repeat themselves so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.sampling.constraints import Rules
from pamusic.sampling.generate import generate

CHORD = 0.035  # seconds; openings closer than this are of one moment: that of `music`, which this room does not know
SAME_DISTANCE = 0.25  # of a distance between chords, or
LEAST_DISTANCE = 0.05  # seconds: by no more than the larger the next time differs


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is trouble, and what is done about it.

    Attributes:
        silence: seconds for which no slot is opened.
        held: seconds for which a slot stays open; then it is closed.
        repeated: seconds for which the same chords come again, not counting the first time.
        times: how often they come again at least in these.
        longest: chords of which a loop may consist.
        look_back: seconds that are held back and may be forgotten.
        step: seconds before the beginning of a trouble to which it is taken back; twice as many the second time, and
            so on, until it is over.
        tries: so often it is taken back at a place; then the row ends there.
    """

    silence: float = 16.0
    held: float = 40.0
    repeated: float = 6.0
    times: int = 2
    longest: int = 64
    look_back: float = 30.0
    step: float = 2.0
    tries: int = 6

    def __post_init__(self) -> None:
        if not (0 < self.step <= self.look_back and min(self.silence, self.held, self.repeated) > 0):
            raise ValueError("seconds of a guard are above 0, and it takes back no more than it looks back")
        if self.times < 1 or self.longest < 1 or self.tries < 0:
            raise ValueError("a guard's loop comes again, has a chord, and is tried to be left 0 times or more")


@dataclass(frozen=True)
class Trouble:
    """What was noticed.

    Attributes:
        kind: repetition, silence or held.
        since: second at which it began.
        at: second at which it was noticed.
        slots: that are held, in the order in which they were opened; one that is held twice, twice.
    """

    kind: str
    since: float
    at: float
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alarm:
    """What was done about a trouble.

    Attributes:
        trouble: which.
        back_to: second up to which the row was kept; where slots were closed, that is all of it.
        gave_up: whether it ends there.
    """

    trouble: Trouble
    back_to: float
    gave_up: bool


@dataclass(frozen=True)
class Kept:
    """What there is of a row at a moment, whether it was let out or is held back.

    Attributes:
        num_drawn: how many ids were drawn for it, those that were taken back included.
        num_alarms: how many troubles there were on the way.
        ids: `num_ids` of this list, which may go on growing.
    """

    num_drawn: int
    num_alarms: int
    ids: list[int]
    num_ids: int

    @property
    def row(self) -> list[int]:
        """The ids at that moment."""
        return self.ids[: self.num_ids]


class Watch:
    """Follows the ids of a row and notices trouble; seconds are counted from the end of its prime."""

    def __init__(self, guard: Guard, rules: Rules, seconds_of_id: Sequence[float], prime_ids: Iterable[int]) -> None:
        self._guard, self._seconds_of_id = guard, seconds_of_id
        slots = range(rules.num_slots)
        self._opened_by = {rules.first_opening + slot: slot for slot in slots}
        self._closed_by = {rules.first_closing + slot: slot for slot in slots}
        self.now = self._last_opening = 0.0
        self._num_openings = 0
        # Of each slot, when it was opened, and by the how manieth opening.
        self._open_since: list[deque[tuple[float, int]]] = [deque(maxlen=rules.most_open) for _ in slots]
        for id in prime_ids:
            self._follow(id)
        self._chord: set[int] = set()
        self._chord_began = 0.0
        # Of the chords before: which slots, how long after the one before them; of each period, how long it has lasted.
        self._chords: deque[frozenset[int]] = deque(maxlen=guard.longest)
        self._distances: deque[float] = deque(maxlen=guard.longest)
        self._lasts = [0.0] * guard.longest

    def advance(self, id: int) -> Trouble | None:
        """Follows one more id, and tells what trouble there is with it."""
        self.now += self._seconds_of_id[id]
        self._follow(id)
        if id in self._opened_by:
            trouble = self._repetition() if self._chord and self.now - self._last_opening > CHORD else None
            if not self._chord:
                self._chord_began = self.now
            self._chord.add(self._opened_by[id])
            self._last_opening = self.now
            return trouble
        if not self._seconds_of_id[id]:
            return None
        if self.now - self._last_opening > self._guard.silence:
            return Trouble("silence", self._last_opening, self.now)
        held = sorted(
            (since, number, slot)
            for slot, openings in enumerate(self._open_since)
            for since, number in openings
            if self.now - since > self._guard.held
        )
        return Trouble("held", held[0][0], self.now, tuple(slot for *_, slot in held)) if held else None

    def _follow(self, id: int) -> None:
        if id in self._opened_by:
            self._num_openings += 1
            self._open_since[self._opened_by[id]].append((self.now, self._num_openings))
        elif id in self._closed_by and self._open_since[self._closed_by[id]]:
            self._open_since[self._closed_by[id]].popleft()

    def _repetition(self) -> Trouble | None:
        """Takes the chord that is complete among those before; the next one begins now."""
        chord, began = frozenset(self._chord), self._chord_began
        distance = self.now - began  # to the next chord
        trouble = None
        passed = 0.0
        for period, (other, its) in enumerate(zip(reversed(self._chords), reversed(self._distances), strict=True), 1):
            passed += its
            same = chord == other and abs(distance - its) <= max(LEAST_DISTANCE, SAME_DISTANCE * its)
            self._lasts[period - 1] = self._lasts[period - 1] + distance if same else 0.0
            lasts = self._lasts[period - 1]
            if trouble is None and lasts >= max(self._guard.repeated, self._guard.times * passed):
                trouble = Trouble("repetition", self.now - lasts, self.now)
        self._chords.append(chord)
        self._distances.append(distance)
        self._chord = set()
        return trouble


def guarded(
    model: PerceiverAR,
    prime_ids: Sequence[int],
    *,
    guard: Guard,
    seed: int,
    rules: Rules,
    seconds_of_id: Sequence[float],
    barred_at_first: Iterable[int] = (),
    stop_after: float = inf,
    told: Callable[[Alarm], None] = lambda alarm: None,
    keeping: Callable[[Kept], None] = lambda kept: None,
    **how: Any,
) -> Iterator[int]:
    """Yields the ids that follow a prime, as `generate` does, but later, and without what the guard took back.

    The id that was drawn where it goes on is barred there, so that even the likeliest way is another one.

    Args:
        guard: what is trouble, and how far it goes back.
        seed: of the draws; those after each trouble have one made of it.
        stop_after: when so many ids have been drawn, those that were taken back included, what is left of them is let
            out and the row ends.
        told: hears of each trouble.
        keeping: hears after each draw what there is; `stop_after` with what was drawn until then gives the same again.
        model, prime_ids, rules, seconds_of_id, barred_at_first, how: as for `generate`.

    Raises:
        ValueError, PamusicError: as for `generate`.
    """
    prime_ids, barred_at_first = list(prime_ids), list(barred_at_first)

    def drawing(new: list[int], turn: int, barred: Iterable[int]) -> Iterator[int]:
        return generate(
            model, [*prime_ids, *new], num_drawn=len(new), seed=_seed_of(seed, turn), rules=rules,
            seconds_of_id=seconds_of_id, barred_at_first=[*barred, *([] if new else barred_at_first)], **how,
        )  # fmt: skip

    beginning = [drawing([], 0, [])]  # so that arguments are checked at once

    def drawn() -> Iterator[int]:
        ids = beginning.pop()  # nobody else keeps it, nor its caches
        new: list[int] = []
        seconds: list[float] = []  # that have passed with each
        num_out = num_drawn = turn = tries = 0
        last_place = 0.0
        taken: dict[int, set[int]] = {}  # what was drawn where it was gone on from
        watch = Watch(guard, rules, seconds_of_id, prime_ids)
        while True:
            trouble, is_over = None, False
            for id in ids:
                new.append(id)
                num_drawn += 1
                is_over = is_over or _is_over(len(new), watch.now + seconds_of_id[id], how)
                trouble = None if is_over else watch.advance(id)
                seconds.append(watch.now)
                if trouble is not None:
                    break
                keeping(Kept(num_drawn, turn, new, len(new)))
                if num_drawn >= stop_after:
                    break
                while num_out < len(new) and (is_over or seconds[num_out] <= watch.now - guard.look_back):
                    yield new[num_out]
                    num_out += 1
            if trouble is None:
                yield from new[num_out:]
                return
            turn += 1
            if trouble.kind == "held":
                barred, back_to, gave_up = set[int](), trouble.at, False
                new = [*new, *(rules.first_closing + slot for slot in trouble.slots)][: how.get("length")]
            else:
                tries = tries + 1 if trouble.at <= last_place + guard.look_back else 1
                last_place = max(last_place, trouble.at)
                place = max(num_out, bisect_left(seconds, trouble.since - guard.step * tries))
                back_to, gave_up = seconds[place - 1] if place else 0.0, tries > guard.tries
                taken = {where: before for where, before in taken.items() if num_out <= where <= place}
                taken.setdefault(place, set()).add(new[place])
                new, barred = new[:place], taken[place]  # another list: who was told what there was has the old one
            told(Alarm(trouble, back_to, gave_up))
            keeping(Kept(num_drawn, turn, new, len(new)))
            is_full = _is_over(len(new), 0.0, how) and how.get("ending") is None
            if gave_up or is_full or num_drawn >= stop_after:
                yield from new[num_out:]
                return
            del ids  # its caches are given back before others are made
            watch, seconds = Watch(guard, rules, seconds_of_id, prime_ids), []
            for id in new:
                watch.advance(id)
                seconds.append(watch.now)
            ids = drawing(new, turn, barred)

    return drawn()


def _is_over(num_drawn: int, seconds: float, how: dict[str, Any]) -> bool:
    """Whether a row is beyond the wanted length, being brought to its end."""
    return num_drawn >= (how.get("length") or inf) or seconds >= (how.get("seconds") or inf)


def _seed_of(seed: int, turn: int) -> int:
    """The seed itself at first; later another, whatever it is, but always the same."""
    return seed if not turn else int(np.random.SeedSequence([seed, turn]).generate_state(1, np.uint64)[0] >> 1)
