"""Files that players open are opened; what was mended is said, and what cannot be is refused in one line."""

import os
import random
import struct
import time
from pathlib import Path

import pytest
from builders import steadily
from corrupt_midi import check_performance, check_refusal, damaged, hostile
from hypothesis import example, given
from hypothesis import strategies as st
from midi_asserts import same

from pamusic.corpus.sources import find_sources
from pamusic.errors import PamusicError
from pamusic.music.fast_reader import read_plain
from pamusic.music.lenient_reader import read_leniently
from pamusic.music.midi import read_and_mend
from pamusic.music.midi_contents import KINDS, MAX_FILE_BYTES, Repair

END = b"\0\xff\x2f\0"
NOTE = b"\0\x90\x3c\x40\x60\x80\x3c\0"  # pitch 60, velocity 64, 96 ticks: 0.1 seconds at 480 a quarter
AFTER_IT = b"\0\x90\x3e\x40\x60\x80\x3e\0"
PLAYED, PLAYED_AFTER_IT = (0.0, 0.1, 60, 64), (0.1, 0.2, 62, 64)


def header(num_tracks, division=480, kind=1):
    return b"MThd" + struct.pack(">IHHH", 6, kind, num_tracks, division)


def chunk(data, kind=b"MTrk", length=None):
    return kind + struct.pack(">I", len(data) if length is None else length) + data


def file_of(*tracks, **about):
    return header(len(tracks), **about) + b"".join(chunk(track) for track in tracks)


def read(data, **options):
    """Notes, times to a tenth of a millisecond, and what was mended."""
    performance, repairs = read_and_mend(data, "piece.mid", **options)
    notes = [(round(on, 4), round(off, 4), pitch, velocity) for on, off, pitch, velocity in performance.notes.tolist()]
    return notes, {repair.kind: repair.count for repair in repairs}


PLAIN = file_of(NOTE + AFTER_IT + END)
TEMPO = b"\0\xff\x51\x03\x07\xa1\x20"  # the standard's
TEMPO_OF_ONE_SECOND = b"\0\xff\x51\x03\x0f\x42\x40"


