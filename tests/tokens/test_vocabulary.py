"""The table of events is note-seq's, is data, and is known by what it means."""

import pytest
from note_seq.performance_encoder_decoder import PerformanceOneHotEncoding
from note_seq.performance_lib import PerformanceEvent

from pamusic.errors import PamusicError
from pamusic.resources import tokenizers_folder
from pamusic.tokens.vocabulary import KINDS, load_vocabulary

SHIPPED, PIANO = (tokenizers_folder() / name for name in ("performance.toml", "piano.toml"))
TEXT, PIANO_TEXT = (path.read_text(encoding="utf-8") for path in (SHIPPED, PIANO))

NOTE_SEQ_KINDS = {
    PerformanceEvent.NOTE_ON: "note_on",
    PerformanceEvent.NOTE_OFF: "note_off",
    PerformanceEvent.TIME_SHIFT: "time_shift",
    PerformanceEvent.VELOCITY: "velocity",
}


def loaded(folder, text):
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_vocabulary(path)


def test_the_388_ids_are_those_of_note_seq_and_three_follow():
    ours, theirs = load_vocabulary(SHIPPED), PerformanceOneHotEncoding(num_velocity_bins=32)

    assert theirs.num_classes == 388
    for id in range(388):
        event = theirs.decode_event(id)
        assert ours.event(id) == (NOTE_SEQ_KINDS[event.event_type], event.event_value)
    assert [ours.event(id) for id in range(388, len(ours))] == [("start", 0), ("end", 0), ("pad", 0)]


def test_id_and_event_are_inverse():
    vocabulary = load_vocabulary(SHIPPED)

    assert [vocabulary.id(*vocabulary.event(id)) for id in range(len(vocabulary))] == list(range(391))
    with pytest.raises(ValueError, match="time_shift of performance must be 1 to 100, got 101"):
        vocabulary.id("time_shift", 101)
    with pytest.raises(ValueError, match="ids of performance must be 0 to 390, got 391"):
        vocabulary.event(391)


def test_the_arrays_say_the_same():
    vocabulary = load_vocabulary(SHIPPED)

    for id in range(len(vocabulary)):
        kind, value = vocabulary.event(id)
        assert KINDS[vocabulary.kind_of_id[id]] == kind
        assert vocabulary.value_of_id[id] == value
        assert vocabulary.seconds_of_id[id] == (value / 100 if kind == "time_shift" else 0)


def test_written_and_read_again_it_is_the_same(tmp_path):
    for path in (SHIPPED, PIANO):
        assert loaded(tmp_path, load_vocabulary(path).toml()) == load_vocabulary(path)

    quoted = loaded(tmp_path, TEXT.replace('"performance"', r'"a \"name\" of \\ mine"'))
    assert loaded(tmp_path, quoted.toml()) == quoted


@pytest.mark.parametrize(
    ("old", "new"),
    [("# velocity", "# loudness"), ('"performance"', '"mine"'), ("version = 1", "version = 2"), ("= 10\n", "= 10.0\n")],
)
def test_comments_and_names_do_not_enter_the_fingerprint(tmp_path, old, new):
    assert loaded(tmp_path, TEXT.replace(old, new)).fingerprint == load_vocabulary(SHIPPED).fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("step_ms = 10", "step_ms = 8"),
        ("last = 100", "last = 125"),
        ("first = 0\nlast = 127", "first = 21\nlast = 108"),
    ],
)
def test_a_changed_meaning_does(tmp_path, old, new):
    assert old in TEXT
    assert loaded(tmp_path, TEXT.replace(old, new)).fingerprint != load_vocabulary(SHIPPED).fingerprint


def test_the_shipped_fingerprints_are_what_corpora_and_checkpoints_were_made_with():
    assert load_vocabulary(SHIPPED).fingerprint == "89fefc6e38824ae7"
    assert load_vocabulary(PIANO).fingerprint == "f120b70c50dffeba"


def test_the_piano_has_88_keys_and_three_pedals():
    piano = load_vocabulary(PIANO)

    assert len(piano.range("note_on")) == len(piano.range("note_off")) == 88
    assert piano.pedals == {"soft": 1, "sostenuto": 1, "sustain": 3}
    assert load_vocabulary(SHIPPED).pedals == {}
    assert (piano.shortest_steps, piano.velocity_bin_width, len(piano)) == (5, 3, 330)


@pytest.mark.parametrize(
    ("old", "new"),
    [("hysteresis = 2", "hysteresis = 3"), ("shortest_ms = 50", "shortest_ms = 60"), ("last = 3\n", "last = 4\n")],
)
def test_what_pedals_mean_enters_the_fingerprint(tmp_path, old, new):
    assert old in PIANO_TEXT
    changed = loaded(tmp_path, PIANO_TEXT.replace(old, new))

    assert changed.fingerprint != load_vocabulary(PIANO).fingerprint
    assert loaded(tmp_path, changed.toml()) == changed


