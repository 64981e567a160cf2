"""What was played before the cut stays, message by message; what is open there ends where it is told."""

import io

import mido
import numpy as np
import pytest
from builders import control, midi_file, note_off, note_on, performance, program, random_midi, tempo, tune
from midi_asserts import strokes, timed

from pamusic.music.lenient_reader import read_leniently
from pamusic.music.midi import read_and_mend, read_midi, tempo_map
from pamusic.music.pedal import sounding_offsets
from pamusic.music.performance import PEDAL, SOFT, SUSTAIN, Performance
from pamusic.music.splicing import Seam, spliced, texts, with_text

MUSIC = performance((0.0, 0.5, 72, 80), (0.5, 1.0, 60, 70))


def moves(data, number, channel):
    return [
        (tick, message.control, message.value)
        for tick, message in timed(data, number)
        if message.type == "control_change" and message.channel == channel and message.control in (64, 66, 67)
    ]


def ends(*times, number=SUSTAIN):
    return np.array([(time, number, 0) for time in times], PEDAL)


# 480 ticks a quarter: a quarter lasts 0.5 seconds up to tick 960, then one second.
CONDUCTOR = [(0, mido.MetaMessage("track_name", name="map")), (0, tempo(500_000)), (960, tempo(1_000_000))]
RIGHT = [
    (0, program(0)), (0, control(100, 7)), (0, note_on(60, 99)), (3, control(127)), (470, note_off(60)),
    (480, note_on(64, 31)), (1441, note_off(64)), (1441, control(0)), (1500, note_on(67)), (1600, note_off(67)),
]  # fmt: skip
DRUM = [(0, note_on(36, channel=9)), (961, note_off(36, channel=9)), (1900, note_on(36, channel=9))]
FILE = midi_file(CONDUCTOR, RIGHT, [*DRUM, (2000, note_off(36, channel=9))], ticks_per_quarter=480)


def test_every_message_before_the_cut_stays_as_and_where_it_was():
    out = spliced(FILE, Seam(1.25, MUSIC, {64: 1.5}, ends(1.5)), tracks="piano", cut=1.25)

    for number in range(3):
        before = [each for each in timed(FILE, number) if each[0] < 1080]
        assert timed(out, number)[: len(before)] == before
    assert timed(out, 0) == timed(FILE, 0)
    assert timed(out, 1)[6:] == [(1200, note_off(64)), (1200, control(0))]
    assert timed(out, 2)[2:] == []


def test_new_music_stands_in_the_files_ticks_on_a_track_and_channel_of_its_own():
    out = spliced(FILE, Seam(1.25, MUSIC, {64: 1.5}, ends(1.5)), tracks="piano", cut=1.25)

    assert timed(out, 3) == [
        (0, mido.MetaMessage("track_name", name="continuation")),
        (0, control(100, 7, channel=1)),  # as loud as the prime
        (0, program(0, channel=1)),
        (1080, note_on(72, 80, channel=1)),
        (1320, note_off(72, channel=1)),
        (1320, note_on(60, 70, channel=1)),
        (1560, note_off(60, channel=1)),
    ]


@pytest.mark.parametrize("set_up_in", [0, 1, 2])
def test_what_is_new_sounds_as_a_channel_that_several_tracks_play(set_up_in):
    """As of a notation program: both hands on one channel, and what it sounds like in one of the tracks."""
    set_up = [(0, program(4)), (0, control(60, 7)), (0, control(20, 10))]
    tracks = [[], [(0, note_on(60)), (480, note_off(60))], [(0, note_on(48)), (480, note_off(48))]]
    tracks[set_up_in] = [*set_up, *tracks[set_up_in]]
    out = spliced(midi_file(*tracks, ticks_per_quarter=480), Seam(0.5, MUSIC), tracks="all")

    head = timed(out, 3)[1:4]
    assert head == [(0, control(60, 7, channel=1)), (0, control(20, 10, channel=1)), (0, program(4, channel=1))]


