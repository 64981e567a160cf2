"""Detect degeneration while a row is sampled (a loop, silence, a slot stuck open), and back up a little.

Knows numbers: which ids open and close slots (`GrammarTables`) and how many seconds pass with each; never what they
mean. `DegenerationDetector` follows one row and returns a `Detection`. `generate_guarded` then forgets what was drawn
since some seconds before the trouble began, reads what is left anew, as a prime, and goes on with other draws. A slot
that stays open is closed: its beginning is too far back to be forgotten.

What a reader of the row has been given is never taken back: an id is let out when `lookback_seconds` have been drawn
after it, so a stream lags by as much, or once the row is beyond the wanted length, where nothing is taken back. A
`Snapshot` is what there is already. All draws, also those after an intervention, follow from the seed.

A loop is told from openings alone. Those of one moment are a chord; a loop is the same chords coming again at the same
distances, three times or more and for long enough. The numbers are such that real performances are detected less than
once an hour (`benchmarks/guard.py`): they pause for long between movements, but hardly ever repeat themselves so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from pamusic.errors import UsageError
from pamusic.inference.session import InferenceSession
from pamusic.sampling.constraints import GrammarTables, PrimeTokens
from pamusic.sampling.generate import generate_row
from pamusic.sampling.token_sampler import DecodingConfig

CHORD = 0.035  # seconds; openings closer than this are of one moment: that of `music`, which this room does not know
SAME_DISTANCE = 0.25  # of a distance between chords, or
MIN_DISTANCE = 0.05  # seconds: by no more than the larger the next time differs


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What counts as degeneration, and what is done about it.

    Attributes:
        silence: seconds for which no slot is opened.
        held: seconds for which a slot stays open; then it is closed.
        repeated: seconds for which the same chords come again, not counting the first time.
        times: how often they come again at least in these.
        longest: a loop has at most this many chords.
        lookback_seconds: that are held back and may be forgotten.
        backoff_seconds: it is taken back to so long before the trouble began; twice as long the second time, and so on,
            until it is over.
        max_retries: how often it is taken back at a place; then the row ends there.

    Raises:
        UsageError: a value is out of its range.
    """

    silence: float = 16.0
    held: float = 40.0
    repeated: float = 6.0
    times: int = 2
    longest: int = 64
    lookback_seconds: float = 30.0
    backoff_seconds: float = 2.0
    max_retries: int = 6

    def __post_init__(self) -> None:
        if not (0 < self.backoff_seconds <= self.lookback_seconds and min(self.silence, self.held, self.repeated) > 0):
            raise UsageError("seconds of a guard are above 0, and it takes back no more than it looks back")
        if self.times < 1 or self.longest < 1 or self.max_retries < 0:
            raise UsageError("a guard's loop comes again, has a chord, and is tried to be left 0 times or more")


@dataclass(frozen=True)
class Detection:
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
class Intervention:
    """What was done about a detection.

    Attributes:
        detection: which.
        back_to: second up to which the row was kept; where slots were closed, that is all of it.
        gave_up: whether it ends there.
    """

    detection: Detection
    back_to: float
    gave_up: bool


