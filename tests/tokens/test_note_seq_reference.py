"""Our ids are note-seq's, to the last one, on pieces made to be hard; and note-seq itself can make the corpus."""

import random
import sys

import pytest
from builders import about, control, folder_of_tunes, midi_file, note_off, note_on, program, steadily, tempo
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.corpus.build import tokenize
from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.resources import tokenizers_folder
from pamusic.tokens.note_seq_reference import check_reference, ids_by_note_seq
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")

KEYS = st.sampled_from([0, 21, 60, 61, 127])  # few, so that strokes of one key overlap
# Waits in ticks. At 384 ticks a quarter and 120 beats a minute, 12 ticks are a step and a half and 4 ticks half a step
# and a bit: every other stroke of such a piece falls on a tie in rounding, or beside one.
WAITS = st.sampled_from([0, 0, 1, 2, 4, 6, 12, 30, 96, 400, 5000])
STROKES = st.tuples(st.just("stroke"), KEYS, st.integers(1, 127))
RELEASES = st.tuples(st.just("release"), KEYS, st.just(0))
PEDAL = st.tuples(st.just("pedal"), st.sampled_from([64, 64, 64, 66, 67]), st.sampled_from([0, 1, 63, 64, 65, 127]))
TEMPI = st.tuples(st.just("tempo"), st.just(0), st.sampled_from([250_000, 500_000, 500_001, 333_333, 1_200_000]))
EVENTS = st.lists(st.tuples(WAITS, st.one_of(STROKES, RELEASES, PEDAL, TEMPI)), max_size=60)


def by_note_seq(folder, out):
    """The command that makes a corpus with note-seq itself."""
    words = ["tokenize", folder, "-o", out, "--tokenizer", "performance", "--engine", "note-seq"]
    return CliRunner().invoke(app, [str(word) for word in words])


def hard_piece(events, ticks_per_quarter):
    """A MIDI file of events; a key is never released within the tick of its stroke, which pretty_midi reads oddly."""
    tick, struck, played, tempi = 0, {}, [], [(0, tempo(500_000))]
    for wait, (what, number, value) in events:
        tick += wait
        if what == "stroke":
            played.append((tick, note_on(number, value)))
            struck[number] = tick
        elif what == "release" and struck.get(number, tick) < tick:
            played.append((tick, note_off(number)))
        elif what == "pedal":
            played.append((tick, control(value, number)))
        elif what == "tempo":
            tempi.append((tick, tempo(value)))
    played += [(tick + 7, note_off(key)) for key in sorted(struck)]
    return midi_file(tempi, played, ticks_per_quarter=ticks_per_quarter)


@steadily
@given(st.tuples(WAITS, STROKES), EVENTS, st.sampled_from([96, 220, 384, 480, 500, 1000]))
def test_hard_pieces_have_the_ids_of_note_seq(first, others, ticks_per_quarter):
    data = hard_piece([first, *others], ticks_per_quarter)

    assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist()


@steadily
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400), KEYS), min_size=1, max_size=30))
def test_ties_in_rounding_fall_as_they_do_in_note_seq(strokes):
    """At 480 ticks a quarter of a second, 9.6 ticks are half a step: all times below are on halves and quarters."""
    events = []
    for onset, length, key in strokes:
        events += [(onset * 24 // 5, 1, note_on(key)), ((onset + length) * 24 // 5 + 1, 0, note_off(key))]
    events.sort(key=lambda event: event[:2])
    data = midi_file([(0, tempo(250_000))], [(tick, message) for tick, _, message in events], ticks_per_quarter=480)

    assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_corpus_is_the_same_by_either_engine(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 4)
    (folder / "9.mid").write_bytes(b"broken")

    tokenize([folder], tmp_path / "ours", TOKENIZER, num_workers=1)
    tokenize([folder], tmp_path / "theirs", TOKENIZER, num_workers=2, engine="note-seq")

    assert contents(tmp_path / "theirs") == contents(tmp_path / "ours")


def test_the_engine_is_chosen_on_the_command_line(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 2)

    done = by_note_seq(folder, tmp_path / "c")

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'c'}\n"), done.stderr
    tokenize([folder], tmp_path / "ours", TOKENIZER)
    assert contents(tmp_path / "c") == contents(tmp_path / "ours")


def test_a_vocabulary_that_note_seq_lacks_is_refused(tmp_path):
    text = (tokenizers_folder() / "performance.toml").read_text(encoding="utf-8")
    (tmp_path / "renamed.toml").write_text(text.replace('"performance"', '"mine"'))
    (tmp_path / "finer.toml").write_text(text.replace("step_ms = 10", "step_ms = 8"))

    check_reference(load_tokenizer(str(tmp_path / "renamed.toml")))
    with pytest.raises(PamusicError, match="note-seq has only the vocabulary performance, got performance") as caught:
        check_reference(load_tokenizer(str(tmp_path / "finer.toml")))
    assert "\n" not in str(caught.value)


def test_without_note_seq_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "note_seq", None)  # as Python marks what cannot be imported
    folder = folder_of_tunes(tmp_path / "tunes", 1)

    done = by_note_seq(folder, tmp_path / "c")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "pamusic: error: note-seq is not installed; run pip install 'pamusic[magenta]', "
        "or leave out --engine note-seq\n"
    )


