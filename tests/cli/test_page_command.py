"""`pamusic page`: an HTML file of MIDI files, or one line that says why not; it has what files tell of themselves."""

import base64
import json
import re
import shlex
import subprocess
import sys

import pytest
from builders import folder_of_tunes, midi_file, note_off, note_on, program, tune, zipped
from cli_asserts import one_line_error
from models import random_checkpoint
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.cli.reports.provenance import command
from pamusic.compose.provenance import SIGN
from pamusic.music.midi import read_midi
from pamusic.music.splicing import texts, with_text
from pamusic.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random", load_tokenizer("performance"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page(*words, input=None):
    return CliRunner().invoke(app, ["page", *map(str, words)], input=input)


def select_pieces(data):
    """What travels in a page."""
    return json.loads(re.search(rb'<script type="application/json" id="music">(.*?)</script>', data)[1])


def test_a_folder_becomes_a_page_in_the_order_of_its_names(tmp_path):
    folder_of_tunes(tmp_path / "tunes", 3)

    done = page("tunes", "--title", "Tunes")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "page.html\n"
    seconds = sum(read_midi(tune(seed)).duration for seed in range(3))
    assert re.fullmatch(rf"3 pieces, {seconds:.1f} seconds, \d+ kB\n", done.stderr)
    written = (tmp_path / "page.html").read_bytes()
    assert b"<title>Tunes</title>" in written
    pieces = select_pieces(written)
    assert [piece["name"] for piece in pieces] == ["0.mid", "1.mid", "2.mid"]
    assert [base64.b64decode(piece["midi"]) for piece in pieces] == [tune(seed) for seed in range(3)]
    assert [piece["facts"] + piece["commands"] for piece in pieces] == [[], [], []]


def test_files_and_archives_and_nothing_that_was_not_named_is_overwritten(tmp_path):
    zipped(tmp_path / "tunes.zip", {"b.mid": tune(1), "a.mid": tune(2)})
    (tmp_path / "c.mid").write_bytes(tune(3))
    (tmp_path / "page.html").write_text("mine")

    assert page("c.mid", "tunes.zip").stdout == "page-2.html\n"
    assert (tmp_path / "page.html").read_text() == "mine"
    pieces = select_pieces((tmp_path / "page-2.html").read_bytes())
    assert [piece["name"] for piece in pieces] == ["c.mid", "a.mid", "b.mid"]

    assert page("c.mid", "-o", "page.html").stdout == "page.html\n"
    assert len(select_pieces((tmp_path / "page.html").read_bytes())) == 1


def test_it_reads_and_writes_pipes(tmp_path):
    (tmp_path / "c.mid").write_bytes(tune(3))

    done = page("c.mid", "-", "-o", "-", input=tune(4))

    assert done.exit_code == 0, done.stderr
    assert [piece["name"] for piece in select_pieces(done.stdout_bytes)] == ["standard input", "c.mid"]


def test_a_file_found_in_a_folder_that_cannot_be_read_is_left_out_and_told(tmp_path):
    folder_of_tunes(tmp_path / "tunes", 2)
    (tmp_path / "tunes" / "broken.mid").write_bytes(b"no music at all")

    done = page("tunes")

    assert done.exit_code == 0, done.stderr
    first, _ = done.stderr.splitlines()
    assert first.startswith("broken.mid: is not a MIDI file")
    assert first.endswith("; left out")
    assert len(select_pieces((tmp_path / "page.html").read_bytes())) == 2


def test_what_cannot_be_shown_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mid").write_bytes(b"no music at all")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mid").write_bytes(b"no music at all")
    (tmp_path / "good.mid").write_bytes(tune(0))
    (tmp_path / "violin.mid").write_bytes(midi_file([(0, program(40)), (0, note_on(60)), (384, note_off(60))]))

    assert "empty: no MIDI file (.mid, .midi, .kar, .rmi, .smf) found" in one_line_error(page("empty"))
    assert "missing.mid: no such file or folder" in one_line_error(page("good.mid", "missing.mid"))
    assert "bad.mid: is not a MIDI file" in one_line_error(page("good.mid", "bad.mid"))
    assert "standard input: is not a MIDI file" in one_line_error(page("-", input=b"no music at all"))
    assert "has no piano" in one_line_error(page("violin.mid"))
    done = page("broken")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "pamusic: error: broken: none of the 1 MIDI files can be shown"
    assert not list(tmp_path.glob("*.html"))

    assert page("violin.mid", "--tracks", "all").exit_code == 0
    assert page("violin.mid", "--tracks", "some").exit_code == 2


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "a").write_bytes(tune(0))
    (tmp_path / "pages.html").mkdir()

    assert "it is a folder" in one_line_error(page("a", "-o", "pages.html"))
    assert "it is a folder" in one_line_error(page("a", "-o", "."))
    assert "a: is also the input" in one_line_error(page("a", "-o", "a"))
    assert "only HTML files are possible here" in one_line_error(page("a", "-o", "a.mid"))
    assert (tmp_path / "a").read_bytes() == tune(0)


