"""The reference itself: note-seq's own reading and performance encoding, which our ids must equal.

Where players and note-seq read a file differently, we read it as players do: `music/midi.py` lists the differences.
The ids of such a file are not equal, and `difference` says so.

Knows note-seq, which is an extra (`pip install 'pamusic[magenta]'`) and is imported when it is asked for: it takes
seconds to load, and half a second a file. Knows nothing of how we read or encode.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

from pamusic.errors import PamusicError
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import EventRange, Vocabulary

STEPS_PER_SECOND, VELOCITY_BINS, MAX_SHIFT = 100, 32, 100  # note-seq's; Oore et al. 2018 had 125, 32, 125
EVENTS = (("note_on", 0, 127), ("note_off", 0, 127), ("time_shift", 1, MAX_SHIFT), ("velocity", 1, VELOCITY_BINS))
INSTALL = "pip install 'pamusic[magenta]'"


def check_reference(tokenizer: Tokenizer) -> None:
    """Refuse what note-seq cannot do.

    Raises:
        PamusicError: it is not installed, or the tokenizer's vocabulary is none that it has.
    """
    if not _is_note_seqs(tokenizer.vocabulary):
        raise PamusicError(
            f"note-seq has no vocabulary like {tokenizer.name}, only performance; leave out --engine note-seq"
        )
    if importlib.util.find_spec("note_seq") is None:
        raise PamusicError(f"note-seq is not installed; install it: {INSTALL}, or leave out --engine note-seq")


def ids_by_note_seq(data: bytes) -> np.ndarray:
    """Return the ids `[num_tokens]`, uint16, that note-seq gives the bytes of a MIDI file.

    Read; fold the sustain pedal; quantise; performance events; one-hot. All instruments of the file are read.

    Raises:
        PamusicError: it is not installed, or refuses the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tracks, and of what pydub misses
        try:
            from note_seq import midi_io, performance_encoder_decoder, performance_lib, sequences_lib
        except ImportError:
            raise PamusicError(f"note-seq is not installed; install it: {INSTALL}") from None
        try:
            sequence = midi_io.midi_to_note_sequence(data)
        except midi_io.MIDIConversionError as error:
            raise PamusicError(f"note-seq cannot read it ({error})") from None
    sequence = sequences_lib.apply_sustain_control_changes(sequence)
    quantized = sequences_lib.quantize_note_sequence_absolute(sequence, STEPS_PER_SECOND)
    events = performance_lib.Performance(quantized, num_velocity_bins=VELOCITY_BINS)
    encoding = performance_encoder_decoder.PerformanceOneHotEncoding(num_velocity_bins=VELOCITY_BINS)
    return np.array([encoding.encode_event(event) for event in events], np.uint16)


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return where the ids of pamusic and of note-seq part, in words; nothing where they are equal."""
    length = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:length] != theirs[:length])
    if not len(differing) and len(ours) == len(theirs):
        return ""
    place = int(differing[0]) if len(differing) else length
    return (
        f"note-seq reads it differently: {len(theirs):,} tokens, where pamusic has {len(ours):,}, "
        f"which differ from token {place + 1:,} on"
    )


def _is_note_seqs(vocabulary: Vocabulary) -> bool:
    """Return whether the vocabulary means what note-seq's events mean, by the same ids."""
    start, ranges = 0, []
    for kind, first, last in EVENTS:
        ranges.append(EventRange(kind, first, last, start))
        start += len(ranges[-1])
    return (
        vocabulary.ranges[: len(ranges)] == tuple(ranges)
        and vocabulary.time_step_ms == 1000 / STEPS_PER_SECOND
        and vocabulary.num_velocity_bins == VELOCITY_BINS
        and vocabulary.sustain == "folded"
    )
