"""Pieces that are being drawn -> their ids, while somebody watches and may interrupt. Knows words, no options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pamusic.cli.interrupting import INTERRUPTED
from pamusic.cli.terminal import progress, say

if TYPE_CHECKING:
    from pamusic.sampling.guard import Alarm, Kept

TROUBLES = {"repetition": "a loop", "silence": "silence", "held": "a key held"}


class Hearing:
    """Hears what a guard does: tells its alarms, and knows what there is of each piece, held back or not."""

    def __init__(self, seed: int) -> None:
        self.kept: dict[int, Kept] = {}  # by the number of the piece; the last moment of each, whole at any time
        self.moved: Callable[[float], object] = lambda by: None  # hears by how much there is more, or less
        self.size_of: Callable[[Any], float] = lambda id: 1  # what an id, or a position, adds to that
        self._sizes: dict[int, list[float]] = {}  # of a piece, up to each id
        self._seed = seed

    def alarmed(self, row: int, alarm: Alarm) -> None:
        """Tells what the guard did."""
        trouble = alarm.trouble
        what = f"{TROUBLES[trouble.kind]} from second {trouble.since:.1f} to {trouble.at:.1f}"
        back = "let go" if trouble.kind == "held" else f"back to second {alarm.back_to:.1f}"
        if alarm.gave_up:
            back += ", where it ends, for it came again and again; --temperature may be too low"
        say(f"guard, seed {self._seed + row}: {what}; {back}")

    def keeping(self, row: int, kept: Kept) -> None:
        """Takes what there is of a piece."""
        self.kept[row] = kept
        sizes = self._sizes.setdefault(row, [0])
        before = sizes[-1]
        del sizes[max(1, kept.num_ids) :]  # what was taken back; the last id is new
        for id in kept.ids[len(sizes) - 1 : kept.num_ids]:
            sizes.append(sizes[-1] + self.size_of(id))
        self.moved(sizes[-1] - before)


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        pieces: the ids of each, or positions; what a guard still held back is among them.
        num_drawn: how many were drawn for each, those that a guard took back included; of a batch, for the longest.
        num_alarms: how many there were in each.
        interrupted: the exit status of what ended it before its end; 0 where nothing did.
    """

    pieces: list[list[Any]]
    num_drawn: list[int]
    num_alarms: list[int]
    interrupted: int


def collected(
    drawn: Iterable[Sequence[Any]],
    num: int,
    hearing: Hearing,
    *,
    length: int | None,
    seconds: float | None,
    seconds_of_id: Sequence[float],
) -> Drawn:
    """Return what is drawn of `num` pieces until the end or an interruption; a bar shows how far it is.

    Args:
        drawn: the next id of each piece, or position, a list of ids; None where it has ended.
        num: how many pieces.
        hearing: what the guard says.
        length: ids of a piece at most; the bar counts these where it is given.
        seconds: of music in a piece at most; otherwise the bar counts these.
        seconds_of_id: for how long each id lets time pass.

    Raises:
        KeyboardInterrupt, SystemExit: by Ctrl-C, or told to end, and there is nothing yet.
    """
    steps: list[Sequence[Any]] = []  # of whole steps, so that an interruption leaves all pieces of a batch as long
    stopped: KeyboardInterrupt | SystemExit | None = None
    total, unit = (seconds, " seconds of music") if length is None else (length, "token")
    if length is None:
        hearing.size_of = lambda id: sum(map(seconds_of_id.__getitem__, id if isinstance(id, list) else (id,)))
    try:
        with progress(total=total and total * num, what="sample", unit=unit, scaled=length is None) as bar:
            hearing.moved = bar.update  # by what a guard holds back, too
            for ids in drawn:
                steps.append(ids)
                if not hearing.kept:
                    bar.update(sum(hearing.size_of(id) for id in ids if id is not None))
    except (KeyboardInterrupt, SystemExit) as stop:
        stopped = stop
    interrupted = int(stopped.code or 0) if isinstance(stopped, SystemExit) else INTERRUPTED * (stopped is not None)
    if hearing.kept:
        kept = [hearing.kept.get(row) for row in range(num)]
        got = Drawn(
            [[] if each is None else each.row for each in kept],
            [0 if each is None else each.num_drawn for each in kept],
            [0 if each is None else each.num_alarms for each in kept],
            interrupted,
        )
    else:
        pieces = [[id for ids in steps if (id := ids[row]) is not None] for row in range(num)]
        got = Drawn(pieces, [len(steps)] * num, [0] * num, interrupted)
    if stopped and not any(got.pieces):
        raise stopped
    return got
