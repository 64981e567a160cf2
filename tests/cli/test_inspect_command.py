"""`pamusic inspect`: each thing is known for what it is, and told the same in a table and in JSON."""

import io
import json

import mido
import pytest
import torch
from builders import folder_of_tunes, maestro_like, midi_file, note_off, note_on, program, tune, zipped
from corpora import small_corpus
from models import tiny_model
from typer.testing import CliRunner

from pamusic.checkpoint import save_checkpoint
from pamusic.cli.app import app
from pamusic.music.midi import read_midi
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")


def pamusic(*words, **options):
    return CliRunner().invoke(app, ["inspect", *(str(word) for word in words)], **options)


def told(*words, **options):
    done = pamusic(*words, "--json", **options)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return json.loads(done.stdout)


def rows(*words):
    """The rows of all tables, by their first column."""
    done = pamusic(*words)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert "\x1b" not in done.stdout
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    return {name: rest for name, *rest in cells}


def refusal(done):
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("pamusic: error: ")


def test_a_file_in_json(tmp_path):
    (tmp_path / "a.mid").write_bytes(tune(1))
    played = read_midi(tune(1))

    about = told(tmp_path / "a.mid", "--tokenizer", "performance")

    assert (about["what"], about["name"]) == ("MIDI file", str(tmp_path / "a.mid"))
    assert about["file"]["ticks_per_quarter"] == 500
    assert [(track["num_notes"], track["taken"]) for track in about["file"]["tracks"]] == [(20, True)]
    assert about["playing"]["num_notes"] == 20
    assert about["playing"]["seconds"] == played.duration
    (trip,) = about["round_trips"]
    assert trip["num_tokens"] == len(TOKENIZER.encode(played))
    assert (trip["num_notes"], trip["num_lost"]) == (20, 0)
    assert 0 < trip["onset_ms"]["median"] <= trip["onset_ms"]["99%"] <= trip["onset_ms"]["maximum"] <= 5
    assert trip["pedals"]["sustain"]["fate"] == "folded into the notes' lengths"


def test_a_file_in_tables(tmp_path):
    (tmp_path / "a.mid").write_bytes(tune(1))
    trip = told(tmp_path / "a.mid", "--tokenizer", "performance")["round_trips"][0]

    table = rows(tmp_path / "a.mid", "--tokenizer", "performance")

    assert table["format"] == ["0, 500 ticks a quarter"]
    assert table["1"] == ["piano", "1", "0, Acoustic Grand Piano", "20", "yes"]
    assert table["sustain"] == ["folded into the notes' lengths"]
    assert table["notes kept"] == ["20 of 20"]
    assert table["tokens"] == [str(trip["num_tokens"])]
    assert [float(number) for number in table["onset error, ms"][0].split(" / ")] == list(trip["onset_ms"].values())


def test_a_damaged_file_is_told_with_what_was_mended(tmp_path):
    (tmp_path / "a.mid").write_bytes(tune(1)[:-60])

    about = told(tmp_path / "a.mid")

    assert len(about["repairs"]) == 2
    assert "1 track cut off at tick" in about["repairs"][0]
    assert 0 < about["playing"]["num_notes"] == about["file"]["tracks"][0]["num_notes"]
    assert rows(tmp_path / "a.mid")["repaired"][0].startswith("4 notes without an end")
    folder = told(tmp_path)
    assert (folder["num_repaired"], folder["repairs"]["cut off"]) == (1, 1)
    assert "cut off 1" in rows(tmp_path)["repaired"][0]


def test_tracks_are_chosen_as_in_the_other_commands(tmp_path):
    violin = [(0, program(40, 1)), (0, note_on(72, channel=1)), (500, note_off(72, 1))]
    (tmp_path / "a.mid").write_bytes(midi_file(violin, [(0, note_on(60)), (500, note_off(60))]))

    by_default, both, first = (told(tmp_path / "a.mid", *words) for words in ((), ("--tracks", "all"), ("--tracks", 1)))

    assert by_default["playing"]["pitches"] == [60, 60]
    assert by_default["repairs"] == ["1 note of other parts, left out"]
    assert both["playing"]["num_notes"] == both["round_trips"][0]["num_notes"] == 2
    assert first["playing"]["pitches"] == [72, 72]
    assert [(track["channel"], track["taken"]) for track in first["file"]["tracks"]] == [(2, True), (1, False)]
    assert told(tmp_path, "--tracks", "all")["num_notes"] == 2
    assert "has no track 3, but 1 Violin" in refusal(pamusic(tmp_path / "a.mid", "--tracks", "3"))
    assert pamusic(tmp_path / "a.mid", "--tracks", "violin").exit_code == 2