def test_where_note_seq_reads_differently_from_players_its_engine_says_so(tmp_path):
    """The pedal stands in a track without notes: players hold the note with it, note-seq does not."""
    pedal = [(10, control(127)), (960, control(0))]
    data = midi_file([(0, tempo(500_000))], [(0, note_on(60)), (100, note_off(60))], pedal, ticks_per_quarter=480)
    (tmp_path / "tunes").mkdir()
    (tmp_path / "tunes" / "pedal.mid").write_bytes(data)

    done = by_note_seq(tmp_path / "tunes", tmp_path / "c")

    assert done.exit_code == 0, done.stderr
    assert (
        "pedal.mid: note-seq reads it differently: 4 tokens, pamusic 4; the first difference is at token 3"
        in done.stderr
    )


def two_channels(seed):
    """A file of two channels, each with its own track, keys and sustain pedal."""
    rng = random.Random(seed)
    tracks = []
    for channel in (0, 1):
        tick, struck, played = 0, {}, []
        for _ in range(25):
            tick += rng.choice([0, 7, 30, 96, 400])
            key, what = rng.choice([60, 61]) + 12 * channel, rng.random()
            if what < 0.4 and struck.get(key, -1) < tick:
                played.append((tick, note_on(key, rng.randrange(1, 128), channel)))
                struck[key] = tick
            elif what < 0.7 and struck.get(key, tick) < tick:
                played.append((tick, note_off(key, channel)))
            elif what < 0.95:
                played.append((tick, control(rng.choice([0, 127]), channel=channel)))
        played += [(tick, note_on(72 * channel or 48, 64, channel)), (tick + 9, note_off(72 * channel or 48, channel))]
        tracks.append(played + [(tick + 9, note_off(key, channel)) for key in sorted(struck)])
    return midi_file([(0, tempo(500_000))], *tracks)


def test_the_notes_of_its_engine_are_those_of_note_seqs_ids(tmp_path):
    """Strings are left out by us and taken by note-seq."""
    strings = [(0, program(48, 1))]
    for at in range(3):
        strings += [(384 * at, note_on(60 + at, channel=1)), (384 * at + 96, note_off(60 + at, 1))]
    (tmp_path / "tunes").mkdir()
    data = midi_file([(0, note_on(50)), (96, note_off(50))], strings)
    (tmp_path / "tunes" / "strings.mid").write_bytes(data)

    done = by_note_seq(tmp_path / "tunes", tmp_path / "c")

    (piece,) = about(tmp_path / "c")["pieces"]
    assert done.exit_code == 0, done.stderr
    assert piece["num_notes"] == 4
    assert piece["seconds"] == pytest.approx(1.125, abs=0.01)
    assert [kind for kind, _, _ in piece["repairs"]] == ["read differently by note-seq"]


def test_pedals_of_two_channels_hold_what_they_hold_in_note_seq():
    for seed in range(60):
        data = two_channels(seed)
        assert TOKENIZER.encode(read_midi(data)).tolist() == ids_by_note_seq(data).tolist(), seed
