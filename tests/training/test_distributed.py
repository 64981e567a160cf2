"""Several processes train as one would, and one that is lost takes nothing with it."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from corpora import small_corpus
from trainers import new_run

from pamusic.checkpoint import load_checkpoint
from pamusic.device import Machine
from pamusic.errors import UsageError
from pamusic.training import machine_choice
from pamusic.training.distributed import ProcessGroup
from pamusic.training.metrics import read_metrics

pytestmark = pytest.mark.slow

ALONE = [sys.executable, "-m", "pamusic"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pamusic"]
TRAIN = [
    "train", "--size", "tiny", "--context-length", "64", "--num-latents", "16", "--batch-size", "4", "--no-compile",
    "--precision", "fp32", "--device", "cpu", "--validate-every", "10",
]  # fmt: skip


@pytest.fixture
def started(tmp_path):
    """Starts `pamusic` in a folder with a corpus, with one thread a process."""
    small_corpus(tmp_path / "corpus", notes_of_pieces=(120, 300, 60), splits=("train", "train", "validation"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(how, *words):
        words = [*how, *TRAIN, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True, **pipes)

    return start


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_losses_of_one_with_weights_whole_or_spread(started, tmp_path):
    ways = {"one": ALONE, "two": TWO, "spread": TWO}
    for name, how in ways.items():
        process = started(how, "--steps", "30", "--out", name, *(["--fsdp"] if name == "spread" else []))
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out == f"{name}\n"
        assert err.count("done at step 30") == 1

    one = read_metrics(tmp_path / "one" / "metrics.csv")
    assert len(one) == 9
    for name in ("two", "spread"):
        rows = read_metrics(tmp_path / name / "metrics.csv")
        assert [(row.step, row.split) for row in rows] == [(row.step, row.split) for row in one]
        for alone, shared in zip(one, rows, strict=True):
            # Gradients are summed in another order, by some 1e-7 of their size. Where Muon iterates in bfloat16, that
            # turns the rounding of some numbers, each by 2**-8 of what a step moves, 0.02: 8e-5 in a loss near 6.
            assert shared.nats_per_token == pytest.approx(alone.nats_per_token, abs=1e-4)

    goes_on = {"a": ("spread", ALONE), "b": ("spread", TWO)}  # what is on disk is whole
    for out, (name, how) in goes_on.items():
        resumed = subprocess.run(
            [*how, "train", "--resume", name, "--steps", "40", "--out", out, "--micro-batch", "1"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert "done at step 40" in resumed.stderr, resumed.stderr
    last = [read_metrics(tmp_path / run / "metrics.csv")[-1].nats_per_token for run in goes_on]
    assert max(last) - min(last) < 2e-3


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_spread_weights_are_not_sampled_from_on_the_way(started):
    process = started(TWO, "--steps", "10", "--fsdp", "--sample-every", "5")
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "--sample-every needs the whole model in one process" in err


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes in /proc")
def test_a_lost_process_ends_the_run_with_a_good_checkpoint(started, tmp_path):
    process = started(TWO, "--steps", "1000000", "--out", "run")
    metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 240
    while not (metrics.is_file() and len(read_metrics(metrics)) > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    os.kill(pid_of_rank(1, process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=120)

    assert process.returncode != 0
    assert "lost one of the 2 processes" in err
    assert "continue with --resume run" in err
    assert load_checkpoint(tmp_path / "run" / "last").metadata["step"] >= 10
    step = load_checkpoint(tmp_path / "run" / "last").metadata["step"]
    resume = [*ALONE, "train", "--resume", "run", "--steps", str(step + 2)]
    again = subprocess.run(resume, cwd=tmp_path, capture_output=True, text=True)
    assert f"done at step {step + 2}" in again.stderr


def pid_of_rank(rank, parent):
    """The process that `torchrun` told this rank."""
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/environ", "rb") as environ, open(f"/proc/{process}/stat") as stat:
                told, of = environ.read().split(b"\0"), int(stat.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if of == parent and f"RANK={rank}".encode() in told:
            return int(process)
    raise AssertionError(f"no process has rank {rank}")


def test_rows_are_shared_equally_or_not_at_all(tmp_path, monkeypatch):
    assert [list(ProcessGroup(rank, 2).rows(6)) for rank in (0, 1)] == [[0, 1, 2], [3, 4, 5]]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="a batch of 8 windows, 8 at once, cannot be shared equally among 3 processes"):
        new_run(small_corpus(tmp_path / "c").path, size="tiny", device="cpu", precision="fp32", compile=False)


@pytest.mark.parametrize(
    ("own", "others", "together"),
    [("bf16", "fp32", "fp32"), ("fp32", "bf16", "fp32"), ("bf16", "bf16", "bf16"), ("fp16", "bf16", "fp16")],
)
def test_several_processes_compute_in_a_precision_that_all_of_them_have(monkeypatch, own, others, together):
    order = ["fp32", "fp16", "bf16"]
    monkeypatch.setattr(machine_choice, "join", lambda ranks, device: None)
    monkeypatch.setattr(ProcessGroup, "min", lambda self, number, device: min(number, order.index(others)))
    machine = Machine(torch.device("cpu"), own, False, "for tests")

    assert machine_choice.agree_on_precision(machine, ProcessGroup(0, 2)).precision == together
    assert machine_choice.agree_on_precision(machine, ProcessGroup()) is machine


WHOLE = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from pamusic.training.muon import orthogonalize
from pamusic.training.fsdp import apply_to_whole

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for shape in ((5, 7), (7, 5), (1, 4), (8, 8)):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spread = distribute_tensor(matrix, mesh, [Shard(0)])
    found = apply_to_whole(orthogonalize, spread)
    assert found.placements == spread.placements
    assert found.to_local().shape == spread.to_local().shape
    # Equal to the last bit wherever it was tried; products may round by where in memory a matrix lies, so not demanded.
    torch.testing.assert_close(found.full_tensor().float(), orthogonalize(matrix).float(), rtol=0, atol=1e-5)
dist.destroy_process_group()
print("equal", flush=True)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_a_spread_matrix_is_orthogonalized_as_a_whole(tmp_path):
    """Also where the rows do not divide among the processes, or one has none."""
    (tmp_path / "whole.py").write_text(WHOLE)
    words = [*TWO[:-2], str(tmp_path / "whole.py")]
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2  # the two may write at once
