"""What a machine has is told, and what a training takes is counted as autograd keeps it."""

import json

import pytest
import torch
from models import LEDGER, tiny_config
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.cli.reports.machine import machine_lines, memory_rows
from pamusic.device import Machine
from pamusic.model.config import LedgerConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.grammar import ledger_ranges
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.config import TrainingConfig
from pamusic.training.machine_report import (
    OPTIONAL_MODULES,
    PERFORMANCE,
    Card,
    MachineReport,
    MemoryEstimate,
    estimate_memory,
)
from pamusic.training.memory import BACKWARD, Memory, available_memory, memory_needed

CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")


def doctor(*words):
    return CliRunner().invoke(app, ["doctor", "--device", "cpu", *words])


def really_kept(model, windows):
    """Bytes that a real forward pass leaves for the backward one."""
    kept = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens = torch.zeros(windows, model.config.context_length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens).float().logsumexp(-1).sum()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def test_it_speaks_of_models_of_performance_events():
    vocabulary = load_tokenizer("performance").vocabulary
    ledger = LedgerConfig(**ledger_ranges(vocabulary))
    assert {"vocab_size": len(vocabulary), "pad_id": vocabulary.id("pad"), "ledger": ledger} == PERFORMANCE


@pytest.mark.parametrize("ledger", [None, LEDGER])
def test_memory_is_counted_as_a_real_step_keeps_it(ledger):
    training = TrainingConfig(prefix_dropout=0.0, ema_decay=0.0)
    memory = memory_needed(tiny_config(ledger=ledger), training, CPU)
    model = PerceiverAR(tiny_config(ledger=ledger)).train()

    assert memory.window == round(BACKWARD * (really_kept(model, 3) - really_kept(model, 2)))
    assert memory_needed(tiny_config(), TrainingConfig(prefix_dropout=0.0, recompute=True), CPU).window < memory.window


def test_so_many_windows_fit_as_divide_the_batch():
    memory = Memory(state=100, window=10)
    assert memory.needed(4) == 140
    assert [memory.largest_micro_batch(available, 12) for available in (100, 140, 190, 200, 10_000)] == [0, 1, 4, 6, 12]


def test_the_free_memory_of_a_cpu_is_known():
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50


@pytest.mark.slow
def test_doctor_says_what_there_is_and_what_fits():
    told = doctor("--size", "tiny", "--batch-size", "4")
    assert told.exit_code == 0, told.output
    assert f"torch {torch.__version__}" in told.stderr
    assert "4 of 4" in told.stderr
    found = json.loads(doctor("--size", "tiny", "--json").stdout)
    assert found["fits"][0]["context"] == "1,024"
    assert float(found["machine"]["products in float32"].split()[0]) > 0


def test_another_architecture_needs_the_memory_of_all_its_predictions():
    training = TrainingConfig(prefix_dropout=0.0)
    found = {
        name: estimate_memory(CPU, {"tiny": {"architecture": name}}, training)[0].memory.window
        for name in ("perceiver-ar", "transformer", "transformer-xl")
    }
    assert found["perceiver-ar"] < found["transformer-xl"] < found["transformer"]


def report(device, **found):
    """What a machine could have."""
    plain = {
        "machine": Machine(torch.device(device), "bf16", True, "native"), "system": "Linux x86_64", "num_cores": 8,
        "num_threads": 4, "has_compiler": True, "cpu_capability": None, "cpu_bf16_units": "", "card": None,
        "free_memory": 3 * 2**30, "product_rates": {"float32": 2e12}, "has_fluidsynth": True,
        "has_module": dict.fromkeys(OPTIONAL_MODULES, False),
    }  # fmt: skip
    return MachineReport(**{**plain, **found})


def test_each_kind_of_device_has_lines_of_its_own():
    card = Card(name="A Card", compute_capability=(9, 0), num_cards=2)
    cuda = machine_lines(report("cuda", card=card))
    cpu = machine_lines(report("cpu", cpu_capability="AVX2", has_compiler=False, free_memory=None))

    assert cuda["card"] == "A Card, compute capability 9.0"
    assert cuda["cards"].startswith("2; all of them: torchrun")
    assert (cuda["precision"], cuda["products in float32"]) == ("bf16 (native)", "2.000 TFLOP/s")
    assert (cuda["free memory"], cuda["rtmidi"]) == ("3.0 GiB", "not installed (MIDI ports)")
    assert (cpu["CPU"], cpu["free memory"]) == ("AVX2, no bf16 units", "not known")
    assert "install g++" in cpu["compiler"]
    assert {"Metal"} == machine_lines(report("mps")).keys() - (cuda.keys() | cpu.keys())
    assert not {"card", "cards", "Metal"} & cpu.keys()


def test_what_fits_is_a_row_of_words():
    memory = Memory(state=2**20, window=2**19)
    (row,) = memory_rows(
        [MemoryEstimate(size="a", context_length=1024, num_latents=8, memory=memory, batch_size=4, fits=None)]
    )
    assert (row["context"], row["always"], row["fit here"]) == ("1,024", "1 MiB", "not known")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--size", "huge"], "use one of tiny, small, medium, base"),
        (["--size", "tiny", "--num-latents", "9999"], "num_latents must be between 1 and context_length"),
        (["--size", "tiny", "--precision", "int4"], "precision must be one of"),
        (["--size", "tiny", "--architecture", "lstm"], "unknown architecture 'lstm'; use one of perceiver-ar"),
        (["--architecture", "transformer", "--prefix-dropout", "0.5"], "--prefix-dropout is for perceiver-ar, not for"),
    ],
)
def test_wrong_usage_of_doctor(words, reason):
    told = doctor(*words)
    assert told.exit_code == 2
    assert reason in told.stderr
