"""What is said of a file is what is in it."""

import mido
import pytest
from builders import control, midi_file, note_off, note_on, performance, program, tempo

from pamusic.music.describe import File, PedalUse, Track, describe_file, describe_performance
from pamusic.music.midi import chosen_parts, read_contents
from pamusic.music.performance import SOFT

NOTE = [(0, note_on(60)), (9, note_off(60))]


def laid_out(data, tracks="piano"):
    contents = read_contents(data, "x")
    return describe_file(contents, chosen_parts(contents, tracks, "x"))


def test_tracks_tempi_and_what_is_taken():
    data = midi_file(
        [(0, tempo(500_000)), (960, tempo(400_000)), (960, tempo(1_000_000))],
        [
            (0, program(40, 1)),
            (0, note_on(60, channel=1)),
            (9, note_off(60, 1)),
            (9, note_on(38, channel=9)),
            (12, note_off(38, 9)),
        ],
        [(0, note_on(60)), (5, note_on(64)), (9, note_on(60, 0)), (9, note_off(64))],
        ticks_per_quarter=480,
    )

    assert laid_out(data) == File(
        format=1,
        ticks_per_quarter=480,
        ticks_per_second=None,
        num_tempi=2,
        slowest_bpm=60.0,
        fastest_bpm=120.0,
        tracks=(
            Track(1, "", channel=2, program=40, is_drum=False, num_notes=1, taken=False),
            Track(2, "", channel=10, program=0, is_drum=True, num_notes=1, taken=False),
            Track(3, "", channel=1, program=0, is_drum=False, num_notes=2, taken=True),
        ),
        made_by=None,
    )
    assert [track.taken for track in laid_out(data, (1, 2)).tracks] == [True, True, False]


def test_without_a_tempo_it_is_the_standards():
    file = laid_out(midi_file(NOTE))

    assert (file.num_tempi, file.slowest_bpm, file.fastest_bpm) == (0, 120.0, 120.0)


@pytest.mark.parametrize(("division", "ticks"), [(b"\xe7\x28", 1000), (b"\xe3\x50", 2397.602), (b"\xe8\x04", 96)])
def test_time_in_frames_is_told_in_seconds_and_has_no_tempo(division, ticks):
    data = midi_file([(0, tempo(400_000)), *NOTE])

    file = laid_out(data[:12] + division + data[14:])

    assert (file.ticks_per_quarter, file.ticks_per_second) == (None, ticks)
    assert (file.num_tempi, file.slowest_bpm, file.fastest_bpm) == (0, None, None)


def test_a_file_says_how_pamusic_made_it_and_nobody_else():
    ours, theirs = (
        mido.MetaMessage("text", text=text) for text in ('pamusic {"seed": 7}' + 90 * " ", "made elsewhere")
    )

    assert laid_out(midi_file([(0, theirs), (0, ours), *NOTE])).made_by == ours.text.strip()
    assert laid_out(midi_file([(0, theirs), *NOTE])).made_by is None


def test_playing_by_eye():
    """Two keys for a second each, a third over both; silence for two seconds of eight."""
    played = describe_performance(
        performance(
            (0, 1, 60, 10), (1, 2, 62, 90), (0, 2, 40, 50), (4, 8, 70, 40), pedal=[(2, 127), (4, 20), (6, 100), (7, 0)]
        )
    )

    assert (played.seconds, played.num_notes, played.notes_per_second) == (8, 4, 0.5)
    assert (played.pitches, played.velocities) == ((40, 70), (10, 90))
    assert (played.most_keys, played.keys) == (2, pytest.approx((2 * 2 + 4 * 1) / 6))
    assert played.pedals == {"sustain": PedalUse(4, 4, up=3 / 8, shallow=2 / 8, deep=1 / 8, down=2 / 8)}


def test_pedals_that_do_not_move_are_not_listed():
    assert describe_performance(performance((0, 1, 60, 64))).pedals == {}
    assert list(describe_performance(performance((0, 1, 60, 64), pedal=[(0, 3, SOFT)])).pedals) == ["soft"]


def test_control_changes_of_other_kinds_are_no_pedals():
    assert laid_out(midi_file([(0, control(9, 7)), *NOTE])).tracks[0].num_notes == 1
