"""Weights of fewer bits say nearly what the model says, on any machine, and a file remembers which they were."""

import json

import pytest
import torch
from flat_sampling import generate, generate_rows
from models import CONTEXT, START, VOCAB, N, outspoken_model, piece
from typer.testing import CliRunner

from pamusic.checkpoint import save_checkpoint
from pamusic.cli.app import app
from pamusic.compose.provenance import SIGN
from pamusic.inference import precision as precisions
from pamusic.inference.native_kernel import kernel
from pamusic.inference.precision import MAX_BYTE_ROWS, num_bytes, product, resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.model.config import ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.tokenizer import load_tokenizer

ABLE = ("_has_byte_product",)


@pytest.fixture(params=["what this machine has", "a machine without"])
def machine(request, monkeypatch):
    """This machine, and one whose torch does not have the product that it does not promise."""
    if request.param == "a machine without":
        for able in ABLE:
            monkeypatch.setattr(precisions, able, lambda: False)


def weights():
    torch.manual_seed(0)
    weight = torch.randn(96, 64) * torch.logspace(-2, 1, 96)[:, None]  # rows of very different sizes
    weight[3] = 0
    return weight


@pytest.mark.parametrize("num_rows", [1, MAX_BYTE_ROWS, MAX_BYTE_ROWS + 1, 16])
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("bf16", 5e-3), ("int8", 1e-2)])
def test_a_product_is_near_to_that_of_the_weights_themselves(machine, precision, most, num_rows):
    weight, x = weights(), torch.randn(num_rows, 64)
    expected = x @ weight.T
    found = product(weight, precision)(x)

    assert found.shape == expected.shape
    sizes = x.norm(dim=1)[:, None] * weight.norm(dim=1)
    assert ((found.float() - expected).abs() <= most * sizes).all()


def test_bytes_are_the_nearest_of_255_steps_a_row():
    weight = torch.tensor([[1.27, -1.27, 0.014, 0.006] * 8, [254.0, 2.0, 1.0, -3.1] * 8])
    found = product(weight, "int8")(torch.eye(32)[:1]), product(weight, "int8")(torch.eye(32)[2:3])

    torch.testing.assert_close(found[0].float(), torch.tensor([[1.27, 254.0]]), rtol=0.01, atol=0)
    torch.testing.assert_close(found[1].float(), torch.tensor([[0.01, 0.0]]), rtol=0.01, atol=0)  # 1 is half a step


def test_many_rows_are_multiplied_with_the_same_bytes_as_one():
    held, x = product(weights(), "int8"), torch.randn(16, 64)
    alone = torch.cat([held(row[None]) for row in x]).float()

    assert ((held(x).float() - alone).norm() / alone.norm()) < 0.005


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.1), ("int8", 0.1)])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_reader_of_fewer_bits_says_nearly_the_same_over_refills(machine, precision, most, num_rows):
    model, ids = outspoken_model(num_layers=3), piece(2 * CONTEXT)
    readers = [InferenceSession(model, InferenceConfig(precision=which)) for which in ("fp32", precision)]
    for reader in readers:
        reader.prefill(ids[:5])
        reader.select([0] * num_rows)

    far = []
    for id in ids[5:]:
        exact, found = (reader.step([id] * num_rows).softmax(-1) for reader in readers)
        far.append((exact - found).abs().sum(-1).max().item() / 2)
    assert 0 < sum(far) / len(far) < most


def test_fp32_takes_the_weights_as_they_are():
    model, ids = outspoken_model().double(), piece(30)
    drawn = [list(generate(model, ids, seed=1, length=60, **how)) for how in ({}, {"precision": "fp32"})]

    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_same_seed_gives_the_same_ids_in_any_precision(machine, precision):
    model = outspoken_model()
    one, two = (
        list(generate_rows(model, [START, 3], seed=2, num_rows=5, length=3 * N, precision=precision)) for _ in range(2)
    )

    assert one == two
    assert all(0 <= id < VOCAB for ids in one for id in ids)


def test_auto_depends_on_the_processor_alone(monkeypatch):
    for native, expected in ((True, "int8"), (False, "fp32")):
        monkeypatch.setattr(precisions, "has_fast_bf16", lambda device, native=native: native)
        assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("auto", "cuda") == resolve_precision("auto", "mps") == "fp32"
    assert [resolve_precision(name, "cpu") for name in ("fp32", "bf16", "int8")] == ["fp32", "bf16", "int8"]
    with pytest.raises(ValueError, match="is for CPUs"):
        resolve_precision("int8", "cuda")
    with pytest.raises(ValueError, match="precision must be one of"):
        resolve_precision("fp8", "cpu")


def test_bytes_of_a_weight(monkeypatch):
    assert [num_bytes(name, 1) for name in ("fp32", "bf16", "int8")] == [4, 2, 1]
    for is_fast, expected in ((True, 2), (False, 4)):
        monkeypatch.setattr(precisions, "has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        assert num_bytes("int8", MAX_BYTE_ROWS + 1) == expected


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = load_tokenizer("performance")
    shape = {"context_length": 128, "num_latents": 16, "d_model": 32, "num_layers": 2, "num_heads": 2}
    pad_id = tokenizer.vocabulary.id("pad")
    model = PerceiverAR(ModelConfig(vocab_size=pad_id + 1, pad_id=pad_id, cross_num_heads=1, **shape))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    save_checkpoint(tmp_path / "random", model, tokenizer, metadata={})
    return tmp_path / "random"


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "int8"])
def test_a_file_remembers_the_precision_and_is_made_again_byte_for_byte(checkpoint, tmp_path, monkeypatch, precision):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "--checkpoint", str(checkpoint), "--length", "60", "--seed", "3", "-o", "out.mid"]
    done = CliRunner().invoke(app, [*words, "--precision", precision])
    assert done.exit_code == 0, done.stderr
    before = (tmp_path / "out.mid").read_bytes()
    record = before[before.index(SIGN.encode()) + len(SIGN) :].split(b"\x00\xff")[0]
    options = json.JSONDecoder().raw_decode(record.decode("ascii", "ignore"))[0]["options"]
    has_kernel = kernel(16) is not None
    assert options["precision"] == resolve_precision(precision, "cpu", has_kernel)

    # Somewhere where auto would be another: what was recorded counts.
    monkeypatch.setattr(precisions, "has_fast_bf16", lambda device: options["precision"] == "fp32")
    done = CliRunner().invoke(app, ["replay", "out.mid", "-o", "again.mid"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "again.mid").read_bytes() == before


def test_a_wrong_precision_is_one_line(checkpoint):
    done = CliRunner().invoke(app, ["sample", "--checkpoint", str(checkpoint), "--precision", "fp7", "-o", "-"])

    assert done.exit_code == 2
    assert "precision must be one of auto, fp32, bf16, int8, got 'fp7'" in done.stderr
