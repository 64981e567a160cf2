"""The Python API does what the command line does, and says so in Python's words."""

import doctest
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from builders import folder_of_tunes, midi_file, note_off, note_on, performance, program
from typer.testing import CliRunner

import pamusic
from pamusic.cli.app import app
from pamusic.compose.provenance import read_provenance
from pamusic.compose.request import RECORD_NAMES
from pamusic.music.events import events
from pamusic.music.midi import midi_bytes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "api.md"


@pytest.fixture
def prime(tmp_path, monkeypatch):
    """A prime in the folder where we are."""
    monkeypatch.chdir(tmp_path)
    Path("intro.mid").write_bytes((ROOT / "examples" / "nothing-1.mid").read_bytes())
    return pamusic.read_midi("intro.mid")


@pytest.fixture(scope="module")
def model():
    return pamusic.load()


def page_module():
    spec = spec_from_file_location("api_page", ROOT / "docs" / "api_page.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page_module().page(), (
        "run: python docs/api_page.py > docs/reference/api.md"
    )


@pytest.mark.slow
def test_the_examples_on_the_page_run_as_written(prime):
    folder_of_tunes(Path("midi"), num_files=3)
    with open("page.txt", "w") as file:  # the fences of code are no part of what is expected
        file.write(PAGE.read_text(encoding="utf-8").replace("```", ""))
    failed, attempted = doctest.testfile(str(Path("page.txt").resolve()), module_relative=False)

    assert attempted > 20
    assert failed == 0


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(ROOT / "docs")
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    short = block.replace("seconds=60", "seconds=3").replace("model.stream(prime, ", "model.stream(prime, seconds=2, ")
    assert short.count("seconds=") == 2
    exec(compile(short, "README.md", "exec"), {})

    assert Path("out.mid").is_file()
    assert Path("out.wav").is_file()


def test_importing_it_imports_nothing_heavy_and_all_its_names_are_there():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, pamusic; print(*sys.modules)"], capture_output=True, text=True, check=True
    )

    assert not {"torch", "numpy", "typer", "mido"} & {*done.stdout.split()}
    for name in pamusic.__all__:
        getattr(pamusic, name)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        pamusic.sampel  # noqa: B018


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 3, "seconds": 4}, ["--seed", 3, "--seconds", 4]),
        ({"seed": 3, "length": 60, "top_p": 1, "release_bias": 0.0, "guard": False, "prime_end": 9.5},
         ["--seed", 3, "--length", 60, "--top-p", 1, "--release-bias", 0, "--no-guard", "--prime-end", 9.5]),
    ],
)  # fmt: skip
def test_a_piece_has_the_bytes_that_the_command_writes(model, prime, options, words):
    piece = model.sample(prime, **options)
    piece.save("api.mid")
    done = CliRunner().invoke(app, ["sample", "--prime", "intro.mid", "-o", "cli.mid", *map(str, words)])

    assert done.exit_code == 0
    assert Path("api.mid").read_bytes() == Path("cli.mid").read_bytes() == piece.midi


def test_a_piece_is_the_prime_and_what_follows(model, prime):
    piece = model.sample(prime, seed=2, seconds=4)

    assert piece.ids.dtype == np.int64
    assert len(piece.performance) == len(prime) + len(piece.continuation)
    assert piece.continuation.duration <= 4


def test_a_performance_that_is_no_file_is_continued_and_said_so(model, prime):
    higher = prime.transposed(1)
    piece = model.sample(higher, seed=2, seconds=3)
    Path("higher.mid").write_bytes(midi_bytes(higher))
    piece.save("out.mid")

    again = CliRunner().invoke(app, ["replay", "out.mid", "--prime", "higher.mid", "-o", "again.mid"])
    assert again.exit_code == 0, again.output
    assert "byte for byte" in again.output


def test_a_stream_is_the_piece_as_it_is_made(model, prime):
    how = {"seed": 5, "seconds": 4.0}
    stream = list(model.stream(prime, **how))
    whole = events(model.sample(prime, **how, guard=False).continuation)

    assert sorted(each[:3] for each in stream) == sorted(each[:3] for each in whole)


def test_the_best_of_some_come_best_first(model):
    pieces = model.sample_many(seed=4, seconds=3, best_of=3, keep=2)

    assert len(pieces) == 2
    assert {each.seed for each in pieces} < {4, 5, 6}
    assert model.sample(seed=4, seconds=3, best_of=3).midi == model.sample_many(seed=4, seconds=3, best_of=3)[0].midi


def test_a_score_is_that_of_a_corpus_of_one(model, prime):
    corpus = pamusic.tokenize("intro.mid", out="corpus")
    (split,) = {each.split for each in corpus.pieces}

    of_corpus, alone = pamusic.evaluate(model, "corpus", split=split), model.score(prime)
    assert alone.nats_per_token == pytest.approx(of_corpus.nats_per_token, abs=1e-9)
    assert alone.num_notes == of_corpus.num_notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": -1}, "seconds must be a number above 0"),
        ({"num_samples": 2, "best_of": 2}, "num_samples keeps all pieces, best_of some of them"),
        ({"prime_start": 5, "prime_end": 4}, "prime_end must be after prime_start"),
        ({"prime_end": 1e6}, "leave out prime_end"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": "high"}, "top_p must be a number, got 'high'"),
        ({"context_length": 4, "num_latents": 8}, "num_latents must be between 1 and context_length"),
    ],
)
def test_errors_speak_python(model, prime, options, words):
    with pytest.raises(pamusic.PamusicError, match=words) as error:
        model.sample(prime, **options)
    assert "--" not in str(error.value)


