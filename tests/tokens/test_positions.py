"""One position a note: what is written, what is read back, and what a bin may cost."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from builders import performance, steadily
from fields import NOTES, NOTES_TEXT, block, compound_text, folded_text, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import performances

from pamusic.corpus.sources import find_sources
from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.music.performance import SOFT, SUSTAIN
from pamusic.tokens.positions import _shifts, num_clipped
from pamusic.tokens.tokenizer import Repairs, load_tokenizer
from pamusic.tokens.vocabulary import load_vocabulary

MAESTRO = os.environ.get("PAMUSIC_MAESTRO")
VOCABULARY = NOTES.vocabulary


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same with the pedal folded in, and events of several fields, played and folded."""
    folder = tmp_path_factory.mktemp("vocabularies")
    texts = [folded_text(), compound_text(), compound_text(folded_text())]
    return [tokenizer_of(folder, text) for text in texts]


def read(ids, vocabulary=VOCABULARY):
    """Each position as the values of its fields, the key with its kind."""
    events = [[vocabulary.event(int(id)) for id in position] for position in ids]
    return [(shift[1], *key, *(value for _, value in rest)) for shift, key, *rest in events]


def test_a_position_is_a_note_or_a_press_of_a_pedal():
    played = performance(
        (0.5, 1.0, 60, 64), (0.5, 0.75, 64, 1), (1.0, 1.2, 60, 127),
        pedal=[(0.25, 127), (0.9, 64), (1.1, 0), (0.5, 127, SOFT), (1.2, 0, SOFT)],
    )  # fmt: skip

    ids = NOTES.encode(played)

    assert ids.dtype == np.uint16
    assert read(ids) == [  # shift, kind, key or depth, velocity, length
        (25, "sustain", 3, 0, 65),
        (25, "soft", 1, 0, 70),
        (0, "note_on", 60, 16, 50),
        (0, "note_on", 64, 1, 25),
        (40, "sustain", 2, 0, 20),
        (10, "note_on", 60, 32, 20),
    ]


def test_events_of_several_fields_have_the_order_of_events(others):
    _, compound, _ = others
    played = performance((0, 0.5, 60, 64), (0.5, 0.7, 62, 64), pedal=[(0.1, 127), (0.5, 0)])

    assert read(compound.encode(played), compound.vocabulary) == [
        (0, "note_on", 60, 16),
        (10, "sustain", 3, 0),
        (40, "note_off", 60, 0),
        (0, "sustain", 0, 0),
        (0, "note_on", 62, 16),
        (20, "note_off", 62, 0),
    ]


@pytest.mark.parametrize("name", ["notes", "folded", "compound", "compound-folded"])
def test_no_music_is_no_positions(others, name):
    tokenizer = dict(zip(["notes", "folded", "compound", "compound-folded"], [NOTES, *others], strict=True))[name]
    num_fields = len(tokenizer.vocabulary.fields)

    assert tokenizer.encode(performance()).shape == (0, num_fields)
    assert len(tokenizer.decode(np.empty((0, num_fields), np.uint16))) == 0


SECONDS = st.floats(0, 200)
LONG = st.tuples(SECONDS, st.floats(0.02, 90), st.sampled_from([21, 60, 61, 108]), st.integers(1, 127))
LONG_MOVES = st.tuples(SECONDS, st.integers(0, 127), st.sampled_from([SUSTAIN, SUSTAIN, SOFT]))


@st.composite
def slow_performances(draw):
    """Long notes, long rests and long pedals, where all bins are wide."""
    strokes, moves = draw(st.lists(LONG, max_size=12)), draw(st.lists(LONG_MOVES, max_size=12))
    return performance(
        *((onset, onset + length, pitch, velocity) for onset, length, pitch, velocity in strokes),
        pedal=[(time, value, control) for time, value, control in sorted(moves)],
    )