def test_on_one_track_what_is_new_is_in_tune():
    def bent(pitch):
        return mido.Message("pitchwheel", pitch=pitch)

    file = midi_file([(0, note_on(60)), (100, bent(4000)), (480, note_off(60))], ticks_per_quarter=480)
    out = spliced(file, Seam(0.5, MUSIC), tracks="piano", one_track=True)
    assert timed(out, 0)[:5] == [
        (0, note_on(60)),
        (100, bent(4000)),
        (480, note_off(60)),
        (480, bent(0)),
        (480, note_on(72, 80)),
    ]


def test_tempi_after_the_cut_are_left_out_and_the_last_one_before_it_holds():
    out = spliced(FILE, Seam(0.75, MUSIC), tracks="piano", cut=0.75)

    assert timed(out, 0) == CONDUCTOR[:2]
    assert [stroke[2:] for stroke in strokes(out) if stroke[0] == 1] == [(1200, 1680), (720, 1200)]
    read = read_midi(out)
    assert read.notes["onset"].tolist() == [0.0, 0.5, 0.75, 1.25]


def test_what_nobody_speaks_of_ends_at_the_cut():
    file = midi_file([(0, note_on(60)), (0, note_on(60)), (0, control(90, SOFT)), (900, note_off(60))])
    out = spliced(file, Seam(0.5, Performance()), tracks="piano", cut=0.5)

    assert timed(out, 0)[3:] == [(384, note_off(60)), (384, note_off(60)), (384, control(0, SOFT))]


@pytest.mark.parametrize(
    ("events", "kept", "added"),
    [
        ([(384, note_on(60)), (432, note_on(60)), (432, note_off(60))], [60], [(460, note_off(60))]),
        ([(384, note_on(60)), (432, note_on(60)), (440, note_off(60)), (600, note_off(60))], [], [(450, note_off(60))]),
        ([(384, note_on(60)), (400, note_off(60)), (410, note_off(60)), (420, note_on(60))], [], [(450, note_off(60))]),
        ([(384, note_on(60)), (400, note_off(60)), (410, note_off(60))], [], []),
    ],
    ids=["released in the tick of the next stroke", "one of two released", "released twice before", "released twice"],
)
def test_no_stroke_is_left_without_a_release(events, kept, added):
    """As we pair strokes and releases, and as sequencers do that count them."""
    file = midi_file([*events, (700, control(0))])
    releases = dict.fromkeys(kept, 460 / 768)
    out = spliced(file, Seam(450 / 768, Performance(), releases), tracks="piano", cut=450 / 768)

    before = [each for each in events if each[0] < 450]
    assert timed(out, 0) == [*before, *added]
    strikes = sum(message.type == "note_on" for _, message in timed(out, 0))
    assert sum(message.type == "note_off" for _, message in timed(out, 0)) >= strikes


def test_on_one_track_what_never_ended_makes_room_for_what_is_new():
    file = midi_file([(0, note_on(60)), (0, note_on(64)), (384, note_off(64))])
    seam = Seam(0.5, performance((0.0, 0.5, 60, 80)))
    out = spliced(file, seam, tracks="piano", one_track=True)

    assert strokes(out) == [(0, 60, 0, 384), (0, 60, 384, 768), (0, 64, 0, 384)]


def test_on_one_track_a_release_in_another_track_does_not_meet_the_stroke():
    right, left = [(0, note_on(60)), (100, note_off(60))], [(0, note_on(64)), (700, note_off(64))]
    seam = Seam(0.5, performance((0.0, 0.5, 64, 80)), {64: 0.75})
    out = spliced(midi_file(right, left), seam, tracks="piano", cut=0.5, one_track=True)

    assert timed(out, 1) == [(0, note_on(64)), (383, note_off(64))]
    assert timed(out, 0)[2:] == [(384, note_on(64, 80)), (768, note_off(64))]


