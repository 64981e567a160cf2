"""Decode new ids into a performance or a MIDI file that continues the prime.

Knows performances, their files and a tokenizer; knows no model. The prime keeps its own times, velocities and pedals;
it is not moved to the grid. Notes that are open where the prime is cut end where the new ids end them, and in a
vocabulary of notes with lengths where they end in the prime. A note that only the pedal holds ends with that pedal, and
the pedal goes up with the last such note.

After the cut, the new ids control the pedals. A vocabulary with pedal events starts from the prime's pedal positions.
A vocabulary that folds the sustain pedal into the note lengths starts with all pedals up. At the end every pedal is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pamusic.music.midi import Tracks, midi_bytes
from pamusic.music.midi_contents import Repair
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import PEDAL, Performance, pedal_in_order
from pamusic.music.splicing import Seam, spliced, with_text
from pamusic.tokens.grid import GRID_PEDAL, GridNotes
from pamusic.tokens.position_decoder import PositionDecoder
from pamusic.tokens.positions import grid_of_positions
from pamusic.tokens.prime import WHOLE, EncodedPrime, PrimeRange, encode_prime, end_of_prime, steps_passed
from pamusic.tokens.streaming_decoder import EventDecoder, StreamingDecoder
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import KINDS, Position

Placement = Literal["new track", "same track", "alone"]


@dataclass(frozen=True, eq=False)
class PrimeSource:
    """The file that a prime was read from.

    Attributes:
        data: Bytes of the file.
        repairs: Repairs that reading the file needed.
        tracks: Tracks of the file that make up the prime.
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
    """Return the music of the new ids alone, starting at time 0.

    Every note has an end, and a key is released before its next onset.

    Args:
        tokenizer: Tokenizer that made the ids.
        ids: Ids that follow the prime.
        prime: The prime. Its last velocity and its pedal positions apply until the new ids change them.
        prime_range: Part of the prime that was read; its end is time 0.
        seconds: Time at which to stop, even within a note.
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
    """Return the prime as it was read, up to the cut, followed by the new music; arguments as in `continuation`."""
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
    """Return a Standard MIDI File of the prime and the new music, and whether the prime's messages are kept.

    The messages before the cut are kept if `music.splicing` can keep them. Otherwise, and without a prime, the whole
    file is written from the notes, on a grid of milliseconds. The other arguments are those of `continuation`.

    Args:
        source: File that the prime was read from, to keep its messages.
        placement: "new track": on a track and channel of its own; "same track": on the track of the prime; "alone":
            without the prime.
        text: Text that the file carries.
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
    """Return the new music, and the ends of the notes that the prime left open; arguments as in `continuation`."""
    new = np.array(ids, np.int64)
    if prime is None:
        return Seam(0.0, _stopped(_truncate_overlaps(tokenizer.decode(new)), seconds))
    encoded = encode_prime(tokenizer, prime, prime_range)
    start = end_of_prime(tokenizer, prime, prime_range) if prime_range.end is None else prime_range.end
    if tokenizer.vocabulary.has("length"):
        played = _positions_after(tokenizer, encoded, new)
        ends = _ends_after_cut(tokenizer, prime, prime_range)
    else:
        played, ends = _events_after(tokenizer, encoded, new, start)
    latest = float("inf") if seconds is None else start + seconds
    releases = {} if prime_range.end is None else {pitch: min(end, latest) for pitch, end in ends.items()}
    music = _stopped(_truncate_overlaps(played), seconds)
    return Seam(start, music, releases, _pedals_after_cut(tokenizer, prime, prime_range, start, music, releases))


def _events_after(
    tokenizer: Tokenizer, encoded: EncodedPrime, new: np.ndarray, start: float
) -> tuple[Performance, dict[int, float]]:
    """Return the music of new ids that are events, from time 0, and the ends of the prime's open notes by pitch."""
    # Together, for which of two onsets of a key a release ends depends on both; steps are counted from the cut.
    grid = tokenizer.grid_from_ids(np.concatenate([encoded.ids, new]))
    zero = int(steps_passed(tokenizer, encoded.ids)[-1]) + encoded.gap_steps
    pedal = tokenizer.grid_from_ids(np.concatenate([_in_force(tokenizer, encoded.ids), new])).pedal
    pedal["step"] = np.maximum(pedal["step"] - encoded.gap_steps, 0)
    releases: dict[int, float] = {}
    before = slice(0, encoded.num_notes)
    for pitch, offset in zip(grid.pitch[before].tolist(), grid.offset[before].tolist(), strict=True):
        if offset >= zero:
            ends = start + (offset - zero) * tokenizer.vocabulary.time_step_ms / 1000
            releases[pitch] = max(releases.get(pitch, start), ends)
    return tokenizer.from_grid(_from_step(grid, slice(encoded.num_notes, None), zero, pedal)), releases