@steadily
@given(st.one_of(performances(), slow_performances()), st.floats(0.05, 3), st.integers(0, 3))
def test_what_is_decoded_has_the_same_ids_again(others_of_module, played, factor, which):
    tokenizer = others_of_module[which]
    ids = tokenizer.encode(played.stretched(factor))

    decoded, repairs = tokenizer.decode_counted(ids)

    assert not repairs
    assert tokenizer.encode(decoded).tolist() == ids.tolist()
    assert tokenizer.decode(tokenizer.encode(decoded)).equals(decoded)


@pytest.fixture(scope="module")
def others_of_module(others):
    return [NOTES, *others]


@pytest.mark.skipif(not MAESTRO, reason="PAMUSIC_MAESTRO, the path of MAESTRO's zip archive, is not set")
def test_files_of_maestro_have_the_same_ids_again():
    sources, _, _ = find_sources([Path(MAESTRO)])
    num_positions = num_notes = 0
    for source in sources[::40]:
        played = read_midi(source.read())
        ids = NOTES.encode(played)
        decoded, repairs = NOTES.decode_counted(ids)
        assert not repairs
        assert np.array_equal(NOTES.encode(decoded), ids), source.name
        num_positions, num_notes = num_positions + len(ids), num_notes + len(played)

    assert 1 < num_positions / num_notes < 1.2


@steadily
@given(slow_performances())
def test_times_are_exact_up_to_the_exact_bins_and_within_5_percent_above(played):
    grid = NOTES.to_grid(played)
    ids = NOTES.encode(played)
    notes = NOTES.decode(ids).notes
    if not len(grid):
        return
    shifts, lengths = VOCABULARY.range("time_shift"), VOCABULARY.range("length")
    assert len(notes) == len(grid)
    starts = np.rint(notes["onset"] * 100).astype(int)
    wanted = np.diff(grid.onset)
    got = np.diff(starts)
    of_pedals = np.unique(grid.pedal["step"])
    for before, after, here, there in zip(grid.onset, grid.onset[1:], wanted, got, strict=False):
        between = of_pedals[(of_pedals > before) & (of_pedals < after)]
        if not len(between) and here <= shifts.exact:
            assert abs(there - here) <= 0.04 * here  # exact where it is quick
    length = np.rint((notes["offset"] - notes["onset"]) * 100).astype(int)
    wanted = np.minimum(grid.offset - grid.onset, lengths.last)
    next_of_key = [
        np.min(grid.onset[(grid.pitch == p) & (grid.onset > o)], initial=10**9)
        for p, o in zip(grid.pitch, grid.onset, strict=True)
    ]
    for here, there, offset, again in zip(wanted, length, grid.offset, next_of_key, strict=True):
        if again > offset + 1000:  # its key has time, so that nothing but its bin matters
            assert there == here or (here > lengths.exact and abs(there - here) <= 0.05 * here)


def test_onsets_do_not_drift_and_chords_stay_together():
    rests = [1.7, 3.21, 2.45, 7.77, 15.3, 31.9, 4.44, 2.03] * 5
    first = np.cumsum(rests)
    figure = ((0, 48), (0, 60), (0.13, 64), (0.37, 65))
    played = performance(*((onset + lag, onset + lag + 0.1, key, 64) for onset in first for lag, key in figure))

    decoded = NOTES.decode(NOTES.encode(played)).notes

    figures = decoded["onset"].reshape(-1, 4)
    assert (figures[:, 0] == figures[:, 1]).all()  # of one step, so they stay
    np.testing.assert_allclose(figures[:, 2] - figures[:, 0], 0.13, atol=1e-9)  # too quick to be changed
    np.testing.assert_allclose(figures[:, 3] - figures[:, 2], 0.24, atol=1e-9)
    off = np.abs(figures[:, 0] - first)
    assert off.max() <= 0.02 * max(rests) + 0.01  # half the widest bin, however many rests there were
    assert off.max() > 0.02  # it is a bin, though


