"""Split the bytes of a Standard MIDI File, however broken, into its header and its tracks.

Knows chunks and their lengths; knows no messages. A second file in the same bytes is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pamusic.errors import PamusicError
from pamusic.music.foreign import check_is_midi, is_riff
from pamusic.music.midi_contents import KINDS, Repair

FAR_BEFORE_HEADER = 4096  # MacBinary puts 128 bytes before it; mail and web servers put some lines
SECOND_FILE = b"MThd\0\0\0\6"
# Frames per second as coded in the division -> (frames that we call a quarter, their duration in microseconds).
SMPTE = {24: (24, 1_000_000), 25: (25, 1_000_000), 29: (30, 1_001_000), 30: (30, 1_000_000)}


@dataclass
class Log:
    """Counts of the repairs so far."""

    counts: dict[str, int] = field(default_factory=dict)
    cut_tick: int | None = None

    def add(self, kind: str, count: int = 1) -> None:
        assert kind in KINDS
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count

    def cut(self, tick: int) -> None:
        self.add("cut off")
        self.cut_tick = tick if self.cut_tick is None else min(tick, self.cut_tick)

    def repairs(self) -> tuple[Repair, ...]:
        return tuple(
            Repair.of(kind, self.counts[kind], self.cut_tick if kind == "cut off" else None)
            for kind in KINDS
            if kind in self.counts
        )


def from_header_on(data: bytes, name: str, log: Log) -> tuple[bytes, int]:
    """Return the data from the header on, and the place in it where the first chunk begins."""
    check_is_midi(data, name, far=FAR_BEFORE_HEADER)
    has_wrapping = is_riff(data)
    start = data.find(b"MThd")
    if has_wrapping and data[start - 8 : start - 4] == b"data":
        data = data[: start + int.from_bytes(data[start - 4 : start], "little")]
    elif start:
        log.add("bytes before the header", start)
    data = data[start:]
    if len(data) < 14:
        raise PamusicError(
            f"{name}: is cut off within its header ({len(data)} bytes of 14); download it again", rule="cut off"
        )
    length = int.from_bytes(data[4:8], "big")
    if length < 6 or length > len(data) or data[8] or data[9] > 2:
        log.add("broken header")
        length = 6
    return data, 8 + length


def time_base(division: int, name: str) -> tuple[int, int | None]:
    """Return the ticks per quarter, and the microseconds per quarter (None if tempi set them)."""
    if division == 0:
        raise PamusicError(f"{name}: has 0 ticks per quarter; save it again in a sequencer", rule="no time base")
    if division < 0x8000:
        return division, None
    frames, ticks = 256 - (division >> 8), division & 0xFF
    if frames not in SMPTE or not ticks:
        raise PamusicError(
            f"{name}: has {ticks} ticks per frame and {frames} frames per second, but frames must be 24, 25, 29 or 30; "
            "save it again in a sequencer",
            rule="no time base",
        )
    frames, tempo = SMPTE[frames]
    return frames * ticks, tempo


def track_spans(data: bytes, at: int, log: Log) -> Iterator[tuple[int, int, bool]]:
    """Yield (first byte, end, whether its length was right) of each track, whatever number the header gives.

    A chunk's length is accepted if the end of the file, an end-of-track message or another chunk stands at its end.
    Otherwise the chunk ends where the next track begins.

    Args:
        data: Bytes of the file, from its header on.
        at: Place where the first chunk begins.
        log: Log that counts what is left out.
    """
    has_track = False
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        end = at + 8 + size
        if data[at : at + 4] == b"MTrk" and at + 8 <= len(data):
            is_whole = (
                end == len(data) or (end < len(data) and data[end - 3 : end] == b"\xff\x2f\x00") or _is_chunk(data, end)
            )
            if not is_whole:
                end = _next_track(data, at + 8)
            has_track = True
            yield at + 8, end, is_whole
        elif has_track and data.startswith(SECOND_FILE, at):
            log.add("second file", data.count(SECOND_FILE, at))
            return
        elif _is_chunk(data, at):
            log.add("foreign chunks")
        else:
            end = _next_track(data, at + 1)
            log.add("bytes outside tracks", end - at)
        at = end


def _next_track(data: bytes, at: int) -> int:
    """Return the place where the next track or the next file begins; the end of the data if there is none."""
    track = data.find(b"MTrk", at)
    end = track if track >= 0 else len(data)
    second = data.find(SECOND_FILE, at, end)
    return second if second >= 0 else end


def _is_chunk(data: bytes, at: int) -> bool:
    """Return whether a chunk that ends within the file begins here."""
    kind = data[at : at + 4]
    if kind == b"MTrk":
        return True
    fits = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big") <= len(data)
    return fits and len(kind) == 4 and all(0x20 < byte < 0x7F for byte in kind)