@pytest.mark.parametrize(
    ("data", "mended"),
    [
        (PLAIN, {}),
        (file_of(b"\0\x90\x3c\x40\x60\x3c\0\0\x3e\x40\x60\x3e\0" + END), {}),  # velocity 0, running status
        (file_of(b"\0\x90\x3c\x40\0\xff\x01\x01a\x60\x3c\0\0\x3e\x40\x60\x3e\0" + END), {}),  # across a meta message
        (file_of(b"\0\x90\x3c\x40\0\xf0\x01\xf7\x60\x3c\0\0\x3e\x40\x60\x3e\0" + END), {}),  # across a sysex
        (file_of(b"\0\xff\x59\x02\x0a\x05" + NOTE + AFTER_IT + END), {}),  # a key of ten sharps
        (file_of(b"\0\xff\x59\0\0\xff\x58\x01\x04" + NOTE + AFTER_IT + END), {}),  # keys, metres of wrong lengths
        (file_of(b"\0\xff\x60\x02ab\0\xff\xc8\x01a" + NOTE + AFTER_IT + END), {}),  # unknown meta messages
        (file_of(b"\0\xff\x03\x04\x83\x73\x83\x41" + NOTE + AFTER_IT + END), {}),  # a name in Shift-JIS
        (file_of(b"\0\xff\x03\x06\xe9tudes" + NOTE + AFTER_IT + END), {}),  # and in Latin-1
        (file_of(b"\x80\x80\x80\x80" + NOTE + AFTER_IT + END), {}),  # a delta of five bytes
        (file_of(b"\0\xf1\x01\0\xf2\x01\x01\0\xfe" + NOTE + AFTER_IT + END), {}),  # messages of live MIDI
        (file_of(b"", NOTE + AFTER_IT + END, END), {}),  # empty tracks
        (file_of(NOTE + END, b"\x60" + AFTER_IT[1:] + END), {}),
        (file_of(b"\0\xff\x51\x02\1\2\0\xff\x51\x03\0\0\0" + NOTE + AFTER_IT + END), {"odd tempi": 2}),
        (file_of(NOTE + b"\0\xf0\x43\x10\x4c\xf7" + AFTER_IT + END), {"odd sysex": 1}),
        (file_of(NOTE + b"\0\xf4\0\xfd" + AFTER_IT + END), {"stray bytes": 2}),
        (file_of(b"\0\x3c\x40" + NOTE[1:] + AFTER_IT + END), {"stray bytes": 2}),
        (file_of(NOTE + AFTER_IT + END + b"\0\x90\x3c\x40" + END), {"bytes outside tracks": 8}),
        (file_of(NOTE + AFTER_IT), {"no end of track": 1}),
        (b"\0" * 128 + PLAIN, {"bytes before the header": 128}),  # MacBinary
        (PLAIN + b"<html>", {"bytes outside tracks": 6}),
        (PLAIN[:14] + chunk(b"abc", b"XFIH") + PLAIN[14:] + chunk(b"", b"XFKM"), {"foreign chunks": 2}),
        (PLAIN[:14] + b"\1\2\3" + PLAIN[14:], {"bytes outside tracks": 3}),
        (header(9) + PLAIN[14:], {"number of tracks": 1}),
        (header(0) + PLAIN[14:], {"number of tracks": 1}),
        (PLAIN + chunk(AFTER_IT + END), {"tracks beyond the header's": 1}),  # no player looks beyond
        (header(1) + chunk(TEMPO + END) + PLAIN[14:], {"number of tracks": 2}),  # the header counts the tempi alone
        (PLAIN + PLAIN, {"second file": 1}),
        (PLAIN + b"zz" + PLAIN + PLAIN, {"bytes outside tracks": 2, "second file": 2}),
        (header(1) + chunk(NOTE + AFTER_IT + END, length=9) + PLAIN, {"chunk length": 1, "second file": 1}),
        (header(9) + PLAIN[14:] + PLAIN, {"number of tracks": 1, "second file": 1}),
        (PLAIN[:14] + PLAIN, {"foreign chunks": 1}),  # a header twice
        (header(1, kind=7) + PLAIN[14:], {"broken header": 1}),
        (b"MThd\0\0\0\0" + PLAIN[8:], {"broken header": 1}),
        (b"MThd\0\0\0\x08" + PLAIN[8:14] + b"zz" + PLAIN[14:], {}),
        (header(1) + chunk(NOTE + AFTER_IT + END, length=3), {"chunk length": 1}),
        (header(1) + chunk(NOTE + AFTER_IT + END, length=2**32 - 1), {"chunk length": 1}),
        (header(2) + chunk(NOTE + END, length=0) + chunk(b"\x60" + AFTER_IT[1:] + END, length=9), {"chunk length": 2}),
        (PLAIN[:-4], {"cut off": 1}),
        (PLAIN[:-2], {"cut off": 1}),
        (file_of(NOTE + AFTER_IT + b"\0\x90\x40" + END), {"cut off": 1}),
        (file_of(NOTE + AFTER_IT + b"\0\xff\x01\xff\xff\xff\x7fab" + END), {"cut off": 1}),
        (file_of(NOTE + b"\0\x90\x3e\x40\x60\xb0\x07\0" + END), {"notes without an end": 1}),
        (file_of(NOTE + b"\0\x90\x40\x40\0\x80\x40\0" + AFTER_IT + END), {"notes without length": 1}),
        (file_of(NOTE + END, AFTER_IT + END, kind=2), {"patterns": 2}),
        (file_of(NOTE + b"\0\x90\xc8\x40\0\x80\xc8\0" + AFTER_IT + END), {"data bytes above 127": 2}),
        (file_of(NOTE + AFTER_IT + b"\0\xc1\x28\0\x91\x3c\x40\x01\x81\x3c\x40" + END), {"other instruments": 1}),
    ],
)
def test_two_notes_are_read_from_whatever_is_around_them(data, mended):
    assert read(data) == ([PLAYED, PLAYED_AFTER_IT], mended)


def test_a_velocity_above_127_is_the_loudest_there_is():
    assert read(file_of(b"\0\x90\x3c\xc8\x60\x80\x3c\0" + END)) == ([(0.0, 0.1, 60, 127)], {"data bytes above 127": 1})


def test_a_truncated_file_is_kept_as_far_as_it_is_whole_and_says_to_where():
    data = file_of((NOTE + AFTER_IT) * 50 + END)[:-300]

    performance, repairs = read_and_mend(data)

    assert len(performance) == 63
    assert [repair.words for repair in repairs if repair.kind == "cut off"] == [
        "1 track cut off at tick 6048, kept up to the cut (second 6.3)"
    ]


def test_microsofts_wrapping_is_taken_off_and_what_it_wraps_besides():
    wrapped = b"RMID" + b"data" + struct.pack("<I", len(PLAIN)) + PLAIN + b"LIST" + struct.pack("<I", 4) + b"DLS "

    assert read(b"RIFF" + struct.pack("<I", len(wrapped)) + wrapped) == ([PLAYED, PLAYED_AFTER_IT], {})