def _positions_after(tokenizer: Tokenizer, encoded: EncodedPrime, new: np.ndarray) -> Performance:
    """Return the music of new positions with lengths, from time 0; its pedals start as the prime leaves them."""
    # Together, for a press of the prime lasts until a new one of its pedal.
    ids = np.concatenate([encoded.ids, new.reshape(-1, encoded.ids.shape[1])])
    zero = int(steps_passed(tokenizer, encoded.ids)[-1]) + encoded.gap_steps
    pedal = tokenizer.grid_from_ids(ids).pedal
    at_zero = [pedal[(pedal["pedal"] == which) & (pedal["step"] <= zero)][-1:] for which in np.unique(pedal["pedal"])]
    in_force = np.concatenate([np.empty(0, GRID_PEDAL), *at_zero])
    pedal = np.concatenate([in_force[in_force["depth"] > 0], pedal[pedal["step"] > zero]])
    pedal["step"] = np.maximum(pedal["step"] - zero, 0)
    grid, _ = grid_of_positions(ids, tokenizer.vocabulary)
    is_new = np.arange(len(grid)) >= encoded.num_notes
    return tokenizer.from_grid(_from_step(grid, is_new & (grid.offset > grid.onset), zero, pedal))


def _from_step(grid: GridNotes, chosen: slice | np.ndarray, zero: int, pedal: np.ndarray) -> GridNotes:
    """Return chosen notes of a grid with steps counted from `zero`; what is before it begins there."""
    return GridNotes(
        np.maximum(grid.onset[chosen] - zero, 0),
        np.maximum(grid.offset[chosen] - zero, 1),
        grid.pitch[chosen],
        grid.velocity_bin[chosen],
        pedal,
    )


def _ends_after_cut(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange) -> dict[int, float]:
    """Return by pitch when the notes end that sound at the cut: the model has read their lengths in the file."""
    if prime_range.end is None:
        return {}
    notes = tokenizer.normalised(prime).notes
    is_read = (notes["onset"] >= prime_range.start) & (notes["onset"] < prime_range.end)
    notes = notes[is_read & (notes["offset"] > prime_range.end)]
    return dict(zip(notes["pitch"].tolist(), notes["offset"].tolist(), strict=True))


def streaming(
    tokenizer: Tokenizer,
    *,
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    seconds: float | None = None,
) -> EventDecoder:
    """Return a decoder that takes new ids one at a time and returns the events of `continuation`; same arguments."""
    decoder = PositionDecoder if tokenizer.vocabulary.has("length") else StreamingDecoder
    if prime is None:
        return decoder(tokenizer.vocabulary, seconds=seconds)
    encoded = encode_prime(tokenizer, prime, prime_range)
    return decoder(tokenizer.vocabulary, known=encoded.ids.tolist(), gap=encoded.gap_steps, seconds=seconds)


def _pedals_after_cut(
    tokenizer: Tokenizer,
    prime: Performance,
    prime_range: PrimeRange,
    start: float,
    music: Performance,
    releases: dict[int, float],
) -> np.ndarray:
    """Return the movements of the prime's pedals from the cut on, as records of `PEDAL`.

    With pedal events in the ids, the prime's pedals move with the music's, until they are up and no key of the prime is
    down. Otherwise they go up with the last note that only they hold.
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
        if not len(moves) or moves["time"][0] > start:  # in the music this pedal is up from the start
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
    """Return the last velocity and the last depth of each pedal in ids `[n]`, in force at their end; int64."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    last = [ids[kind == KINDS.index(name)][-1:] for name in ("velocity", *tokenizer.vocabulary.pedals)]
    return np.concatenate(last).astype(np.int64)


def _pedal_up_events(pedal: np.ndarray, time: float) -> np.ndarray:
    """Return the events that raise, at a given time, every pedal that `PEDAL` records leave down."""
    last = {int(move["control"]): int(move["value"]) for move in pedal}
    return np.array([(time, control, 0) for control, value in sorted(last.items()) if value], PEDAL)


def _truncate_overlaps(music: Performance) -> Performance:
    """End each note no later than the next onset of its key; of two onsets of a key at one instant, keep one."""
    notes = music.notes[np.lexsort((music.notes["offset"], music.notes["onset"], music.notes["pitch"]))]
    same_key = notes["pitch"][:-1] == notes["pitch"][1:]
    notes["offset"][:-1] = np.where(
        same_key, np.minimum(notes["offset"][:-1], notes["onset"][1:]), notes["offset"][:-1]
    )
    notes = notes[notes["offset"] > notes["onset"]]
    return Performance(notes[np.lexsort((notes["pitch"], notes["onset"]))], music.pedal)
