"""`pamusic sample` with several primes, or a folder of them: a file each, as by a command of its own."""

import zipfile
from pathlib import Path

import pytest
from builders import folder_of_tunes, tune
from cli_asserts import one_line_error
from typer.testing import CliRunner

import pamusic.compose.job
from pamusic.cli.app import app
from pamusic.cli.primes import place_of
from pamusic.compose.provenance import read_provenance
from pamusic.music.midi import read_midi

pytestmark = pytest.mark.usefixtures("elsewhere")

HOW = ("--length", 40, "--seed", 3)


@pytest.fixture
def primes(tmp_path):
    """`songs/0.mid` to `songs/2.mid`."""
    return folder_of_tunes(tmp_path / "songs", 3)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_prime_has_a_file_that_is_the_one_of_a_command_of_its_own(sample, primes, tmp_path):
    done = sample("--prime", "songs/0.mid", "--prime", "songs/2.mid", *HOW, "-o", "take.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "take-0.mid\ntake-2.mid\n"
    assert "songs/0.mid (1 of 2)" in done.stderr.splitlines()
    for number in (0, 2):
        alone = sample("--prime", f"songs/{number}.mid", *HOW, "-o", "-").stdout_bytes
        assert (tmp_path / f"take-{number}.mid").read_bytes() == alone
        assert read_provenance(alone, "it").options["prime"] == f"songs/{number}.mid"


def test_a_file_of_a_folder_can_be_made_again(sample, primes):
    assert sample("--prime", "songs", *HOW).stdout == "sample-0.mid\nsample-1.mid\nsample-2.mid\n"

    done = CliRunner().invoke(app, ["replay", "sample-1.mid"])
    assert done.stderr.splitlines()[-1] == "the same, byte for byte"


def test_the_checkpoint_is_loaded_once(sample, primes, monkeypatch):
    loaded = []
    load = pamusic.compose.job.load_checkpoint
    monkeypatch.setattr(pamusic.compose.job, "load_checkpoint", lambda *how: loaded.append(how) or load(*how))

    assert sample("--prime", "songs", *HOW).exit_code == 0
    assert len(loaded) == 1


def test_a_folder_takes_files_that_are_called_as_their_primes_are(sample, primes, tmp_path):
    done = sample("--prime", "songs", "--num-samples", 2, *HOW, "-o", "new/ones")

    assert done.exit_code == 0, done.stderr
    assert names(tmp_path / "new" / "ones") == ["0-2.mid", "0.mid", "1-2.mid", "1.mid", "2-2.mid", "2.mid"]


@pytest.mark.parametrize(
    ("out", "prime", "name"),
    [
        (None, "songs/a.b.mid", "sample-a.b.mid"),
        ("take.midi", "a.MID", "take-a.midi"),
        ("new", "songs/étude.mid.gz", "new/étude.mid"),
        ("here.is/x.mid", "a", "here.is/x-a.mid"),
    ],
)
def test_a_continuation_is_called_after_its_prime(out, prime, name):
    place = place_of(None if out is None else Path(out), Path("sample.mid"))

    assert place(Path(prime)) == Path(name)


def test_nothing_that_is_there_is_overwritten(sample, primes, tmp_path):
    before = {path: path.read_bytes() for path in primes.iterdir()}
    (tmp_path / "take-0.mid").write_bytes(b"dear to somebody")

    assert sample("--prime", "songs", *HOW, "-o", "take.mid").stdout == "take-0-2.mid\ntake-1.mid\ntake-2.mid\n"
    assert sample("--prime", "songs", *HOW, "-o", "songs").stdout.split() == [f"songs/{n}-2.mid" for n in range(3)]
    assert (tmp_path / "take-0.mid").read_bytes() == b"dear to somebody"
    assert all(path.read_bytes() == data for path, data in before.items())


def test_primes_that_fail_are_listed_at_the_end_and_the_others_written(sample, primes, tmp_path):
    (primes / "1.mid").write_bytes(b"no music")
    done = sample("--prime", "songs", "--prime", "nowhere.mid", *HOW, "-o", "out")

    assert done.exit_code == 1
    assert done.stdout == "out/0.mid\nout/2.mid\n"
    *_, first, second, last = done.stderr.splitlines()
    assert first.startswith("failed: songs/1.mid: is not a MIDI file")
    assert second.startswith("failed: nowhere.mid: no such file")
    assert last == "pamusic: error: 2 of 4 primes failed, as listed above; the others are written"
    assert names(tmp_path / "out") == ["0.mid", "2.mid"]


def test_what_a_folder_cannot_give_counts_as_a_failure(sample, primes, tmp_path):
    (primes / "2.mid").unlink()
    with zipfile.ZipFile(primes / "z.zip", "w") as archive:
        archive.writestr("in.mid", (primes / "0.mid").read_bytes())
    (primes / "broken.zip").write_bytes(b"PK\x03\x04")
    done = sample("--prime", "songs", *HOW, "-o", "out")

    assert done.exit_code == 1
    assert done.stdout == "out/0.mid\nout/1.mid\n"
    failures = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2
    assert any("z.zip/in.mid: is in an archive; unpack it" in line for line in failures)
    assert any("broken.zip" in line for line in failures)


def test_a_failure_names_its_prime(sample, primes):
    done = sample("--prime", "songs", "--prime-end", 1000, *HOW, "-o", "out")

    failures = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failures] == ["songs/0.mid", "songs/1.mid", "songs/2.mid"]