def test_a_file_that_pamusic_made_says_how(tmp_path):
    made = mido.MetaMessage("text", text='pamusic {"seed": 7}')
    (tmp_path / "a.mid").write_bytes(midi_file([(0, made), (0, note_on(60)), (500, note_off(60))]))

    assert told(tmp_path / "a.mid")["file"]["made_by"] == 'pamusic {"seed": 7}'
    assert rows(tmp_path / "a.mid")["made by"] == ['pamusic {"seed": 7}']


def test_standard_input(tmp_path):
    about = told("-", input=tune(1))

    assert about["name"] == "standard input"
    assert about["playing"]["num_notes"] == 20


def test_several_tokenizers_stand_side_by_side(tmp_path):
    (tmp_path / "a.mid").write_bytes(tune(1))
    (tmp_path / "coarse.toml").write_text(
        TOKENIZER.vocabulary.toml().replace('"performance"', '"coarse"').replace("step_ms = 10", "step_ms = 50")
    )

    about = told(tmp_path / "a.mid", "--tokenizer", "performance", "--tokenizer", tmp_path / "coarse.toml")

    assert [trip["tokenizer"] for trip in about["round_trips"]] == ["performance", "coarse"]
    fine, coarse = (trip["onset_ms"]["maximum"] for trip in about["round_trips"])
    assert fine <= 5 < coarse <= 25


def test_every_tokenizer_that_ships_is_measured_unless_told_otherwise():
    from pamusic.tokens.tokenizer import shipped_tokenizers

    about = told("-", input=tune(1))

    assert [trip["tokenizer"] for trip in about["round_trips"]] == shipped_tokenizers()


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_folder_or_zip_is_the_sum_of_its_files(tmp_path, as_zip):
    folder = maestro_like(tmp_path / "maestro")
    (folder / "2004" / "broken.mid").write_bytes(b"broken")
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    place = zipped(tmp_path / "maestro.zip", files) if as_zip else folder

    about = told(place, "--tokenizer", "performance")

    assert (about["what"], about["num_files"], about["num_notes"]) == ("MIDI files", 3, 60)
    assert about["splits"] == {"train": 1, "validation": 1, "test": 1}
    assert [name for name, _ in about["refused"]] == ["2004/broken.mid"]
    tokens = sum(len(TOKENIZER.encode(read_midi(tune(number)))) for number in range(3))
    assert about["round_trips"][0]["num_tokens"] == tokens
    assert rows(place, "--tokenizer", "performance")["refused"] == ["1"] or as_zip


def test_a_corpus(tmp_path):
    corpus = small_corpus(tmp_path / "corpus")

    about = told(tmp_path / "corpus")

    assert (about["what"], about["tokenizer"], about["fingerprint"]) == ("corpus", "performance", corpus.fingerprint)
    assert about["num_tokens"] == len(corpus.ids) == sum(about["kinds"].values())
    assert {name: split["num_pieces"] for name, split in about["splits"].items()} == {
        "train": 2,
        "validation": 1,
        "test": 0,
    }
    assert about["kinds"]["note_on"] == about["kinds"]["note_off"]
    assert about["kinds"]["note_on"] == sum(TOKENIZER.vocabulary.event(int(id))[0] == "note_on" for id in corpus.ids)
    assert about["longest"]["name"] == "1.mid"
    assert about["shortest"]["name"] == "2.mid"
    assert rows(tmp_path / "corpus")["tokens"] == [f"{len(corpus.ids):,}"]


