"""Performance <-> ids: the very ids of note-seq, and a way back that loses nothing but what the grid cannot hold."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from builders import performance, random_midi, steadily
from hypothesis import given
from hypothesis import strategies as st

from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.tokens.reference import ids_by_note_seq
from pamusic.tokens.sources import find_sources
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")
VOCABULARY = TOKENIZER.vocabulary
MAESTRO = os.environ.get("PAMUSIC_MAESTRO")


def notes(played):
    return [tuple(note) for note in played.notes.tolist()]


def test_a_bar_by_eye():
    """C, then E over it and held by the pedal for a second and a half; then C again, softer."""
    bar = performance(
        (0.0, 0.5, 60, 80),
        (0.25, 0.5, 64, 78),
        (2.0, 2.0, 60, 40),
        pedal=[(0.4, 127), (1.754, 0)],
    )
    events = [VOCABULARY.event(id) for id in TOKENIZER.encode(bar)]

    assert events == [
        ("velocity", 20),
        ("note_on", 60),
        ("time_shift", 25),
        ("note_on", 64),  # 78 is in the bin of 80: no velocity event
        ("time_shift", 100),
        ("time_shift", 50),
        ("note_off", 60),
        ("note_off", 64),
        ("time_shift", 25),
        ("velocity", 10),
        ("note_on", 60),
        ("time_shift", 1),  # no note is shorter than a step
        ("note_off", 60),
    ]
    assert TOKENIZER.encode(bar).tolist() == [375, 60, 280, 64, 355, 305, 188, 192, 280, 365, 60, 256, 188]
    assert TOKENIZER.encode(bar).dtype == np.uint16


def test_and_back():
    ids = [375, 60, 280, 64, 355, 305, 188, 192, 280, 365, 60, 256, 188]

    assert notes(TOKENIZER.decode(ids)) == [
        (0.0, 1.75, 60, 79),
        (0.25, 1.75, 64, 79),
        (2.0, 2.0100000000000002, 60, 39),
    ]


def test_silence_is_no_ids_and_no_ids_are_silence():
    assert TOKENIZER.encode(performance()).tolist() == []
    assert len(TOKENIZER.decode([])) == 0


def test_what_note_seq_could_never_have_written_is_read_all_the_same():
    on, off, shift = (VOCABULARY.id(*event) for event in (("note_on", 60), ("note_off", 60), ("time_shift", 50)))

    assert len(TOKENIZER.decode([off, shift, off])) == 0
    assert notes(TOKENIZER.decode([on, shift])) == [(0.0, 0.5, 60, 63)]  # no velocity: the middle one; open: to the end
    assert notes(TOKENIZER.decode([shift, on])) == [(0.5, 0.51, 60, 63)]
    assert notes(TOKENIZER.decode([on, off])) == []
    assert notes(TOKENIZER.decode([on, shift, on, shift, off, shift, off])) == [(0.0, 1.0, 60, 63), (0.5, 1.5, 60, 63)]


@pytest.mark.parametrize("seed", range(40))
def test_random_pieces_have_the_ids_of_note_seq(seed):
    data = random_midi(seed, num_events=20 + 20 * (seed % 20))

    assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist()


@pytest.mark.skipif(not MAESTRO, reason="PAMUSIC_MAESTRO, the path of MAESTRO's zip archive, is not set")
def test_files_of_maestro_have_the_ids_of_note_seq():
    sources, _ = find_sources([Path(MAESTRO)])
    smaller_half = sorted(sources, key=lambda source: len(source.read()))[: len(sources) // 2]

    for source in random.Random(0).sample(smaller_half, 6):
        data = source.read()
        assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist(), source.name


@steadily
@given(st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=300))
def test_any_ids_are_a_valid_performance(ids):
    played = TOKENIZER.decode(np.array(ids, np.uint16))

    assert (played.notes["offset"] > played.notes["onset"]).all()
    assert (np.diff(played.notes["onset"]) >= 0).all()
    assert ((played.notes["velocity"] >= 1) & (played.notes["velocity"] <= 127)).all()
    assert (played.notes["pitch"] <= 127).all()


STEPS = st.integers(0, 1000)
PLAYED = st.tuples(STEPS, st.integers(1, 300), st.sampled_from([0, 60, 61, 127]), st.integers(1, 127))


@steadily
@given(
    st.lists(PLAYED, max_size=30), st.lists(st.tuples(STEPS, st.integers(0, 127)), max_size=5), st.floats(0.0003, 0.02)
)
def test_what_was_on_the_grid_once_stays_as_it_is(strokes, movements, seconds_a_step):
    played = performance(
        *((onset, onset + length, pitch, velocity) for onset, length, pitch, velocity in strokes), pedal=movements
    ).stretched(seconds_a_step)

    once = TOKENIZER.decode(TOKENIZER.encode(played))
    ids = TOKENIZER.encode(once)

    assert TOKENIZER.decode(ids).equals(once)
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).tolist() == ids.tolist()


@steadily
@given(st.lists(PLAYED, max_size=30))
def test_on_the_grid_and_without_overlaps_nothing_is_lost(strokes):
    free, kept = {}, []
    for onset, length, pitch, velocity in sorted(strokes):
        if onset >= free.get(pitch, 0):
            kept.append((onset / 100, (onset + length) / 100, pitch, (velocity - 1) // 4 * 4 + 3))
            free[pitch] = onset + length
    played = performance(*((onset, offset, pitch, min(velocity, 127)) for onset, offset, pitch, velocity in kept))

    again = TOKENIZER.decode(TOKENIZER.encode(played))

    assert np.array_equal(again.notes[["pitch", "velocity"]], played.notes[["pitch", "velocity"]])
    assert np.allclose(again.notes["onset"], played.notes["onset"], atol=1e-9)
    assert np.allclose(again.notes["offset"], played.notes["offset"], atol=1e-9)


def test_keys_that_a_vocabulary_lacks_are_left_out(tmp_path):
    (tmp_path / "piano.toml").write_text(
        VOCABULARY.toml().replace("first = 0\nlast = 127", "first = 21\nlast = 108"), encoding="utf-8"
    )
    piano = load_tokenizer(str(tmp_path / "piano.toml"))
    played = performance((0, 1, 20, 64), (0, 1, 21, 64), (0, 1, 108, 64), (0, 1, 109, 64))

    assert [pitch for _, _, pitch, _ in notes(piano.decode(piano.encode(played)))] == [21, 108]


@pytest.mark.parametrize("step_ms", [8, 12.5, 20])
def test_other_grids(tmp_path, step_ms):
    (tmp_path / "grid.toml").write_text(VOCABULARY.toml().replace("step_ms = 10", f"step_ms = {step_ms}"))
    tokenizer = load_tokenizer(str(tmp_path / "grid.toml"))
    second = step_ms / 1000
    played = performance((3 * second, 7 * second, 60, 63), (400 * second, 650 * second, 62, 63))

    assert np.allclose(tokenizer.decode(tokenizer.encode(played)).notes["onset"], played.notes["onset"])
    assert np.allclose(tokenizer.decode(tokenizer.encode(played)).notes["offset"], played.notes["offset"])


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(PamusicError, match="no tokenizer is called 'perfomance'; there is performance"):
        load_tokenizer("perfomance")
