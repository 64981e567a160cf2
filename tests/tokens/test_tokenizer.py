"""Performance <-> ids: the very ids of note-seq, and a way back that loses nothing but what the grid cannot hold."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from builders import performance, random_midi, steadily
from hypothesis import given
from hypothesis import strategies as st
from strategies import PIANO, performances, tokenizers, tokenizers_and_ids

from pamusic.corpus.sources import find_sources
from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import SOFT, SOSTENUTO, SUSTAIN
from pamusic.tokens.note_seq_reference import ids_by_note_seq
from pamusic.tokens.tokenizer import CONTROLS, Repairs, depths, load_tokenizer

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
    sources, _, _ = find_sources([Path(MAESTRO)])
    smaller_half = sorted(sources, key=lambda source: len(source.read()))[: len(sources) // 2]

    for source in random.Random(0).sample(smaller_half, 6):
        data = source.read()
        assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist(), source.name


@steadily
@given(tokenizers_and_ids())
def test_any_ids_are_a_valid_performance(tokenizer_and_ids):
    tokenizer, ids = tokenizer_and_ids
    played, repairs = tokenizer.decode_counted(ids)
    notes, pedal, pitches = played.notes, played.pedal, tokenizer.vocabulary.range("note_on")

    assert (notes["offset"] > notes["onset"]).all()
    assert (np.diff(notes["onset"]) >= 0).all()
    assert ((notes["velocity"] >= 1) & (notes["velocity"] <= 127)).all()
    assert ((notes["pitch"] >= pitches.first) & (notes["pitch"] <= pitches.last)).all()
    assert (np.diff(pedal["time"]) >= 0).all()
    for name, control in CONTROLS.items():
        values = pedal["value"][pedal["control"] == control].astype(int)
        assert name in tokenizer.vocabulary.pedals or not len(values)
        assert (np.diff(values, prepend=0) != 0).all()
        assert (values <= 127).all()
        assert not values[-1:].any()  # up at the end
    if tokenizer.vocabulary.sustain == "played":
        for pitch in np.unique(notes["pitch"]):
            of_key = notes[notes["pitch"] == pitch]
            assert (of_key["offset"][:-1] <= of_key["onset"][1:]).all()

    kinds = [tokenizer.vocabulary.event(id)[0] for id in ids]
    assert len(played) == kinds.count("note_on") - repairs.notes_without_length
    assert repairs.borders == sum(kind in ("start", "end", "pad") for kind in kinds)


def test_what_was_forgiven_is_counted():
    on, off, wait = (PIANO.vocabulary.id(*event) for event in (("note_on", 60), ("note_off", 60), ("time_shift", 9)))
    down, deep, soft = (PIANO.vocabulary.id(*event) for event in (("sustain", 2), ("sustain", 3), ("soft", 1)))
    start = PIANO.vocabulary.id("start")

    def repairs(*ids):
        return PIANO.decode_counted(np.array(ids, np.int64))[1]

    assert repairs() == repairs(on, wait, off) == Repairs()
    assert not repairs(on, wait, off, on, wait, off)
    assert repairs(start, off, on, wait) == Repairs(notes_without_end=1, releases_of_silent_keys=1, borders=1)
    assert repairs(on, wait, on, wait, off, off) == Repairs(notes_without_end=1, releases_of_silent_keys=1)
    assert repairs(on, off) == Repairs(notes_without_length=1)
    assert repairs(down, deep, wait, deep, soft) == Repairs(idle_pedals=2, pedals_left_down=2)
    assert bool(repairs(down))


STEPS = st.integers(0, 1000)
PLAYED = st.tuples(STEPS, st.integers(1, 300), st.sampled_from([0, 60, 61, 127]), st.integers(1, 127))


@steadily
@given(tokenizers, performances(), st.floats(0.05, 3))
def test_what_was_on_the_grid_once_stays_as_it_is(tokenizer, played, factor):
    once = tokenizer.decode(tokenizer.encode(played.stretched(factor)))
    ids = tokenizer.encode(once)

    assert tokenizer.decode(ids).equals(once)
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids.tolist()
    assert not tokenizer.decode_counted(ids)[1]
    if tokenizer.vocabulary.sustain == "played":  # folded, the order of a step's onsets is known the first time alone
        assert tokenizer.encode(played.stretched(factor)).tolist() == ids.tolist()


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


def test_a_bar_of_the_piano_by_eye():
    """C; the foot goes down at once, rests half-way under a third, and comes up; nobody lifts the soft pedal."""
    bar = performance(
        (0.0, 0.2, 60, 80),
        (0.5, 0.8, 64, 82),
        (0.5, 0.8, 55, 81),
        pedal=[(0.10, 40), (0.12, 90), (0.14, 127), (0.3, 90), (0.6, 127), (0.72, 60), (0.74, 0), (0.2, 100, SOFT)],
    )
    events = [PIANO.vocabulary.event(id) for id in PIANO.encode(bar)]

    assert events == [
        ("velocity", 27),
        ("note_on", 60),
        ("time_shift", 12),
        ("sustain", 3),  # through 1 and 2 within 50 ms: dated half-way
        ("time_shift", 8),
        ("note_off", 60),  # the key, not the string
        ("soft", 1),
        ("time_shift", 10),
        ("sustain", 2),
        ("time_shift", 20),
        ("note_on", 55),  # of one step the lower first
        ("velocity", 28),
        ("note_on", 64),
        ("time_shift", 10),
        ("sustain", 3),
        ("time_shift", 13),
        ("sustain", 0),
        ("time_shift", 7),
        ("note_off", 55),
        ("note_off", 64),
        ("soft", 0),  # nobody lifted it
    ]


def test_and_back_with_pedals():
    moves = [(0.125, 127), (0.25, 85), (0.5, 42), (1.0, 0), (0.25, 127, SOSTENUTO), (0.75, 0, SOSTENUTO)]
    bar = performance((0.0, 0.25, 60, 80), (0.5, 1.5, 64, 80), pedal=moves)
    music = PIANO.decode(PIANO.encode(bar))

    assert notes(music) == notes(bar)
    assert [(time, value, control) for time, control, value in music.pedal.tolist()] == [
        (0.13, 127, SUSTAIN),  # on the grid
        (0.25, 127, SOSTENUTO),
        (0.25, 85, SUSTAIN),
        (0.5, 42, SUSTAIN),
        (0.75, 0, SOSTENUTO),
        (1.0, 0, SUSTAIN),
    ]


def test_a_pedal_has_equal_depths_and_a_border_is_passed_where_it_is_meant():
    values = np.array([0, 21, 22, 23, 24, 60, 65, 66, 64, 62, 61, 108, 109, 105, 103, 127, 0])

    assert depths(values, 3, 0).tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 1, 1, 3, 3, 2, 2, 3, 0]
    assert depths(values, 3, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 3, 3, 3, 2, 3, 0]
    assert depths(values, 1, 0).tolist() == [0] * 6 + [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0]  # General MIDI's 64


@steadily
@given(st.lists(st.integers(0, 127), max_size=40), st.integers(1, 15), st.floats(0, 3))
def test_depths_are_those_of_a_plain_loop(values, deepest, hysteresis):
    here, expected = 0, []
    for value in values:
        while here < deepest and value >= (here + 0.5) * 127 / deepest + hysteresis:
            here += 1
        while here > 0 and value < (here - 0.5) * 127 / deepest - hysteresis:
            here -= 1
        expected.append(here)

    assert depths(np.array(values, np.uint8), deepest, hysteresis).tolist() == expected


@pytest.mark.parametrize(
    ("moves", "kept"),
    [
        ([(10, 85), (13, 127)], [(11, 127)]),  # on the way
        ([(10, 85), (15, 127)], [(10, 85), (15, 127)]),  # rested there
        ([(10, 127), (30, 85), (33, 127)], [(10, 127)]),  # a tremor
        ([(10, 127), (30, 85), (35, 127)], [(10, 127), (30, 85), (35, 127)]),
        ([(10, 127), (30, 0), (31, 127)], [(10, 127), (30, 0), (31, 127)]),  # a quick lift is meant
        ([(10, 127), (30, 85), (31, 42), (34, 0), (36, 127)], [(10, 127), (32, 0), (36, 127)]),
        ([(10, 42), (12, 0), (14, 42), (16, 0)], []),
    ],
)
def test_short_ways_and_tremor_are_left_out_and_what_is_meant_stays(moves, kept):
    played = performance((0.0, 1.0, 60, 80), pedal=[*((step / 100, value) for step, value in moves), (0.9, 0)])
    music = PIANO.decode(PIANO.encode(played))
    if kept:
        kept = [*kept, (90, 0)]
    if kept and kept[-2][1] == 0:
        kept.pop()

    assert [(round(time * 100), value) for time, _, value in music.pedal.tolist()] == kept


def test_a_pedal_may_stay_down_where_something_follows():
    prime = performance((0.0, 0.5, 60, 80), pedal=[(0.2, 127)])
    last = [PIANO.vocabulary.event(id) for id in (PIANO.encode(prime)[-1], PIANO.ids_from_grid(prime_grid(prime))[-1])]

    assert last == [("sustain", 0), ("note_off", 60)]


def prime_grid(prime):
    return PIANO.to_grid(prime, lifted=False)


def test_the_form_before_the_grid_of_folded_pedals_is_sound():
    played = performance((0.0, 1.0, 60, 80), (0.5, 0.9, 20, 80), pedal=[(0.5, 127), (2.0, 0)])

    assert TOKENIZER.normalised(played).equals(sustain_folded(played))


def test_the_form_before_the_grid_of_played_pedals_is_what_hands_and_feet_did():
    played = performance(
        (0.0, 1.0, 60, 80), (0.5, 0.9, 60, 70), (0.5, 0.7, 60, 75), (0.2, 0.3, 20, 80),
        pedal=[(0.1, 0), (0.2, 3), (0.2, 5), (0.3, 5), (0.4, 9, SOFT), (0.6, 1, 1)],
    )  # fmt: skip
    normal = PIANO.normalised(played)

    assert notes(normal) == [(0.0, 0.5, 60, 80), (0.5, 0.7, 60, 75)]
    assert normal.pedal.tolist() == [(0.2, SUSTAIN, 5), (0.4, SOFT, 9), (0.7, SOFT, 0), (0.7, SUSTAIN, 0)]


@steadily
@given(tokenizers, performances())
def test_the_form_before_the_grid_is_a_form(tokenizer, played):
    normal = tokenizer.normalised(played)

    assert tokenizer.normalised(normal).equals(normal)
    assert tokenizer.encode(normal).tolist() == tokenizer.encode(played).tolist()


def test_no_performance_is_changed_by_its_encoding():
    played = performance((0.0, 1.0, 60, 80), (0.5, 0.9, 60, 70), pedal=[(0.1, 80)])
    before = played.notes.copy(), played.pedal.copy()
    for tokenizer in (TOKENIZER, PIANO):
        tokenizer.encode(played)

    assert np.array_equal(played.notes, before[0])
    assert np.array_equal(played.pedal, before[1])


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(PamusicError, match="no tokenizer is called 'perfomance'; use notes, performance"):
        load_tokenizer("perfomance")
