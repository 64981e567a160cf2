"""What is said of a file is what is in it."""

import pytest
from builders import control, midi_file, note_off, note_on, performance, program, tempo

from pamusic.errors import PamusicError
from pamusic.music.inventory import File, PedalUse, Track, layout, playing
from pamusic.music.performance import SOFT


def test_tracks_tempi_and_what_is_taken():
    data = midi_file(
        [(0, tempo(500_000)), (960, tempo(400_000)), (960, tempo(1_000_000))],
        [(0, program(40, 1)), (0, note_on(60, channel=1)), (9, note_off(60, 1)), (9, note_on(38, channel=9))],
        [(0, note_on(60)), (5, note_on(64)), (9, note_on(60, 0)), (9, note_off(64))],
        ticks_per_quarter=480,
    )

    assert layout(data, "x") == File(
        format=1,
        ticks_per_quarter=480,
        num_tempi=3,
        slowest_bpm=60.0,
        fastest_bpm=150.0,
        tracks=(
            Track("", channel=2, program=40, num_notes=1, taken=False),
            Track("", channel=10, program=0, num_notes=1, taken=False),
            Track("", channel=1, program=0, num_notes=2, taken=True),
        ),
    )


def test_without_a_tempo_it_is_the_standards():
    file = layout(midi_file([(0, note_on(60)), (9, note_off(60))]), "x")

    assert (file.num_tempi, file.slowest_bpm, file.fastest_bpm) == (0, 120.0, 120.0)


def test_what_cannot_be_told_is_one_line():
    with pytest.raises(PamusicError, match="x: its tracks cannot be told"):
        layout(b"MThd", "x")


def test_playing_by_eye():
    """Two keys for a second each, a third over both; silence for two seconds of eight."""
    played = playing(
        performance(
            (0, 1, 60, 10), (1, 2, 62, 90), (0, 2, 40, 50), (4, 8, 70, 40), pedal=[(2, 127), (4, 20), (6, 100), (7, 0)]
        )
    )

    assert (played.seconds, played.num_notes, played.notes_per_second) == (8, 4, 0.5)
    assert (played.pitches, played.velocities) == ((40, 70), (10, 90))
    assert (played.most_keys, played.keys) == (2, pytest.approx((2 * 2 + 4 * 1) / 6))
    assert played.pedals == {"sustain": PedalUse(4, 4, up=3 / 8, shallow=2 / 8, deep=1 / 8, down=2 / 8)}


def test_pedals_that_do_not_move_are_not_listed():
    assert playing(performance((0, 1, 60, 64))).pedals == {}
    assert list(playing(performance((0, 1, 60, 64), pedal=[(0, 3, SOFT)])).pedals) == ["soft"]


def test_control_changes_of_other_kinds_are_no_pedals():
    assert layout(midi_file([(0, control(9, 7)), (0, note_on(60)), (9, note_off(60))]), "x").tracks[0].num_notes == 1