def test_on_one_track_a_key_is_let_go_before_it_is_struck_anew_and_the_pedal_with_the_first_note():
    seam = Seam(1.25, performance((0.25, 1.0, 64, 70)), {64: 2.0}, ends(3.0))
    out = spliced(FILE, seam, tracks="piano", cut=1.25, one_track=True)

    assert len(mido.MidiFile(file=io.BytesIO(out)).tracks) == 3
    assert timed(out, 1)[6:] == [
        (1200, note_off(64)), (1200, control(0)), (1200, note_on(64, 70)), (1560, note_off(64))
    ]  # fmt: skip


def test_on_one_track_the_musics_pedals_go_on_where_the_primes_were():
    pedal = np.array([(0.0, SUSTAIN, 85), (0.25, SUSTAIN, 0), (0.5, SUSTAIN, 127), (1.0, SUSTAIN, 0)], PEDAL)
    out = spliced(FILE, Seam(1.25, Performance(MUSIC.notes, pedal), {}, ends(1.5)), tracks="piano", cut=1.25,
                  one_track=True)  # fmt: skip

    assert moves(out, 1, 0) == [(3, 64, 127), (1080, 64, 85), (1200, 64, 0), (1320, 64, 127), (1560, 64, 0)]


def test_a_file_of_one_track_becomes_one_of_two_and_stays_one_on_one_track():
    file = midi_file([(0, note_on(60)), (900, note_off(60))], kind=0)
    two, one = (spliced(file, Seam(0.5, MUSIC), tracks="piano", cut=0.5, one_track=which) for which in (False, True))

    two, one = (mido.MidiFile(file=io.BytesIO(data)) for data in (two, one))
    assert (two.type, len(two.tracks), one.type, len(one.tracks)) == (1, 2, 0, 1)


def test_a_whole_prime_keeps_what_it_does_where_it_ends():
    out = spliced(FILE, Seam(read_midi(FILE).duration, MUSIC), tracks="piano")

    assert timed(out, 1) == timed(FILE, 1)
    assert [onset for channel, _, onset, _ in strokes(out) if channel == 1] == [1840, 1600]


@pytest.mark.parametrize("seed", range(30))
def test_hard_pieces_stay_as_they_are_up_to_any_cut(seed):
    rng = np.random.default_rng(seed)
    file = random_midi(seed)
    whole, repairs = read_and_mend(file, tracks="all")
    contents = read_leniently(file, "hard")
    seconds_at = tempo_map(contents.ticks_per_quarter, contents.tempos)
    cut = float(rng.uniform(0.1, whole.duration))
    onset = np.sort(rng.uniform(0, 2, 40)).round(2)
    music = Performance.from_arrays(onset, onset + 0.01, rng.integers(60, 63, 40), np.full(40, 64))
    seam = Seam(cut, music, {60: cut + 0.5, 127: cut}, ends(cut + 1))
    for one_track in (False, True):
        out = spliced(file, seam, tracks="all", repairs=repairs, cut=cut, one_track=one_track)

        for number in range(2):
            before = [each for each in timed(file, number) if seconds_at(np.array([each[0]]))[0] < cut]
            assert timed(out, number)[: len(before)] == before
            assert all(seconds_at(np.array([tick]))[0] >= cut for tick, _ in timed(out, number)[len(before) :])
        strokes(out)
        read = read_midi(out, tracks="all")
        assert not [value for control in (64, 66, 67) for value in
                    read.pedal["value"][read.pedal["control"] == control][-1:] if value]  # fmt: skip


def test_a_time_in_frames_is_kept():
    file = bytearray(midi_file([(0, note_on(60)), (1000, note_off(60)), (1001, note_on(64)), (2000, note_off(64))]))
    file[12:14] = bytes([256 - 25, 40])  # 25 frames of 40 ticks: 1,000 ticks a second
    out = spliced(bytes(file), Seam(1.5, MUSIC, {64: 1.75}), tracks="piano", cut=1.5)

    assert out[12:14] == file[12:14]
    assert strokes(out) == [(0, 60, 0, 1000), (0, 64, 1001, 1750), (1, 60, 2000, 2500), (1, 72, 1500, 2000)]