def test_what_a_rest_was_rounded_by_is_made_up_by_shifts_long_enough_not_to_show_it():
    onset = np.concatenate([[0.0], 5.13 + 0.5 * np.arange(12)])
    played = performance(*((second, second + 0.2, 60, 64) for second in onset))

    decoded = NOTES.decode(NOTES.encode(played)).notes["onset"]

    error = np.rint((decoded - onset) * 100)
    assert abs(error[1]) > 2
    assert (np.abs(np.diff(error[1:])) <= 2).all()  # 4 % of half a second
    assert (np.diff(np.abs(error[1:])) <= 0).all()
    assert not error[-6:].any()


@pytest.mark.parametrize(("exact", "growth"), [(159, 1.04), (50, 1.04), (50, 1.1), (100, 1.05), (0, 1.1)])
def test_no_shift_is_read_as_another_whatever_came_before_it(tmp_path, exact, growth):
    """A rest of a minute is rounded by more than the next shift is long."""
    text = NOTES_TEXT.replace("exact = 159", f"exact = {exact}").replace("growth = 1.04", f"growth = {growth}", 1)
    shifts = tokenizer_of(tmp_path, text).vocabulary.range("time_shift")
    rests = range(4000, 5000, 7)
    step = np.cumsum([shift for rest in rests for shift in (rest, rest % 200 + 1, 161)])

    _, read_as = _shifts(step, shifts)

    meant, got = np.diff(step, prepend=0), np.diff(read_as, prepend=0)
    assert (got >= 1).all()
    assert (np.abs(got - meant) <= (growth - 1) * meant).all()
    assert np.abs(read_as - step).max() <= (growth - 1) * 5000  # and nothing adds up


def test_a_key_or_pedal_that_was_up_in_between_still_is():
    played = performance((0, 30.0, 60, 64), (30.06, 31, 60, 64), pedal=[(0, 127), (33.0, 0), (33.08, 127), (40, 0)])

    decoded = NOTES.decode(NOTES.encode(played))

    first, second = decoded.notes
    assert first["offset"] < second["onset"]
    assert decoded.pedal["value"].tolist() == [127, 0, 127, 0]


def test_what_touches_still_does():
    played = performance((0, 30.0, 60, 64), (30.0, 31, 60, 64), pedal=[(0, 127), (33.0, 60), (47, 0)])

    decoded = NOTES.decode(NOTES.encode(played))

    first, second = decoded.notes
    assert first["offset"] == second["onset"]
    assert decoded.pedal["value"].tolist() == [127, 42, 0]


def test_what_is_longer_than_the_last_bin_is_clipped_and_counted():
    played = performance((0, 100, 60, 64), (90, 91, 62, 64), (200, 201, 64, 64))

    decoded = NOTES.decode(NOTES.encode(played)).notes

    assert num_clipped(NOTES.to_grid(played), VOCABULARY) == (1, 2)
    last = VOCABULARY.range("length").middle[-1] / 100
    assert (decoded["offset"][0] - decoded["onset"][0]) == pytest.approx(last)
    assert np.diff(decoded["onset"]) == pytest.approx([VOCABULARY.range("time_shift").middle[-1] / 100] * 2)


def test_a_pedal_that_is_cut_short_leaves_what_is_encoded_the_same_again():
    strokes = [(float(second), second + 0.5, 60, 64) for second in range(0, 79, 2)]
    for last in (127, 85):
        played = performance(*strokes, pedal=[(0, 127), (70, 42), (70.02, last), (72, 0)])
        ids = NOTES.encode(played)
        decoded, repairs = NOTES.decode_counted(ids)
        assert not repairs
        assert NOTES.encode(decoded).tolist() == ids.tolist()


