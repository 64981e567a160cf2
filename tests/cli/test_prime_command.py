"""`pamusic sample --prime`, with primes of every kind, and pipes; `pamusic replay`, which makes a file again."""

import json
import os
import shutil
import subprocess
import sys

import mido
import numpy as np
import pytest
from builders import control, midi_file, note_off, note_on, program, tempo, tune
from cli_asserts import one_line_error
from midi_asserts import strokes, timed
from models import random_checkpoint
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.compose.provenance import SIGN
from pamusic.music.lenient_reader import read_leniently
from pamusic.music.midi import read_midi, tempo_map
from pamusic.tokens.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny models with random weights, by the name of their tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: random_checkpoint(folder / name, load_tokenizer(name)) for name in ("performance", "piano")}


@pytest.fixture
def sample(checkpoints):
    def sample(*words, input=None, tokenizer="performance"):
        words = map(str, ("sample", "--checkpoint", checkpoints[tokenizer], "--device", "cpu", "--length", 60, *words))
        return CliRunner().invoke(app, list(words), input=input)

    return sample


def replay(*words):
    return CliRunner().invoke(app, ["replay", *map(str, words)])


def without_ours(events):
    return [each for each in events if not (each[1].type == "text" and each[1].text.startswith(SIGN))]


def scale(num_notes, *, seconds=0.25, channel=0, start=0):
    """`(tick, message)` of notes one after the other; a quarter of 384 ticks lasts half a second."""
    events = []
    for number in range(num_notes):
        tick = round((start + number * seconds) * 768)
        events += [(tick, note_on(50 + number % 24, 64, channel)),
                   (tick + round(seconds * 768), note_off(50 + number % 24, channel))]  # fmt: skip
    return events


PRIMES = {
    "longer than the context": (midi_file(scale(400, seconds=0.05)), 15.0),
    "shorter than a second": (midi_file([(0, note_on(60)), (300, note_off(60))]), 0.2),
    "of one note": (midi_file([(0, note_on(60)), (3000, note_off(60))]), 1.0),
    "without pedal": (midi_file(scale(20)), 2.6),
    "of several tracks": (midi_file(scale(20), scale(9, channel=1, seconds=0.4), [(0, control(90)), *scale(5)]), 1.7),
    "with a track of tempi": (midi_file([(0, tempo(400_000)), (700, tempo(900_000))], scale(20)), 3.1),
    "of format 0": (midi_file([(0, program(4)), *scale(12)], kind=0), 1.3),
    "in frames": ((lambda file: file[:12] + bytes([256 - 30, 80]) + file[14:])(midi_file(scale(20))), 0.9),
    "with a pedal down": (midi_file([(0, control(127)), *scale(12)]), 1.3),
}


@pytest.mark.parametrize("tokenizer", ["performance", "piano"])
@pytest.mark.parametrize("name", PRIMES)
def test_a_prime_of_any_kind_stays_and_goes_on(sample, tmp_path, name, tokenizer):
    data, cut = PRIMES[name]
    (tmp_path / "prime.mid").write_bytes(data)
    for words in ([], ["--same-track"], ["--continuation-only"], ["--prime-start", cut / 4]):
        for to in ([], ["--prime-end", cut]):
            done = sample("--prime", "prime.mid", *words, *to, "--seed", 1, "-o", "out.mid", tokenizer=tokenizer)
            if done.exit_code == 1:  # a prime of one note, read from behind it
                assert "begin no note" in one_line_error(done)
                assert "--prime-start" in words
                continue
            assert done.exit_code == 0, (done.stderr, done.exception)
            out = (tmp_path / "out.mid").read_bytes()
            strokes(out)  # which sees to it that all are closed, none at the tick where it began
            pedal = read_midi(out, tracks="all").pedal
            assert not [c for c in (64, 66, 67) if pedal["value"][pedal["control"] == c][-1:].any()]
            if words != ["--continuation-only"]:
                read, before = read_midi(out), read_midi(data)
                kept = before.notes[before.notes["onset"] < (cut if to else np.inf)]
                assert (
                    read.notes[["onset", "pitch", "velocity"]][: len(kept)].tolist()
                    == kept[["onset", "pitch", "velocity"]].tolist()
                )
                contents = read_leniently(data, name)
                seconds_at = tempo_map(contents.ticks_per_quarter, contents.tempos)
                for number in range(int.from_bytes(data[10:12], "big")):
                    theirs = timed(data, number)
                    if to:
                        theirs = [each for each in theirs if seconds_at(np.array([each[0]]))[0] < cut]
                    assert without_ours(timed(out, number))[: len(theirs)] == theirs