def test_coarse_ticks_keep_every_stroke_in_its_place():
    file = midi_file([(0, note_on(60)), (4, note_off(60))], ticks_per_quarter=4)
    music = performance((0.0, 0.01, 60, 1), (0.02, 0.03, 60, 2), (0.04, 1.0, 60, 3), (0.5, 0.51, 62, 4))
    out = spliced(file, Seam(0.5, music), tracks="piano")

    assert strokes(out) == [(0, 60, 0, 4), (1, 60, 4, 12), (1, 62, 8, 9)]


def test_where_all_channels_are_in_use_music_goes_on_in_the_primes():
    channels = [(0, note_on(60, channel=channel)) for channel in range(16)]
    file = midi_file([*channels, *[(400, note_off(60, channel=channel)) for channel in range(16)]])
    out = spliced(file, Seam(0.5, MUSIC), tracks="piano", cut=0.5)

    assert {stroke[0] for stroke in strokes(out) if stroke[1] == 72} == {0}


def test_a_file_that_had_to_be_mended_cannot_be_kept():
    seam = Seam(2.0, MUSIC)
    assert spliced(tune(1), seam, tracks="piano", repairs=read_and_mend(tune(1))[1], cut=2.0) is not None
    damaged = tune(1)[:-4]
    assert spliced(damaged, seam, tracks="piano", repairs=read_and_mend(damaged)[1], cut=2.0) is None
    assert spliced(b"RIFF" + tune(1), seam, tracks="piano", cut=2.0) is None


def test_a_status_that_goes_on_behind_a_sysex_is_not_kept_wrongly():
    """Which mido takes for more of the sysex."""
    track = b"\0\x90\x3c\x40\x60\xf0\x02\x43\xf7\x60\x3c\0\0\xff\x2f\0"
    file = b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk" + len(track).to_bytes(4, "big") + track
    assert len(read_midi(file)) == 1
    assert spliced(file, Seam(1.0, MUSIC), tracks="piano") is None


def test_messages_of_live_midi_are_left_out():
    live = [(100, mido.Message(kind)) for kind in ("clock", "start", "stop", "tune_request")]
    notes = [(0, note_on(60)), (200, note_off(60))]
    track = b"".join(
        bytes([delta, *message.bytes()])
        for delta, message in [(0, notes[0][1]), (100, live[0][1]), *((0, each) for _, each in live[1:])]
    )
    track += b"\x64" + bytes(notes[1][1].bytes()) + b"\0\xff\x2f\0"
    file = b"MThd\0\0\0\x06\0\0\0\x01\x01\x80MTrk" + len(track).to_bytes(4, "big") + track
    assert timed(spliced(file, Seam(0.5, MUSIC), tracks="piano"), 0) == notes


def test_two_tracks_in_a_file_that_says_it_has_one_are_kept():
    file = bytearray(midi_file([(0, note_on(60)), (96, note_off(60))], [(0, note_on(50)), (96, note_off(50))]))
    file[9] = 0
    seam = Seam(0.5, MUSIC)
    assert len(strokes(spliced(bytes(file), seam, tracks="piano", one_track=True))) == 4


def test_parts_that_have_no_note_are_not_counted():
    switches = [(0, note_on(20)), (0, note_off(20))]
    reeds = [(0, program(20, channel=1)), (0, note_on(60, channel=1)), (96, note_off(60, channel=1))]
    strings = [(0, program(48, channel=2)), (0, note_on(60, channel=2)), (96, note_off(60, channel=2))]
    out = spliced(midi_file(switches, reeds, strings), Seam(0.5, MUSIC), tracks=(2,))

    assert [message.program for _, message in timed(out, 3) if message.type == "program_change"] == [48]


def test_what_is_new_is_as_loud_as_the_last_stroke_was():
    fade = [(100, control(60, 7)), (200, control(30, 7)), (300, control(0, 7))]
    file = midi_file([(0, control(90, 7)), (0, note_on(60)), (150, note_on(64)), *fade[1:], (384, note_off(60))])
    out = spliced(file, Seam(0.5, MUSIC), tracks="piano", cut=0.5)
    assert (0, control(90, 7, channel=1)) in timed(out, 1)


