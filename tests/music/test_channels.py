"""Programs and pedals belong to a channel of the file, whichever track they stand in.

The expected values are literal: the two readers could share a fault that a comparison of them cannot see.
"""

import random

import mido
import numpy as np
import pytest
from builders import control, midi_file, note_off, note_on, program, tempo
from midi_asserts import same

from pamusic.errors import PamusicError
from pamusic.music import midi
from pamusic.music.fast_reader import read_plain
from pamusic.music.lenient_reader import read_leniently
from pamusic.music.midi import read_and_mend
from pamusic.music.pedal import sounding_offsets
from pamusic.music.performance import SOFT, SUSTAIN
from pamusic.music.text import readable
from pamusic.tokens.tokenizer import load_tokenizer

QUARTER = 480  # ticks, half a second


@pytest.fixture(params=["either reader", "the tolerant reader"])
def read(request, monkeypatch):
    """Reads a file: sounding notes (onset, sounding offset, pitch), pedal (time, control, value), words of repairs."""
    if request.param == "the tolerant reader":
        monkeypatch.setattr(midi, "read_plain", lambda data: None)

    def both(data, **options):
        performance, repairs = read_and_mend(data, "piece.mid", **options)
        offsets = sounding_offsets(performance)
        notes = [
            (round(float(note["onset"]), 4), round(float(offset), 4), int(note["pitch"]))
            for note, offset in zip(performance.notes, offsets, strict=True)
        ]
        return notes, performance.pedal.tolist(), [repair.words for repair in repairs]

    return both


def file_of(*tracks, **options):
    return midi_file(*tracks, ticks_per_quarter=QUARTER, **options)


def strokes(num, channel=0, length=120):
    """Rising notes, one a quarter."""
    on = [(tick * QUARTER, note_on(60 + tick, 70, channel)) for tick in range(num)]
    off = [(tick * QUARTER + length, note_off(60 + tick, channel)) for tick in range(num)]
    return sorted([*on, *off], key=lambda event: event[0])


def pedalling(num, channel=0):
    """Down a little after each second note, up before the next but one."""
    down = [(2 * tick * QUARTER + 10, control(127, channel=channel)) for tick in range(num)]
    up = [(2 * tick * QUARTER + 900, control(0, channel=channel)) for tick in range(num)]
    return sorted([*down, *up], key=lambda event: event[0])


CONDUCTOR = [(0, tempo(500_000))]
HELD = [(0.0, 0.9375, 60), (0.5, 0.9375, 61), (1.0, 1.9375, 62), (1.5, 1.9375, 63)]
DRY = [(0.0, 0.125, 60), (0.5, 0.625, 61), (1.0, 1.125, 62), (1.5, 1.625, 63)]
MOVES = [(10 / 960, 64, 127), (900 / 960, 64, 0), (970 / 960, 64, 127), (1860 / 960, 64, 0)]


def port(number):
    return mido.MetaMessage("midi_port", port=number)


@pytest.mark.parametrize(
    "tracks",
    [
        (CONDUCTOR, sorted(strokes(4) + pedalling(2), key=lambda event: event[0])),
        (CONDUCTOR, strokes(4), pedalling(2)),
        (CONDUCTOR, pedalling(2), strokes(4)),
        (sorted(CONDUCTOR + pedalling(2), key=lambda event: event[0]), strokes(4)),
        (CONDUCTOR, strokes(4), pedalling(2)[::2], pedalling(2)[1::2]),
        (CONDUCTOR, [(0, port(1)), *strokes(4)], [(0, port(1)), *pedalling(2)]),
        (CONDUCTOR, [(0, port(0)), *strokes(4)], pedalling(2)),
    ],
    ids=["same track", "own track", "earlier track", "conductor", "two tracks", "port 2", "port 1"],
)
def test_a_pedal_holds_the_notes_of_its_channel_whichever_track_it_stands_in(read, tracks):
    notes, pedal, repairs = read(file_of(*tracks))

    assert notes == HELD
    assert np.allclose(pedal, MOVES)
    assert repairs == []


@pytest.mark.parametrize(
    ("tracks", "place"),
    [
        ((CONDUCTOR, sorted(strokes(4) + pedalling(8, 1), key=lambda event: event[0])), "channel 2, which has"),
        ((CONDUCTOR, strokes(4), pedalling(8, 1)), "channel 2, which has"),
        ((CONDUCTOR, strokes(4), pedalling(4, 1), pedalling(4, 15)), "channels 2 and 16, which have"),
        ((CONDUCTOR, strokes(4), [(0, port(1)), *pedalling(8)]), "channel 1 of port 2, which has"),
    ],
)
def test_a_pedal_of_a_channel_without_notes_holds_nothing_and_is_reported(read, tracks, place):
    assert read(file_of(*tracks)) == (DRY, [], [f"16 pedal messages on {place} no notes: ignored"])


