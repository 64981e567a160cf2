"""A prime and a checkpoint -> new ids -> a performance that goes on where the prime ends.

Knows performances, checkpoints and the sampler; knows no terminal, no files. It stands above `generation/`, which must
not know what ids mean, and below `cli/`, which knows no music: here alone the two meet.

The prime stays as it was read: its own times, velocities and pedals, not those of the grid. New music begins on the
grid where the prime's ids end, which is where its last note has ended. From there on the pedals do what the new ids
say. Where these know pedals, they start as the prime leaves them; where the sustain pedal is part of the notes'
lengths, the feet are off. At the end of it all every pedal is up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.ending import Ending
from pamusic.generation.grammar import Rules
from pamusic.generation.sampler import generate_rows
from pamusic.music.performance import PEDAL, Performance
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import NOTE_ON, Tokenizer
from pamusic.tokens.vocabulary import KINDS

# A second of MAESTRO has 40 tokens on average. A model that lets no time pass would never reach its seconds.
MOST_TOKENS_A_SECOND = 500


def compose(checkpoint: Checkpoint, prime: Performance | None = None, *, seed: int, **how: Any) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is drawn: `compose_many` for one piece."""
    return (id for (id,) in compose_many(checkpoint, prime, seed=seed, **how) if id is not None)


def compose_many(
    checkpoint: Checkpoint,
    prime: Performance | None = None,
    *,
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
) -> Iterator[list[int | None]]:
    """Yields the next id of each of some pieces that follow a prime, as soon as it is drawn; None where one has ended.

    By the vocabulary's grammar, none is ill-formed.

    Args:
        checkpoint: who composes.
        prime: what was played so far; nothing by default.
        seed: the same seed gives the same ids; of many pieces, the next ones have the next seeds.
        num: how many pieces.
        length: how many ids at most.
        seconds: how much new music at most.
        may_end: whether the piece may end before that.
        ending: brings it to a close near that length; none stops it there.
        sampling: how an id is drawn; its classes are `vocabulary.CLASSES`, in their order.
        num_latents, context_length: in place of the checkpoint's own.
        refill: what happens when all latents are in use (`model.reader`).

    Raises:
        ValueError: the arguments do not fit together or to the checkpoint.
        PamusicError: the tokenizer knows none of the prime's notes.
    """
    vocabulary = checkpoint.tokenizer.vocabulary
    if seconds is not None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is a number above 0, not {seconds}")
        length = min(length or 2**62, round(seconds * MOST_TOKENS_A_SECOND) + MOST_TOKENS_A_SECOND)
    return generate_rows(
        checkpoint.model,
        [vocabulary.id("start"), *(prime_ids(checkpoint.tokenizer, prime).tolist() if prime is not None else [])],
        seed=seed,
        num_rows=num,
        length=length,
        seconds=seconds,
        seconds_of_id=vocabulary.seconds_of_id.tolist(),
        sampling=sampling,
        class_of_id=vocabulary.class_of_id.tolist(),
        barred_ids=[vocabulary.id("start"), vocabulary.id("pad")],
        rules=Rules(**grammar_arrays(vocabulary)),
        end_id=vocabulary.id("end"),
        end_after=1 if may_end else None,
        ending=ending,
        num_latents=num_latents,
        context_length=context_length,
        refill=refill,
    )


def prime_ids(tokenizer: Tokenizer, prime: Performance) -> np.ndarray:
    """The ids of a prime `[num_tokens]`, without start; pedals that are down at its end stay down.

    Raises:
        PamusicError: there is no note in them.
    """
    ids = tokenizer.ids_from_grid(tokenizer.to_grid(prime, lifted=False))
    if not (tokenizer.vocabulary.kind_of_id[ids] == NOTE_ON).any():
        pitches = tokenizer.vocabulary.range("note_on")
        raise PamusicError(
            f"the prime has no note between pitches {pitches.first} and {pitches.last}, which are all that "
            f"{tokenizer.name} knows; transpose it, or leave it out"
        )
    return ids


def continuation(
    tokenizer: Tokenizer, ids: Sequence[int], *, prime: Performance | None = None, seconds: float | None = None
) -> Performance:
    """The music of new ids alone, from time 0. Every note is closed, and a key is let go before it is struck anew.

    Args:
        tokenizer: what the ids mean.
        ids: what followed the prime.
        prime: its last loudness holds until the new ids speak of another, and its pedals start as it leaves them.
        seconds: where to stop, even within a note.
    """
    before = np.empty(0, np.int64) if prime is None else _in_force(tokenizer, prime_ids(tokenizer, prime))
    music = _with_keys_let_go(tokenizer.decode(np.concatenate([before, np.array(ids, np.int64)])))
    if seconds is None or music.duration <= seconds:
        return music
    cut = music.cropped(0, seconds)
    return Performance(cut.notes, np.concatenate([cut.pedal, _lifts(cut.pedal, seconds)]))


def continued(
    tokenizer: Tokenizer, ids: Sequence[int], *, prime: Performance | None = None, seconds: float | None = None
) -> Performance:
    """The prime as it was read, then the music of the new ids; the arguments are those of `continuation`."""
    music = continuation(tokenizer, ids, prime=prime, seconds=seconds)
    if prime is None:
        return music
    start = _end_of(tokenizer, prime)
    pedal = prime.pedal[prime.pedal["time"] < start]
    # What is down in the music from its first moment on has a movement there; all else is up.
    down = music.pedal["control"][music.pedal["time"] == 0]
    lifts = _lifts(pedal, start)
    lifts = lifts[~np.isin(lifts["control"], down)]
    return Performance(prime.notes, np.concatenate([pedal, lifts])).joined(music.shifted(start))


def _in_force(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Of ids `[n]` the last velocity and the last depth of each pedal, which still hold when they end; int64."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    last = [ids[kind == KINDS.index(name)][-1:] for name in ("velocity", *tokenizer.vocabulary.pedals)]
    return np.concatenate(last).astype(np.int64)


def _lifts(pedal: np.ndarray, time: float) -> np.ndarray:
    """Movements that bring up, at a time, every pedal that `PEDAL` records leave down."""
    last = {int(move["control"]): int(move["value"]) for move in pedal}
    return np.array([(time, control, 0) for control, value in sorted(last.items()) if value], PEDAL)


def _end_of(tokenizer: Tokenizer, prime: Performance) -> float:
    """Seconds at which the prime's ids end; a key that is let go a little later, off the grid, is waited for."""
    end_on_grid = tokenizer.to_grid(prime, lifted=False).last_step * tokenizer.vocabulary.time_step_ms / 1000
    return max(end_on_grid, float(prime.notes["offset"].max()))


def _with_keys_let_go(music: Performance) -> Performance:
    """Each note ends at the latest where its key is struck anew; of two strokes of a key at one instant, one stays."""
    notes = music.notes[np.lexsort((music.notes["offset"], music.notes["onset"], music.notes["pitch"]))]
    same_key = notes["pitch"][:-1] == notes["pitch"][1:]
    notes["offset"][:-1] = np.where(
        same_key, np.minimum(notes["offset"][:-1], notes["onset"][1:]), notes["offset"][:-1]
    )
    notes = notes[notes["offset"] > notes["onset"]]
    return Performance(notes[np.lexsort((notes["pitch"], notes["onset"]))], music.pedal)
