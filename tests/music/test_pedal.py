"""How long a string sounds: the vectorised rules against a plain loop over what happens, one thing after the other."""

import numpy as np
from builders import performance, steadily
from hypothesis import given
from hypothesis import strategies as st

from pamusic.music.pedal import merged, sounding_offsets, sustain_folded
from pamusic.music.performance import PEDAL, SOFT, SOSTENUTO, SUSTAIN, Performance

PEDAL_DOWN, PEDAL_UP, STROKE, RELEASE = range(4)  # at one instant, in this order


def folded_by_a_loop(played):
    """The rules of note-seq's `apply_sustain_control_changes`, as a list of events and a list of sounding strings."""
    notes = [note.tolist() for note in played.notes]
    end = [offset for _, offset, _, _ in notes]
    events = [(onset, STROKE, index) for index, (onset, _, _, _) in enumerate(notes)]
    events += [(offset, RELEASE, index) for index, (_, offset, _, _) in enumerate(notes)]
    for time, control, value in played.pedal.tolist():
        if control == SUSTAIN:
            events.append((time, PEDAL_DOWN if value >= 64 else PEDAL_UP, -1))
    pedal_is_down, sounding, dropped = False, [], set()
    for time, what, index in sorted(events):
        if what == PEDAL_DOWN:
            pedal_is_down = True
        elif what == PEDAL_UP:
            pedal_is_down = False
            held_by_the_pedal = [note for note in sounding if end[note] < time]
            for note in held_by_the_pedal:
                end[note] = time
            sounding = [note for note in sounding if note not in held_by_the_pedal]
        elif what == STROKE:
            same_key = [note for note in sounding if notes[note][2] == notes[index][2]] if pedal_is_down else []
            for note in same_key:
                end[note] = time
                if notes[note][0] == time:
                    dropped.add(note)
            sounding = [note for note in sounding if note not in same_key] + [index]
        elif not pedal_is_down and index in sounding:
            sounding.remove(index)
    for note in sounding:
        end[note] = max(time for time, _, _ in events)
    return [
        (onset, end[index], pitch, velocity)
        for index, (onset, _, pitch, velocity) in enumerate(notes)
        if index not in dropped
    ]


TIMES = st.integers(0, 12)  # few instants and few keys, so that much falls together
NOTES = st.tuples(TIMES, st.integers(1, 6), st.sampled_from([60, 61, 62]), st.integers(1, 127))
MOVEMENTS = st.tuples(TIMES, st.sampled_from([0, 63, 64, 127]), st.sampled_from([SUSTAIN, SUSTAIN, SOFT, SOSTENUTO]))


@steadily
@given(st.lists(NOTES, max_size=12), st.lists(MOVEMENTS, max_size=8))
def test_it_is_the_loop(strokes, movements):
    played = performance(
        *((onset / 4, (onset + length) / 4, pitch, velocity) for onset, length, pitch, velocity in strokes),
        pedal=[(time / 4, value, control) for time, value, control in movements],
    )

    folded = sustain_folded(played)

    assert [tuple(note) for note in folded.notes.tolist()] == folded_by_a_loop(played)
    assert len(folded.pedal) == 0


def offsets(*notes, pedal):
    return sustain_folded(performance(*notes, pedal=pedal)).notes["offset"].tolist()


def test_a_note_released_under_the_pedal_sounds_until_the_pedal_goes_up():
    assert offsets((0, 1, 60, 80), pedal=[(0.5, 127), (3, 0)]) == [3]
    assert offsets((0, 1, 60, 80), pedal=[(1, 64), (3, 63)]) == [3]  # down at the very instant of the release
    assert offsets((0, 1, 60, 80), pedal=[(0, 127), (1, 0)]) == [1]


def test_or_until_its_key_is_struck_again():
    assert offsets((0, 1, 60, 80), (2, 2.5, 60, 80), pedal=[(0, 127), (3, 0)]) == [2, 3]
    assert offsets((0, 1, 60, 80), (2, 2.5, 61, 80), pedal=[(0, 127), (3, 0)]) == [3, 3]


def test_what_the_pedal_holds_at_the_end_sounds_until_the_last_thing_that_happens():
    assert offsets((0, 1, 60, 80), (4, 5, 72, 80), pedal=[(0, 127)]) == [5, 5]


def test_of_two_strokes_at_one_instant_under_the_pedal_the_later_stays():
    folded = sustain_folded(performance((0, 1, 60, 30), (0, 2, 60, 90), pedal=[(0, 127), (3, 0)]))

    assert folded.notes["velocity"].tolist() == [90]


