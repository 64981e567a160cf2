"""`pamusic benchmark` tells how fast music is drawn, and what bounds that."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from flat_sampling import of_vocabulary
from models import tiny_model
from typer.testing import CliRunner

from pamusic.checkpoint import Checkpoint, save_checkpoint
from pamusic.cli.app import app
from pamusic.compose.benchmark import along, memory_mib, own_ids, speed
from pamusic.inference.cuda_graph import CudaGraphStep
from pamusic.inference.int8 import ReferenceKernel
from pamusic.inference.memory_traffic import step_bytes
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.inference.token_step import TokenStep
from pamusic.model.config import ModelConfig, preset
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.sampling.grammar_state import GrammarState
from pamusic.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def who(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoint = Checkpoint(path, tiny_model(), load_tokenizer("performance"), {})
    save_checkpoint(path, checkpoint.model, checkpoint.tokenizer, metadata={})
    return checkpoint


def test_speeds_fit_together(who):
    found = speed(who, context_length=64, num=3, bandwidth=1e9, tokens=30, precision="fp32")

    assert (found.context_length, found.prime_length, found.num) == (64, 64, 3)
    assert found.tokens_per_second > found.notes_per_second > 0
    assert found.times_real_time > 0
    assert 0 < found.first_token_seconds < 60
    assert found.memory_mib > 50
    assert found.limit == pytest.approx(1e9 / (found.mib_per_token * 2**20))
    assert found.share_of_limit == pytest.approx(found.tokens_per_second / found.limit)
    for wrong in ({"tokens": 0}, {"precision": "fp5"}):
        with pytest.raises(ValueError):
            speed(who, **{"context_length": 64, "num": 1, "bandwidth": 1e9, **wrong})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_memory_is_what_the_system_says_whatever_the_size_of_a_page():
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    assert memory_mib() == pytest.approx(kib / 1024, rel=0.05)


@pytest.mark.slow
def test_the_context_is_full_of_what_the_model_draws_by_the_grammar(who):
    ids = own_ids(who, 700)
    vocabulary = who.tokenizer.vocabulary
    row = GrammarState(of_vocabulary(vocabulary)["grammar"])

    assert len(ids) == 700
    assert ids[0] == vocabulary.id("start")
    for id, following in pairwise(ids[:257]):
        row.advance([id])
        assert not row.forbidden()[following]
    assert [len(own_ids(who, length)) for length in (2, 5, 256, 257, 258)] == [2, 5, 256, 257, 258]


def test_a_long_piece_is_timed_around_its_places(who):
    found = list(along(who, (40, 100), 20, "fp32"))

    assert [each.place for each in found] == [40, 100]
    assert all(each.ms > 0 and each.cpu_ms > 0 and each.memory_mib > 50 for each in found)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_bytes_of_a_step_are_those_of_what_it_holds(size):
    """Counted by formula, and of the tensors themselves: weights in float32, and caches as far as they are filled."""
    torch.manual_seed(0)
    model = PerceiverAR(preset(size, vocab_size=391, pad_id=390, context_length=600, num_latents=64)).eval()
    reader = InferenceSession(model, InferenceConfig(refill="slide"))
    reader.prefill(list(range(300)))
    cross, layers = reader.caches.cross, reader.caches.layers
    caches = sum(each.nbytes for each in (*cross._kept.last(300), *(t for layer in layers for t in layer.last(64))))
    tables = cross._still.nbytes + cross._values.nbytes + model.head.weight.nbytes
    read_once = [each.attention.output.weight for each in (model.cross, *model.layers)]
    read_once += [weight for each in (model.cross, *model.layers) for weight in each.mlp.parameters()]
    projections = ("query", "key", "value")
    read_once += [getattr(each.attention, name).weight for each in model.layers for name in projections]
    expected = caches + tables + sum(weight.nbytes for weight in read_once)

    found = step_bytes(model.config, "fp32", num_rows=1, num_latents=64, num_seen=300)
    assert found == pytest.approx(expected, rel=0.02)
    more = step_bytes(model.config, "fp32", num_rows=5, num_latents=64, num_seen=300)
    assert more - found == pytest.approx(4 * caches)
    assert isinstance(reader._stepper, TokenStep)
    whole = CudaGraphStep(model).new_caches(1)
    in_bytes = InferenceSession(model, InferenceConfig(refill="slide", precision="int8"), kernel=ReferenceKernel())
    in_bytes.prefill(list(range(300)))
    kept = [in_bytes.caches.cross._kept.last(300), *(layer._kept.last(64) for layer in in_bytes.caches.layers)]
    held = sum(each.nbytes for tensors in kept for each in tensors)
    less, fewer = (
        step_bytes(model.config, "int8", num_rows=num, num_latents=64, num_seen=300, in_bytes=True) for num in (5, 1)
    )
    weights = sum(weight.numel() for weight in read_once)
    recorded, more_recorded = (
        step_bytes(model.config, "fp32", num_rows=num, num_latents=64, num_seen=300, recorded=True) for num in (1, 5)
    )
    room = sum(t.nbytes for each in (whole.cross, *whole.layers) for t in each.memory)
    assert more_recorded - recorded == room * 4
    assert less - fewer == pytest.approx(4 * held)
    assert more - less == pytest.approx(3 * weights + 5 * (caches - held), rel=0.02)


def test_with_a_kernel_weights_are_in_bytes_on_every_processor(who, monkeypatch):
    monkeypatch.setattr("pamusic.inference.precision.has_fast_bf16", lambda device: False)
    how = {"context_length": 64, "num": 1, "bandwidth": 1e9, "tokens": 2}

    assert speed(who, **how, kernel=ReferenceKernel()).mib_per_token < 0.75 * speed(who, **how).mib_per_token


def test_the_command_prints_a_line_for_each_context_and_number_of_pieces(who):
    words = [
        "benchmark",
        str(who.path),
        "--context-length",
        "32",
        "--context-length",
        "64",
        "--num-samples",
        "1",
        "--num-samples",
        "2",
    ]
    done = CliRunner().invoke(app, [*words, "--tokens", "8", "--precision", "fp32"])

    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["32", "1"], ["32", "2"], ["64", "1"], ["64", "2"]]
    assert all(float(line[2]) > 0 for line in lines)
    assert "GB/s" in done.stderr


def test_or_all_of_it_as_json(who):
    done = CliRunner().invoke(
        app, ["benchmark", str(who.path), "--tokens", "4", "--num-samples", "1", "--json", "--no-compile"]
    )

    assert done.exit_code == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["num_parameters"] == who.model.num_parameters()
    assert [each["context_length"] for each in about["speeds"]] == [16, 64, 256]
    assert all(each["limit"] > 0 and each["notes_per_second"] >= 0 for each in about["speeds"])


def test_where_the_clock_of_cpu_time_has_not_moved_it_says_so(who, monkeypatch):
    monkeypatch.setattr(time, "process_time", lambda: 12.0)  # as on a system where it moves 64 times a second
    words = ["benchmark", str(who.path), "--tokens", "1", "--num-samples", "1", "--context-length", "8"]
    plain, as_json = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--json"]))

    assert plain.exit_code == as_json.exit_code == 0, (plain.stderr, as_json.stderr)
    assert "too few" in plain.stderr
    assert json.loads(as_json.stdout)["speeds"][0]["tokens_per_cpu_second"] is None


def test_what_makes_no_sense_is_one_line(who):
    done = CliRunner().invoke(app, ["benchmark", str(who.path), "--precision", "fp6", "--tokens", "2"])

    assert done.exit_code == 2
    assert "precision must be one of" in done.stderr


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_on_a_cpu():
    """Which it compares with itself; so the script is known to run before there is a card."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

    done = subprocess.run([sys.executable, str(script), "--device", "cpu"], capture_output=True, text=True, check=True)

    differences = [line.split("|")[2] for line in done.stdout.splitlines() if line.endswith("|")][2:]
    assert [float(each) for each in differences] == [0.0] * 4