@pytest.mark.parametrize(
    ("frames", "ticks", "second"), [(24, 40, 1.0), (25, 40, 1.0), (30, 80, 1.0), (29, 100, 1.001), (29, 4, 1.001)]
)
def test_frames_of_smpte_are_time_whatever_the_tempo(frames, ticks, second):
    a_second = (30 if frames == 29 else frames) * ticks
    delta = bytes([0x80 | a_second >> 7, a_second & 0x7F])
    track = TEMPO_OF_ONE_SECOND + b"\0\x90\x3c\x40" + delta + b"\x80\x3c\0" + END

    assert read(file_of(track, division=(256 - frames) << 8 | ticks)) == ([(0.0, second, 60, 64)], {})


def test_the_patterns_of_format_2_follow_one_another_each_with_its_own_tempo():
    slow = TEMPO_OF_ONE_SECOND + NOTE + END

    notes, mended = read(file_of(slow, NOTE + END, slow, kind=2))

    assert notes == [(0.0, 0.2, 60, 64), (0.2, 0.3, 60, 64), (0.3, 0.5, 60, 64)]
    assert mended == {"patterns": 3}


def test_what_was_mended_is_said_where_a_file_has_nothing_to_take():
    empty = PLAIN[:14] + b"\1\2\3" + chunk(END)
    drums = file_of(b"\0\x99\x3c\x40\x60\x89\x3c\0")

    for data, says in (
        (empty, "has no notes; use a file with music (repaired: 3 bytes outside the tracks, skipped)"),
        (drums, "use a piano file (repaired: 1 track without an end, ended with the last message)"),
        (PLAIN[:22], "use a file with music (repaired: 1 track cut off at tick 0, kept up to the cut"),
    ):
        with pytest.raises(PamusicError) as caught:
            read_and_mend(data, "a.mid")
        assert says in str(caught.value)
        assert caught.value.rule in ("no notes", "only drums")


def test_of_tempi_at_one_tick_the_last_in_the_file_holds_whichever_its_track():
    both = file_of(TEMPO_OF_ONE_SECOND + b"\0\xff\x51\x03\x07\xa1\x20" + NOTE + AFTER_IT + END)
    apart = file_of(TEMPO_OF_ONE_SECOND + END, b"\0\xff\x51\x03\x07\xa1\x20" + NOTE + AFTER_IT + END)

    assert read(both) == read(apart) == ([PLAYED, PLAYED_AFTER_IT], {})


def test_every_repair_is_said_of_one_and_of_many():
    said = [Repair.of(kind, count).words for kind in KINDS for count in (1, 2000)]

    assert len(set(said)) == 2 * len(KINDS)
    assert Repair.of("stray bytes", 2000).words == "2,000 bytes outside any message, skipped"


MANY = 300_000