def test_a_text_is_the_last_thing_at_tick_0():
    file = with_text(with_text(FILE, "one"), "two")

    assert texts(file) == ["one", "two"]
    assert timed(file, 0)[:2] == timed(FILE, 0)[:2]
    assert timed(file, 0)[4:] == timed(FILE, 0)[2:]
    assert read_midi(file).equals(read_midi(FILE))
    assert texts(b"no music") == []


def port(number):
    return mido.MetaMessage("midi_port", port=number)


def test_a_pedal_in_a_track_of_its_own_ends_as_the_seam_says():
    notes = [(0, note_on(60)), (100, note_off(60)), (2000, note_on(64)), (2100, note_off(64))]
    data = midi_file(CONDUCTOR, notes, [(10, control(127)), (1900, control(0))], ticks_per_quarter=480)

    out = spliced(data, Seam(0.5, MUSIC, {60: 0.75}, ends(0.75)), tracks="piano", cut=0.5)

    assert moves(out, 1, 0) == []
    assert moves(out, 2, 0) == [(10, SUSTAIN, 127), (720, SUSTAIN, 0)]


def test_one_of_several_sustain_pedals_goes_up_with_the_last_release_on_its_own_channel():
    notes = [(0, note_on(60)), (10, control(127)), (100, note_off(60)), (2000, control(0))]
    left = [(0, note_on(40, channel=1)), (900, note_off(40, 1))]
    data = midi_file(CONDUCTOR, notes, left, ticks_per_quarter=480)
    prime, repairs = read_and_mend(data)

    assert prime.pedal.tolist() == []
    out = spliced(data, Seam(0.5, MUSIC, {60: 0.75, 40: 0.6}), tracks="piano", repairs=repairs, cut=0.5)
    assert moves(out, 1, 0) == [(10, SUSTAIN, 127), (720, SUSTAIN, 0)]
    assert [each for each in strokes(out) if each[0] < 2] == [(0, 60, 0, 100), (1, 40, 0, 576)]


@pytest.mark.parametrize(("length", "num_removed"), [(0.4, 0), (0.1, 1)])
def test_a_press_that_a_cut_interrupts_stays_unless_new_notes_end_before_it(length, num_removed):
    """A second press, in the music itself, stays in either case."""
    held = [(0, note_on(60)), (10, control(127)), (100, note_off(60)), (2000, control(0))]
    music = performance((0, length, 72, 80), (0.5, 1, 74, 80), pedal=[(0.9, 100), (1.5, 0)])
    seam = Seam(0.5, music, {60: 0.75}, np.array([(0.75, SUSTAIN, 0)], PEDAL))

    out = spliced(midi_file(CONDUCTOR, held, ticks_per_quarter=480), seam, tracks="piano", cut=0.5)
    again, repairs = read_and_mend(out)

    assert sounding_offsets(again).tolist() == pytest.approx([0.75, 0.5 + length, 2.0], abs=1e-3)
    assert again.pedal["value"].tolist() == [127, 0, 100, 0][2 * num_removed :]
    assert [(repair.kind, repair.count) for repair in repairs] == [("pedals of channels", 1)] * num_removed


def test_new_music_goes_to_the_port_of_what_was_played():
    piano = [(0, port(1)), (0, program(4)), (0, note_on(60)), (400, note_off(60))]
    organ = [(0, port(0)), (0, program(19)), (0, note_on(48)), (400, note_off(48))]
    data = midi_file(CONDUCTOR, organ, piano, ticks_per_quarter=480)
    prime, repairs = read_and_mend(data)

    assert [int(pitch) for pitch in prime.notes["pitch"]] == [60]
    out = spliced(data, Seam(0.5, MUSIC), tracks="piano", repairs=repairs)
    assert timed(out, 3)[1:3] == [(0, port(1)), (0, program(4, 1))]
    assert read_midi(out).notes["pitch"].tolist() == [60, 72, 60]