def test_bins_can_be_left_out(tmp_path):
    text = re.sub(r"last = 6000[^\n]*\nexact[^\n]*\ngrowth[^\n]*\n", "last = 500\n", NOTES_TEXT)
    tokenizer = tokenizer_of(tmp_path, text)
    played = performance((0, 4.5, 60, 64), (3.21, 3.5, 62, 64), (10, 11, 64, 64), (10.02, 20, 65, 64))

    ids = tokenizer.encode(played)

    assert "exact" not in text
    assert read(ids, tokenizer.vocabulary) == [
        (0, "note_on", 60, 16, 450), (321, "note_on", 62, 16, 29), (500, "note_on", 64, 16, 100),
        (2, "note_on", 65, 16, 500),
    ]  # fmt: skip
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids.tolist()
    assert num_clipped(tokenizer.to_grid(played), tokenizer.vocabulary) == (1, 1)


def test_what_positions_had_to_be_forgiven_is_counted():
    def position(shift, kind, value, velocity, length):
        ids = zip(("time_shift", kind, "velocity", "length"), (shift, value, velocity, length), strict=True)
        return [VOCABULARY.id(*each) for each in ids]

    def repairs(*positions):
        return NOTES.decode_counted(np.array(positions, np.int64))[1]

    note = position(5, "note_on", 60, 3, 9)
    assert repairs(note, note) == Repairs()
    assert repairs(note, position(0, "note_on", 60, 3, 9)) == Repairs(notes_without_length=1)
    assert repairs(position(0, "note_on", 60, 3, 0)) == Repairs(notes_without_length=1)
    assert repairs(position(0, "start", 0, 0, 0), note) == Repairs(borders=1)
    down = position(1, "sustain", 2, 0, 9)
    assert repairs(down, position(1, "sustain", 2, 0, 9)) == Repairs(idle_pedals=1)


def test_bins_tell_how_much_they_leave_open():
    shifts = VOCABULARY.range("time_shift")
    nats = VOCABULARY.nats_within_id[shifts.start : shifts.start + len(shifts)]

    assert not nats[: shifts.exact + 1].any()
    np.testing.assert_allclose(np.exp(nats), shifts.size)
    assert shifts.size.sum() == shifts.last - shifts.first + 1
    assert [shifts.place(np.array(value)) for value in (0, 159, 160, 165, 166, 6000, 9999)] == [
        0,
        159,
        160,
        160,
        161,
        254,
        254,
    ]


def test_a_note_has_a_velocity_and_a_length_and_a_border_has_none():
    fits, id = VOCABULARY.fits, VOCABULARY.id
    note, pedal, end = id("note_on", 60), id("sustain", 2), id("end")

    assert fits[note, id("velocity", 7)]
    assert not fits[note, id("velocity", 0)]
    assert fits[pedal, id("velocity", 0)]
    assert not fits[pedal, id("velocity", 7)]
    assert fits[note, id("length", 1)]
    assert fits[pedal, id("length", 1)]
    assert not fits[note, id("length", 0)]
    assert fits[end, id("length", 0)]
    assert not fits[end, id("length", 3)]
    assert (fits == fits.T).all()


