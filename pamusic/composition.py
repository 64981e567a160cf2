"""A prime and a checkpoint -> new ids -> a performance that goes on where the prime ends.

Knows performances, checkpoints and the sampler; knows no terminal, no files. It stands above `generation/`, which must
not know what ids mean, and below `cli/`, which knows no music: here alone the two meet.

The prime stays as it was read: its own times, velocities and pedals, not those of the grid. New music begins on the
grid where the prime's ids end, which is where its last note has ended. From there on the feet are off the pedals: in
the new ids the sustain pedal is part of the notes' lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.sampler import generate
from pamusic.music.performance import PEDAL, Performance
from pamusic.tokens.tokenizer import VELOCITY, Tokenizer

# A second of MAESTRO has 40 tokens on average. A model that lets no time pass would never reach its seconds.
MOST_TOKENS_A_SECOND = 500


def compose(
    checkpoint: Checkpoint,
    prime: Performance | None = None,
    *,
    seed: int,
    length: int | None = None,
    seconds: float | None = None,
    may_end: bool = False,
    sampling: SamplingConfig | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
) -> Iterator[int]:
    """Yields the ids that follow a prime, each as soon as it is drawn.

    Args:
        checkpoint: who composes.
        prime: what was played so far; nothing by default.
        seed: the same seed gives the same ids.
        length: how many ids at most.
        seconds: how much new music at most.
        may_end: whether the piece may end before that.
        sampling: how an id is drawn.
        num_latents, context_length: in place of the checkpoint's own.

    Raises:
        ValueError: the arguments do not fit together or to the checkpoint.
        PamusicError: the tokenizer knows none of the prime's notes.
    """
    vocabulary = checkpoint.tokenizer.vocabulary
    if seconds is not None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds is a number above 0, not {seconds}")
        length = min(length or 2**62, round(seconds * MOST_TOKENS_A_SECOND) + MOST_TOKENS_A_SECOND)
    return generate(
        checkpoint.model,
        [vocabulary.id("start"), *(prime_ids(checkpoint.tokenizer, prime).tolist() if prime is not None else [])],
        seed=seed,
        length=length,
        seconds=seconds,
        seconds_of_id=vocabulary.seconds_of_id.tolist(),
        sampling=sampling,
        barred_ids=[vocabulary.id("start"), vocabulary.id("pad")],
        end_id=vocabulary.id("end"),
        end_after=1 if may_end else None,
        num_latents=num_latents,
        context_length=context_length,
    )


def prime_ids(tokenizer: Tokenizer, prime: Performance) -> np.ndarray:
    """The ids of a prime `[num_tokens]`, without start.

    Raises:
        PamusicError: there are none.
    """
    ids = tokenizer.encode(prime)
    if not len(ids):
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
        prime: its last loudness holds until the new ids speak of another.
        seconds: where to stop, even within a note.
    """
    before = np.empty(0, np.int64) if prime is None else prime_ids(tokenizer, prime).astype(np.int64)
    loudness = before[tokenizer.vocabulary.kind_of_id[before] == VELOCITY][-1:]
    music = _with_keys_let_go(tokenizer.decode(np.concatenate([loudness, np.array(ids, np.int64)])))
    return music if seconds is None else music.cropped(0, seconds)


def continued(
    tokenizer: Tokenizer, ids: Sequence[int], *, prime: Performance | None = None, seconds: float | None = None
) -> Performance:
    """The prime as it was read, then the music of the new ids; the arguments are those of `continuation`."""
    music = continuation(tokenizer, ids, prime=prime, seconds=seconds)
    if prime is None:
        return music
    start = _end_of(tokenizer, prime)
    pedal = prime.pedal[prime.pedal["time"] < start]
    last = {control: pedal["value"][pedal["control"] == control][-1] for control in np.unique(pedal["control"])}
    lifted = np.array([(start, control, 0) for control, value in last.items() if value], PEDAL)
    return Performance(prime.notes, np.concatenate([pedal, lifted])).joined(music.shifted(start))


def _end_of(tokenizer: Tokenizer, prime: Performance) -> float:
    """Seconds at which the prime's ids end; a key that is let go a little later, off the grid, is waited for."""
    end_on_grid = tokenizer.from_grid(tokenizer.to_grid(prime)).duration
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
