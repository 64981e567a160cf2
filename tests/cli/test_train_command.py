"""`pamusic train` and `pamusic evaluate` as a person uses them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import small_corpus
from typer.testing import CliRunner

from pamusic.checkpoint import load_checkpoint
from pamusic.cli.app import app
from pamusic.compose.provenance import read_provenance
from pamusic.training.metrics import COLUMNS, draw_curves, read_metrics

KEPT_RUN = Path(__file__).parents[2] / "docs" / "runs" / "small-24"
TINY = ["--size", "tiny", "--context-length", "64", "--num-latents", "16", "--batch-size", "2", "--no-compile"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder of its own, with a corpus at the default place."""
    monkeypatch.chdir(tmp_path)
    small_corpus(
        tmp_path / "corpus", notes_of_pieces=(120, 300, 40, 30), splits=("train", "train", "validation", "test")
    )
    return tmp_path


def pamusic(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words, code=1):
    outcome = pamusic(*words)
    assert outcome.exit_code == code, outcome.output
    assert "Traceback" not in outcome.output
    if code == 1:
        assert outcome.stderr.count("\n") == 1, outcome.stderr
    return outcome.stderr


def misused(*words):
    told = refused(*words, code=2)
    assert told.count("\n") == 1, told
    return told


@pytest.mark.slow
def test_it_trains_on_the_corpus_just_made_and_prints_the_runs_folder(in_folder):
    outcome = pamusic("train", *TINY, "--steps", 12)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == "runs/tiny\n"
    assert "model: 0.8 M parameters, 2 layers of width 128, context 64, 16 latents" in outcome.stderr
    assert "done at step 12, best validation" in outcome.stderr
    assert load_checkpoint(in_folder / "runs" / "tiny" / "best").model.config.context_length == 64

    again = pamusic("train", *TINY, "--steps", 2)
    assert again.stdout == "runs/tiny-2\n"


@pytest.mark.slow
def test_it_ends_with_the_command_that_samples_from_the_run(in_folder):
    told = "sample from it with: pamusic sample --checkpoint "
    apart = pamusic("train", *TINY, "--steps", 2, "-o", "my run")
    trained = pamusic("train", *TINY, "--steps", 2)

    assert apart.stderr.splitlines()[-1] == f"{told}'my run'"
    assert trained.stderr.splitlines()[-1] == f"{told}runs/tiny (or --checkpoint latest, the newest run)"
    how = ("--length", 20, "--seed", 1, "--device", "cpu")
    for checkpoint, name in (("latest", "a.mid"), ("runs/tiny", "b.mid"), (None, "c.mid")):
        words = ("--checkpoint", checkpoint) if checkpoint else ()
        done = pamusic("sample", *how, *words, "-o", name)
        assert done.exit_code == 0, done.output
        assert ("nocturne, which ships with pamusic" in done.stderr) == (checkpoint is None)
    records = [read_provenance((in_folder / name).read_bytes(), name) for name in ("a.mid", "b.mid")]
    assert records[0].options["checkpoint"] == "runs/tiny/best"  # for latest is another run tomorrow
    assert records[0].weights_sha256 == records[1].weights_sha256


@pytest.mark.slow
def test_it_stops_in_time_and_goes_on_with_resume(in_folder):
    stopped = pamusic("train", *TINY, "--steps", 100_000, "--max-minutes", 0.01, "--out", "mine")
    assert stopped.exit_code == 0, stopped.output
    assert "--resume mine" in stopped.stderr
    step = load_checkpoint(in_folder / "mine" / "last").metadata["step"]

    resumed = pamusic("train", "--resume", "mine", "--steps", step + 3)
    assert resumed.exit_code == 0, resumed.output
    assert f"done at step {step + 3}" in resumed.stderr

    branched = pamusic("train", "--resume", "mine", "--out", "branch", "--cooldown-steps", 4)
    assert branched.exit_code == 0, branched.output
    assert f"done at step {step + 7}" in branched.stderr