def test_a_pedal_that_never_moves_is_not_reported(read):
    resets = [(0, control(0, number, channel)) for channel in range(1, 16) for number in (64, 67)]

    assert read(file_of(CONDUCTOR, strokes(4), resets)) == (DRY, [], [])


TWO_PEDALS = file_of(
    CONDUCTOR,
    [(0, note_on(60)), (0, control(127)), (240, note_off(60)), (4800, control(0))],
    [
        (900, control(127, channel=1)),
        (960, note_on(48, channel=1)),
        (1200, note_off(48, 1)),
        (1500, control(0, channel=1)),
        (1920, note_on(50, channel=1)),
        (2160, note_off(50, 1)),
    ],
)


def test_each_channel_has_its_own_sustain_pedal(read):
    notes, pedal, repairs = read(TWO_PEDALS)

    assert notes == [(0.0, 5.0, 60), (1.0, 1.5625, 48), (2.0, 2.25, 50)]
    assert pedal == []
    assert repairs == ["1 press of a sustain pedal that holds only one channel, converted to note lengths"]


def test_by_either_vocabulary_the_notes_of_two_pedals_sound_as_long():
    performance, _ = read_and_mend(TWO_PEDALS)

    for name in ("performance", "piano"):
        tokenizer = load_tokenizer(name)
        decoded = tokenizer.decode(tokenizer.encode(performance))
        assert sounding_offsets(decoded).tolist() == pytest.approx([5.0, 1.56, 2.25], abs=0.011)


def test_a_pedal_of_one_hand_does_not_hold_the_other(read):
    notes, pedal, _ = read(
        file_of(CONDUCTOR, [*strokes(2), (2000, control(0))], [(0, control(127, channel=1)), *strokes(1, 1)])
    )

    assert notes == [(0.0, 0.125, 60), (0.0, 2.0833, 60), (0.5, 0.625, 61)]
    assert pedal == []


def test_pedals_that_all_channels_move_alike_stay_pedals(read):
    notes, pedal, repairs = read(file_of(CONDUCTOR, strokes(4), pedalling(2), pedalling(2, 1), strokes(1, 1)))

    assert notes == [(0.0, 0.9375, 60), *HELD]
    assert np.allclose(pedal, MOVES)
    assert repairs == []


def test_of_the_other_pedals_the_deepest_position_holds(read):
    one = [(0, control(100, SOFT)), (960, control(0, SOFT))]
    other = [(480, control(50, SOFT, 1)), (1440, control(0, SOFT, 1)), *strokes(1, 1)]

    _, pedal, _ = read(file_of(CONDUCTOR, strokes(4), one, sorted(other, key=lambda event: event[0])))

    assert pedal == [(0.0, SOFT, 100), (1.0, SOFT, 50), (1.5, SOFT, 0)]


@pytest.mark.parametrize(
    "tracks",
    [
        ([*CONDUCTOR, (0, program(48))], strokes(4)),
        (CONDUCTOR, strokes(4), [(0, program(48))]),
        (CONDUCTOR, [(0, program(0)), *strokes(4)], [(0, program(48))]),
        (CONDUCTOR, [(0, port(1)), *strokes(4)], [(0, port(1)), (0, program(48))]),
    ],
    ids=["conductor", "later track", "of two the last", "port 2"],
)
def test_a_program_counts_for_its_channel_whichever_track_it_stands_in(read, tracks):
    with pytest.raises(PamusicError) as caught:
        read(file_of(*tracks))

    assert "has no piano (programs 0 to 7), but 1 String Ensemble 1 (4 notes)" in str(caught.value)
    assert read(file_of(*tracks), tracks="all")[0] == DRY


def test_a_program_of_another_channel_or_port_counts_for_no_note(read):
    assert read(file_of([*CONDUCTOR, (0, program(48, 1))], strokes(4)))[0] == DRY
    assert read(file_of([*CONDUCTOR, (0, program(48))], [(0, port(1)), *strokes(4)]))[0] == DRY


def test_a_program_that_changes_on_the_way_divides_the_notes_of_all_tracks(read):
    data = file_of([*CONDUCTOR, (QUARTER, program(48))], strokes(2), strokes(2))

    assert read(data)[:1] == ([(0.0, 0.125, 60)] * 2,)
    assert read(data)[2] == ["2 notes of other parts, left out"]
    assert read(data, tracks=(2,))[0] == [(0.5, 0.625, 61)]