def test_a_page_is_made_without_torch(tmp_path):
    (tmp_path / "a.mid").write_bytes(with_text(tune(0), SIGN + "{}"))
    code = (
        "import sys\n"
        "sys.argv = ['pamusic', 'page', 'a.mid', '-o', 'a.html']\n"
        "from pamusic.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "False"


def sample(checkpoint, *words):
    words = shlex.split(f"sample --checkpoint {shlex.quote(str(checkpoint))} --device cpu --length 60") + list(words)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    "words", ["", "--same-track", "--prime-end 2.5", "--prime-end 2.5 --same-track", "--continuation-only"]
)
def test_the_page_marks_where_new_music_begins_where_the_file_tells_it(checkpoint, tmp_path, words):
    (tmp_path / "prime.mid").write_bytes(tune(0))
    sample(checkpoint, "--prime", "prime.mid", "--seed", "1", "-o", "new.mid", *words.split())

    page("new.mid", "-o", "new.html")

    (piece,) = select_pieces((tmp_path / "new.html").read_bytes())
    if "--prime-end" in words:
        assert piece["newFrom"] == 2.5
    elif words:
        assert piece["newFrom"] is None  # all of it is, or it does not tell
    else:
        onsets, prime = read_midi(tmp_path / "new.mid").notes["onset"], read_midi(tune(0))
        assert piece["newFrom"] == pytest.approx(onsets[len(prime)], abs=0.001)
        assert piece["newFrom"] >= prime.notes["offset"].max()


def test_what_is_begun_from_nothing_is_new_all_of_it(checkpoint, tmp_path):
    sample(checkpoint, "--seed", "1", "-o", "new.mid")
    page("new.mid")

    (piece,) = select_pieces((tmp_path / "page.html").read_bytes())
    assert piece["newFrom"] is None
    assert dict(piece["facts"])["begun from"] == "nothing"


@pytest.mark.parametrize(
    "words",
    [
        "--seed 5",
        "--seed 5 --minutes 0.05 --top-p 0.9 --no-guard",
        "--seed 5 --guard",
        "--prime 'a prime.mid' --prime-end 2.5 --same-track --seed 5 --temperature 0.9",
    ],
)
def test_the_command_that_a_page_tells_makes_the_same_file(checkpoint, tmp_path, words):
    (tmp_path / "a prime.mid").write_bytes(tune(0))
    sample(checkpoint, *shlex.split(words), "-o", "one.mid")

    page("one.mid")

    (piece,) = select_pieces((tmp_path / "page.html").read_bytes())
    (_, again), (_, replay) = piece["commands"]
    assert shlex.split(replay) == ["pamusic", "replay", "one.mid"]
    program, *rest = shlex.split(again)
    assert program == "pamusic"
    done = CliRunner().invoke(app, [*rest, "-o", "two.mid"])
    assert done.exit_code == 0, done.stderr
    made, remade = ((tmp_path / name).read_bytes() for name in ("one.mid", "two.mid"))
    assert read_midi(made).equals(read_midi(remade))


def test_of_many_pieces_each_tells_its_seed(checkpoint, tmp_path):
    sample(checkpoint, "--num-samples", "2", "--seed", "5", "-o", "of-two.mid")
    sample(checkpoint, "--best-of", "3", "--keep", "2", "--seed", "7", "-o", "of-three.mid")
    sample(checkpoint, "--best-of", "2", "--seed", "7", "-o", "best.mid")

    page("of-two-2.mid", "of-three-1.mid", "best.mid")

    seeds = [dict(piece["facts"])["seed"] for piece in select_pieces((tmp_path / "page.html").read_bytes())]
    assert seeds[0] == "6, of 2 from seed 5 on"
    assert re.fullmatch("[789], among the best 2 of 3 from seed 7 on", seeds[1])
    assert re.fullmatch("[78], the best of 2 from seed 7 on", seeds[2])


