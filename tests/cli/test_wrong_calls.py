"""Whatever is typed, closed, missing, broken or full: one line that says so, before long work; nothing half-done."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mido
import pytest
import torch
from builders import folder_of_tunes, tune
from corpora import small_corpus
from models import tiny_model
from typer.testing import CliRunner

import pamusic
from pamusic.checkpoint import save_checkpoint
from pamusic.cli.app import app
from pamusic.compose.provenance import SIGN
from pamusic.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A corpus, checkpoints, music, and broken ones of each."""
    here = tmp_path_factory.mktemp("work")
    tokenizer = load_tokenizer("performance")
    small_corpus(here / "corpus", splits=("train", "test", "validation"))
    shutil.copytree(here / "corpus", here / "garbled")
    (here / "garbled" / "tokens.bin").write_bytes(b"\xff" * (here / "corpus" / "tokens.bin").stat().st_size)
    save_checkpoint(here / "tiny", tiny_model(), tokenizer, metadata={})
    astray = tiny_model()
    torch.nn.init.constant_(astray.head.weight, float("nan"))
    save_checkpoint(here / "astray", astray, tokenizer, metadata={})
    folder_of_tunes(here / "songs")
    (here / "one.mid").write_bytes(tune(0))
    (here / "text.mid").write_text("no music")
    made = ["sample", "--checkpoint", str(here / "tiny"), "--device", "cpu", "--length", "8", "--seed", "1"]
    assert CliRunner().invoke(app, [*made, "-o", str(here / "made.mid")]).exit_code == 0
    return here


@pytest.fixture(autouse=True)
def here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    before = everything(workplace)
    yield workplace
    assert everything(workplace) == before, "something was left behind, or overwritten"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(*words, input=None):
    """What is said, in one line, after seeing that it is told at once and without a traceback."""
    began = time.perf_counter()
    done = CliRunner().invoke(app, list(words), input=input)
    assert done.exit_code in (1, 2), (done.exit_code, done.stderr, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout_bytes == b""
    assert time.perf_counter() - began < 30
    said = [line for line in done.stderr.splitlines() if line.startswith("pamusic: error: ")]
    assert len(said) == 1, done.stderr
    return " ".join(done.stderr.split())


SAMPLE = ("sample", "--checkpoint", "tiny", "--device", "cpu", "--length", "5")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--num-samples", str(10**12)], "less than or equal to 1024"),
        (["--best-of", str(10**12), "--keep", str(10**12)], "less than or equal to 1024"),
        (["--context-length", str(10**20)], "--context-length"),
        (["--seconds", "nan"], "--seconds must be a number above 0, got nan"),
        (["--minutes", "1e308"], "--minutes must be a number above 0, got 1e+308"),
        (["--minutes", "-2"], "--minutes must be a number above 0, got -2"),
        (["--buffer-seconds", "nan", "--port", "x"], "--buffer-seconds"),
        (["--num-samples", "2", "-o", "/"], "/: cannot name 2 files"),
        (["--num-samples", "2", "-o", ""], ".: cannot name 2 files"),
        (["--num-samples", "2", "-o", "songs"], "songs: cannot name 2 files"),
        (["--num-samples", "2", "-o", os.devnull], "cannot name 2 files"),
        (["--prime", "one.mid", "-o", "one.mid"], "one.mid: is also the input"),
    ],
)
def test_sample_refuses(words, reason):
    assert reason in refused(*SAMPLE, *words)


def test_what_makes_no_sense_is_refused_before_anything_is_read():
    """The checkpoint and the prime are not there, which would be told first if they were looked for."""
    for words in (["--length", "0"], ["--seconds", "0"], ["--temperature", "nan"], ["--top-p", "2"]):
        said = refused("sample", "--checkpoint", "nobody", "--prime", "nothing.mid", *words)
        assert "nobody" not in said
        assert "nothing.mid" not in said
    assert "precision must be one of" in refused("benchmark", "nobody", "--precision", "fp5")


def test_any_number_of_seconds_can_be_asked_for(tmp_path):
    done = CliRunner().invoke(app, [*SAMPLE, "--seconds", "1e306", "-o", str(tmp_path / "out.mid")])

    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[1].startswith("5 tokens")


