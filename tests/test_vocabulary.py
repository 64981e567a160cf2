"""The table of events is note-seq's, is data, and is known by what it means."""

import pytest
from note_seq.performance_encoder_decoder import PerformanceOneHotEncoding
from note_seq.performance_lib import PerformanceEvent

from pamusic.errors import PamusicError
from pamusic.shipped import tokenizers_folder
from pamusic.tokens.vocabulary import KINDS, load_vocabulary

SHIPPED = tokenizers_folder() / "performance.toml"
TEXT = SHIPPED.read_text(encoding="utf-8")

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
    with pytest.raises(ValueError, match="time_shift 1 to 100, not 101"):
        vocabulary.id("time_shift", 101)
    with pytest.raises(ValueError, match="ids 0 to 390, not 391"):
        vocabulary.event(391)


def test_the_arrays_say_the_same():
    vocabulary = load_vocabulary(SHIPPED)

    for id in range(len(vocabulary)):
        kind, value = vocabulary.event(id)
        assert KINDS[vocabulary.kind_of_id[id]] == kind
        assert vocabulary.value_of_id[id] == value
        assert vocabulary.seconds_of_id[id] == (value / 100 if kind == "time_shift" else 0)


def test_written_and_read_again_it_is_the_same(tmp_path):
    vocabulary = load_vocabulary(SHIPPED)

    assert loaded(tmp_path, vocabulary.toml()) == vocabulary

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


def test_the_shipped_fingerprint_is_what_corpora_and_checkpoints_were_made_with():
    assert load_vocabulary(SHIPPED).fingerprint == "89fefc6e38824ae7"


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
        ("last = 100", "last = 70000", "at most 65536 fit a corpus"),
        ("step_ms = 10", "step_ms = 0", "time.step_ms is 1 to 1000, not 0"),
        ("step_ms = 10", "step_ms = true", "time.step_ms is 1 to 1000, not True"),
        ("step_ms = 10", "step_ms = nan", "time.step_ms is 1 to 1000, not nan"),
        ("step_ms = 10", 'step_ms = "10"', "time.step_ms is 1 to 1000, not 10"),
        ("bins = 32", "bins = 16", "velocity events must be 1 to velocity.bins"),
        ("bins = 32", "bins = 0", "velocity events must be 1 to velocity.bins"),
        ('"folded"', '"kept"', "pedal.sustain is one of folded, not 'kept'"),
        ('"note_off"', '"note_of"', "events of kind 'note_of'; the kinds are note_on, note_off"),
        ('"end"', '"start"', "must have each kind of event once"),
        ("first = 0\nlast = 127", "first = 0\nlast = 128", "within 0 to 127"),
        (
            'kind = "pad" # never part of a piece\nfirst = 0\nlast = 0',
            'kind = "pad"\nfirst = 0\nlast = 4',
            "pad has one",
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