def test_what_is_no_part_of_a_prime_is_told_in_a_line(sample, tmp_path):
    (tmp_path / "prime.mid").write_bytes(midi_file(scale(20)))

    def told(*words, code=1):
        return one_line_error(sample("--prime", "prime.mid", *words), code)

    assert "--prime-end must be after --prime-start, got 2 and 3" in told("--prime-start", 3, "--prime-end", 2, code=2)
    assert "--prime-end must be after --prime-start, got 3 and 3" in told("--prime-start", 3, "--prime-end", 3, code=2)
    assert "--prime-start must be 0 or more seconds, got -1" in told("--prime-start", -1, code=2)
    assert "the prime lasts 5.00 seconds, not 60" in told("--prime-end", 60)
    assert "the prime lasts 5.00 seconds, got --prime-start 50" in told("--prime-start", 50)
    assert "must be a finite number of seconds, got inf" in told("--prime-end", "inf", code=2)
    assert "begin no note" in told("--prime-start", 1.01, "--prime-end", 1.2)
    assert "need a prime" in one_line_error(sample("--prime-end", 5), 2)
    assert "need a prime" in one_line_error(sample("--same-track"), 2)
    assert "use one" in told("--same-track", "--continuation-only", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["prime.mid"]


def test_a_mended_prime_is_written_anew_and_that_is_said(sample, tmp_path):
    (tmp_path / "cut.mid").write_bytes(midi_file(scale(20))[:-30])
    done = sample("--prime", "cut.mid", "--prime-end", 2.1, "-o", "out.mid")

    assert done.exit_code == 0, done.stderr
    assert "is not plain, so its notes and pedals are rewritten" in done.stderr
    assert len(read_midi(tmp_path / "out.mid")) > 9


@pytest.mark.slow
def test_a_pipe_from_a_file_to_sound(checkpoints, tmp_path):
    (tmp_path / "intro.mid").write_bytes(midi_file(scale(8)))
    python = f"{sys.executable} -m pamusic"
    sampled = f"{python} sample --prime - -o - --length 50 --seed 1 --checkpoint {checkpoints['performance']}"
    done = subprocess.run(
        f"cat intro.mid | {sampled} 2>sample.log | {python} render - -o out.wav 2>render.log",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "out.wav\n", "")
    assert (tmp_path / "out.wav").read_bytes()[:4] == b"RIFF"
    log = (tmp_path / "sample.log").read_text()
    assert "seed 1" in log
    assert "%" not in log  # no bar
    assert "\r" not in log
    done = subprocess.run(f"cat intro.mid | {sampled}", shell=True, capture_output=True, check=False)
    assert len(strokes(done.stdout)) > 8  # MIDI bytes and nothing else


@pytest.mark.parametrize("words", [[], ["--prime", "p.mid", "--prime-start", "0.5", "--prime-end", "1.6"]])
def test_a_file_is_made_again_byte_for_byte(sample, tmp_path, words):
    (tmp_path / "p.mid").write_bytes(midi_file([(0, control(127)), *scale(12)]))
    assert sample(*words, "--temperature", 1.2, "--top-k", 40, "-o", "out.mid").exit_code == 0  # a seed of its own
    done = replay("out.mid")

    assert (done.exit_code, done.stdout) == (0, "out-2.mid\n"), done.stderr
    assert done.stderr.splitlines()[-1] == "the same, byte for byte"
    assert (tmp_path / "out-2.mid").read_bytes() == (tmp_path / "out.mid").read_bytes()
    assert replay("out.mid", "-o", "-").stdout_bytes == (tmp_path / "out.mid").read_bytes()


def test_a_prime_and_a_checkpoint_may_have_moved(sample, checkpoints, tmp_path):
    (tmp_path / "p.mid").write_bytes(midi_file(scale(12)))
    assert sample("--prime", "p.mid", "-o", "out.mid").exit_code == 0
    (tmp_path / "p.mid").rename(tmp_path / "elsewhere.mid")
    shutil.copytree(checkpoints["performance"], tmp_path / "copy")

    assert "was made from p.mid, which is missing; pass its path with --prime" in one_line_error(replay("out.mid"))
    assert replay("out.mid", "--prime", "elsewhere.mid", "--checkpoint", "copy").exit_code == 0
    assert (tmp_path / "out-2.mid").read_bytes() == (tmp_path / "out.mid").read_bytes()
    (tmp_path / "p.mid").write_bytes(tune(5))
    assert "is not the prime that the file was made from" in one_line_error(replay("out.mid"))


def test_what_cannot_be_made_again_is_told_in_a_line(sample, checkpoints, tmp_path):
    (tmp_path / "plain.mid").write_bytes(tune(1))
    shutil.copytree(checkpoints["performance"], tmp_path / "mine")
    assert sample("--checkpoint", "mine", "-o", "out.mid").exit_code == 0

    assert "has no record of how it was made" in one_line_error(replay("plain.mid"))
    assert "was made without a prime; leave out --prime" in one_line_error(replay("out.mid", "--prime", "plain.mid"), 2)
    random = random_checkpoint(tmp_path / "other", load_tokenizer("piano"))
    assert "has other weights" in one_line_error(replay("out.mid", "--checkpoint", random))
    shutil.rmtree(tmp_path / "mine")
    assert "no checkpoint is called 'mine'" in one_line_error(replay("out.mid"))
    broken = (tmp_path / "out.mid").read_bytes().replace(b'"options"', b'"opsions"')
    (tmp_path / "out.mid").write_bytes(broken)
    assert "its record was changed and cannot be read" in one_line_error(replay("out.mid"))


def test_other_versions_are_named_and_it_goes_on(sample, tmp_path):
    assert sample("-o", "out.mid").exit_code == 0
    text = next(each[1].text for each in timed((tmp_path / "out.mid").read_bytes(), 0) if each[1].type == "text")
    now = json.loads(text.removeprefix(SIGN))["made_on"]["torch"]
    other = (tmp_path / "out.mid").read_bytes().replace(now.encode(), b"0" * len(now))
    (tmp_path / "out.mid").write_bytes(other)
    done = replay("out.mid")

    assert done.exit_code == 0, done.stderr
    assert f"the music may differ: torch {now}, then {'0' * len(now)}" in done.stderr
    assert done.stderr.splitlines()[-1] == "the same music as out.mid, but another record of how it was made"


def test_other_code_is_named_and_what_came_of_it(sample, tmp_path):
    assert sample("-o", "out.mid").exit_code == 0
    file = mido.MidiFile("out.mid")
    record = next(message for message in file.tracks[0] if message.type == "text")
    now = json.loads(record.text.removeprefix(SIGN))["made_on"]["code"]
    record.text = record.text.replace(now, "before")
    struck = next(message for track in file.tracks for message in track if message.type == "note_on")
    struck.velocity ^= 1
    file.save("out.mid")
    done = replay("out.mid")

    assert done.exit_code == 0, done.stderr
    assert f"the music may differ: code {now}, then before" in done.stderr
    assert done.stderr.splitlines()[-1] == "not the same music as out.mid"


def test_the_record_says_all_that_the_music_depends_on(sample, checkpoints, tmp_path):
    (tmp_path / "p.mid").write_bytes(midi_file(scale(12)))
    assert sample("--prime", "p.mid", "--seed", 5, "-o", "out.mid").exit_code == 0
    out = (tmp_path / "out.mid").read_bytes()
    text = next(each[1].text for each in timed(out, 0) if each[1].type == "text")
    record = json.loads(text.removeprefix(SIGN))

    assert text.isascii()
    assert record["options"]["seed"] == 5
    assert record["options"]["prime"] == "p.mid"
    assert record["options"]["length"] == 60
    assert record["tokenizer"] == "performance"
    assert len(record["weights_sha256"]) == len(record["prime_sha256"]) == 64
    assert set(record["made_on"]) == {"pamusic", "code", "torch", "threads", "device", "machine"}
    assert os.fsencode(tmp_path.parent.parent) not in out.replace(os.fsencode(checkpoints["performance"]), b"")


def test_a_prime_that_says_how_it_was_made_goes_on_saying_so(sample, tmp_path):
    assert sample("--seed", 1, "-o", "one.mid").exit_code == 0
    assert sample("--seed", 2, "--prime", "one.mid", "-o", "two.mid").exit_code == 0
    texts = [each[1].text for each in timed((tmp_path / "two.mid").read_bytes(), 0) if each[1].type == "text"]

    assert [json.loads(text.removeprefix(SIGN))["options"]["seed"] for text in texts] == [1, 2]
    assert replay("two.mid").exit_code == 0
    assert (tmp_path / "two-2.mid").read_bytes() == (tmp_path / "two.mid").read_bytes()
