"""For hypothesis: any performance, any ids, any vocabulary that the rules of a TOML file allow. Asserts nothing."""

import numpy as np
from builders import performance
from hypothesis import strategies as st

from pamusic.music.performance import SOFT, SOSTENUTO, SUSTAIN
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer
from pamusic.tokens.vocabulary import PEDAL_KINDS, EventRange, Vocabulary

PERFORMANCE, PIANO = load_tokenizer("performance"), load_tokenizer("piano")
SHIPPED = [PERFORMANCE, PIANO]

MILLISECONDS = st.integers(0, 5000)
PITCHES = st.sampled_from([0, 21, 59, 60, 61, 62, 108, 127])
STROKES = st.tuples(MILLISECONDS, st.integers(1, 800), PITCHES, st.integers(1, 127))
MOVES = st.tuples(MILLISECONDS, st.integers(0, 127), st.sampled_from([SUSTAIN, SUSTAIN, SOFT, SOSTENUTO]))
QUICK_MOVES = st.tuples(st.integers(0, 300), st.sampled_from([0, 30, 40, 60, 66, 90, 127]), st.just(SUSTAIN))


@st.composite
def performances(draw, *, playable=False):
    """Keys and pedals at any milliseconds; if `playable`, no key is struck while it is down or within 6 ms of that."""
    strokes = draw(st.lists(STROKES, max_size=30))
    moves = draw(st.lists(st.one_of(MOVES, QUICK_MOVES), max_size=40))
    free, kept = {}, []
    for onset, length, pitch, velocity in sorted(strokes):
        if not playable or onset >= free.get(pitch, 0):
            length = max(length, 6) if playable else length
            kept.append((onset / 1000, (onset + length) / 1000, pitch, velocity))
            free[pitch] = onset + length
    return performance(*kept, pedal=[(time / 1000, value, control) for time, value, control in sorted(moves)])


@st.composite
def vocabularies(draw):
    """Small ones and large ones, of both modes, with events in any order."""
    played = draw(st.booleans())
    low, high = draw(st.sampled_from([(60, 60), (60, 61), (21, 108), (0, 127)]))
    bins = draw(st.sampled_from([1, 2, 32, 43, 100, 127]))
    borders = dict.fromkeys(("start", "end", "pad"), (0, 0))
    values = {"note_on": (low, high), "note_off": (low, high), "velocity": (1, bins), **borders}
    values["time_shift"] = (1, draw(st.sampled_from([1, 2, 7, 100])))
    if played:
        others = draw(st.sets(st.sampled_from(["soft", "sostenuto"])))
        values |= {kind: (0, draw(st.integers(1, 6))) for kind in ("sustain", *sorted(others))}
    deepest = max((last for kind, (_, last) in values.items() if kind in PEDAL_KINDS), default=1)
    kinds = draw(st.permutations(list(values)))
    ranges, start = [], 0
    for kind in kinds:
        ranges.append(EventRange(kind, *values[kind], start))
        start += len(ranges[-1])
    step_ms = draw(st.sampled_from([5, 10, 12.5, 40]))
    return Vocabulary(
        name="any", version=1, time_step_ms=step_ms, num_velocity_bins=bins,
        sustain="played" if played else "folded", ranges=tuple(ranges),
        hysteresis=draw(st.floats(0, 127 / deepest / 2 - 1)) if played else 0,
        shortest_ms=draw(st.integers(0, 8)) * step_ms if played else 0,
    )  # fmt: skip


tokenizers = st.one_of(st.sampled_from(SHIPPED), vocabularies().map(Tokenizer))


@st.composite
def tokenizers_and_ids(draw, max_size=200):
    """A tokenizer and any of its ids; note events more often than chance would have them."""
    tokenizer = draw(tokenizers)
    vocabulary = tokenizer.vocabulary
    kinds = draw(st.lists(st.sampled_from([events.kind for events in vocabulary.ranges]), max_size=max_size))
    choices = draw(st.lists(st.integers(0, 6), min_size=len(kinds), max_size=len(kinds)))
    ids = []
    for kind, choice in zip(kinds, choices, strict=True):
        events = vocabulary.range(kind)
        ids.append(events.start + choice * 7919 % min(len(events), 5))  # few of each, so that they meet
    return tokenizer, np.array(ids, np.int64)
