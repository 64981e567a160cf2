"""Encode with note-seq itself, the reference that our ids must equal.

Where players and note-seq read a file differently, pamusic reads it as players do; `music/midi.py` lists the
differences. The ids of such a file differ, and `difference` reports it.

Knows note-seq, an extra (`pip install 'pamusic[magenta]'`) that is imported only when needed: it takes seconds to load,
and half a second per file. Knows nothing of how we read or encode.
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
    """Raise an error if note-seq cannot encode with this tokenizer.

    Raises:
        PamusicError: note-seq is not installed, or has no such vocabulary.
    """
    if not _is_note_seqs(tokenizer.vocabulary):
        raise PamusicError(
            f"note-seq has only the vocabulary performance, got {tokenizer.name}; add --tokenizer performance, or"
            " leave out --engine note-seq"
        )
    if importlib.util.find_spec("note_seq") is None:
        raise PamusicError(f"note-seq is not installed; run {INSTALL}, or leave out --engine note-seq")


def ids_by_note_seq(data: bytes) -> np.ndarray:
    """Return the ids `[num_tokens]`, uint16, that note-seq gives the bytes of a MIDI file.

    Steps: read all instruments; fold the sustain pedal; quantise; make performance events; encode.

    Raises:
        PamusicError: note-seq is not installed, or refuses the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd tracks, and about programs that pydub misses
        try:
            from note_seq import midi_io, performance_encoder_decoder, performance_lib, sequences_lib
        except ImportError:
            raise PamusicError(f"note-seq is not installed; run {INSTALL}") from None
        try:
            sequence = midi_io.midi_to_note_sequence(data)
        except midi_io.MIDIConversionError as error:
            raise PamusicError(f"note-seq cannot read the file ({error})") from None
    sequence = sequences_lib.apply_sustain_control_changes(sequence)
    quantized = sequences_lib.quantize_note_sequence_absolute(sequence, STEPS_PER_SECOND)
    events = performance_lib.Performance(quantized, num_velocity_bins=VELOCITY_BINS)
    encoding = performance_encoder_decoder.PerformanceOneHotEncoding(num_velocity_bins=VELOCITY_BINS)
    return np.array([encoding.encode_event(event) for event in events], np.uint16)


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return a message on where pamusic's and note-seq's ids first differ; empty where they are equal."""
    length = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:length] != theirs[:length])
    if not len(differing) and len(ours) == len(theirs):
        return ""
    place = int(differing[0]) if len(differing) else length
    return (
        f"note-seq reads it differently: {len(theirs):,} tokens, pamusic {len(ours):,}; the first difference is at "
        f"token {place + 1:,}"
    )


def _is_note_seqs(vocabulary: Vocabulary) -> bool:
    """Return whether the vocabulary starts with note-seq's events, with the same ids."""
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