def test_a_program_behind_a_note_of_its_own_track_is_not_the_notes():
    on, off = strokes(1)
    data = file_of(CONDUCTOR, [on, (0, program(48)), off, (QUARTER, note_on(62)), (600, note_off(62))])

    (piano, strings) = read_leniently(data, "x").parts
    assert (piano.program, piano.pitch.tolist()) == (0, [60])
    assert (strings.program, strings.pitch.tolist()) == (48, [62])


STRINGS_HELD = [(0, program(48)), (0, control(127)), *strokes(1), (QUARTER, control(100))]
OTHER = [(0, note_on(72)), (120, note_off(72)), (QUARTER, control(0, SOFT))]


def test_the_program_and_the_pedals_of_a_pattern_end_with_it(read):
    notes, pedal, repairs = read(file_of(STRINGS_HELD, OTHER, OTHER, kind=2))

    assert notes == [(0.5, 0.625, 72), (1.0, 1.125, 72)]
    assert [(control, value) for _, control, value in pedal] == [(SUSTAIN, 127), (SUSTAIN, 0), (SOFT, 0)]
    assert repairs[1:] == ["1 note of other parts, left out"]
    assert read(file_of(STRINGS_HELD[1:], OTHER, kind=2))[0] == [(0.0, 0.499, 60), (0.5, 0.625, 72)]


def test_a_pattern_that_begins_with_its_pedal_down_holds_its_own_notes_alone(read):
    held = [(0, control(127)), *strokes(1), (QUARTER, control(0))]

    assert read(file_of(held, held, kind=2))[0] == [(0.0, 0.499, 60), (0.5, 1.0, 60)]


ZERO_LENGTH = [(0, control(127))]
for number in range(8):
    ZERO_LENGTH += [(240 * number, note_on(60 + number, 80)), (240 * number, note_off(60 + number))]
ZERO_LENGTH += [(2400, control(0)), (2400, note_on(48, 60)), (2800, note_off(48))]


def test_a_note_without_length_under_a_pedal_rings_until_the_pedal_goes_up(read):
    notes, _, repairs = read(file_of(CONDUCTOR, ZERO_LENGTH))

    assert notes == [*((0.25 * number, 2.5, 60 + number) for number in range(8)), (2.5, 2.9167, 48)]
    assert repairs == []


def test_and_so_does_one_whose_pedal_stands_in_another_track(read):
    notes, _, repairs = read(
        file_of(CONDUCTOR, ZERO_LENGTH[1:17] + ZERO_LENGTH[18:], [ZERO_LENGTH[0], ZERO_LENGTH[17]])
    )

    assert notes == [*((0.25 * number, 2.5, 60 + number) for number in range(8)), (2.5, 2.9167, 48)]
    assert repairs == []


def test_a_note_without_length_and_without_a_pedal_is_left_out_and_reported(read):
    dry = ZERO_LENGTH[1:17] + ZERO_LENGTH[18:]

    assert read(file_of(CONDUCTOR, dry)) == (
        [(2.5, 2.9167, 48)],
        [],
        ["8 notes without length, left out"],
    )


@pytest.mark.parametrize("pedal", [[], [(0, control(127)), (900, control(0))]])
def test_of_a_key_struck_twice_at_one_tick_no_music_is_lost_and_none_is_said_to_be(read, pedal):
    first = [(0, note_on(60)), (0, note_off(60)), (0, note_on(60)), (480, note_off(60)), (480, note_off(60))]

    notes, _, repairs = read(file_of(CONDUCTOR, pedal[:1] + first + pedal[1:]))

    assert notes == [(0.0, 0.9375 if pedal else 0.5, 60)]
    assert repairs == []


def test_the_two_readers_find_the_same_where_tracks_share_channels():
    num_fast = 0
    for number in range(3000):
        data = shared_channels(random.Random(number))
        fast, plain = read_plain(data), read_leniently(data, "")
        if fast is not None:
            num_fast += 1
            assert same(fast, plain), number
    assert num_fast > 500