def test_a_checkpoint_by_path(tmp_path):
    model = tiny_model(vocab_size=len(TOKENIZER.vocabulary))
    save_checkpoint(
        tmp_path / "mine", model, TOKENIZER, metadata={"step": 1234, "run": {"lr": 0.02}}, dtype=torch.float32
    )

    about = told(tmp_path / "mine")

    assert (about["what"], about["step"], about["tokenizer"]) == ("checkpoint", 1234, "performance")
    assert about["model"]["vocab_size"] == len(TOKENIZER.vocabulary)
    table = rows(tmp_path / "mine")
    assert (table["step"], table["run.lr"]) == (["1,234"], ["0.02"])
    assert table["num_parameters"] == [f"{model.num_parameters():,}"]


def test_a_checkpoint_that_ships_by_name():
    about = told("small")

    assert about["name"] == "small, which ships with pamusic"
    assert about["num_parameters"] > 1_000_000
    assert about["validation_windows_nats"] < 3


def test_what_is_no_midi_takes_no_options_of_midi(tmp_path):
    small_corpus(tmp_path / "corpus")
    for words, what in (
        ((tmp_path / "corpus", "--tracks", "1"), "corpus"),
        (("small", "--tokenizer", "piano"), "check"),
    ):
        done = pamusic(*words)
        assert done.exit_code == 2
        assert f"--tokenizer and --tracks need MIDI files, got a {what}" in done.stderr


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.mid", b"", "is empty"),
        ("a.mid", b"not MIDI", "is not a MIDI file"),
        ("a.mid", tune(0)[:14], "has no"),
        ("a.zip", b"PK\x03\x04", "is not a zip archive"),
        ("a.mid", midi_file([(0, note_on(38, channel=9)), (9, note_off(38, 9))]), "has only drums"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)

    assert says in refusal(pamusic(tmp_path / name))


def test_what_is_not_there_is_one_line(tmp_path):
    assert "no such file, folder or bundled checkpoint" in refusal(pamusic("smal"))
    assert "no such file, folder" in refusal(pamusic(tmp_path / "none.mid"))
    (tmp_path / "empty").mkdir()
    assert "no MIDI file" in refusal(pamusic(tmp_path / "empty"))
    assert "no tokenizer is called 'remi'" in refusal(pamusic("-", "--tokenizer", "remi", input=tune(0)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mid").write_bytes(b"broken")
    assert "a.mid: is not a MIDI file" in refusal(pamusic(tmp_path / "broken"))
    for name, data in {"0.mid": b"", "b.mid": b"broken", "c.mid": b"too"}.items():
        (tmp_path / "broken" / name).write_bytes(data)
    assert refusal(pamusic(tmp_path / "broken")).startswith(
        "all 4 files were refused; 3 of them by the rule \u201cnot a MIDI file\u201d, such as a.mid: is not"
    )


def test_a_folder_of_tunes_has_no_splits_of_its_own(tmp_path):
    assert told(folder_of_tunes(tmp_path / "tunes", 2))["splits"] == {"none of its own": 2}


def test_a_name_that_no_terminal_should_get_is_spelled_out(tmp_path):
    (tmp_path / "a\x1b[31m.mid").write_bytes(tune(0))

    done = pamusic(tmp_path / "a\x1b[31m.mid")

    assert "\x1b" not in done.stdout
    assert io.StringIO(done.stdout).readline().rstrip().endswith("a\\x1b[31m.mid")


def test_the_names_of_tracks_are_readable_and_what_is_left_out_is_in_the_json(tmp_path):
    name = mido.UnknownMetaMessage(0x03, data=list("ピアノ右手".encode("shift-jis")))
    folder = tmp_path / "tunes"
    folder.mkdir()
    (folder / "a.mid").write_bytes(midi_file([(0, name), (0, note_on(60)), (384, note_off(60))]))
    (folder / "a.txt").write_bytes(b"")

    assert told(folder / "a.mid")["file"]["tracks"][0]["name"] == "ピアノ右手"
    assert told(folder)["left_out"] == ["a.txt"]
    assert "1 file of other kinds (.txt 1): a.txt" in pamusic(folder).stdout
