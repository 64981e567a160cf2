"""A prime and new ids -> the performance, or the file, that goes on where the prime ends.

Knows performances, their files and a tokenizer; knows no model. The prime stays as it was read: its own times,
velocities and pedals, not those of the grid. What it left open where it was cut ends where the ids end it. A string
that the pedal alone holds ends with that pedal, which goes up with the last of them.

From there on the pedals do what the new ids say. Where these know pedals, they start as the prime leaves them; where
the sustain pedal is part of the notes' lengths, the feet are off. At the end of it all every pedal is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from pamusic.music.midi import Tracks, midi_bytes
from pamusic.music.midi_contents import Repair
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import PEDAL, Performance, pedal_in_order
from pamusic.music.splicing import Seam, spliced, with_text
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.prime import WHOLE, PrimeRange, encode_prime, end_of_prime, steps_passed
from pamusic.tokens.streaming_decoder import StreamingDecoder
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import KINDS

Position: TypeAlias = int | list[int]  # an id, or of several fields an id each
Placement = Literal["new track", "same track", "alone"]


@dataclass(frozen=True, eq=False)
class PrimeSource:
    """The file that a prime was read from.

    Attributes:
        data: its bytes.
        repairs: what was mended in it.
        tracks: which parts of it are the prime.
    """

    data: bytes
    repairs: tuple[Repair, ...] = ()
    tracks: Tracks = "piano"


def continuation(
    tokenizer: Tokenizer,
    ids: Sequence[Position],
    *,
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
) -> Performance:
    """The music of new ids alone, from time 0. Every note is closed, and a key is let go before it is struck anew.

    Args:
        tokenizer: what the ids mean.
        ids: what followed the prime.
        prime: its last loudness holds until the new ids speak of another, and its pedals start as it leaves them.
        prime_range: which part of it was read; time 0 is where that ends.
        seconds: where to stop, even within a note.
    """
    return decode_continuation(tokenizer, ids, prime=prime, prime_range=prime_range, seconds=seconds).music


def join(
    tokenizer: Tokenizer,
    ids: Sequence[Position],
    *,
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
) -> Performance:
    """The prime as it was read, up to the cut, then the music of the new ids; the arguments are `continuation`'s."""
    seam = decode_continuation(tokenizer, ids, prime=prime, prime_range=prime_range, seconds=seconds).merged()
    if prime is None:
        return seam.music.joined(Performance(pedal=seam.pedal))
    notes, pedal = prime.notes, prime.pedal[prime.pedal["time"] < seam.start]
    if prime_range.end is not None:
        notes = notes[notes["onset"] < prime_range.end].copy()
        for note in notes[notes["offset"] > prime_range.end]:
            is_it = (notes["onset"] == note["onset"]) & (notes["pitch"] == note["pitch"])
            notes["offset"][is_it] = max(seam.releases.get(int(note["pitch"]), prime_range.end), prime_range.end)
    lifts = _pedal_up_events(pedal, seam.start)
    lifts = lifts[~np.isin(lifts["control"], seam.pedal["control"])]
    return Performance(notes, pedal_in_order(np.concatenate([pedal, lifts, seam.pedal]))).joined(
        seam.music.shifted(seam.start)
    )


def write_midi(
    tokenizer: Tokenizer,
    ids: Sequence[Position],
    *,
    prime: Performance | None = None,
    source: PrimeSource | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
    placement: Placement = "new track",
    text: str = "",
) -> tuple[bytes, bool]:
    """Return a Standard MIDI File of the prime and the music of new ids, and whether the prime's messages are kept.

    Those up to the cut are, as far as `music.splicing` can keep them. Otherwise, and without a prime, all of it is
    written anew, on a grid of milliseconds. The other arguments are `continuation`'s.

    Args:
        source: where the prime was read from, to keep its messages.
        placement: on a track and channel of its own, where the prime was played, or without the prime.
        text: what the file says of itself.
    """
    if prime is not None and source is not None and placement != "alone":
        seam = decode_continuation(tokenizer, ids, prime=prime, prime_range=prime_range, seconds=seconds)
        kept = spliced(
            source.data, seam, tracks=source.tracks, repairs=source.repairs, cut=prime_range.end,
            one_track=placement == "same track", text=text,
        )  # fmt: skip
        if kept is not None:
            return kept, True
    put_together = continuation if placement == "alone" else join
    written = midi_bytes(put_together(tokenizer, ids, prime=prime, prime_range=prime_range, seconds=seconds))
    return with_text(written, text) if text else written, False


