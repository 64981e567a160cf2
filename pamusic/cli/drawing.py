"""Pieces that are being drawn -> their ids, while somebody watches and may interrupt. Knows words, no options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pamusic.cli.terminal import progress, say

if TYPE_CHECKING:
    from pamusic.generation.guard import Alarm

TROUBLES = {"repetition": "a loop", "silence": "silence", "held": "a key held"}


class Alarms:
    """Tells what a guard does, and counts it."""

    def __init__(self, seed: int) -> None:
        self.rows: list[int] = []  # of each alarm, in their order
        self._seed = seed

    def __call__(self, row: int, alarm: Alarm) -> None:
        self.rows.append(row)
        trouble = alarm.trouble
        what = f"{TROUBLES[trouble.kind]} from second {trouble.since:.1f} to {trouble.at:.1f}"
        back = f"back to second {alarm.back_to:.1f}"
        if alarm.gave_up:
            back += ", where it ends, for it came again and again; --temperature may be too low"
        say(f"guard, seed {self._seed + row}: {what}; {back}")


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        pieces: the ids of each.
        alarms: how many there were in each until its last id.
        stopped_after: ids of the longest, where it was not the end; an interruption, now or then.
        interrupted: whether it was one now.
    """

    pieces: list[list[int]]
    alarms: Counter[int]
    stopped_after: int | None
    interrupted: bool


def collected(
    drawn: Iterable[list[int | None]], num: int, total: int | None, alarms: Alarms, stop_after: int | None = None
) -> Drawn:
    """What is drawn until the end or an interruption, or until the longest piece has `stop_after` ids."""
    steps: list[list[int | None]] = []  # of whole steps, so that an interruption leaves all pieces as long
    num_alarms = 0
    try:
        for ids in progress(islice(drawn, stop_after), total=stop_after or total, what="sample", unit="token"):
            steps.append(ids)
            num_alarms = len(alarms.rows)
        interrupted = False
    except KeyboardInterrupt:
        if not steps:
            raise
        interrupted, stop_after = True, len(steps)
    pieces = [[id for ids in steps if (id := ids[row]) is not None] for row in range(num)]
    heard = alarms.rows if stop_after is None else alarms.rows[:num_alarms]
    return Drawn(pieces, Counter(heard), stop_after, interrupted)