SOFT = """kind = "soft" # the left pedal, up or down
first = 0
last = 1
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('sustain = "played"', 'sustain = "folded"', 'sostenuto, sustain need pedal.sustain = "played"'),
        ("hysteresis = 2", "", "missing or malformed: 'hysteresis'"),
        ("hysteresis = 2", "hysteresis = -1", "pedal.hysteresis must be 0 to 20.2 at this number of depths, got -1"),
        ("hysteresis = 2", "hysteresis = 21", "pedal.hysteresis must be 0 to 20.2 at this number of depths, got 21"),
        ("hysteresis = 2", "hysteresis = true", "must be 0 to 20.2 at this number of depths, got True"),
        ("hysteresis = 2", "hysteresis = nan", "pedal.hysteresis must be 0 to 20.2 at this number of depths, got nan"),
        ("shortest_ms = 50", "", "missing or malformed: 'shortest_ms'"),
        ("shortest_ms = 50", "shortest_ms = 501", "pedal.shortest_ms must be 0 to 50 time steps, got 501"),
        ("shortest_ms = 50", 'shortest_ms = "50"', "pedal.shortest_ms must be 0 to 50 time steps, got 50"),
        (SOFT, SOFT.replace("= 0", "= 1"), "soft events must be depths from 0 (up) to a last of 1 to 15 (down)"),
        (SOFT, SOFT.replace("= 1", "= 0"), "soft events must be depths from 0 (up) to a last of 1 to 15 (down)"),
        (SOFT, SOFT.replace("= 1", "= 16"), "soft events must be depths from 0 (up) to a last of 1 to 15 (down)"),
        (SOFT, SOFT.replace("soft", "sostenuto"), "must have each kind of event once"),
        (SOFT, SOFT.replace('"soft"', '"harp"'), "events of kind 'harp'; use one of note_on"),
        ('[[events]]\nkind = "sustain"', '[[events]]\nkind = "damper"', "events of kind 'damper'"),
    ],
)
def test_what_is_wrong_with_pedals_is_told_in_one_line(tmp_path, old, new, says):
    assert old in PIANO_TEXT
    with pytest.raises(PamusicError) as caught:
        loaded(tmp_path, PIANO_TEXT.replace(old, new))

    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_played_pedals_need_the_sustain_pedal_and_no_other(tmp_path):
    parts = PIANO_TEXT.split("[[events]]")
    without = {name: [part for part in parts if f'"{name}"' not in part] for name in ("soft", "sostenuto")}

    assert loaded(tmp_path, "[[events]]".join(without["soft"])).pedals == {"sostenuto": 1, "sustain": 3}
    assert loaded(tmp_path, "[[events]]".join(without["sostenuto"])).pedals == {"soft": 1, "sustain": 3}
    with pytest.raises(PamusicError, match=r"must have each kind of event once .*sustain"):
        loaded(tmp_path, "[[events]]".join(part for part in parts if 'kind = "sustain"' not in part))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (TEXT, "", "malformed: 'events'"),
        (TEXT, "not = toml = at all", "is not a tokenizer file"),
        ('name = "performance"', "", "malformed: 'name'"),
        ('name = "performance"', 'name = "two\\nlines"', "name must be a line of text"),
        ("version = 1", 'version = "one"', "'one' should be a whole number"),
        ("last = 100", "last = 100.5", "100.5 should be a whole number"),
        ("last = 100", "last = 0", "time_shift ends at 0, below its first value 1"),
        ("last = 100", "last = 70000", "at most 65536 ids to fit a corpus"),
        ("step_ms = 10", "step_ms = 0", "time.step_ms must be 1 to 1000, got 0"),
        ("step_ms = 10", "step_ms = true", "time.step_ms must be 1 to 1000, got True"),
        ("step_ms = 10", "step_ms = nan", "time.step_ms must be 1 to 1000, got nan"),
        ("step_ms = 10", 'step_ms = "10"', "time.step_ms must be 1 to 1000, got 10"),
        ("bins = 32", "bins = 16", "velocity events must be 1 to velocity.bins"),
        ("bins = 32", "bins = 0", "velocity events must be 1 to velocity.bins"),
        ('"folded"', '"kept"', "pedal.sustain must be one of folded, played, got 'kept'"),
        ('"note_off"', '"note_of"', "events of kind 'note_of'; use one of note_on, note_off"),
        ('"end"', '"start"', "must have each kind of event once"),
        ("first = 0\nlast = 127", "first = 0\nlast = 128", "within 0 to 127"),
        (
            'kind = "pad" # never part of a piece\nfirst = 0\nlast = 0',
            'kind = "pad"\nfirst = 0\nlast = 4',
            "pad must have one",
        ),
        ("[[events]]", "[events]", "is not a tokenizer file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path, old, new, says):
    assert old in TEXT
    with pytest.raises(PamusicError) as caught:
        loaded(tmp_path, TEXT.replace(old, new))

    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.toml"))


def test_neither_a_missing_file_nor_a_folder_is_a_vocabulary(tmp_path):
    with pytest.raises(PamusicError, match="no such tokenizer file"):
        load_vocabulary(tmp_path / "none.toml")
    with pytest.raises(PamusicError, match="is not a tokenizer file"):
        load_vocabulary(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PamusicError, match="is not a tokenizer file"):
        load_vocabulary(tmp_path / "bytes.toml")


def test_the_example_of_the_readme_is_a_vocabulary(tmp_path):
    readme = (tokenizers_folder() / "README.md").read_text(encoding="utf-8")

    vocabulary = loaded(tmp_path, readme.partition("```toml\n")[2].partition("```")[0])

    assert (vocabulary.name, len(vocabulary)) == ("piano-5ms", 88 + 88 + 400 + 32 + 3)
