"""`pamusic sample`: a MIDI file that goes on from a prime, or one line that says why not."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import mido
import numpy as np
import pretty_midi
import pytest
import symusic
from builders import control, midi_file, note_off, note_on, program
from cli_asserts import one_line_error, wait_for
from flat_sampling import compose
from models import random_checkpoint
from typer.testing import CliRunner

import pamusic.cli.commands.sample
import pamusic.cli.sampling_run
from pamusic.checkpoint import load_checkpoint
from pamusic.cli.app import app
from pamusic.cli.commands.sample import NOT_REQUESTED
from pamusic.compose.provenance import SIGN, read_provenance
from pamusic.compose.request import DEFAULT_SECONDS, SampleRequest
from pamusic.compose.token_stream import nats_per_token
from pamusic.evaluation.likelihood import score
from pamusic.music.midi import midi_bytes, read_midi
from pamusic.music.performance import PEDALS, Performance
from pamusic.music.splicing import texts
from pamusic.sampling.config import SamplingConfig
from pamusic.tokens.prime import prime_ids
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.tokens.vocabulary import CLASSES, KINDS

pytestmark = pytest.mark.usefixtures("elsewhere")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_options_are_the_requests_with_its_defaults():
    parameters = inspect.signature(pamusic.cli.commands.sample.sample).parameters
    defaults = {name: each.default for name, each in parameters.items() if name not in NOT_REQUESTED}

    assert SampleRequest.from_options(defaults) == SampleRequest()
    assert [*defaults] == [each.name for each in fields(SampleRequest) if each.name != "prime"]
    assert f"(default: {DEFAULT_SECONDS:.0f})" in CliRunner().invoke(app, ["sample", "--help"]).stdout


def test_the_prime_comes_first_as_it_was_read(sample, prime, tmp_path):
    done = sample("--prime", prime, "--length", 200, "--seed", 7, "-o", tmp_path / "out.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.mid'}\n"
    assert "seed 7" in done.stderr
    assert "200 tokens" in done.stderr
    read, before = read_midi(tmp_path / "out.mid"), read_midi(prime)
    assert read.notes[:2].tolist() == before.notes.tolist()
    assert len(read) > 2
    assert read.notes["onset"][2:].min() >= 1.5
    assert read.pedal.tolist() == before.pedal.tolist()


def test_what_was_mended_in_the_prime_is_told_in_a_line(sample, tmp_path):
    damaged = midi_file([(0, program(40)), (0, note_on(60)), (384, note_off(60)), (384, note_on(64))])[:-4]
    (tmp_path / "violin.mid").write_bytes(damaged)

    refused = sample("--prime", tmp_path / "violin.mid", "--length", 20)
    assert refused.exit_code == 1
    assert "has no piano (programs 0 to 7), but 1 Violin (1 note); select them with --tracks all" in refused.stderr

    done = sample("--prime", tmp_path / "violin.mid", "--tracks", 1, "--length", 20, "-o", tmp_path / "out.mid")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[0] == (
        f"{tmp_path / 'violin.mid'}: 1 track cut off at tick 384, kept up to the cut (second 0.5); "
        "1 note without length, left out"
    )


def test_other_programs_read_the_same_file(sample, prime, tmp_path):
    assert sample("--prime", prime, "--length", 400, "--seed", 1, "-o", "out.mid").exit_code == 0
    ours = read_midi(tmp_path / "out.mid").notes

    theirs = [note for instrument in pretty_midi.PrettyMIDI("out.mid").instruments for note in instrument.notes]
    assert sorted((note.pitch, round(note.start, 3), round(note.end, 3)) for note in theirs) == sorted(
        (pitch, round(onset, 3), round(offset, 3)) for onset, offset, pitch, _ in ours.tolist()
    )
    assert symusic.Score("out.mid").note_num() == len(ours)
    sounding = np.zeros((16, 128), int)
    for message in mido.MidiFile("out.mid"):
        if message.type in ("note_on", "note_off"):
            key = message.channel, message.note
            sounding[key] += 1 if message.type == "note_on" and message.velocity else -1
            assert sounding[key] in (0, 1)
    assert not sounding.any()


def test_the_same_seed_gives_the_same_file(sample, prime):
    def music(*words):
        return sample("--prime", prime, "--length", 60, "-o", "-", *words).stdout_bytes

    assert music("--seed", 3) == music("--seed", 3) != music("--seed", 4)
    assert music() != music()


def test_it_reads_and_writes_pipes(sample, prime, tmp_path):
    done = sample("--prime", "-", "-o", "-", "--length", 50, "--seed", 3, input=prime.read_bytes())

    assert done.exit_code == 0, done.stderr
    by_name = sample("--prime", prime, "-o", "-", "--length", 50, "--seed", 3).stdout_bytes
    assert read_midi(done.stdout_bytes).equals(read_midi(by_name))
    assert mido.MidiFile(file=io.BytesIO(done.stdout_bytes)).length > 1.5
    assert names(tmp_path) == ["prime.mid"]


def test_nothing_is_overwritten_that_was_not_named(sample, tmp_path):
    first, second = (sample("--length", 30, "--seed", seed) for seed in (1, 2))

    assert (first.stdout, second.stdout) == ("sample.mid\n", "sample-2.mid\n")
    before = (tmp_path / "sample.mid").read_bytes()
    assert sample("--length", 30, "--seed", 2, "-o", "sample.mid").stdout == "sample.mid\n"
    assert (tmp_path / "sample.mid").read_bytes() == (tmp_path / "sample-2.mid").read_bytes() != before


def test_many_pieces_are_numbered_and_have_the_seeds_that_follow(sample, prime, tmp_path):
    how = ("--prime", prime, "--length", 40)
    done = sample(*how, "--seed", 3, "--num-samples", 3, "-o", tmp_path / "out.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / f"out-{number}.mid") for number in (1, 2, 3)]
    assert "120 tokens" in done.stderr
    for number in (1, 2, 3):
        alone = read_midi(sample(*how, "--seed", 2 + number, "-o", "-").stdout_bytes)
        assert read_midi(tmp_path / f"out-{number}.mid").equals(alone)
    assert sample("--length", 5, "--num-samples", 2).stdout == "sample.mid\nsample-2.mid\n"
    refused = sample("--num-samples", 2, "-o", "-")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "standard output takes one file, got 2" in refused.stderr


def test_numbered_files_take_free_names_for_nobody_named_them(sample, tmp_path):
    (tmp_path / "out-2.mid").write_bytes(b"dear to somebody")
    done = sample("--length", 20, "--num-samples", 2, "--seed", 1, "-o", "out.mid")

    assert done.stdout == "out-1.mid\nout-2-2.mid\n"
    assert (tmp_path / "out-2.mid").read_bytes() == b"dear to somebody"


@pytest.mark.parametrize("name", ["recording.wav", "folder/"])
def test_no_music_is_written_over_what_is_called_otherwise(sample, tmp_path, name):
    before = names(tmp_path)
    done = sample("--length", 20, "-o", name)

    assert one_line_error(done).startswith("pamusic: error: " + name.removesuffix("/") + ": only MIDI files")
    assert names(tmp_path) == before


def test_the_continuation_alone_begins_at_zero(sample, prime, tmp_path):
    assert sample("--prime", prime, "--length", 200, "--seed", 7, "-o", "all.mid").exit_code == 0
    assert sample("--prime", prime, "--length", 200, "--seed", 7, "-o", "new.mid", "--continuation-only").exit_code == 0

    whole, new = read_midi(tmp_path / "all.mid"), read_midi(tmp_path / "new.mid")
    assert np.allclose(whole.notes["onset"][2:], new.notes["onset"] + 1.5, atol=2e-3)
    assert len(new.pedal) == 0


def test_without_a_length_it_is_a_minute_and_the_record_says_so(sample, tmp_path):
    assert sample("--seed", 1, "--no-guard", "-o", "out.mid").exit_code == 0
    assert sample("--seed", 1, "--no-guard", "--seconds", 60, "-o", "minute.mid").exit_code == 0

    record = read_provenance((tmp_path / "out.mid").read_bytes(), "out.mid")
    assert (record.options["seconds"], record.options["length"]) == (60, None)
    assert (tmp_path / "out.mid").read_bytes() == (tmp_path / "minute.mid").read_bytes()
    assert 50 < mido.MidiFile("out.mid").length < 60.001


def test_seconds_are_kept(sample, tmp_path):
    assert sample("--seconds", 12.5, "--seed", 1, "-o", "out.mid").exit_code == 0

    assert 11 < mido.MidiFile("out.mid").length < 12.501


def test_of_many_pieces_the_best_are_kept_and_each_can_be_made_again(sample, prime, tmp_path):
    how = ("--prime", prime, "--length", 60, "--seed", 3)
    assert sample(*how, "--num-samples", 5, "-o", "all.mid").exit_code == 0
    done = sample(*how, "--best-of", 5, "--keep", 2, "-o", "best.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "best-1.mid\nbest-2.mid\n"
    everything = [read_midi(tmp_path / f"all-{number}.mid") for number in range(1, 6)]
    rows = []
    for number in (1, 2):
        music = read_midi(tmp_path / f"best-{number}.mid")
        rows.append(next(row for row, each in enumerate(everything) if each.equals(music)))
        again = CliRunner().invoke(app, ["replay", f"best-{number}.mid"])
        assert "the same, byte for byte" in again.stderr
    told = [line.split("│") for line in done.stderr.splitlines() if line.startswith("│")]
    seeds = [int(cells[2]) for cells in told if cells[2].strip()]
    assert sorted(seeds) == [3, 4, 5, 6, 7]
    assert [seed - 3 for seed in seeds[:2]] == rows
    assert [cells[1].strip() for cells in told if cells[2].strip()] == ["yes", "yes", "", "", ""]


def test_pieces_are_compared_with_what_was_heard_of_the_prime(sample, tmp_path):
    """What comes behind the cut, here the pedal a minute later, is no part of it."""
    rng = np.random.default_rng(1)
    played = [(tick, note) for k in range(120) for tick, note in _stroke(40 * k, int(rng.integers(40, 90)))]
    (tmp_path / "short.mid").write_bytes(midi_file(played))
    (tmp_path / "long.mid").write_bytes(midi_file([*played, (60_000, control(127)), (60_100, control(0))]))
    told = [
        sample("--prime", name, "--prime-end", 6, "--best-of", 3, "--length", 60, "--seed", 3).stderr.splitlines()
        for name in ("short.mid", "long.mid")
    ]
    short, long = ([line for line in lines if line.startswith("│")] for lines in told)
    assert len(short) >= 3
    assert short == long


def _stroke(tick, pitch):
    return [(tick, note_on(pitch, 70)), (tick + 35, note_off(pitch))]


def test_one_is_kept_without_a_number_and_goes_down_a_pipe(sample):
    done = sample("--best-of", 3, "--length", 40, "--seed", 1, "-o", "-")

    assert done.exit_code == 0, done.stderr
    assert len(read_midi(done.stdout_bytes))
    assert sample("--best-of", 3, "--length", 40, "--seed", 1).stdout == "sample.mid\n"


def test_what_a_piece_costs_the_model_is_what_evaluation_says_of_it(checkpoint, prime):
    """Its new tokens alone, whatever filters they were drawn through."""
    composer, opening = load_checkpoint(checkpoint), read_midi(prime)
    ids = [list(compose(composer, opening, seed=seed, length=50)) for seed in (1, 2)]
    before = [composer.tokenizer.vocabulary.id("start"), *prime_ids(composer.tokenizer, opening).tolist()]

    expected = [score(composer.model, np.array([*before, *new]))[0][-50:].mean() for new in ids]
    assert nats_per_token(composer, ids, opening) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(nats_per_token(composer, [[]])).all()


def test_a_guard_tells_what_it_takes_back_and_its_piece_can_be_made_again(sample, tmp_path):
    done = sample("--guard", "--temperature", 0, "--release-bias", 0, "--length", 700, "--seed", 1, "-o", "out.mid")

    assert done.exit_code == 0, done.stderr
    alarms = [line for line in done.stderr.splitlines() if line.startswith("guard, seed 1: a key held from second ")]
    assert alarms
    record = next(text for text in texts((tmp_path / "out.mid").read_bytes()) if text.startswith(SIGN))
    assert json.loads(record.removeprefix(SIGN))["alarms"] == len(alarms)
    again = CliRunner().invoke(app, ["replay", "out.mid"])
    assert again.stderr.splitlines()[-1] == "the same, byte for byte"


@pytest.mark.parametrize(
    ("words", "is_guarded"),
    [
        ([], True),
        (["--num-samples", 1, "-o", "-"], True),
        (["--no-guard"], False),
        (["--num-samples", 2], False),
        (["--num-samples", 2, "--guard"], True),
        (["--best-of", 2], False),
        (["--best-of", 1], True),
    ],
)
def test_one_piece_is_guarded_unless_it_is_said(sample, tmp_path, words, is_guarded):
    done = sample("--length", 20, "--seed", 1, *words)

    assert done.exit_code == 0, done.stderr
    data = done.stdout_bytes if "-" in words else (tmp_path / done.stdout.split()[0]).read_bytes()
    assert read_provenance(data, "it").options["guard"] is is_guarded


def test_the_piece_may_end_by_itself(sample, tmp_path):
    """Where nothing sounds, that is: on a piano of one key chance comes to that."""
    text = load_tokenizer("performance").vocabulary.toml().replace("= 127", "= 0")
    text = text.replace("= 100", "= 4").replace("= 32", "= 2")
    (tmp_path / "one-key.toml").write_text(text)
    one_key = random_checkpoint(tmp_path / "one-key", load_tokenizer(str(tmp_path / "one-key.toml")))
    done = sample("--length", 1500, "--temperature", 1000, "--seed", 1, "--allow-end", "--checkpoint", one_key)

    assert done.exit_code == 0
    assert int(done.stderr.splitlines()[1].split(" tokens")[0].replace(",", "")) < 1500


def test_a_piece_comes_to_an_end_near_the_minutes_asked_for_with_all_it_struck_let_go(sample, tmp_path):
    assert sample("--minutes", 0.2, "--end-near-length", "--seed", 1, "-o", "out.mid").exit_code == 0
    stopped = sample("--minutes", 0.2, "--seed", 1, "-o", "stopped.mid")

    assert stopped.exit_code == 0
    onsets = [read_midi(tmp_path / name).notes["onset"].max() for name in ("stopped.mid", "out.mid")]
    assert onsets[0] < 12
    assert onsets[1] < 1.2 * 12 + 1
    assert 12 <= mido.MidiFile("out.mid").length <= 1.25 * 12 + 1


def test_with_a_vocabulary_of_pedals_the_file_has_pedals(sample, prime, tmp_path):
    piano = random_checkpoint(tmp_path / "piano", load_tokenizer("piano"))
    done = sample(
        "--prime", prime, "--seconds", 30, "--seed", 1, "--release-bias", 0, "--checkpoint", piano, "-o", "out.mid"
    )

    assert done.exit_code == 0
    opening, music = read_midi(prime), read_midi(tmp_path / "out.mid")
    follows = music.pedal[music.pedal["time"] > opening.duration]
    values = set(follows["value"].tolist())
    assert values <= {0, 42, 85, 127}
    assert values & {42, 85}  # half pedal
    for number in PEDALS:
        assert not music.pedal["value"][music.pedal["control"] == number][-1:].any()


def test_what_is_no_music_is_never_drawn(checkpoint):
    composer = load_checkpoint(checkpoint)
    drawn = np.array(list(compose(composer, seed=1, length=500)))

    kinds = {KINDS[kind] for kind in composer.tokenizer.vocabulary.kind_of_id[drawn]}
    assert kinds == {"note_on", "note_off", "time_shift", "velocity"}


@pytest.mark.parametrize(("option", "kind"), [("time", "time_shift"), ("pitch", "note_on"), ("velocity", "velocity")])
def test_a_temperature_of_a_class_is_for_its_kind_of_event_alone(checkpoint, option, kind):
    """At 0 the first choice among ids of that kind is the likeliest, whatever the seed; of other kinds it is not."""
    composer = load_checkpoint(checkpoint)
    temperatures = tuple(0.0 if option == name else 1.0 for name in CLASSES)
    sampling = SamplingConfig(class_temperatures=temperatures, top_p=1)
    first = [next(compose(composer, seed=seed, length=1, sampling=sampling)) for seed in range(200)]

    kinds = composer.tokenizer.vocabulary.kind_of_id
    chosen = {other: {id for id in first if KINDS[kinds[id]] == other} for other in ("time_shift", "velocity")}
    for other, ids in chosen.items():
        assert (len(ids) == 1) == (other == kind), other


def test_the_model_may_see_less_and_work_on_fewer(sample, checkpoint, tmp_path):
    """The options reach the composer: the piece is the one that it composes so, and another than without them."""
    less = {"--context-length": 16, "--num-latents": 3}
    for words in ([], [word for option in less.items() for word in option]):
        how = ("--length", 100, "--seed", 1, "--precision", "fp32", "--no-compile")
        assert sample(*how, *words, "-o", f"{len(words)}.mid").exit_code == 0
    pieces = [read_midi(tmp_path / name).notes.tolist() for name in ("0.mid", "4.mid")]
    composer = load_checkpoint(checkpoint)
    ids = compose(composer, seed=1, length=100, context_length=16, num_latents=3)
    expected = composer.tokenizer.decode(np.array(list(ids)))
    assert pieces[0] != pieces[1]
    assert [note[2:] for note in pieces[1]] == expected.notes[["pitch", "velocity"]].tolist()


def test_notes_that_the_model_has_no_keys_for_are_told(sample, tmp_path):
    piano = random_checkpoint(tmp_path / "piano", load_tokenizer("piano"))
    low = [(0, note_on(10)), (384, note_off(10)), (384, note_on(60)), (768, note_off(60))]
    (tmp_path / "low.mid").write_bytes(midi_file([(0, program(0)), *low]))
    told = "the model does not hear 1 of the prime's 2 notes: piano knows pitches 21 to 108"

    assert told in sample("--prime", "low.mid", "--length", 5, "--checkpoint", piano).stderr.splitlines()
    assert told not in sample("--prime", "low.mid", "--length", 5).stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--length", "0"], "--length"),
        (["--seconds", "0"], "seconds must be a number above 0"),
        (["--seconds", "nan"], "seconds must be a number above 0"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--top-p", "2"], "top_p must be above 0"),
        (["--top-k", "-1"], "top_k must be at least 1"),
        (["--min-p", "2"], "min_p must be between 0"),
        (["--typical-p", "0"], "typical_p must be above 0"),
        (["--release-bias", "-1"], "release_bias must be between 0 and 20, got -1"),
        (["--temperature-pitch", "-1"], "--temperature-pitch must be between 0 and 1000, got -1.0"),
        (["--temperature-length", "nan"], "--temperature-length must be between 0 and 1000, got nan"),
        (["--temperature", "-1"], "temperature must be between 0"),
        (["--temperature", "warm"], "--temperature"),
        (["--seed", str(2**63)], "--seed"),
        (["--num-samples", "0"], "--num-samples"),
        (["--num-samples", "3", "--temperature", "0"], "is deterministic, so all 3 pieces would be equal"),
        (["--best-of", "3", "--temperature", "0"], "is deterministic"),
        (["--num-samples", "2", "--best-of", "4"], "--num-samples keeps all pieces, --best-of some of them"),
        (["--keep", "2"], "--keep 2 needs --best-of with 2 or more"),
        (["--best-of", "2", "--keep", "3"], "--keep 3 needs --best-of with 3 or more"),
        (["--best-of", "0"], "--best-of"),
        (["--best-of", "2", "--port", "x"], "--port plays one piece, got 2"),
        (["--buffer-seconds", "2"], "--buffer-seconds requires --port; pass the port that plays the music"),
        (["--refill", "none"], "refill must be half, last-128, slide, all or a number"),
        (["--num-latents", "0"], "num-latents"),
        (["--num-latents", "1000"], "num_latents must be between 1 and"),
    ],
)
def test_wrong_usage(sample, tmp_path, words, reason):
    done = sample(*words)

    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.replace("│", " ").split())
    assert names(tmp_path) == []


def test_a_prime_that_is_none(sample, tmp_path):
    (tmp_path / "text.mid").write_text("not music")
    (tmp_path / "silent.mid").write_bytes(midi_bytes(Performance()))

    assert "no such file" in one_line_error(sample("--prime", "missing.mid"))
    assert "is not a MIDI file" in one_line_error(sample("--prime", "text.mid"))
    assert "no notes" in one_line_error(sample("--prime", "silent.mid"))
    assert "is empty" in one_line_error(sample("--prime", "-", input=b""))


def test_an_unknown_checkpoint(sample):
    assert "no checkpoint is called 'nobody'" in one_line_error(sample("--checkpoint", "nobody"))
    assert ".: is neither a checkpoint" in one_line_error(sample("--checkpoint", "."))


def test_a_place_one_cannot_write_to_is_told_before_anything_is_composed(sample, prime, tmp_path):
    began = time.perf_counter()

    for folder in (tmp_path, ".", "/"):
        assert "it is a folder" in one_line_error(sample("--length", 10**9, "-o", folder))
    assert "a file, not a folder" in one_line_error(sample("--length", 10**9, "-o", prime / "out.mid"))
    assert f"{prime}: is also the input" in one_line_error(sample("--length", 10**9, "--prime", prime, "-o", prime))
    assert time.perf_counter() - began < 10


@pytest.fixture
def started(checkpoint):
    """Starts `pamusic sample` by that model; what still runs after the test is killed."""
    running = []

    def start(*words, **streams):
        words = [sys.executable, "-m", "pamusic", "sample", "--checkpoint", str(checkpoint), "--device", "cpu", *words]
        running.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, **streams))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("end", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_interrupted_it_keeps_what_was_composed_so_far(started, tmp_path, end, status):
    running = started("--length", "1000000", "--seed", "1", "-o", "out.mid", stdout=subprocess.PIPE)
    wait_for("seed 1", running)
    time.sleep(1)
    running.send_signal(getattr(signal, end))
    stdout, stderr = running.communicate(timeout=30)

    assert running.returncode == status
    assert stdout == "out.mid\n"
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert len(read_midi(tmp_path / "out.mid")) > 1
    assert names(tmp_path) == ["out.mid"]
    assert "the same, byte for byte" in CliRunner().invoke(app, ["replay", "out.mid"]).stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("num", [1, 3])
def test_interrupted_under_a_guard_it_keeps_what_was_held_back(started, tmp_path, num):
    """Nothing passes the guard before 30 seconds of music were drawn; of many pieces the first is drawn until then."""
    how = ("--length", "1000000", "--seed", "1", "--guard", "--num-samples", str(num), "-o", "out.mid")
    running = started(*how, stdout=subprocess.PIPE)
    wait_for("seed 1", running)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=30)

    assert (running.returncode, "Traceback" in stderr) == (130, False), stderr
    assert stdout.split() == names(tmp_path) != []
    for name in names(tmp_path):
        assert len(read_midi(tmp_path / name))
        record = next(text for text in texts((tmp_path / name).read_bytes()) if text.startswith(SIGN))
        assert json.loads(record.removeprefix(SIGN))["stopped_after"] > 0
        assert "the same, byte for byte" in CliRunner().invoke(app, ["replay", name, "-o", "../again.mid"]).stderr
        (tmp_path.parent / "again.mid").unlink()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_amid_the_comparison_it_keeps_the_first_pieces(started, tmp_path):
    how = ("--length", "2000", "--best-of", "8", "--keep", "2", "--seed", "1", "-o", "out.mid")
    running = started(*how, stdout=subprocess.PIPE)
    wait_for("comparing 8 pieces", running)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=30)

    assert (running.returncode, stdout) == (130, "out-1.mid\nout-2.mid\n")
    assert "interrupted before the comparison; the first pieces are kept" in stderr
    assert "Traceback" not in stderr
    assert "the same, byte for byte" in CliRunner().invoke(app, ["replay", "out-2.mid"]).stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_told_to_end_it_leaves_nothing_half_written(started, tmp_path):
    running = started("--length", "1000000", stdout=subprocess.PIPE)
    wait_for("seed", running)
    running.terminate()
    stdout, stderr = running.communicate(timeout=30)

    assert (running.returncode, stdout, stderr) == (143, "", "")
    assert names(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_has_gone_away_is_no_error_of_ours(started):
    read_end, write_end = os.pipe()
    os.close(read_end)
    running = started("--length", "20", "-o", "-", stdout=write_end)
    os.close(write_end)
    _, stderr = running.communicate(timeout=60)

    assert running.returncode == 141
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("words", "total"),
    [(["--length", 30], 30), (["--length", 30, "--num-samples", 2], 60), (["--seconds", 2, "--num-samples", 3], 6)],
)
def test_the_bar_counts_tokens_or_seconds_of_all_pieces(sample, monkeypatch, words, total):
    bars, real = [], pamusic.cli.sampling_run.progress
    monkeypatch.setattr(pamusic.cli.sampling_run, "progress", lambda **look: bars.append(look["total"]) or real(**look))
    assert sample("--seed", 1, *words, "-o", "out.mid").exit_code == 0

    assert bars == [total]
