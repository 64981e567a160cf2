"""What is written can be read by everybody, and what is read is what pretty_midi reads."""

import io
import warnings

import mido
import numpy as np
import pretty_midi
import pytest
import symusic
from builders import (
    control,
    midi_file,
    note_off,
    note_on,
    performance,
    program,
    random_midi,
    tempo,
    tune,
)

from pamusic.errors import PamusicError
from pamusic.music.midi import midi_bytes, parsed_tracks, read_and_mend, read_midi
from pamusic.music.performance import SOFT, SOSTENUTO, SUSTAIN

PLAYED = performance(
    (0.0, 0.5, 60, 80),
    (0.25, 0.75, 64, 1),
    (0.5, 1.001, 60, 127),
    (2.0, 2.001, 21, 64),
    pedal=[(0.1, 127), (0.4, 64, SOFT), (0.9, 0), (1.0, 20, SOSTENUTO), (1.5, 0, SOFT), (1.5, 0, SOSTENUTO)],
)


def notes(played):
    return [tuple(note) for note in played.notes.tolist()]


def messages(data):
    """(tick, message) of the only track of what we wrote."""
    (track,) = mido.MidiFile(file=io.BytesIO(data)).tracks
    ticks = np.cumsum([message.time for message in track]).tolist()
    return list(zip(ticks, track, strict=True))