def test_the_other_pedals_hold_nothing():
    assert offsets((0, 1, 60, 80), pedal=[(0, 127, SOFT), (0, 127, SOSTENUTO), (3, 0)]) == [1]


def test_what_came_in_is_as_it_was():
    played = performance((0, 1, 60, 80), pedal=[(0, 127), (3, 0)])
    before = played.notes.copy()

    sustain_folded(played)

    assert np.array_equal(played.notes, before)


def one_channel(notes, moves):
    return performance(
        *((onset / 4, (onset + length) / 4, pitch, velocity) for onset, length, pitch, velocity in notes),
        pedal=[(time / 4, value, number) for time, value, number in moves],
    )


@steadily
@given(
    st.lists(
        st.tuples(st.lists(NOTES, min_size=1, max_size=6), st.lists(MOVEMENTS, max_size=6)), min_size=2, max_size=3
    )
)
def test_several_channels_as_one_piano_sound_as_each_of_them_does(channels):
    played = [one_channel(*each) for each in channels]

    whole, num_removed = merged(played)

    the_end = max(each.duration for each in played)
    alone = [
        (note, offset)
        for each in played
        for note, offset in zip(each.notes.tolist(), sounding_offsets(lasting(each, the_end)).tolist(), strict=True)
        if offset > note[0]
    ]
    expected = []
    for (onset, released, pitch, velocity), offset in alone:
        again = [note[0] for note, _ in alone if note[2] == pitch and note[0] >= released]  # by any channel
        expected.append((onset, min([offset, *again]), pitch, velocity))

    offsets = sounding_offsets(whole)
    together = [(on, off, *rest) for (on, _, *rest), off in zip(whole.notes.tolist(), offsets.tolist(), strict=True)]
    together = [note for note in together if note[1] > note[0]]
    has_one_pedal = len({str(each.pedal[each.pedal["control"] == SUSTAIN].tolist()) for each in played}) == 1
    assert has_one_pedal or sorted(together) == sorted(expected)
    assert num_removed == 0 or not has_one_pedal


def lasting(played, the_end):
    """The same, with a movement of the sustain pedal at the end that leaves it where it is."""
    last = np.array([(the_end, SUSTAIN, 0 if not held_at_the_end(played) else 127)], PEDAL)
    return Performance(played.notes, np.concatenate([played.pedal, last]))


def held_at_the_end(played):
    sustain = sorted((time, value < 64) for time, control, value in played.pedal.tolist() if control == SUSTAIN)
    return bool(sustain) and not sustain[-1][1]


def test_a_press_that_one_piano_can_do_stays_a_press():
    first = performance((0, 1, 60, 80), pedal=[(0.5, 100), (2, 0)])
    second = performance((2, 3, 64, 80), (5, 6, 65, 80), pedal=[(2.5, 90), (4, 0), (5.5, 80), (7, 0)])

    whole, num_removed = merged([first, second])

    assert num_removed == 0
    assert whole.pedal["value"].tolist() == [100, 0, 90, 0, 80, 0]
    assert whole.notes["offset"].tolist() == [1, 3, 6]


def test_a_string_that_a_pedal_holds_ends_where_another_channel_strikes_its_key():
    first = performance((0, 1, 60, 80), (0, 1, 62, 80), pedal=[(0.5, 100), (3, 0)])

    whole, num_removed = merged([first, performance((2, 4, 60, 80))])
    assert num_removed == 0
    assert whole.pedal["value"].tolist() == [100, 0]
    assert sounding_offsets(whole).tolist() == [2, 3, 4]

    whole, num_removed = merged([first, performance((2, 2.5, 60, 80))])
    assert num_removed == 1
    assert sounding_offsets(whole).tolist() == [2, 3, 2.5]


def test_a_press_that_holds_one_channel_alone_becomes_lengths_and_the_others_stay():
    first = performance((0, 1, 60, 80), (4, 5, 62, 80), pedal=[(0.5, 127), (3, 0), (4.5, 127), (6, 0)])
    second = performance((1, 2, 72, 80))

    whole, num_removed = merged([first, second])

    assert num_removed == 1
    assert whole.pedal.tolist() == [(4.5, SUSTAIN, 127), (6.0, SUSTAIN, 0)]
    assert whole.notes["offset"].tolist() == [3, 2, 5]
    assert sounding_offsets(whole).tolist() == [3, 2, 6]
