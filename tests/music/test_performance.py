"""Values in, values out: a performance is never changed, only answered with another."""

import numpy as np
import pytest
from builders import performance

from pamusic.music.performance import NOTE, PEDAL, SOFT, SUSTAIN, Performance, notes_in_order, pedal_in_order


def notes(played):
    return [tuple(note.tolist()) for note in played.notes]


def pedal(played):
    return [tuple(movement.tolist()) for movement in played.pedal]


CHORD_THEN_NOTE = performance((0.0, 1.0, 60, 80), (0.0, 1.0, 64, 70), (1.0, 2.5, 67, 90), pedal=[(0.5, 127), (2.0, 0)])


def test_notes_are_ordered_by_onset_then_pitch_and_pedal_by_time():
    played = performance((1.0, 2.0, 60, 80), (0.0, 2.0, 72, 80), (0.0, 2.0, 48, 80), pedal=[(2.0, 0), (1.0, 127)])

    assert [pitch for _, _, pitch, _ in notes(played)] == [48, 72, 60]
    assert pedal(played) == [(1.0, SUSTAIN, 127), (2.0, SUSTAIN, 0)]


def test_silence_is_a_performance():
    assert len(Performance()) == 0
    assert Performance().duration == 0.0
    assert Performance().transposed(100).stretched(2.0).shifted(1.0).cropped(0, 1).equals(Performance())


def test_the_last_thing_that_happens_ends_it():
    assert CHORD_THEN_NOTE.duration == 2.5
    assert performance((0.0, 1.0, 60, 80), pedal=[(7.0, 0)]).duration == 7.0


def test_transposed():
    assert [pitch for _, _, pitch, _ in notes(CHORD_THEN_NOTE.transposed(-12))] == [48, 52, 55]
    assert CHORD_THEN_NOTE.transposed(5).transposed(-5).equals(CHORD_THEN_NOTE)


@pytest.mark.parametrize("semitones", [-61, 61])
def test_no_transposition_leaves_the_pitches_there_are(semitones):
    with pytest.raises(ValueError, match="must keep pitches within 0 to 127"):
        CHORD_THEN_NOTE.transposed(semitones)


def test_stretched():
    slower = CHORD_THEN_NOTE.stretched(2.0)

    assert [(onset, offset) for onset, offset, _, _ in notes(slower)] == [(0.0, 2.0), (0.0, 2.0), (2.0, 5.0)]
    assert [time for time, _, _ in pedal(slower)] == [1.0, 4.0]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_only_positive_numbers_stretch(factor):
    with pytest.raises(ValueError, match="positive"):
        CHORD_THEN_NOTE.stretched(factor)


def test_shifted():
    assert notes(CHORD_THEN_NOTE.shifted(1.0))[0] == (1.0, 2.0, 60, 80)
    assert CHORD_THEN_NOTE.shifted(1.0).shifted(-1.0).equals(CHORD_THEN_NOTE)


def test_cropped_lets_go_at_the_end_and_keeps_the_feet_where_they_were():
    part = CHORD_THEN_NOTE.cropped(1.0, 2.0)

    assert notes(part) == [(0.0, 1.0, 67, 90)]
    assert pedal(part) == [(0.0, SUSTAIN, 127)]


def test_each_pedal_is_carried_into_a_crop():
    played = performance((3.0, 4.0, 60, 80), pedal=[(0.0, 30), (1.0, 50), (1.5, 99, SOFT)])

    assert pedal(played.cropped(2.0, 5.0)) == [(0.0, SUSTAIN, 50), (0.0, SOFT, 99)]


def test_joined():
    both = performance((0.0, 1.0, 60, 80)).joined(performance((0.0, 1.0, 55, 80), pedal=[(0.1, 64)]).shifted(0.5))

    assert notes(both) == [(0.0, 1.0, 60, 80), (0.5, 1.5, 55, 80)]
    assert pedal(both) == [(0.6, SUSTAIN, 64)]


def test_nothing_was_changed_on_the_way():
    before = CHORD_THEN_NOTE.notes.copy(), CHORD_THEN_NOTE.pedal.copy()

    CHORD_THEN_NOTE.transposed(3).stretched(1.1).shifted(4.0).cropped(4.5, 6.0).joined(CHORD_THEN_NOTE)

    assert np.array_equal(CHORD_THEN_NOTE.notes, before[0])
    assert np.array_equal(CHORD_THEN_NOTE.pedal, before[1])


def test_order_is_by_onset_then_pitch_and_of_pedals_as_they_came():
    mixed = np.array([(1, 2, 62, 9), (0, 1, 64, 9), (1, 2, 60, 9), (0, 1, 61, 9)], NOTE)
    assert notes_in_order(mixed)["pitch"].tolist() == [61, 64, 60, 62]
    assert notes_in_order(mixed[:0]).tolist() == []
    sorted_already = notes_in_order(mixed)
    assert notes_in_order(sorted_already) is sorted_already

    moves = np.array([(1.0, SUSTAIN, 5), (0.0, SUSTAIN, 9), (1.0, SUSTAIN, 3)], PEDAL)
    assert pedal_in_order(moves)["value"].tolist() == [9, 5, 3]
    assert pedal_in_order(moves[:1]).tolist() == [(1.0, SUSTAIN, 5)]