def by_pretty_midi(data):
    """Notes and pedal as pretty_midi reads them, in our order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (instrument,) = pretty_midi.PrettyMIDI(io.BytesIO(data)).instruments
    read = [(note.start, note.end, note.pitch, note.velocity) for note in instrument.notes]
    pedal = [(c.time, c.number, c.value) for c in instrument.control_changes if c.number == SUSTAIN]
    return sorted(read, key=lambda note: (note[0], note[2])), pedal


def test_what_we_write_we_read():
    once = read_midi(midi_bytes(PLAYED))

    assert np.allclose(notes(once), notes(PLAYED), rtol=0, atol=1e-9)
    assert np.allclose(once.pedal.tolist(), PLAYED.pedal.tolist(), rtol=0, atol=1e-9)
    assert read_midi(midi_bytes(once)).equals(once)


def test_what_we_write_pretty_midi_reads():
    read, pedal = by_pretty_midi(midi_bytes(PLAYED))

    assert np.allclose(read, notes(PLAYED), rtol=0, atol=1e-9)
    assert pedal == [(0.1, SUSTAIN, 127), (0.9, SUSTAIN, 0)]


def test_what_we_write_symusic_and_mido_read():
    (track,) = symusic.Score.from_midi(midi_bytes(PLAYED)).tracks
    assert [(note.time, note.end, note.pitch, note.velocity) for note in track.notes] == [
        (0, 500, 60, 80),
        (250, 750, 64, 1),
        (500, 1001, 60, 127),
        (2000, 2001, 21, 64),
    ]
    assert mido.MidiFile(file=io.BytesIO(midi_bytes(PLAYED))).length == pytest.approx(2.001)


def test_at_one_tick_what_ends_comes_before_the_pedal_and_the_pedal_before_what_begins():
    data = midi_bytes(performance((0, 1, 60, 80), (1, 2, 60, 80), pedal=[(1.0, 127), (1.5, 0)]))

    assert [message.type for tick, message in messages(data) if tick == 1000] == [
        "note_off",
        "control_change",
        "note_on",
    ]


def test_a_pedal_left_down_goes_up_at_the_end():
    data = midi_bytes(performance((0, 1, 60, 80), pedal=[(0.5, 127), (0.6, 1, SOFT), (0.7, 0, SOSTENUTO)]))

    at_end = [(tick, m.control, m.value) for tick, m in messages(data)[-4:] if m.type == "control_change"]
    assert at_end == [(1000, SUSTAIN, 0), (1000, SOFT, 0)]


def test_silence_can_be_written():
    assert [message.type for _, message in messages(midi_bytes(performance()))] == [
        "track_name",
        "set_tempo",
        "program_change",
        "end_of_track",
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ticks_per_quarter", [384, 480, 220])
def test_notes_and_times_are_pretty_midis_bit_for_bit(seed, ticks_per_quarter):
    data = random_midi(seed, ticks_per_quarter=ticks_per_quarter)
    read, pedal = by_pretty_midi(data)

    played = read_midi(data)

    assert notes(played) == read
    assert played.pedal.tolist() == pedal


def test_strokes_of_one_key_end_with_the_first_release_that_follows():
    data = midi_file([(0, note_on(60, 1)), (384, note_on(60, 2)), (768, note_off(60)), (1152, note_off(60))])

    assert notes(read_midi(data)) == [(0.0, 1.0, 60, 1), (0.5, 1.0, 60, 2)]


def test_a_stroke_too_many_takes_no_release_from_a_later_one():
    strokes = [(tick, note_on(60)) for tick in range(100)]
    later = [(384, note_off(60)), (768, note_on(60)), (1152, note_off(60))]

    assert len(read_midi(midi_file(strokes + later))) == 101


def test_a_stroke_that_is_never_released_ends_where_its_key_is_struck_anew_or_with_its_track():
    data = midi_file([(0, note_on(60)), (0, note_on(62)), (384, note_on(60, 9)), (768, control(0))])

    played, repairs = read_and_mend(data)

    assert notes(played) == [(0.0, 0.5, 60, 64), (0.0, 1.0, 62, 64), (0.5, 1.0, 60, 9)]
    assert [(repair.kind, repair.count) for repair in repairs] == [("notes without an end", 3)]


def test_of_strokes_released_within_their_tick_none_is_left():
    twice = [(0, note_on(60)), (0, note_on(60)), (0, note_off(60)), (384, note_off(60))]
    data = midi_file([*twice, (400, note_on(62)), (784, note_off(62))])

    played, repairs = read_and_mend(data)

    assert notes(played) == by_pretty_midi(data)[0]
    assert [repair.words for repair in repairs] == ["1 note without length, left out"]


def test_of_many_tempi_at_one_tick_the_last_in_the_file_holds():
    tempi = [(tick // 2 * 10, tempo(300_000 + 7_000 * tick)) for tick in range(200)]
    notes_of_second_track = [(0, note_on(60)), (2000, note_off(60))]

    data = midi_file(tempi, notes_of_second_track)

    assert notes(read_midi(data)) == by_pretty_midi(data)[0]


def test_tracks_and_channels_of_the_piano_are_merged_and_the_rest_is_left_out():
    data = midi_file(
        [(0, tempo(500_000))],
        [(0, program(0)), (0, note_on(60)), (384, note_off(60))],
        [(0, program(7, 1)), (10, control(127, channel=1)), (384, note_on(48, channel=1)), (768, note_off(48, 1))],
        [(0, program(40, 2)), (0, note_on(90, channel=2)), (384, note_off(90, 2))],
        [(0, note_on(38, channel=9)), (384, note_off(38, 9))],
    )
    played = read_midi(data)

    assert [pitch for _, _, pitch, _ in notes(played)] == [60, 48]


QUARTET = midi_file(
    [(0, tempo(500_000))],
    [(0, mido.MetaMessage("track_name", name="Vl I")), (0, program(40)), (0, note_on(76)), (9, note_off(76))],
    [
        (0, program(42, 1)),
        (0, note_on(48, channel=1)),
        (9, note_off(48, 1)),
        (9, program(0)),
        (9, note_on(47)),
        (12, note_off(47)),
    ],
    [(0, note_on(38, channel=9)), (9, note_off(38, 9))],
)


@pytest.mark.parametrize(
    ("tracks", "pitches"), [("piano", [47]), ("all", [48, 76, 47]), ("1", [76]), ("3,1", [48, 76]), ("4", [38])]
)
def test_which_tracks_are_taken_can_be_chosen(tracks, pitches):
    played, repairs = read_and_mend(QUARTET, tracks=parsed_tracks(tracks))

    assert [pitch for _, _, pitch, _ in notes(played)] == pitches
    assert [repair.count for repair in repairs if repair.kind == "other instruments"] == [4 - len(pitches)]


def test_the_programs_of_channels_hold_within_one_track():
    both = [(0, program(40, 1)), (0, note_on(60)), (0, note_on(72, channel=1)), (9, note_off(60)), (9, note_off(72, 1))]
    then_piano = [(10, program(0, 1)), (10, note_on(74, channel=1)), (20, note_off(74, 1))]

    played = read_midi(midi_file(both + then_piano, kind=0))

    assert [pitch for _, _, pitch, _ in notes(played)] == [60, 74]


@pytest.mark.parametrize("text", ["", "pianos", "0", "1,", "-1", "1;2", "99999999999"])
def test_a_choice_of_tracks_that_there_is_not(text):
    with pytest.raises(PamusicError, match="--tracks must be piano, all, or numbers from 1 like 1,3, got"):
        parsed_tracks(text)


def test_a_track_that_the_file_has_not_is_answered_with_those_it_has():
    with pytest.raises(PamusicError) as caught:
        read_midi(QUARTET, "q.mid", tracks=(5,))

    assert str(caught.value) == (
        "q.mid: has no track 5, but 1 Violin “Vl I” (1 note), 2 Acoustic Grand Piano (1 note), 3 Cello (1 note), "
        "4 drums (1 note); select from these with --tracks"
    )


def test_what_is_refused_says_by_which_rule_whatever_the_file():
    solos = [midi_file([(0, program(number)), (0, note_on(60)), (9, note_off(60))]) for number in (40, 41)]
    rules = set()
    for solo in solos:
        with pytest.raises(PamusicError) as caught:
            read_midi(solo)
        rules.add(caught.value.rule)

    assert rules == {"no piano"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"MThd", "is cut off within its header (4 bytes of 14); download it again"),
        (b"hello, I am text", "is not a MIDI file (it begins with b'hell', not b'MThd'); use a Standard MIDI File"),
        (tune(0)[:12] + b"\0\0" + tune(0)[14:], "has 0 ticks per quarter"),
        (tune(0)[:12] + b"\xe6\x28" + tune(0)[14:], "has 40 ticks per frame and 26 frames per second"),
        (midi_file([(0, tempo(500_000))]), "has no notes"),
        (midi_file([(0, note_on(60)), (0, note_off(60))]), "has no notes"),
        (midi_file([(0, note_on(38, channel=9)), (9, note_off(38, 9))]), "has only drums (1 notes)"),
        (
            midi_file([(0, program(40)), (0, note_on(60)), (9, note_off(60))]),
            "but 1 Violin (1 note); select them with --tracks all",
        ),
        (midi_file([(0, note_on(60)), (2**27, note_off(60))]), "lasts 49 hours"),
        (midi_file([(0, note_on(60)), (9, note_off(60)), (2**27, control(0))]), "lasts 49 hours"),
    ],
)
def test_what_is_no_piano_piece_is_refused_in_one_line(data, says):
    with pytest.raises(PamusicError) as caught:
        read_midi(data, "piece.mid")

    assert says in str(caught.value)
    assert str(caught.value).startswith("piece.mid: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line_too(tmp_path):
    with pytest.raises(PamusicError, match="no such file"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(PamusicError, match="is a folder"):
        read_midi(tmp_path)