@pytest.mark.parametrize(
    "track",
    [
        b"\0\xff\x51\x03\x07\xa1\x20" * MANY + NOTE,
        b"".join(b"\1\xff\x51\x03\x07\xa1" + bytes([n % 256]) for n in range(MANY)) + NOTE,
        b"\0\x90\x3c\x40" * MANY + b"\1\x80\x3c\0",
        b"\0\x90\x3c\x40" + b"\1\x3c\x40" * MANY,
        NOTE + b"\xff" * MANY,
        NOTE + b"\0\xf0\x7f" * MANY,
        b"MTrk" * MANY + NOTE,
        b"".join(bytes([0, 0xC0, n % 128]) + NOTE for n in range(MANY // 10)),
        NOTE * (MANY // 10),
    ],
    ids=["tempi", "tempo changes", "strokes", "strokes later", "delta", "sysex", "chunks", "programs", "notes"],
)
def test_a_million_of_anything_is_read_or_refused_within_seconds(track):
    began = time.process_time()
    try:
        check_performance(read_and_mend(file_of(track + END), tracks="all")[0])
    except PamusicError as error:
        check_refusal(error)

    assert time.process_time() - began < 10


@pytest.mark.slow
def test_too_many_tracks_and_too_large_a_file_are_refused():
    for data, says in (
        (header(0) + chunk(b"") * 70_000, "has more than 65,535 tracks; merge them"),
        (header(1) + bytes(MAX_FILE_BYTES), "is larger than 16 MiB, the limit"),
        (file_of(b"\0\x90\x3c\x40" + b"\1\x3c\x40" * 1_000_001 + END), "has 1,000,001 notes, more than"),
        (file_of(NOTE + b"\xff\xff\xff\xff\xff\x7f" + AFTER_IT), "lasts more than 1e+12 ticks"),
        (file_of(NOTE + b"\xff\xff\xff\x7f\xff\x01\0" * 9 + AFTER_IT), "lasts"),
    ):
        with pytest.raises(PamusicError, match=r"piece\.mid: ") as caught:
            read(data)
        assert says in str(caught.value)


def test_the_fast_reader_takes_nothing_that_its_plain_twin_would_mend_or_read_otherwise():
    num_fast = 0
    for number in range(3000):
        data = hostile(1, number)
        fast = read_plain(data)
        if fast is not None:
            num_fast += 1
            assert same(fast, read_leniently(data, "")), number
    assert num_fast > 100


def test_overlapping_strokes_of_a_key_go_the_fast_way_where_no_order_within_a_tick_decides():
    num_fast = 0
    for number in range(2000):
        data = file_of(strokes_of_few_keys(random.Random(number)) + END)
        fast, plain = read_plain(data), read_leniently(data, "")
        if fast is not None:
            num_fast += 1
            assert same(fast, plain), number
    assert num_fast > 400


def strokes_of_few_keys(rng):
    """Up to ten strokes and releases of two keys, some at one tick; then releases of both."""
    events = [(rng.choice((0, 1, 1, 2, 5)), rng.choice((0x90, 0x80)), rng.choice((60, 61))) for _ in range(10)]
    last = [(1, 0x80, pitch) for pitch in (60, 61) for _ in range(8)]
    return b"".join(bytes([delta, status, pitch, 64]) for delta, status, pitch in events + last)


@pytest.mark.parametrize(
    "odd",
    [
        b"\xf2\x44\x90\x40\x40\x60\x80\x40\0",  # a delta that looks like a sysex
        b"\xc0\0\x90\x40\x40\xc0\0\x80\x40\0",  # two that look like programs
        b"\0\xff\x01\x04\xf0\xff\x2f\0",  # a text that looks like the end
        b"\xff\x7f\x90\x40\x40\x60\x40\0\0\xd0\x05\x01\x06",  # running status of one byte and of two
    ],
)
def test_what_looks_odd_and_is_not_goes_the_fast_way(odd):
    data = file_of(NOTE + odd + END)

    assert same(read_plain(data), read_leniently(data, ""))


@pytest.mark.parametrize(
    "odd",
    [
        b"\0\xc0\0\0\xc0\x05" + AFTER_IT,
        b"\0\xf0\x01\xf7" + AFTER_IT,
        b"\0\xff\x51\x02\1\2" + AFTER_IT,
        END + AFTER_IT,
        b"\xff\xff\xff\xff\x7f" + AFTER_IT[1:],
        b"\0\xff\x01\xff\x7f" + AFTER_IT,
    ],
)
def test_what_is_odd_goes_the_slow_way(odd):
    assert read_plain(file_of(NOTE + odd + END)) is None


@pytest.mark.skipif("PAMUSIC_MAESTRO" not in os.environ, reason="PAMUSIC_MAESTRO names no archive")
def test_the_two_readers_find_the_same_in_maestro():
    sources, _, _ = find_sources([Path(os.environ["PAMUSIC_MAESTRO"])])
    fast = [read_plain(source.read()) for source in sources[::60]]

    assert all(contents is not None for contents in fast)
    for source, contents in zip(sources[::60], fast, strict=True):
        assert contents is None or same(contents, read_leniently(source.read(), source.name))


def check(data):
    """A file is either read or refused in one line, by a rule."""
    try:
        check_performance(read_and_mend(data, "piece.mid", tracks="all")[0])
    except PamusicError as error:
        check_refusal(error)


def test_no_damage_to_a_file_breaks_more_than_the_file():
    for number in range(2500):
        check(hostile(2, number))


@pytest.mark.skipif("PAMUSIC_MAESTRO" not in os.environ, reason="PAMUSIC_MAESTRO names no archive")
def test_no_damage_to_a_file_of_maestro_breaks_more_than_the_file():
    sources, _, _ = find_sources([Path(os.environ["PAMUSIC_MAESTRO"])])
    rng = random.Random(3)
    for source in sources[::200]:
        data = source.read()
        for _ in range(8):
            check(damaged(data[: 2 ** rng.randrange(8, 17)], rng))


@steadily
@given(st.binary(max_size=200))
@example(b"MThd\0\0\0\6\0")
def test_no_bytes_after_a_header_break_anything(rest):
    for start in (b"", header(1), header(1) + b"MTrk", header(1) + b"MTrk" + struct.pack(">I", len(rest))):
        check(start + rest)


@steadily
@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0x80, 0xFF), st.integers(0, 255), st.integers(0, 255)), max_size=40
    )
)
def test_no_messages_break_anything(messages):
    track = b"".join(bytes([*([0x81, delta & 0x7F] if delta > 127 else [delta]), *rest]) for delta, *rest in messages)
    check(file_of(track + END))
    check(file_of(NOTE + track))