def test_an_empty_name_and_a_device_are_refused(sample, primes):
    assert "--prime is empty" in one_line_error(sample("--prime", "", *HOW), 2)
    assert "can take only one file" in one_line_error(sample("--prime", "songs", *HOW, "-o", "/dev/null"))


def test_where_all_fail_nothing_is_left_behind(sample, primes, tmp_path):
    done = sample("--prime", "songs", "--prime-end", 1000, *HOW, "-o", "out")

    assert done.exit_code == 1
    assert done.stdout == ""
    assert "the prime lasts" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("3 of 3 primes failed, as listed above; nothing is written")
    (tmp_path / "empty").mkdir()
    assert "empty: no MIDI file" in one_line_error(sample("--prime", "empty", *HOW, "-o", "out"))
    assert names(tmp_path) == ["empty", "songs"]


def test_a_prime_that_is_named_twice_is_continued_once(sample, primes):
    done = sample("--prime", "songs/1.mid", "--prime", "songs", *HOW)

    assert done.stdout == "sample-1.mid\nsample-0.mid\nsample-2.mid\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.mid"], "use --prime a.mid, or pass their folder: --prime FOLDER"),
        (["--prime", "a.mid", "b c.mid"], "every prime needs its own --prime, but 'b c.mid' has none"),
        (["--prime", "a.mid", "b.mid", "c.mid"], "use --prime b.mid --prime c.mid, or pass"),
        (["--prime", "a.mid", "b.mid", "c.mid", "d.mid", "e.mid"], "use --prime b.mid --prime c.mid …, or pass"),
    ],
)
def test_a_shells_pattern_is_answered_with_how_to_write_it(sample, words, says):
    assert says in one_line_error(sample(*words), 2)


@pytest.mark.parametrize(
    "words",
    [
        ["--prime", "songs", "-o", "-"],
        ["--prime", "songs/0.mid", "--prime", "songs/1.mid", "-o", "-"],
        ["--prime", "-", "--prime", "songs/1.mid"],
        ["--prime", "songs", "--port", "piano"],
    ],
)
def test_what_takes_one_prime_takes_no_more(sample, primes, tmp_path, words):
    told = one_line_error(sample(*words, *HOW, input=tune(0)), 2)

    assert " works with one prime, but " in told
    assert "use --prime once, with one file or -" in told
    assert names(tmp_path) == ["songs"]


def test_files_of_another_kind_are_no_place_for_music(sample, primes, tmp_path):
    (tmp_path / "notes").write_text("mine")

    for name in ("take.wav", "notes"):
        assert "only MIDI files are possible here" in one_line_error(sample("--prime", "songs", *HOW, "-o", name))
    assert names(tmp_path) == ["notes", "songs"]
    assert read_midi(primes / "0.mid").equals(read_midi(tune(0)))