def test_written_and_read_again_a_vocabulary_of_fields_is_the_same(tmp_path):
    for text in (NOTES_TEXT, folded_text(), compound_text()):
        vocabulary = tokenizer_of(tmp_path, text).vocabulary
        assert tokenizer_of(tmp_path, vocabulary.toml()).vocabulary == vocabulary
        assert tokenizer_of(tmp_path, vocabulary.toml()).fingerprint == vocabulary.fingerprint
    assert [field.name for field in VOCABULARY.fields] == ["shift", "key", "velocity", "length"]
    assert sum(field.size for field in VOCABULARY.fields) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("exact = 159", "exact = 158"),
        ("exact = 255\ngrowth = 1.04", "exact = 255\ngrowth = 1.05"),
        ("last = 6000", "last = 6001"),
    ],
)
def test_bins_enter_the_fingerprint(tmp_path, old, new):
    assert NOTES_TEXT.count(old) >= 1
    assert tokenizer_of(tmp_path, NOTES_TEXT.replace(old, new)).fingerprint != NOTES.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "shift"', 'name = "wait"', "length, the last one optional, got wait, key"),
        ('name = "length"', 'name = "velocity"', "field names must differ"),
        ("exact = 159", "exact = 6000", "exact must be 0 or more and below last"),
        ("exact = 159", "exact = -1", "exact must be 0 or more and below last"),
        ("growth = 1.04", "growth = 1.5", "growth must be above 1 and at most 1.1, got 1.5"),
        ("growth = 1.04", 'growth = "much"', "growth must be above 1"),
        ("exact = 159 # above", "# above", "bins need both exact"),
        ("last = 6000 # a minute", "last = 60000000", "values must be at most 1,000,000"),
        ('kind = "velocity"', 'kind = "length"', "must have each kind of event once"),
        ("first = 0\nlast = 32", "first = 1\nlast = 32", "velocity events must be 0 to velocity.bins"),
        ("first = 0\nlast = 6000\nexact", "first = 1\nlast = 6000\nexact", "length events must begin at 0, got 1"),
        ("first = 0\nlast = 6000\nexact = 255\ngrowth = 1.04", "first = 0\nlast = 0", "length events must go up to 1"),
        ("last = 1\n", "last = 100000000000\n", "values must be at most 1,000,000"),
        ("first = 1\nlast = 3", "first = 0\nlast = 3", "sustain events must be depths from 1 to a last"),
        ("[[fields]]", '[[events]]\nkind = "pad"\nfirst = 0\nlast = 0\n\n[[fields]]', "both events and fields"),
        ("last = 108 # C8\n", "last = 108\nexact = 30\ngrowth = 1.04\n", "note_on events cannot have bins"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_field_is_told_in_one_line(tmp_path, old, new, says):
    assert old in NOTES_TEXT
    count = -1 if "name = " in old and "[[" not in old else 1
    with pytest.raises(PamusicError, match=says) as error:
        tokenizer_of(tmp_path, NOTES_TEXT.replace(old, new, count))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NOTES_TEXT + '\n[[fields]]\nname = "extra"\nevents = []\n', "the field extra has no events"),
        ('fields = "none"\n' + NOTES_TEXT.split("[[fields]]")[0], r"fields must be tables; write \[\[fields\]\]"),
        (NOTES_TEXT.split("[[fields]]")[0] + "[fields]\nname = 1\n", r"fields must be tables"),
        (NOTES_TEXT.split("[[fields]]")[0] + '[[fields]]\nname = "key"\nevents = [1]\n', r"events must be tables"),
        ("events = [1]\n" + NOTES_TEXT.split("[[fields]]")[0], r"events must be tables"),
    ],
)
def test_what_is_no_table_of_fields_is_told(tmp_path, text, says):
    with pytest.raises(PamusicError, match=says) as error:
        tokenizer_of(tmp_path, text)
    assert "\n" not in str(error.value)


def test_kinds_have_their_fields(tmp_path):
    soft = block("soft")
    moved = NOTES_TEXT.replace(soft, "").replace('[[fields]]\nname = "length"', f'{soft}\n[[fields]]\nname = "length"')
    with pytest.raises(PamusicError, match="soft events must be in the field key, got velocity"):
        tokenizer_of(tmp_path, moved)
    both = NOTES_TEXT.replace(
        block("note_on"), block("note_on") + "\n" + block("note_on").replace("note_on", "note_off")
    )
    with pytest.raises(PamusicError, match="either a length or a note_off"):
        tokenizer_of(tmp_path, both)
    with pytest.raises(PamusicError, match="use \\[\\[fields\\]\\]"):
        tokenizer_of(
            tmp_path, load_vocabulary_text("performance").replace("last = 100", "last = 100\nexact = 50\ngrowth = 1.05")
        )


def load_vocabulary_text(name):
    return load_tokenizer(name).vocabulary.toml()


def test_the_shipped_one_is_what_corpora_and_checkpoints_were_made_with():
    assert NOTES.fingerprint == "9b5ffd42ee7c8b46"
    assert load_vocabulary(Path(__file__).parents[2] / "tokenizers" / "notes.toml").pedals == {
        "soft": 1, "sostenuto": 1, "sustain": 3,
    }  # fmt: skip