@dataclass(frozen=True)
class Snapshot:
    """What there is of a row at a moment, whether it was let out or is held back.

    Attributes:
        num_drawn: how many ids were drawn for it, those that were taken back included.
        num_alarms: how many interventions there were on the way.
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


class DegenerationDetector:
    """Follows the ids of a row and notices when it degenerates; seconds are counted from the end of its prime."""

    def __init__(
        self, guard: GuardConfig, grammar: GrammarTables, seconds_of_id: Sequence[float], prime_ids: Iterable[int]
    ) -> None:
        self._guard, self._seconds_of_id = guard, seconds_of_id
        slots, ids = range(grammar.num_slots), range(len(grammar.column_of_id))
        self._opened_by = dict(zip(ids[grammar.slots.openings], slots, strict=True))
        self._closed_by = dict(zip(ids[grammar.slots.closings], slots, strict=True))
        self.now = self._last_opening = 0.0
        self._num_openings = 0
        # Of each slot, when it was opened, and by the how manieth opening.
        self._open_since: list[deque[tuple[float, int]]] = [deque(maxlen=grammar.most_open) for _ in slots]
        for id in prime_ids:
            self._follow(id)
        self._chord: set[int] = set()
        self._chord_began = 0.0
        # Of the chords before: which slots, how long after the one before them; of each period, how long it has lasted.
        self._chords: deque[frozenset[int]] = deque(maxlen=guard.longest)
        self._distances: deque[float] = deque(maxlen=guard.longest)
        self._lasts = [0.0] * guard.longest

    def advance(self, id: int) -> Detection | None:
        """Take one more id, and return what is noticed with it."""
        self.now += self._seconds_of_id[id]
        self._follow(id)
        if id in self._opened_by:
            detection = self._repetition() if self._chord and self.now - self._last_opening > CHORD else None
            if not self._chord:
                self._chord_began = self.now
            self._chord.add(self._opened_by[id])
            self._last_opening = self.now
            return detection
        if not self._seconds_of_id[id]:
            return None
        if self.now - self._last_opening > self._guard.silence:
            return Detection("silence", self._last_opening, self.now)
        held = sorted(
            (since, number, slot)
            for slot, openings in enumerate(self._open_since)
            for since, number in openings
            if self.now - since > self._guard.held
        )
        return Detection("held", held[0][0], self.now, tuple(slot for *_, slot in held)) if held else None

    def _follow(self, id: int) -> None:
        if id in self._opened_by:
            self._num_openings += 1
            self._open_since[self._opened_by[id]].append((self.now, self._num_openings))
        elif id in self._closed_by and self._open_since[self._closed_by[id]]:
            self._open_since[self._closed_by[id]].popleft()

    def _repetition(self) -> Detection | None:
        """Take the chord that is complete among those before; the next one begins now."""
        chord, began = frozenset(self._chord), self._chord_began
        distance = self.now - began  # to the next chord
        detection = None
        passed = 0.0
        for period, (other, its) in enumerate(zip(reversed(self._chords), reversed(self._distances), strict=True), 1):
            passed += its
            same = chord == other and abs(distance - its) <= max(MIN_DISTANCE, SAME_DISTANCE * its)
            self._lasts[period - 1] = self._lasts[period - 1] + distance if same else 0.0
            lasts = self._lasts[period - 1]
            if detection is None and lasts >= max(self._guard.repeated, self._guard.times * passed):
                detection = Detection("repetition", self.now - lasts, self.now)
        self._chords.append(chord)
        self._distances.append(distance)
        self._chord = set()
        return detection


def generate_guarded(
    session: InferenceSession,
    prime: PrimeTokens,
    decoding: DecodingConfig,
    *,
    guard: GuardConfig,
    seed: int,
    max_draws: int | None = None,
    on_intervention: Callable[[Intervention], None] = lambda intervention: None,
    on_snapshot: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Iterator[int]:
    """Return an iterator over the ids of one row, as `generate_row` does, but later, and without what was taken back.

    The id that was drawn at that place is forbidden there, so that even the likeliest way is another one.

    Args:
        session: its settings and weights are taken; it reads nothing itself.
        prime: nothing of it was drawn before.
        decoding: with a grammar and the seconds of ids.
        guard: what is noticed, and how far it goes back.
        seed: of the draws; those after each intervention have one made of it.
        max_draws: when so many ids have been drawn, those that were taken back included, what is left of them is let
            out and the row ends.
        on_intervention: is called with each.
        on_snapshot: is called after each draw with what there is; `max_draws` with what was drawn until then gives the
            same again.

    Raises:
        UsageError, PamusicError: as for `generate`.
    """
    if decoding.constraints.grammar is None or decoding.constraints.seconds_of_id is None:
        raise UsageError("a guard needs a grammar and the seconds of ids")
    decoding.constraints.forbidden(session.vocab_size)
    row = _GuardedRow(session, prime, decoding, guard, seed)
    return row.ids(inf if max_draws is None else max_draws, on_intervention, on_snapshot)


class _GuardedRow:
    """One row: what was drawn of it, what of that was let out, and how often it was taken back."""

    def __init__(
        self, session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, guard: GuardConfig, seed: int
    ) -> None:
        grammar, seconds_of_id = decoding.constraints.grammar, decoding.constraints.seconds_of_id
        assert grammar is not None
        assert seconds_of_id is not None
        self._session, self._prime, self._decoding, self._guard, self._seed = session, prime, decoding, guard, seed
        self._grammar, self._seconds_of_id = grammar, seconds_of_id
        self._new: list[int] = []
        self._num_out = self._num_drawn = self._attempt = self._retries = 0
        self._last_place = 0.0
        self._taken: dict[int, set[int]] = {}  # what was drawn where it was gone on from
        self._watch()

    def ids(
        self,
        max_draws: float,
        on_intervention: Callable[[Intervention], None],
        on_snapshot: Callable[[Snapshot], None],
    ) -> Iterator[int]:
        stop, forbidden = self._decoding.stop, set[int]()
        while True:
            detection = yield from self._ids_until_detection(forbidden, max_draws, on_snapshot)
            if detection is None:
                yield from self._new[self._num_out :]
                return
            self._attempt += 1
            if detection.kind == "held":
                gave_up, back_to, forbidden = False, detection.at, set()
                closings = (self._grammar.first_closing + slot for slot in detection.slots)
                self._new = [*self._new, *closings][: stop.max_tokens]
            else:
                gave_up, back_to, forbidden = self._take_back(detection)
            on_intervention(Intervention(detection, back_to, gave_up))
            on_snapshot(self._snapshot())
            is_full = stop.share(len(self._new), 0.0) >= 1 and stop.ending is None
            if gave_up or is_full or self._num_drawn >= max_draws:
                yield from self._new[self._num_out :]
                return
            self._watch()

    def _ids_until_detection(
        self, forbidden: set[int], max_draws: float, on_snapshot: Callable[[Snapshot], None]
    ) -> Generator[int, None, Detection | None]:
        """Yield ids that are old enough to be let out; return what was noticed, None at the row's end."""
        stop, is_over = self._decoding.stop, False
        for id in self._draw(forbidden):
            self._new.append(id)
            self._num_drawn += 1
            is_over = is_over or stop.share(len(self._new), self._detector.now + self._seconds_of_id[id]) >= 1
            detection = None if is_over else self._detector.advance(id)
            self._seconds.append(self._detector.now)
            if detection is not None:
                return detection
            on_snapshot(self._snapshot())
            if self._num_drawn >= max_draws:
                return None
            old = self._detector.now - self._guard.lookback_seconds
            while self._num_out < len(self._new) and (is_over or self._seconds[self._num_out] <= old):
                yield self._new[self._num_out]
                self._num_out += 1
        return None

    def _draw(self, forbidden: set[int]) -> Iterator[int]:
        """Return the ids that follow what there is, the first of them none that is `forbidden`."""
        at_first = [*forbidden, *([] if self._new else self._prime.forbidden_next)]
        prime = PrimeTokens([*self._prime.ids, *self._new], len(self._new), at_first)
        seed = _seed_of(self._seed, self._attempt)
        return generate_row(self._session.fork(), prime, self._decoding, seed=seed)

    def _take_back(self, detection: Detection) -> tuple[bool, float, set[int]]:
        """Forget what was drawn since some time before the trouble began.

        Returns:
            Whether the row is given up; the second up to which it was kept; what must not follow there.
        """
        guard = self._guard
        self._retries = self._retries + 1 if detection.at <= self._last_place + guard.lookback_seconds else 1
        self._last_place = max(self._last_place, detection.at)
        place = bisect_left(self._seconds, detection.since - guard.backoff_seconds * self._retries)
        place = max(self._num_out, place)
        back_to = self._seconds[place - 1] if place else 0.0
        self._taken = {where: ids for where, ids in self._taken.items() if self._num_out <= where <= place}
        self._taken.setdefault(place, set()).add(self._new[place])
        self._new = self._new[:place]  # another list: a snapshot has the old one
        return self._retries > guard.max_retries, back_to, self._taken[place]

    def _watch(self) -> None:
        """Follow what there is anew."""
        self._detector = DegenerationDetector(self._guard, self._grammar, self._seconds_of_id, self._prime.ids)
        self._seconds: list[float] = []  # that have passed with each
        for id in self._new:
            self._detector.advance(id)
            self._seconds.append(self._detector.now)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._num_drawn, self._attempt, self._new, len(self._new))


def _seed_of(seed: int, attempt: int) -> int:
    """Return the seed itself at first; later another, whatever it is, but always the same."""
    return seed if not attempt else int(np.random.SeedSequence([seed, attempt]).generate_state(1, np.uint64)[0] >> 1)
