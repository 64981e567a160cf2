"""A prime and a checkpoint -> new ids -> a performance that goes on where the prime ends.

Knows performances, checkpoints and the sampler; knows no terminal and no paths. It stands above `generation/`, which
must not know what ids mean, and below `cli/`, which knows no music: here alone the two meet.

The prime stays as it was read: its own times, velocities and pedals, not those of the grid. A whole prime ends by
itself: new music begins where its last note has ended. A prime that is cut goes on: what still sounds there (keys that
are down, strings that the pedal holds) is open in the ids, and ends where the model ends it. A string that the pedal
alone holds ends with that pedal, which goes up with the last of them.

From there on the pedals do what the new ids say. Where these know pedals, they start as the prime leaves them; where
the sustain pedal is part of the notes' lengths, the feet are off. At the end of it all every pedal is up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from math import inf
from typing import Any

import numpy as np

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError, UsageError
from pamusic.evaluation.likelihood import score
from pamusic.generation.config import SamplingConfig
from pamusic.generation.ending import Ending
from pamusic.generation.grammar import Rules
from pamusic.generation.guard import Alarm, Guard, Kept, guarded
from pamusic.generation.sampler import generate_rows
from pamusic.model.reader import Reader
from pamusic.music.contents import Repair
from pamusic.music.midi import Tracks, midi_bytes
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import PEDAL, Performance, pedal_in_order
from pamusic.music.splicing import Seam, spliced, with_text
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.streaming import StreamingDecoder
from pamusic.tokens.tokenizer import NOTE_ON, TIME_SHIFT, GridNotes, Tokenizer
from pamusic.tokens.vocabulary import KINDS, Vocabulary

# A second of MAESTRO has 40 tokens on average. A model that lets no time pass would never reach its seconds.
MOST_TOKENS_A_SECOND = 500
MOST_TOKENS = 2**62  # whatever number of seconds is asked for


@dataclass(frozen=True)
class Cut:
    """Which part of a prime is read, in its seconds.

    Attributes:
        start: what begins before is not read.
        end: what begins from here on is not; the music goes on from here. None: the prime ends by itself.
    """

    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise UsageError(f"a prime begins at 0 seconds or later, not at {self.start:g}; see --prime-from")
        if self.end is not None and not self.start < self.end < float("inf"):
            raise UsageError(
                f"a prime from second {self.start:g} to second {self.end:g} is empty; --prime-to is after --prime-from"
            )


WHOLE = Cut()


@dataclass(frozen=True, eq=False)
class Opening:
    """A prime as the model reads it.

    Attributes:
        ids: `[num_tokens]`, without start; they end with its last event, or with time shifts of the longest kind.
        num_notes: onsets in them.
        cut_step: of the cut, counted from the beginning of the ids; None for a whole prime.
        gap: steps from the end of the ids to the cut: what the first new id must at least let pass.
    """

    ids: np.ndarray
    num_notes: int
    cut_step: int | None
    gap: int


def compose(checkpoint: Checkpoint, prime: Performance | None = None, *, seed: int, **how: Any) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is drawn: `compose_many` for one piece."""
    return (id for (id,) in compose_many(checkpoint, prime, seed=seed, **how) if id is not None)