@pytest.mark.slow
def test_evaluate_gives_the_same_numbers_as_a_table_and_as_json(in_folder):
    pamusic("train", *TINY, "--steps", 5, "--out", "run")
    table = pamusic("evaluate", "run", "--precision", "fp32")
    assert table.exit_code == 0, table.output
    numbers = json.loads(pamusic("evaluate", "run", "--precision", "fp32", "--json").stdout)
    assert table.stdout == f"{numbers['nats_per_token']:.4f}\n"
    assert numbers["num_pieces"] == 1
    assert numbers["block"] == 8
    assert numbers["num_keys"] == 1
    keys = json.loads(pamusic("evaluate", "run", "--precision", "fp32", "--num-keys", 3, "--json").stdout)
    assert (keys["num_keys"], keys["num_tokens"]) == (3, numbers["num_tokens"])
    assert 0 < abs(keys["nats_per_token"] - numbers["nats_per_token"]) < 0.2
    fewer = json.loads(pamusic("evaluate", "run", "--precision", "fp32", "--num-latents", 4, "--json").stdout)
    assert fewer["num_tokens"] == numbers["num_tokens"]
    assert fewer["num_latents"] == 4


@pytest.mark.slow
def test_evaluate_tells_where_in_a_piece_and_with_how_much_context(in_folder):
    pamusic("train", *TINY, "--steps", 5, "--out", "run")
    words = ["evaluate", "run", "--precision", "fp32", "--sweep", "--plot", "curves.png"]
    told = json.loads(pamusic(*words, "--json").stdout)

    assert sum(stretch["tokens"] for stretch in told["by_position"]) == told["num_tokens"]
    assert [(point["context_length"], point["num_latents"]) for point in told["sweep"]] == [
        (64, 16), (128, 16), (64, 4), (64, 8), (64, 32),
    ]  # fmt: skip
    assert (in_folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "scored with other contexts and latents" in pamusic(*words).stderr
    (in_folder / "file").write_text("in the way")
    told = pamusic(*words[:-1], "file/curves.png")
    assert (told.exit_code, told.stdout) == (1, "")  # before anything was scored
    assert "part of its path is a file" in told.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(in_folder):
    import os
    import signal

    command = [sys.executable, "-m", "pamusic", "train", *TINY, "--steps", "1000000", "--out", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = in_folder / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert out == "run\n"
    assert "stopping after this step" in err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert load_checkpoint(in_folder / "run" / "last").metadata["step"] > 10


def test_bad_input_is_answered_in_one_line(in_folder):
    assert "no corpus there; make one with pamusic tokenize" in refused("train", "nowhere")
    assert "tiny, small, medium, base" in misused("train", "--size", "huge")
    assert "num_latents must be between 1 and context_length" in misused(
        "train", "--context-length", 64, "--num-latents", 65
    )
    assert "num_layers must be between 0 and 1,000" in misused("train", *TINY, "--num-layers", 1001)
    assert "trained weights keep their num_layers" in misused("train", "--init-from", "small", "--num-layers", 2)
    assert "lr must be above 0" in misused("train", *TINY, "--lr", 0)
    assert "steps must be at least 1" in misused("train", *TINY, "--steps", 0)
    assert "precision must be one of" in misused("train", *TINY, "--precision", "int4")
    assert "cannot be used" in refused("train", *TINY, "--device", "toaster")
    assert "no run to resume" in refused("train", "--resume", "nowhere")
    assert "no checkpoint is called" in refused("evaluate", "nothing")
    assert "seed must be at least 0" in misused("train", *TINY, "--seed", -1)
    assert "seed must be at least 0" in misused("train", *TINY, "--seed", 2**63)
    assert "cannot train with these settings" in misused("train", *TINY, "--steps", 10**400)
    assert "'meta' cannot be used" in refused("train", *TINY, "--device", "meta")
    refused("train", *TINY, "--max-minutes", "nan", code=2)
    assert "no corpus there" in refused("train", ".", *TINY)
    assert "keep their size" in misused("train", "--resume", "nowhere", "--size", "tiny")
    refused("evaluate", "small", "--split", "rest", code=2)
    assert "--stride must be at most the latents" in misused("evaluate", "small", "--stride", 4096)
    assert "leave out --sweep, or --num-keys 3" in misused("evaluate", "small", "--sweep", "--num-keys", 3)
    assert not (in_folder / "runs").exists()


@pytest.mark.slow
def test_a_corpus_with_nothing_to_train_on_is_told(in_folder):
    small_corpus(in_folder / "only-test", notes_of_pieces=(40,), splits=("test",))
    assert "no training pieces" in refused("train", "only-test", *TINY)
    small_corpus(in_folder / "only-train", notes_of_pieces=(40,), splits=("train",))
    outcome = pamusic("train", "only-train", *TINY, "--steps", 2)
    assert outcome.exit_code == 0, outcome.output
    assert "no validation pieces" in outcome.stderr
    assert load_checkpoint(in_folder / "runs" / "tiny" / "last").metadata["step"] == 2
    assert "no test pieces" in refused("evaluate", "runs/tiny", "only-train")


def test_a_run_too_short_to_be_worth_compiling_is_not_compiled(in_folder):
    tiny = [word for word in TINY if word != "--no-compile"]
    assert ", not compiled\n" in pamusic("train", *tiny, "--steps", 2).stderr


@pytest.mark.slow
def test_a_run_finds_its_corpus_from_wherever_it_is_resumed(in_folder, monkeypatch):
    pamusic("train", *TINY, "--steps", 2)
    (in_folder / "elsewhere").mkdir()
    monkeypatch.chdir(in_folder / "elsewhere")

    resumed = pamusic("train", "--resume", "../runs/tiny", "--steps", 4)
    assert resumed.exit_code == 0, resumed.output
    assert "done at step 4" in resumed.stderr


@pytest.mark.slow
def test_runs_are_listed_the_best_first(in_folder):
    assert "no runs there" in pamusic("runs").stderr
    assert "nowhere: is not a folder" in refused("runs", "nowhere")
    pamusic("train", *TINY, "--steps", 30, "--out", "runs/long")
    pamusic("train", *TINY, "--steps", 2, "--out", "runs/short")
    (in_folder / "runs" / "broken").mkdir()
    (in_folder / "runs" / "broken" / "run.json").write_text("{")

    listed = pamusic("runs")
    assert listed.stdout == "runs/long\nruns/short\n"
    assert "30 of 30" in listed.stderr
    long, _ = json.loads(pamusic("runs", "--json").stdout)
    assert long["state"] == "finished"
    assert long["latent_tokens"] == 30 * 2 * 16


def test_runs_are_plotted_from_their_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, nats in (("first", 2.0), ("second", 3.0)):
        shutil.copytree(KEPT_RUN, Path("kept", name))
        Path("kept", name, "metrics.csv").write_text(
            f"{','.join(COLUMNS)}\n10,1000,1.0,train,{nats},1.0,,,\n10,1000,1.0,validation,{nats},1.0,,,\n"
        )

    for folder, listed in (("kept", "kept/first\nkept/second\n"), ("kept/second", "kept/second\n")):
        outcome = pamusic("runs", folder, "--plot", "curves.png")
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout == listed
        assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    draw_curves({"": read_metrics(Path("kept", "second", "metrics.csv"))}, Path("trainer.png"))
    assert Path("curves.png").read_bytes() == Path("trainer.png").read_bytes()


def test_a_plot_without_runs_is_refused_and_leaves_no_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing to plot" in refused("runs", "--plot", "curves.png")
    assert "--plot must end in .png" in misused("runs", "--plot", "curves.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_leaves_its_curves_and_music_to_listen_to(in_folder):
    from pamusic.music.midi import read_midi

    how = [*TINY, "--steps", 20, "--precision", "fp32"]  # what is faster here is measured, and busy cores change that
    quiet = pamusic("train", *how, "--out", "quiet")
    heard = pamusic("train", *how, "--out", "heard", "--sample-every", 10)
    assert (quiet.exit_code, heard.exit_code) == (0, 0), heard.output

    picture = (in_folder / "heard" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(read_midi(in_folder / "heard" / "samples" / "step-000010.mid")) > 0
    assert (in_folder / "heard" / "samples" / "step-000020.wav").stat().st_size > 100_000
    same = [(in_folder / run / "last" / "model.safetensors").read_bytes() for run in ("quiet", "heard")]
    assert same[0] == same[1]


def test_settings_in_a_file_give_way_to_options(in_folder):
    (in_folder / "recipe.toml").write_text("size = 'tiny'\nsteps = 9\nbatch_size = 2\n")
    outcome = pamusic(
        "train", "--config", "recipe.toml", "--steps", 2, "--context-length", 64, "--num-latents", 16, "--no-compile"
    )
    assert outcome.exit_code == 0, outcome.output
    assert "steps 0 to 2 of 2 windows" in outcome.stderr
    (in_folder / "recipe.toml").write_text("batchsize = 2\n")
    assert "did you mean batch_size?" in refused("train", "--config", "recipe.toml", code=2)
    assert "pass one of them" in misused("train", "--resume", "runs/tiny", "--init-from", "small")