def decode_continuation(
    tokenizer: Tokenizer,
    ids: Sequence[Position],
    *,
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
) -> Seam:
    """Return the music of new ids, and what becomes of what the prime left open; the arguments are `continuation`'s."""
    new = np.array(ids, np.int64)
    if prime is None:
        return Seam(0.0, _stopped(_truncate_overlaps(tokenizer.decode(new)), seconds))
    encoded = encode_prime(tokenizer, prime, prime_range)
    step_seconds = tokenizer.vocabulary.time_step_ms / 1000
    end_of_ids = int(steps_passed(tokenizer, encoded.ids)[-1])
    start = end_of_prime(tokenizer, prime, prime_range) if prime_range.end is None else prime_range.end

    # Together, for which of two strokes of a key a release ends depends on both; steps are counted from the cut.
    grid = tokenizer.grid_from_ids(np.concatenate([encoded.ids, new]))
    zero = end_of_ids + encoded.gap_steps
    of_music = slice(encoded.num_notes, None)
    pedal = tokenizer.grid_from_ids(np.concatenate([_in_force(tokenizer, encoded.ids), new])).pedal
    pedal["step"] = np.maximum(pedal["step"] - encoded.gap_steps, 0)
    played = tokenizer.from_grid(
        GridNotes(
            np.maximum(grid.onset[of_music] - zero, 0),
            np.maximum(grid.offset[of_music] - zero, 1),
            grid.pitch[of_music],
            grid.velocity_bin[of_music],
            pedal,
        )
    )
    music = _stopped(_truncate_overlaps(played), seconds)
    latest = float("inf") if seconds is None else start + seconds
    releases: dict[int, float] = {}
    if prime_range.end is not None:
        before = slice(0, encoded.num_notes)
        for pitch, offset in zip(grid.pitch[before].tolist(), grid.offset[before].tolist(), strict=True):
            if offset >= zero:
                ends = min(start + (offset - zero) * step_seconds, latest)
                releases[pitch] = max(releases.get(pitch, start), ends)
    return Seam(start, music, releases, _pedals_after_cut(tokenizer, prime, prime_range, start, music, releases))


def streaming(
    tokenizer: Tokenizer,
    *,
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
) -> StreamingDecoder:
    """Take the new ids while they are drawn and give the events of `continuation`, whose arguments it has."""
    if prime is None:
        return StreamingDecoder(tokenizer.vocabulary, seconds=seconds)
    encoded = encode_prime(tokenizer, prime, prime_range)
    return StreamingDecoder(tokenizer.vocabulary, known=encoded.ids.tolist(), gap=encoded.gap_steps, seconds=seconds)


def _pedals_after_cut(
    tokenizer: Tokenizer,
    prime: Performance,
    prime_range: PrimeRange,
    start: float,
    music: Performance,
    releases: dict[int, float],
) -> np.ndarray:
    """Return what the prime's own pedals do from the cut on; records of `PEDAL`.

    Where the ids know pedals they do what the music's do, until they are up and no key of the prime is down. Elsewhere
    they go up with the last string that they alone hold.
    """
    down = _pedal_up_events(prime.pedal[prime.pedal["time"] < start], start)
    if tokenizer.vocabulary.sustain != "played":
        if prime_range.end is not None:
            held = sustain_folded(prime).notes
            held = held[(held["onset"] < prime_range.end) & (held["offset"] > prime_range.end)]
            with_key = prime.notes[(prime.notes["onset"] < prime_range.end) & (prime.notes["offset"] > prime_range.end)]
            alone = set(held["pitch"].tolist()) - set(with_key["pitch"].tolist())
            down["time"] = max([start, *(releases[pitch] for pitch in alone if pitch in releases)])
        return down
    last_release = max([start, *releases.values()])
    all_moves = [np.empty(0, PEDAL)]
    for lift in down:
        moves = music.shifted(start).pedal
        moves = moves[moves["control"] == lift["control"]]
        if not len(moves) or moves["time"][0] > start:  # the music has it up from its first moment on
            all_moves.append(np.array([lift], PEDAL))
            continue
        last = np.flatnonzero((moves["value"] == 0) & (moves["time"] >= last_release))[:1]
        all_moves.append(moves[: int(last[0]) + 1 if len(last) else None])
    return pedal_in_order(np.concatenate(all_moves))


def _stopped(music: Performance, seconds: float | None) -> Performance:
    """Return the music up to a second, even within a note, with its pedals up."""
    if seconds is None or music.duration <= seconds:
        return music
    cut = music.cropped(0, seconds)
    return Performance(cut.notes, np.concatenate([cut.pedal, _pedal_up_events(cut.pedal, seconds)]))


def _in_force(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return the last velocity and the last depth of each pedal in ids `[n]`, which still hold when they end; int64."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    last = [ids[kind == KINDS.index(name)][-1:] for name in ("velocity", *tokenizer.vocabulary.pedals)]
    return np.concatenate(last).astype(np.int64)


def _pedal_up_events(pedal: np.ndarray, time: float) -> np.ndarray:
    """Movements that bring up, at a time, every pedal that `PEDAL` records leave down."""
    last = {int(move["control"]): int(move["value"]) for move in pedal}
    return np.array([(time, control, 0) for control, value in sorted(last.items()) if value], PEDAL)


def _truncate_overlaps(music: Performance) -> Performance:
    """Each note ends at the latest where its key is struck anew; of two strokes of a key at one instant, one stays."""
    notes = music.notes[np.lexsort((music.notes["offset"], music.notes["onset"], music.notes["pitch"]))]
    same_key = notes["pitch"][:-1] == notes["pitch"][1:]
    notes["offset"][:-1] = np.where(
        same_key, np.minimum(notes["offset"][:-1], notes["onset"][1:]), notes["offset"][:-1]
    )
    notes = notes[notes["offset"] > notes["onset"]]
    return Performance(notes[np.lexsort((notes["pitch"], notes["onset"]))], music.pedal)