@pytest.mark.parametrize("command", [["compare", "songs", "songs"], ["evaluate", "tiny", "corpus"]])
@pytest.mark.parametrize("name", ["songs/0.mid", "corpus/tokens.bin", "-", "", "picture.svg"])
def test_a_plot_is_a_png_file_and_never_what_is_read(command, name):
    assert "--plot must end in .png" in refused(*command, "--plot", name)


@pytest.mark.parametrize(
    "words",
    [
        ["originality", "songs", "--corpus", "garbled"],
        ["evaluate", "tiny", "garbled"],
        ["train", "garbled", "--size", "tiny", "--steps", "5", "--no-compile", "--device", "cpu", "--out", "run"],
    ],
)
def test_a_corpus_of_ids_that_there_are_not_is_told(words):
    said = refused(*words)

    assert "garbled: tokens.bin is broken (" in said
    assert "make it again with pamusic tokenize" in said


@pytest.mark.parametrize("words", [[], ["--cache-drift"], ["--json"]])
def test_a_model_that_went_astray_has_no_score(words):
    assert "logits are not numbers" in refused("evaluate", "astray", "corpus", *words)


@pytest.mark.parametrize("words", [["--max-pieces", str(10**14)], ["--cache-drift", "--max-pieces", str(10**14)]])
def test_more_pieces_than_there_are_are_all_of_them(words):
    done = CliRunner().invoke(app, ["evaluate", "tiny", "corpus", "--split", "validation", "--json", *words])

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)


def test_nothing_but_music_is_refused_before_an_index_is_made():
    refused("originality", "text.mid", "--corpus", "corpus")  # which would have left the index in the corpus' folder


def edited(**changes):
    """What `made.mid` says of how it was made, changed, in a file's bytes; names with a dot are within `options`."""
    file = mido.MidiFile("made.mid")
    message = next(each for each in file.tracks[0] if each.type == "text")
    record = json.loads(message.text.removeprefix(SIGN))
    for name, value in changes.items():
        (record["options"] if name in record["options"] else record)[name] = value
    message.text = SIGN + json.dumps(record)
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "x"}, {"seed": None}, {"seed": True}, {"length": [1]}, {"prime": 5}, {"tracks": 5}, {"guard": "no"},
        {"temperature": "hot"}, {"num": 0}, {"num": 10**40}, {"seed": 10**40}, {"length": None},
        {"row": 7}, {"row": -1}, {"row": "x"}, {"row": None},
        {"stopped_after": "x"}, {"stopped_after": -3}, {"alarms": "x"}, {"weights_sha256": 5}, {"made_on": 5},
        {"refill": None}, {"precision": 7}, {"device": 7}, {"checkpoint": ["tiny"]}, {"temperature": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_was_changed_is_told(changes, tmp_path):
    (tmp_path / "edited.mid").write_bytes(edited(**changes))

    refused("replay", str(tmp_path / "edited.mid"), "-o", str(tmp_path / "again.mid"))
    assert os.listdir(tmp_path) == ["edited.mid"]


def test_threads_that_no_machine_has_are_not_asked_for(tmp_path):
    (tmp_path / "edited.mid").write_bytes(edited(made_on={"threads": 10**8}))
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "edited.mid"), "-o", str(tmp_path / "again.mid")])

    assert done.exit_code == 0, done.stderr
    assert re.search(r"threads \d+, then 100000000", done.stderr)


def test_a_file_is_not_replayed_over_itself():
    assert "made.mid: is also the input" in refused("replay", "made.mid", "-o", "made.mid")