def test_defaults_are_left_out_of_a_command():
    now = {"seed": 3, "precision": "auto", "let_go": 0.15, "guard": True}

    minute = {**now, "length": None, "seconds": 60.0}
    assert command({**minute, "num": 1, "temperature": 1.0, "prime": None}) == "pamusic sample --seed 3"
    assert command({**minute, "length": 500}) == "pamusic sample --seed 3 --length 500 --seconds 60"
    assert command({**now, "length": 4096}) == "pamusic sample --seed 3 --length 4096"  # once the default
    assert command({**now, "temperature": 0.95, "may_end": False}) == "pamusic sample --seed 3 --temperature 0.95"
    assert command({**now, "num": 2, "guard": False}) == "pamusic sample --seed 3 --num-samples 2"
    assert command({**now, "length": None, "seconds": 180.0, "minutes": 3.0, "end": True}) == (
        "pamusic sample --seed 3 --minutes 3 --end-near-length"
    )
    assert command({**now, "length": 4096, "seconds": 5.0}) == "pamusic sample --seed 3 --length 4096 --seconds 5"
    assert command({**now, "checkpoint": "./mine-1.0"}) == "pamusic sample --seed 3 --checkpoint ./mine-1.0"
    one = {"checkpoint": "nocturne", "temperature_time": 1.0, "temperature_pitch": 0.94}  # it suggests 1.01 and 0.94
    assert command({**now, **one}).endswith(" --temperature-time 1 --checkpoint nocturne")


def test_what_a_record_is_too_old_to_tell_was_as_it_was_then():
    assert command({"seed": 3}) == "pamusic sample --seed 3 --release-bias 0 --no-guard --precision fp32"


def test_a_command_says_that_nothing_was_compiled_where_something_could_have_been():
    now = {"seed": 3, "let_go": 0.15, "guard": True, "compile": False}
    assert command({**now, "precision": "int8"}) == "pamusic sample --seed 3 --precision int8 --no-compile"
    assert command({**now, "precision": "fp32"}) == "pamusic sample --seed 3 --precision fp32"


def test_a_command_holds_no_words_but_its_own():
    record = {"prime": "a b.mid; rm -rf ~", "--evil": "x", "precision": "auto", "let_go": 0.15, "guard": True}
    assert command(record) == "pamusic sample --prime 'a b.mid; rm -rf ~'"


@pytest.mark.parametrize("record", ["{}", '{"format": 9}', "no JSON", '{"format": 1, "options": 3}'])
def test_a_record_that_cannot_be_read_is_told_and_the_music_is_shown(tmp_path, record):
    (tmp_path / "a.mid").write_bytes(with_text(tune(0), SIGN + record))

    done = page("a.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("a.mid: ")
    (piece,) = select_pieces((tmp_path / "page.html").read_bytes())
    assert piece["facts"] == piece["commands"] == []


def test_a_record_may_say_anything_and_does_no_harm(checkpoint, tmp_path):
    sample(checkpoint, "--seed", "1", "-o", "one.mid")
    (text,) = texts((tmp_path / "one.mid").read_bytes())
    record = json.loads(text.removeprefix(SIGN))
    hostile = {
        **record,
        "weights_sha256": "</script>",
        "prime_sha256": ["</script>"],
        "options": {
            "seed": {"a": 1},
            "prime": "</script><script>alert(1)</script>",
            "prime_to": float("nan"),
            "num": [],
        },
        "made_on": {"<b>": "</script>"},
        "tokenizer": "<!--",
    }
    (tmp_path / "two.mid").write_bytes(with_text(tune(0), SIGN + json.dumps(hostile)))

    done = page("two.mid")

    assert done.exit_code == 0, done.stderr
    written = (tmp_path / "page.html").read_bytes()
    assert written.count(b"</script>") == 2
    (piece,) = select_pieces(written)
    assert piece["newFrom"] is None
    assert dict(piece["facts"])["made on"] == "<b> </script>"
    assert "--prime '</script><script>alert(1)</script>'" in piece["commands"][0][1]