def compose_many(
    checkpoint: Checkpoint,
    prime: Performance | None = None,
    *,
    cut: Cut = WHOLE,
    seed: int,
    num: int = 1,
    length: int | None = None,
    seconds: float | None = None,
    may_end: bool = False,
    ending: Ending | None = None,
    sampling: SamplingConfig | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    refill: str | int = "half",
    precision: str = "fp32",
    guard: Guard | None = None,
    alarmed: Callable[[int, Alarm], None] = lambda row, alarm: None,
    keeping: Callable[[int, Kept], None] = lambda row, kept: None,
    stop_after: int | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next id of each of some pieces that follow a prime, as soon as it is drawn; None where one has ended.

    By the vocabulary's grammar, none is ill-formed. With a guard each piece is drawn alone, for a batch cannot go back
    in one row and on in the others: they take turns, an id each, and it takes as long as one after the other.

    Args:
        checkpoint: who composes.
        prime: what was played so far; nothing by default.
        cut: which part of it is read.
        seed: the same seed gives the same ids; of many pieces, the next ones have the next seeds.
        num: how many pieces.
        length: how many ids at most.
        seconds: how much new music at most.
        may_end: whether the piece may end before that.
        ending: brings it to a close near that length; none stops it there.
        sampling: how an id is drawn; its classes are `vocabulary.CLASSES`, in their order.
        num_latents, context_length: in place of the checkpoint's own.
        refill: what happens when all latents are in use (`model.reader`).
        precision: of the weights (`model.precision`).
        guard: what is taken back, and drawn anew; an id then comes later than it is drawn.
        alarmed: hears of it, with the number of the piece.
        keeping: hears what there is of a guarded piece, held back or not, whenever one more id was drawn for it.
        stop_after: each piece ends when so many ids have been drawn for it, whatever a guard took back of them.

    Raises:
        ValueError: the arguments do not fit together or to the checkpoint.
        PamusicError: the tokenizer knows none of the prime's notes.
    """
    vocabulary = checkpoint.tokenizer.vocabulary
    opening = None if prime is None else opened(checkpoint.tokenizer, prime, cut)
    if seconds is not None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is a number above 0, not {seconds}")
        most = round(min(seconds * MOST_TOKENS_A_SECOND, MOST_TOKENS)) + MOST_TOKENS_A_SECOND
        length = min(length or most, most)
    before = [vocabulary.id("start"), *([] if opening is None else opening.ids.tolist())]
    how: dict[str, Any] = {
        **of_vocabulary(vocabulary),
        "length": length,
        "seconds": seconds,
        "sampling": sampling,
        "barred_at_first": [] if opening is None else _too_early(checkpoint.tokenizer, opening.gap),
        "end_after": 1 if may_end else None,
        "ending": ending,
    }
    how["like"] = Reader(
        checkpoint.model, num_latents=num_latents, context_length=context_length, refill=refill, precision=precision
    )
    if guard is None:
        return islice(generate_rows(checkpoint.model, before, seed=seed, num_rows=num, **how), stop_after)
    rows = [
        guarded(
            checkpoint.model, before, guard=guard, seed=seed + row, told=partial(alarmed, row),
            keeping=partial(keeping, row), stop_after=inf if stop_after is None else stop_after, **how,
        )
        for row in range(num)
    ]  # fmt: skip
    return (list(ids) for ids in zip_longest(*rows))


def of_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """What the sampler has to be told of a vocabulary, by the names of its arguments."""
    return {
        "seconds_of_id": vocabulary.seconds_of_id.tolist(),
        "class_of_id": vocabulary.class_of_id.tolist(),
        "barred_ids": [vocabulary.id("start"), vocabulary.id("pad")],
        "rules": Rules(**grammar_arrays(vocabulary)),
        "end_id": vocabulary.id("end"),
    }


def prime_ids(tokenizer: Tokenizer, prime: Performance, cut: Cut = WHOLE) -> np.ndarray:
    """The ids of a prime `[num_tokens]`, without start; pedals that are down at its end stay down.

    Raises:
        PamusicError: there is no note in them.
    """
    return opened(tokenizer, prime, cut).ids


def opened(tokenizer: Tokenizer, prime: Performance, cut: Cut = WHOLE) -> Opening:
    """A prime as the model reads it.

    Raises:
        PamusicError: there is no note in it.
    """
    vocabulary = tokenizer.vocabulary
    if cut.end is not None and cut.end > prime.duration:
        raise PamusicError(
            f"the prime lasts {prime.duration:.2f} seconds, not {cut.end:g}; leave --prime-to out to take it to its end"
        )
    ids = tokenizer.ids_from_grid(tokenizer.to_grid(read_part(prime, cut), lifted=False)).astype(np.int64)
    cut_step, gap = None, 0
    if cut.end is not None:
        cut_step = int((cut.end - cut.start) * 1000 / vocabulary.time_step_ms + 0.5)
        step = _steps(tokenizer, ids)
        # A time shift that leads beyond the cut is the model's to draw; all after it lies beyond, too.
        ids = ids[step <= cut_step]
        ids = ids[: np.flatnonzero(vocabulary.kind_of_id[ids] != TIME_SHIFT)[-1:].sum() + 1] if len(ids) else ids
        longest = vocabulary.range("time_shift").last
        gap = cut_step - int(_steps(tokenizer, ids)[-1:].sum())
        num_longest = -(-gap // longest) - 1 if gap else 0
        ids = np.concatenate([ids, np.full(num_longest, vocabulary.id("time_shift", longest), np.int64)])
        gap -= num_longest * longest
    num_notes = int((vocabulary.kind_of_id[ids] == NOTE_ON).sum())
    if not num_notes:
        raise _nothing_to_read(tokenizer, prime, cut)
    return Opening(ids, num_notes, cut_step, gap)


def nats_of(
    checkpoint: Checkpoint,
    pieces: Sequence[Sequence[int]],
    prime: Performance | None = None,
    cut: Cut = WHOLE,
    **compute: Any,
) -> list[float]:
    """What a new token of each piece costs the model, by itself, whatever the draws were filtered by; NaN without one.

    Args:
        checkpoint: composed them.
        pieces: the ids that followed the prime.
        prime, cut: what they followed.
        compute: with how much latents and context, as for `likelihood.score`.
    """
    opening = [] if prime is None else opened(checkpoint.tokenizer, prime, cut).ids.tolist()
    before = [checkpoint.tokenizer.vocabulary.id("start"), *opening]
    return [
        float(score(checkpoint.model, np.array([*before, *ids]), first=len(before), **compute)[0].mean())
        if len(ids)
        else float("nan")
        for ids in pieces
    ]


def continuation(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    prime: Performance | None = None,
    cut: Cut = WHOLE,
    seconds: float | None = None,
) -> Performance:
    """The music of new ids alone, from time 0. Every note is closed, and a key is let go before it is struck anew.

    Args:
        tokenizer: what the ids mean.
        ids: what followed the prime.
        prime: its last loudness holds until the new ids speak of another, and its pedals start as it leaves them.
        cut: which part of it was read; time 0 is where that ends.
        seconds: where to stop, even within a note.
    """
    return followed(tokenizer, ids, prime=prime, cut=cut, seconds=seconds).music


def continued(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    prime: Performance | None = None,
    cut: Cut = WHOLE,
    seconds: float | None = None,
) -> Performance:
    """The prime as it was read, up to the cut, then the music of the new ids; the arguments are `continuation`'s."""
    seam = followed(tokenizer, ids, prime=prime, cut=cut, seconds=seconds).merged()
    if prime is None:
        return seam.music.joined(Performance(pedal=seam.pedal))
    notes, pedal = prime.notes, prime.pedal[prime.pedal["time"] < seam.start]
    if cut.end is not None:
        notes = notes[notes["onset"] < cut.end].copy()
        for note in notes[notes["offset"] > cut.end]:
            is_it = (notes["onset"] == note["onset"]) & (notes["pitch"] == note["pitch"])
            notes["offset"][is_it] = max(seam.releases.get(int(note["pitch"]), cut.end), cut.end)
    lifts = _lifts(pedal, seam.start)
    lifts = lifts[~np.isin(lifts["control"], seam.pedal["control"])]
    return Performance(notes, pedal_in_order(np.concatenate([pedal, lifts, seam.pedal]))).joined(
        seam.music.shifted(seam.start)
    )


def as_midi(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    prime: Performance | None = None,
    data: bytes | None = None,
    repairs: tuple[Repair, ...] = (),
    tracks: Tracks = "piano",
    cut: Cut = WHOLE,
    seconds: float | None = None,
    one_track: bool = False,
    alone: bool = False,
    text: str = "",
) -> tuple[bytes, bool]:
    """A Standard MIDI File of the prime and of the music of new ids, and whether the prime's messages are as they were.

    Those up to the cut are, as far as `music.splicing` can keep them. Otherwise, and without a prime, all of it is
    written anew, on a grid of milliseconds. The other arguments are `continuation`'s.

    Args:
        data: the prime's own file.
        repairs: what was mended in it.
        tracks: which parts of it are the prime.
        one_track: whether the music goes on where the prime was played, not on a track and channel of its own.
        alone: whether the prime is left out.
        text: what the file says of itself.
    """
    if prime is not None and data is not None and not alone:
        seam = followed(tokenizer, ids, prime=prime, cut=cut, seconds=seconds)
        kept = spliced(data, seam, tracks=tracks, repairs=repairs, cut=cut.end, one_track=one_track, text=text)
        if kept is not None:
            return kept, True
    put_together = continuation if alone else continued
    written = midi_bytes(put_together(tokenizer, ids, prime=prime, cut=cut, seconds=seconds))
    return with_text(written, text) if text else written, False


def followed(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    prime: Performance | None = None,
    cut: Cut = WHOLE,
    seconds: float | None = None,
) -> Seam:
    """The music of new ids, and what becomes of what the prime left open; the arguments are `continuation`'s."""
    new = np.array(ids, np.int64)
    if prime is None:
        return Seam(0.0, _stopped(_with_keys_let_go(tokenizer.decode(new)), seconds))
    opening = opened(tokenizer, prime, cut)
    step_seconds = tokenizer.vocabulary.time_step_ms / 1000
    end_of_ids = int(_steps(tokenizer, opening.ids)[-1])
    start = _end_of(tokenizer, prime, cut) if cut.end is None else cut.end

    # Together, for which of two strokes of a key a release ends depends on both; steps are counted from the cut.
    grid = tokenizer.grid_from_ids(np.concatenate([opening.ids, new]))
    zero = end_of_ids + opening.gap
    of_music = slice(opening.num_notes, None)
    pedal = tokenizer.grid_from_ids(np.concatenate([_in_force(tokenizer, opening.ids), new])).pedal
    pedal["step"] = np.maximum(pedal["step"] - opening.gap, 0)
    played = tokenizer.from_grid(
        GridNotes(
            np.maximum(grid.onset[of_music] - zero, 0),
            np.maximum(grid.offset[of_music] - zero, 1),
            grid.pitch[of_music],
            grid.velocity_bin[of_music],
            pedal,
        )
    )
    music = _stopped(_with_keys_let_go(played), seconds)
    latest = float("inf") if seconds is None else start + seconds
    releases: dict[int, float] = {}
    if cut.end is not None:
        before = slice(0, opening.num_notes)
        for pitch, offset in zip(grid.pitch[before].tolist(), grid.offset[before].tolist(), strict=True):
            if offset >= zero:
                ends = min(start + (offset - zero) * step_seconds, latest)
                releases[pitch] = max(releases.get(pitch, start), ends)
    return Seam(start, music, releases, _feet(tokenizer, prime, cut, start, music, releases))


def streaming(
    tokenizer: Tokenizer, *, prime: Performance | None = None, cut: Cut = WHOLE, seconds: float | None = None
) -> StreamingDecoder:
    """Takes the new ids while they are drawn and gives the gestures of `continuation`, whose arguments it has."""
    if prime is None:
        return StreamingDecoder(tokenizer.vocabulary, seconds=seconds)
    opening = opened(tokenizer, prime, cut)
    return StreamingDecoder(tokenizer.vocabulary, known=opening.ids.tolist(), gap=opening.gap, seconds=seconds)


def _feet(
    tokenizer: Tokenizer, prime: Performance, cut: Cut, start: float, music: Performance, releases: dict[int, float]
) -> np.ndarray:
    """What the prime's own pedals do from the cut on; records of `PEDAL`.

    Where the ids know pedals they do what the music's do, until they are up and no key of the prime is down. Elsewhere
    they go up with the last string that they alone hold.
    """
    down = _lifts(prime.pedal[prime.pedal["time"] < start], start)
    if tokenizer.vocabulary.sustain != "played":
        if cut.end is not None:
            held = sustain_folded(prime).notes
            held = held[(held["onset"] < cut.end) & (held["offset"] > cut.end)]
            with_key = prime.notes[(prime.notes["onset"] < cut.end) & (prime.notes["offset"] > cut.end)]
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


def read_part(prime: Performance, cut: Cut) -> Performance:
    """What of a prime is read, as long as it sounds, from time 0 on."""
    if cut.end is not None:
        prime = Performance(prime.notes[prime.notes["onset"] < cut.end], prime.pedal)
    return prime.cropped(cut.start, float("inf")) if cut.start else prime


def _steps(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """`[n]`, steps that have passed with each of the ids."""
    vocabulary = tokenizer.vocabulary
    return np.cumsum(np.where(vocabulary.kind_of_id[ids] == TIME_SHIFT, vocabulary.value_of_id[ids], 0))


def _too_early(tokenizer: Tokenizer, gap: int) -> list[int]:
    """The ids with which something would happen before a gap of steps has passed."""
    vocabulary = tokenizer.vocabulary
    passes = np.where(vocabulary.kind_of_id == TIME_SHIFT, vocabulary.value_of_id, 0)
    return np.flatnonzero(passes < gap).tolist()


def _nothing_to_read(tokenizer: Tokenizer, prime: Performance, cut: Cut) -> PamusicError:
    pitches = tokenizer.vocabulary.range("note_on")
    known = f"between pitches {pitches.first} and {pitches.last}, which are all that {tokenizer.name} knows"
    if cut == WHOLE:
        return PamusicError(f"the prime has no note {known}; transpose it, or leave it out")
    to = prime.duration if cut.end is None else cut.end
    return PamusicError(
        f"of the prime's {prime.duration:.2f} seconds those from {cut.start:g} to {to:.2f} begin no note {known}; "
        "take more of it, with --prime-from and --prime-to"
    )


def _stopped(music: Performance, seconds: float | None) -> Performance:
    """The music up to a second, even within a note, with its pedals up."""
    if seconds is None or music.duration <= seconds:
        return music
    cut = music.cropped(0, seconds)
    return Performance(cut.notes, np.concatenate([cut.pedal, _lifts(cut.pedal, seconds)]))


def _in_force(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Of ids `[n]` the last velocity and the last depth of each pedal, which still hold when they end; int64."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    last = [ids[kind == KINDS.index(name)][-1:] for name in ("velocity", *tokenizer.vocabulary.pedals)]
    return np.concatenate(last).astype(np.int64)


def _lifts(pedal: np.ndarray, time: float) -> np.ndarray:
    """Movements that bring up, at a time, every pedal that `PEDAL` records leave down."""
    last = {int(move["control"]): int(move["value"]) for move in pedal}
    return np.array([(time, control, 0) for control, value in sorted(last.items()) if value], PEDAL)


def _end_of(tokenizer: Tokenizer, prime: Performance, cut: Cut) -> float:
    """Seconds at which the prime's ids end; a key that is let go a little later, off the grid, is waited for."""
    read = read_part(prime, cut)
    end_on_grid = tokenizer.to_grid(read, lifted=False).last_step * tokenizer.vocabulary.time_step_ms / 1000
    return cut.start + max(end_on_grid, float(read.notes["offset"].max()))


def _with_keys_let_go(music: Performance) -> Performance:
    """Each note ends at the latest where its key is struck anew; of two strokes of a key at one instant, one stays."""
    notes = music.notes[np.lexsort((music.notes["offset"], music.notes["onset"], music.notes["pitch"]))]
    same_key = notes["pitch"][:-1] == notes["pitch"][1:]
    notes["offset"][:-1] = np.where(
        same_key, np.minimum(notes["offset"][:-1], notes["onset"][1:]), notes["offset"][:-1]
    )
    notes = notes[notes["offset"] > notes["onset"]]
    return Performance(notes[np.lexsort((notes["pitch"], notes["onset"]))], music.pedal)