def test_an_option_that_is_none_is_named_with_the_one_that_was_meant(model):
    with pytest.raises(TypeError, match=r"'temprature' \(did you mean temperature"):
        model.sample(temprature=1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: pamusic.load("smal"),
        lambda model: pamusic.load(""),
        lambda model: pamusic.read_midi("none.mid"),
        lambda model: pamusic.read_midi("a\0b.mid"),
        lambda model: model.sample("none.mid"),
        lambda model: model.sample(performance((0, 1, 60, 60)).shifted(-5)),
        lambda model: model.score(performance()),
        lambda model: model.stream(num_samples=2),
        lambda model: pamusic.evaluate(model, "none"),
        lambda model: pamusic.open_corpus("none"),
        lambda model: pamusic.load_tokenizer("none"),
        lambda model: pamusic.tokenize("none"),
        lambda model: pamusic.tokenize([]),
        lambda model: pamusic.tokenize(""),
        lambda model: pamusic.write_midi(performance((0, 1, 60, 60)), "taken/out.mid"),
        lambda model: pamusic.write_midi(performance((0, 1, 60, 60)), "out.wav"),
        lambda model: pamusic.write_midi(performance((float("nan"), 1, 60, 60)), "out.mid"),
        lambda model: pamusic.synthesize(performance((0, 1, 60, 60)), "out.mid"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing_behind(model, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(pamusic.PamusicError) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "taken"]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: pamusic.load(5),
        lambda model: pamusic.load(device=None),
        lambda model: pamusic.read_midi(None),
        lambda model: pamusic.write_midi(None, "out.mid"),
        lambda model: pamusic.evaluate("small", "corpus"),
        lambda model: model.sample(5),
        lambda model: model.sample(checkpoint="small"),
    ],
)
def test_a_value_of_another_kind_is_a_type_error(model, call):
    with pytest.raises(TypeError):
        call(model)


@pytest.mark.parametrize("options", [
    {"seed": -1}, {"seed": 2**63}, {"num_samples": 0}, {"num_samples": 5000}, {"best_of": 0}, {"best_of": -2},
    {"best_of": 2, "keep": 0}, {"length": 0}, {"context_length": 0}, {"num_latents": 0}, {"seconds": float("nan")},
    {"seconds": "x"}, {"seed": "x"}, {"seed": 1.5}, {"guard": 1}, {"refill": 10**9}, {"precision": "x"},
    {"precision": 8}, {"release_bias": 99}, {"tracks": "9"}, {"tracks": ""},
], ids=str)  # fmt: skip
def test_an_option_out_of_its_range_is_refused_before_the_work(model, prime, options):
    (name,) = [*options][-1:]
    with pytest.raises(pamusic.PamusicError) as error:
        model.sample(prime, seconds=options.pop("seconds", 3), **options)
    assert "--" not in str(error.value)
    assert "record" not in str(error.value)
    assert name in str(error.value) or name in ("tracks", "refill")


def test_numbers_of_numpy_are_numbers(model):
    piece = model.sample(seed=np.int64(3), seconds=np.float32(2), refill=32)

    assert piece.midi == model.sample(seed=3, seconds=2, refill="32").midi


def test_a_request_says_the_same_as_options(model):
    request = pamusic.SampleRequest(seconds=2, seed=3, top_p=0.9)

    assert model.sample(None, request).midi == model.sample(seconds=2, seed=3, top_p=0.9).midi
    assert model.sample(None, request, seed=4).midi == model.sample(seconds=2, seed=4, top_p=0.9).midi


@pytest.fixture
def two_tracks(tmp_path, monkeypatch):
    """A file of two piano tracks."""
    monkeypatch.chdir(tmp_path)
    tracks = [
        [(0, program(0, channel)), *((480 * i, note_on(pitch + i, 64, channel)) for i in range(8)),
         *((480 * i + 240, note_off(pitch + i, channel)) for i in range(8))]
        for channel, pitch in enumerate((40, 70))
    ]  # fmt: skip
    Path("two.mid").write_bytes(midi_file(*(sorted(track, key=lambda each: each[0]) for track in tracks)))
    return "two.mid"


@pytest.mark.parametrize(
    "read", [lambda path: path, pamusic.read_midi, lambda path: pamusic.read_midi(path, tracks="1")]
)
def test_the_tracks_that_are_asked_for_are_read_and_recorded(model, two_tracks, read):
    piece = model.sample(read(two_tracks), seed=1, seconds=2, tracks="2")
    piece.save("api.mid")
    words = ["--prime", two_tracks, "--tracks", "2", "--seed", "1", "--seconds", "2", "-o", "cli.mid"]
    assert CliRunner().invoke(app, ["sample", *words]).exit_code == 0

    assert Path("api.mid").read_bytes() == Path("cli.mid").read_bytes()


def test_the_device_is_recorded_as_it_was_named():
    piece = pamusic.load("small", device="cpu").sample(seed=1, length=5)

    assert read_provenance(piece.midi, "").options["device"] == "cpu"


def test_a_file_that_was_read_does_not_change(prime):
    with pytest.raises(ValueError, match="read-only"):
        prime.notes["pitch"] += 5


def test_notes_that_the_model_has_no_keys_for_are_warned_of(model, prime, caplog):
    model.sample(prime.transposed(24), seed=1, length=5)

    assert "does not hear" in caplog.text


def test_interrupted_it_says_so(model, monkeypatch):
    def interrupted(self, ids):
        raise KeyboardInterrupt

    monkeypatch.setattr("pamusic.inference.session.InferenceSession.step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.sample(seed=1, length=50)


def test_every_option_of_the_request_has_a_name_of_its_own():
    assert len({*RECORD_NAMES.values()}) == len(RECORD_NAMES)