def in_a_shell(words, tmp_path):
    """Exit status and words on standard error of a shell's line, in which `pamusic` stands for the command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(pamusic.__file__).parents[1])}
    line = words.replace("pamusic", f"{sys.executable} -m pamusic").replace("OUT", str(tmp_path / "out.mid"))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="a POSIX shell")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("pamusic inspect - <&-", 1, "standard input is closed; pass the name of a file instead of -"),
        ("pamusic play - --port x <&-", 1, "standard input is closed; pass the name of a file instead of -"),
        ("pamusic sample --checkpoint tiny --length 5 -o - >&-", 1, "standard output is closed; pass a file"),
        ("pamusic sample --checkpoint tiny --length 5 -o OUT >&- 2>&- <&-", 0, ""),
        ("pamusic compare songs songs 2>&-", 0, ""),
        ("pamusic compare songs songs --json >/dev/full", 1, "standard output: the disk is full"),
        ("pamusic compare songs songs --json | head -c0; exit ${PIPESTATUS[0]}", 0, ""),
        ("pamusic sample --checkpoint tiny --length 5 -o /dev/full", 1, "cannot write /dev/full: the disk is full"),
    ],
)
def test_streams_that_are_closed_or_full_end_in_a_line(words, code, said, tmp_path):
    if "/dev/full" in words and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    returncode, stderr, _ = in_a_shell(words, tmp_path)

    assert returncode in {code, 141 if "head" in words else code}
    assert "Traceback" not in stderr
    assert said in stderr
    if code == 0 and "OUT" in words:
        assert (tmp_path / "out.mid").read_bytes()[:4] == b"MThd"


@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize(
    "words", ["inspect made.mid", "tokenize songs -o OUT --workers 2", "page made.mid -o OUT.html", "runs", "--help"]
)
def test_a_stream_that_a_command_does_not_need_may_be_closed(words, closed, tmp_path):
    returncode, stderr, _ = in_a_shell(f"pamusic {words} {closed}", tmp_path)

    assert returncode == 0, stderr
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def with_a_stream_closed(workplace, tmp_path_factory):
    """Runs a command with a stream closed: exit status and words on standard error."""
    environment = {**os.environ, "PYTHONPATH": str(Path(pamusic.__file__).parents[1])}
    program = Path(__file__).parents[1] / "support" / "closed_streams.py"
    folder = tmp_path_factory.mktemp("streams")
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        cwd=workplace,
    ) as running:  # fmt: skip

        def run(words, closed):
            running.stdin.write(json.dumps([words, closed, str(folder)]) + "\n")
            running.stdin.flush()
            return json.loads(running.stdout.readline())

        yield run
        running.stdin.close()


TINY_SHAPE = "--size tiny --context-length 64 --num-latents 16 --device cpu"


@pytest.mark.slow  # all of them together: one program loads PyTorch once for all
@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("sample --checkpoint tiny --device cpu --length 5 --seed 1 -o OUT.mid", True),
        ("replay made.mid -o OUT.mid", True),
        ("render one.mid --engine midirenderer -o OUT.wav", True),
        ("average tiny tiny -o OUT", True),
        (f"train corpus {TINY_SHAPE} --steps 2 --no-compile --precision fp32 -o OUT", True),
        ("evaluate tiny corpus --split validation", False),
        ("compare songs songs --workers 1", False),
        ("benchmark tiny --context-length 64 --num-samples 1 --tokens 2 --no-compile --device cpu", False),
        (f"doctor {TINY_SHAPE}", False),
    ],
    ids=lambda words: words.split()[0] if isinstance(words, str) else "",
)
def test_a_command_of_any_kind_runs_with_a_stream_closed(with_a_stream_closed, tmp_path, words, made, closed):
    code, stderr = with_a_stream_closed(words.replace("OUT", str(tmp_path / "out")).split(), closed)

    assert code == 0, stderr
    assert "Traceback" not in stderr
    assert [path.stem for path in tmp_path.iterdir()] == ["out"] * made


@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed):
    code = "import os; from pamusic import cli; cli._fill_closed_streams(); os._exit(os.open(os.devnull, os.O_RDONLY))"
    environment = {**os.environ, "PYTHONPATH": str(Path(pamusic.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}' {closed}"], env=environment, stdin=subprocess.DEVNULL
    )

    assert done.returncode >= 3


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="a POSIX shell")
def test_a_pipe_that_has_a_name_is_written_to(tmp_path):
    code, stderr, stdout = in_a_shell("pamusic sample --checkpoint tiny --length 5 -o >(head -c4) | cat", tmp_path)

    assert code == 0, stderr
    assert "MThd" in stdout