def test_bytes_of_a_step_of_several_fields_are_those_of_its_weights_and_caches():
    tokenizer = load_tokenizer("notes")
    sizes = tuple(field.size for field in tokenizer.vocabulary.fields)
    shape = {"context_length": 512, "num_latents": 64, "d_model": 64, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(vocab_size=len(tokenizer.vocabulary), pad_id=0, cross_num_heads=2, field_sizes=sizes, **shape)
    model = PerceiverAR(config).eval()
    ids = [[field.start for field in tokenizer.vocabulary.fields]] * 300
    how = {"num_latents": 64, "num_seen": 300}
    for precision, kernel in (("fp32", None), ("int8", ReferenceKernel())):
        session = InferenceSession(model, InferenceConfig(refill="slide", precision=precision), kernel)
        session.prefill(ids)
        kept = [session.caches.cross._kept.last(300), *(layer._kept.last(64) for layer in session.caches.layers)]
        caches = sum(each.nbytes for tensors in kept for each in tensors)
        found, more = (
            step_bytes(config, precision, num_rows=num, in_bytes=kernel is not None, **how) for num in (1, 5)
        )
        assert more - found == pytest.approx(4 * caches)
        read_once = [weight for weight in model.parameters() if weight.dim() == 2 and len(weight) <= 4 * 64]
        weights = sum(weight.nbytes for weight in read_once if weight is not model.to_latents.weight)
        weights = weights / 4 if kernel else weights
        assert found == pytest.approx(
            caches + weights + model.to_latents.weight.nbytes + model.head.weight.nbytes, rel=0.02
        )