def shared_channels(rng):
    """A file of a few tracks that strike, pedal and change programs on a few channels."""
    tracks = []
    for _ in range(rng.choice([1, 2, 3, 4])):
        tick, track = 0, []
        for _ in range(rng.choice([0, 1, 2, 6])):
            tick += rng.choice([0, 1, 40])
            channel, what = rng.choice([0, 0, 1, 9]), rng.random()
            if what < 0.5:
                key = rng.choice([60, 61])
                track += [(tick, note_on(key, 64, channel)), (tick + 2, note_off(key, channel))]
                tick += 2
            elif what < 0.8:
                track.append((tick, control(rng.choice([0, 127]), rng.choice([64, 64, 66, 7]), channel)))
            elif what < 0.9:
                track.append((tick, program(rng.choice([0, 0, 48]), channel)))
            elif what < 0.95:
                track.append((tick, port(rng.choice([0, 0, 1]))))
            else:
                track.append((tick, mido.MetaMessage("track_name", name=rng.choice(["a", "b"]))))
        tracks.append(track)
    return file_of(*tracks)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"Piano", "Piano"),
        ("ピアノ右手".encode("shift-jis"), "ピアノ右手"),
        ("左手".encode("shift-jis"), "左手"),
        ("月光 第1楽章 Piano".encode("shift-jis"), "月光 第1楽章 Piano"),
        ("ピアノ".encode("shift-jis"), "ピアノ"),
        (b"\xcb\xdf\xb1\xc9", "ﾋﾟｱﾉ"),
        ("Фортепиано".encode("cp1251"), "Фортепиано"),
        ("Левая рука".encode("cp1251"), "Левая рука"),
        ("МОЦАРТ, соната №11".encode("cp1251"), "МОЦАРТ, соната №11"),
        *(
            (text.encode("cp1251"), text)
            for text in (
                "Мелодия",
                "Скрипка",
                "Гитара",
                "Рояль",
                "правая рука",
                "Солнышко",
                "Прелюдия",
                "Любовь",
                "Ёлка",
                "МЕЛОДИЯ",
                "РОЯЛЬ",
                "ПРЕЛЮДИЯ",
                "ПРЕЛЮД",
                "НОКТЮРН",
                "ЭТЮД",
                "ЛЮБОВЬ",
                "ЛЮДИ",
                "МОЯ ЗЕМЛЯ",
                "ПЕСНЯ",
                "ВАЛЬС",
                "ЁЛКА",
                "ПОЛЯ",
                "ОБЪЯСНЕНИЕ",
                "ПЕСНЯ «ЛЮБОВЬ»",
            )
        ),
        *((text.encode("cp932"), text) for text in ("ﾄﾞﾗﾑ", "ﾒﾛﾃﾞｨ", "ﾋﾟｱﾉ", "ｷﾞﾀｰ", "ﾊﾞﾝﾄﾞ", "ﾄﾞﾗﾑｽ 1", "ﾍﾞｰｽ")),
        *((text.encode("cp1252"), text) for text in ("mäßig", "GROß", "MÄßIG", "Õhtu", "ÍÞRÓTT")),
        ("Études d'exécution".encode("latin-1"), "Études d'exécution"),
        ("Für Elise".encode("latin-1"), "Für Elise"),
        ("Träumerei – “Kinderszenen”".encode("cp1252"), "Träumerei – “Kinderszenen”"),
        ("Children’s Corner".encode("cp1252"), "Children’s Corner"),
        ("“Étude” Op. 3".encode("cp1252"), "“Étude” Op. 3"),
        ("C–D–E".encode("cp1252"), "C–D–E"),
        ("…été…".encode("cp1252"), "…été…"),
        ("右".encode("shift-jis"), "右"),
        ("琴 1".encode("shift-jis"), "琴 1"),
        ("Dvořák, 右手".encode(), "Dvořák, 右手"),
        ("\ufeffétude".encode(), "étude"),
        ("\ufeffピアノ".encode("utf-16-le"), "ピアノ"),
        ("\ufeffПиано".encode("utf-16-be"), "Пиано"),
        ("\ufeffPiano\0".encode("utf-16-le"), "Piano"),
        (b"\xff\xfea", "\ufffd"),
        (b"\x81\x8d\x8f\x90\x9d", ""),
        (b"a\0b\x1b[31m\0", "a b [31m"),
    ],
)
def test_a_name_is_read_in_the_encoding_that_its_bytes_suggest(name, text):
    assert readable(name) == text


@pytest.mark.parametrize("name", ["ピアノ右手".encode("shift-jis"), "\ufeffПиано".encode("utf-16-le"), b"\xe9tude"])
def test_the_name_of_a_track_is_readable_whichever_reader_reads_it(name):
    message = mido.UnknownMetaMessage(0x03, data=list(name))
    data = file_of(CONDUCTOR, [(0, message), (0, program(40)), *strokes(4)])

    with pytest.raises(PamusicError, match=f"1 Violin “{readable(name)}”"):
        read_and_mend(data, "x.mid")
