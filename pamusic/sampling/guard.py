"""Detect degeneration while sampling a row (a loop, silence, a slot stuck open), and back up a little.

Knows slots that open and close, and the seconds that pass between (`SlotEvent`); never what they mean.
`DegenerationDetector` watches one row and returns a `Detection`. `generate_guarded` then drops the ids drawn since some
seconds before the trouble began, prefills the rest as a prime, and continues with other draws. A slot stuck open is
closed instead, because its beginning is too far back to drop. Where a slot's length is drawn with its opening, a length
that is too long is taken back at once.

An id that the caller has received is never taken back. An id is yielded when `lookback_seconds` have been drawn after
it, so the stream lags by this time. Beyond the wanted length nothing is taken back, and ids are yielded at once. A
`Snapshot` also has the ids that are not yielded yet. All draws, also after an intervention, follow from the seed.

Loops are detected from openings alone. Openings of one moment are a chord. A loop repeats the same chords at the same
distances at least three times and for long enough. With these thresholds, real performances cause less than one
detection an hour (`benchmarks/guard.py`): they pause for long between movements, but rarely repeat like a loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from pamusic.errors import UsageError
from pamusic.inference.session import InferenceSession
from pamusic.sampling.constraints import Constraints, Position, PrimeTokens, SlotEvent
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.generate import generate_row

CHORD = 0.035  # seconds between openings of one chord; the value in `music`, which this layer must not import
# Two distances between chords are the same if they differ by this share, or by this many seconds if that is more.
SAME_DISTANCE = 0.25
MIN_DISTANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Thresholds of degeneration, and settings of the response.

    Attributes:
        silence: Seconds without a new opening that count as silence.
        held: Seconds after which an open slot counts as stuck and is closed.
        repeated: Seconds of repeated chords, without their first time, that count as a loop.
        times: Smallest number of repetitions in a loop.
        longest: Largest number of chords in a loop.
        lookback_seconds: Seconds of the row that are not yielded yet and may be taken back.
        backoff_seconds: Seconds before the trouble at which the row continues; the second retry doubles them, the
            third triples them, and so on.
        max_retries: Largest number of retries at one place; then the row ends there.

    Raises:
        UsageError: A value is out of its range.
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
            raise UsageError(
                f"seconds of a guard must be above 0, and backoff_seconds at most lookback_seconds, got {self}"
            )
        if self.times < 1 or self.longest < 1 or self.max_retries < 0:
            raise UsageError(
                f"a guard needs times and longest of at least 1, and max_retries of at least 0, got {self}"
            )


@dataclass(frozen=True)
class Detection:
    """A detected degeneration.

    Attributes:
        kind: "repetition", "silence" or "held".
        since: Time of its beginning, in seconds.
        at: Time of its detection, in seconds.
        slots: Slots stuck open, in order of opening; a slot that is open twice appears twice.
    """

    kind: str
    since: float
    at: float
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Intervention:
    """The response to a detection.

    Attributes:
        detection: The detection.
        back_to: Time, in seconds, up to which the row was kept; the whole row if slots were closed.
        gave_up: True if the row ends there.
    """

    detection: Detection
    back_to: float
    gave_up: bool


@dataclass(frozen=True)
class Snapshot:
    """The ids of a row at one moment, yielded or not.

    Attributes:
        num_drawn: Number of ids drawn for it, including ids that were taken back.
        num_alarms: Number of interventions so far.
        ids: A list that may still grow; only its first `num_ids` count.
        num_ids: Number of ids at that moment.
    """

    num_drawn: int
    num_alarms: int
    ids: list[Position]
    num_ids: int

    @property
    def row(self) -> list[Position]:
        """Ids at that moment."""
        return self.ids[: self.num_ids]


class DegenerationDetector:
    """A detector of degeneration in the ids of one row; time counts from the end of its prime."""

    def __init__(
        self, guard: GuardConfig, constraints: Constraints, prime: Iterable[Position], gap_seconds: float = 0.0
    ) -> None:
        """Begin after a prime; `gap_seconds` is as in `PrimeTokens`."""
        self._guard, self._constraints = guard, constraints
        self.now, self._last_opening = -gap_seconds, 0.0
        self._num_openings = 0
        # For each slot that is open without a known end, the time and the number of its openings.
        self._open_since: dict[int, deque[tuple[float, int]]] = {}
        for position in prime:
            for event in constraints.slot_events(position):
                self._follow(event)
        self._chord: set[int] = set()
        self._chord_began = 0.0
        # Slots of the earlier chords and the distance to the next chord; for each period, the length of its repetition.
        self._chords: deque[frozenset[int]] = deque(maxlen=guard.longest)
        self._distances: deque[float] = deque(maxlen=guard.longest)
        self._lasts = [0.0] * guard.longest

    def advance(self, position: Position) -> Detection | None:
        """Consume one more position; return a detection, or None."""
        detections = (self._advance(event) for event in self._constraints.slot_events(position))
        return next((each for each in detections if each is not None), None)

    def _advance(self, event: SlotEvent) -> Detection | None:
        self.now += event.seconds
        self._follow(event)
        if event.opened is not None:
            detection = self._repetition() if self._chord and self.now - self._last_opening > CHORD else None
            if not self._chord:
                self._chord_began = self.now
            self._chord.add(event.opened)
            self._last_opening = self.now
            if detection is None and event.lasts is not None and event.lasts > self._guard.held:
                detection = Detection("held", self.now, self.now, (event.opened,))
            return detection
        if not event.seconds:
            return None
        if self.now - self._last_opening > self._guard.silence:
            return Detection("silence", self._last_opening, self.now)
        held = sorted(
            (since, number, slot)
            for slot, openings in self._open_since.items()
            for since, number in openings
            if self.now - since > self._guard.held
        )
        return Detection("held", held[0][0], self.now, tuple(slot for *_, slot in held)) if held else None

    def _follow(self, event: SlotEvent) -> None:
        if event.opened is not None and event.lasts is None:
            self._num_openings += 1
            openings = self._open_since.setdefault(event.opened, deque(maxlen=self._constraints.most_open))
            openings.append((self.now, self._num_openings))
        elif event.closed is not None and self._open_since.get(event.closed):
            self._open_since[event.closed].popleft()

    def _repetition(self) -> Detection | None:
        """Add the completed chord to the earlier ones, compare it with them, and begin the next one."""
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
) -> Iterator[Position]:
    """Return an iterator over the ids of one row, like `generate_row`, but delayed and without degeneration.

    Where the row was taken back, the id drawn there before is forbidden, so even greedy decoding takes another path.

    Args:
        session: Source of settings and weights; it reads nothing itself.
        prime: A prime without resumed ids.
        decoding: Settings with a grammar and the seconds of ids.
        guard: Thresholds, and settings of the response.
        seed: Seed of the draws; after each intervention, a new seed is derived from it.
        max_draws: Limit on the number of drawn ids, including ids that were taken back. At the limit, the remaining ids
            are yielded and the row ends.
        on_intervention: Called with each intervention.
        on_snapshot: Called after each draw with a snapshot. Its `num_drawn`, passed as `max_draws`, gives the same row
            again.

    Raises:
        UsageError, PamusicError: As for `generate`.
    """
    if not decoding.constraints.can_guard:
        raise UsageError("a guard needs a grammar and the seconds of ids; pass both in the constraints")
    decoding.constraints.forbidden(session.vocab_size)
    row = _GuardedRow(session, prime, decoding, guard, seed)
    return row.ids(inf if max_draws is None else max_draws, on_intervention, on_snapshot)


class _GuardedRow:
    """The state of one guarded row: drawn ids, yielded ids, and retries."""

    def __init__(
        self, session: InferenceSession, prime: PrimeTokens, decoding: DecodingConfig, guard: GuardConfig, seed: int
    ) -> None:
        self._session, self._prime, self._decoding, self._guard, self._seed = session, prime, decoding, guard, seed
        self._constraints = decoding.constraints
        self._new: list[Position] = []
        self._num_out = self._num_drawn = self._attempt = self._retries = 0
        self._last_place = 0.0
        self._taken: dict[int, set[int]] = {}  # ids drawn before at each place of a retry
        self._watch()

    def ids(
        self,
        max_draws: float,
        on_intervention: Callable[[Intervention], None],
        on_snapshot: Callable[[Snapshot], None],
    ) -> Iterator[Position]:
        stop, forbidden = self._decoding.stop, set[int]()
        while True:
            detection = yield from self._ids_until_detection(forbidden, max_draws, on_snapshot)
            if detection is None:
                yield from self._new[self._num_out :]
                return
            self._attempt += 1
            closings = self._constraints.closings(detection.slots)
            if closings:
                gave_up, back_to, forbidden = False, detection.at, set()
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
    ) -> Generator[Position, None, Detection | None]:
        """Yield ids that are older than the lookback; return the detection, or None at the end of the row."""
        stop, is_over = self._decoding.stop, False
        for position in self._draw(forbidden):
            self._new.append(position)
            self._num_drawn += 1
            seconds = self._detector.now + self._constraints.seconds_of([position])
            is_over = is_over or stop.share(len(self._new), seconds) >= 1
            detection = None if is_over else self._detector.advance(position)
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

    def _draw(self, forbidden: set[int]) -> Iterator[Position]:
        """Return an iterator over ids that continue the row; the first one is not in `forbidden`."""
        at_first = [*forbidden, *([] if self._new else self._prime.forbidden_next)]
        ids = [*self._prime.ids, *self._new]
        prime = PrimeTokens(ids, len(self._new), at_first, self._prime.gap_seconds)
        seed = _seed_of(self._seed, self._attempt)
        return generate_row(self._session.fork(), prime, self._decoding, seed=seed)

    def _take_back(self, detection: Detection) -> tuple[bool, float, set[int]]:
        """Drop the ids drawn since some time before the trouble began.

        Returns:
            Whether the row is given up; the time, in seconds, up to which it was kept; the ids forbidden next.
        """
        guard = self._guard
        self._retries = self._retries + 1 if detection.at <= self._last_place + guard.lookback_seconds else 1
        self._last_place = max(self._last_place, detection.at)
        place = bisect_left(self._seconds, detection.since - guard.backoff_seconds * self._retries)
        place = max(self._num_out, place)
        back_to = self._seconds[place - 1] if place else 0.0
        self._taken = {where: ids for where, ids in self._taken.items() if self._num_out <= where <= place}
        self._taken.setdefault(place, set()).update(self._constraints.ids_to_forbid(self._new[place]))
        self._new = self._new[:place]  # a new list, because snapshots share the old one
        return self._retries > guard.max_retries, back_to, self._taken[place]

    def _watch(self) -> None:
        """Restart the detector on the kept ids."""
        self._detector = DegenerationDetector(self._guard, self._constraints, self._prime.ids, self._prime.gap_seconds)
        self._seconds: list[float] = []  # time after each id
        for position in self._new:
            self._detector.advance(position)
            self._seconds.append(self._detector.now)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._num_drawn, self._attempt, self._new, len(self._new))


def _seed_of(seed: int, attempt: int) -> int:
    """Return the seed itself for attempt 0, and a seed derived from it for each later attempt."""
    return seed if not attempt else int(np.random.SeedSequence([seed, attempt]).generate_state(1, np.uint64)[0] >> 1)
