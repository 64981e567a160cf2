"""Every architecture is trained by the same trainer: same windows, same files, same rules for resuming."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import tiny_config
from trainers import new_run, resumed_run
from typer.testing import CliRunner

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.cli.app import app
from pamusic.device import Machine
from pamusic.errors import UsageError
from pamusic.evaluation.likelihood import evaluate
from pamusic.model.architectures import build_model
from pamusic.model.config import ARCHITECTURES, preset
from pamusic.training.config import TrainingConfig
from pamusic.training.data import NOT_SCORED, TrainingBatches, validation_batches
from pamusic.training.machine_choice import fitting_micro_batch
from pamusic.training.memory import memory_needed
from pamusic.training.metrics import read_metrics
from pamusic.training.run_plan import RunPlan
from pamusic.training.trainer import Trainer

RIVALS = ("transformer", "transformer-xl")
CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")
SHORT = {
    "size": "tiny", "context_length": 64, "num_latents": 16, "batch_size": 2, "precision": "fp32", "compile": False,
    "warmup_steps": 5, "validation_windows": 4, "validate_every": 10,
}  # fmt: skip


def weights_of(run):
    return (Path(run) / "last" / "model.safetensors").read_bytes()


def rows_of(run):
    """Everything but the times."""
    return [(row.step, row.latent_tokens, row.split, row.nats_per_token) for row in read_metrics(run / "metrics.csv")]


@pytest.mark.parametrize("tokenizer", ["performance", "notes"])
@pytest.mark.parametrize("architecture", RIVALS)
def test_it_learns_and_a_resumed_run_equals_one_that_never_stopped(tmp_path, architecture, tokenizer):
    small_corpus(tmp_path / "c", tokenizer=tokenizer)
    asked = {**SHORT, "architecture": architecture, "steps": 40, "cooldown_steps": 20, "dropout": 0.1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    new_run(tmp_path / "c", out=whole, **asked).train()
    trainer, steps = new_run(tmp_path / "c", out=stopped, **asked), []
    trainer.train(lambda report: steps.append(report.step), max_minutes=0.0)  # stops after one step
    assert trainer.step == 1
    resumed_run(stopped).train()

    rows = rows_of(whole)
    losses = {step: nats for step, _, split, nats in rows if split == "validation"}
    assert losses[40] < losses[10] - 0.05
    assert rows[-1][1] == 40 * 2 * 64  # all positions of the windows were targets
    assert [row for row in rows_of(stopped) if row[0] > 10] == [row for row in rows if row[0] > 10]
    assert weights_of(stopped) == weights_of(whole)

    loaded = load_checkpoint(whole / "last")
    assert loaded.model.config.architecture == architecture
    nats = evaluate(loaded.model, trainer.corpus, "validation").nats_per_token
    save_checkpoint(tmp_path / "again", loaded.model, loaded.tokenizer, metadata={})
    again = load_checkpoint(tmp_path / "again")
    assert again.model.config == loaded.model.config
    assert evaluate(again.model, trainer.corpus, "validation").nats_per_token == nats


def test_all_architectures_see_the_same_windows_and_are_validated_on_the_same_targets(tmp_path):
    corpus, training = small_corpus(tmp_path / "c"), TrainingConfig(prefix_dropout=0.0, batch_size=4)
    shapes = [tiny_config(architecture=name) for name in ARCHITECTURES]
    perceiver, *others = (TrainingBatches(corpus, shape, training).batch(7) for shape in shapes)
    for other in others:
        assert other.targets.shape == (4, 64)
        for tokens, targets, own, theirs in zip(
            other.tokens, other.targets, perceiver.tokens, perceiver.targets, strict=True
        ):
            seen = own[own != 390]
            assert torch.equal(tokens[: len(seen)], seen)
            scored = targets[targets != NOT_SCORED]
            assert torch.equal(scored[-16:], theirs[theirs != NOT_SCORED])
            assert torch.equal(targets[: len(seen) - 1], tokens[1 : len(seen)])

    batches = [validation_batches(corpus, shape, 5, 5) for shape in shapes]
    targets = [[batch.targets[batch.targets != NOT_SCORED].tolist() for batch in batch] for batch in batches]
    assert targets[0] == targets[1] == targets[2]


def plain(architecture="transformer", **changes):
    return preset("tiny", vocab_size=391, pad_id=390, architecture=architecture, **changes)


def test_the_memory_of_a_transformer_grows_with_the_square_where_its_attention_needs_it():
    training = TrainingConfig(batch_size=1, prefix_dropout=0.0)
    half, one, two, four = (
        memory_needed(plain(context_length=length), training, CPU).window for length in (1024, 2048, 4096, 8192)
    )
    assert one > 2.5 * half  # attention in blocks keeps its weights
    assert four == pytest.approx(2 * two, rel=0.05)  # fused attention does not
    xl = [memory_needed(plain("transformer-xl", context_length=n), training, CPU).window for n in (1024, 2048)]
    assert xl[1] == pytest.approx(2 * xl[0], rel=0.1)


def test_a_window_that_cannot_fit_is_refused_before_it_is_tried(monkeypatch, tmp_path):
    small_corpus(tmp_path / "c")
    monkeypatch.setattr("pamusic.training.machine_choice.available_memory", lambda device: 2**30)
    asked = {**SHORT, "architecture": "transformer", "context_length": 131072}
    with pytest.raises(UsageError, match=r"a window of 131,072 tokens needs at least 4.* GiB, and 1.0 GiB are free"):
        new_run(tmp_path / "c", out=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="a window of 131,072 tokens needs at least"):
        new_run(tmp_path / "c", out=tmp_path / "run", **asked, micro_batch=1)  # a number of one's own does not help
    assert not (tmp_path / "run").exists()

    fitting = new_run(tmp_path / "c", **{**asked, "context_length": 512, "steps": 2}, out=tmp_path / "run")
    assert fitting.training.micro_batch != 0
    fitting.train()
    with pytest.raises(UsageError, match="a window of 131,072 tokens needs at least"):
        resumed_run(tmp_path / "run", steps=4, context_length=131072)


def test_a_window_that_may_fit_is_tried(monkeypatch):
    training, shape = TrainingConfig(batch_size=4, prefix_dropout=0.0), plain()
    needed = memory_needed(shape, training, CPU)
    found = []
    for available in (needed.least(False), needed.needed(1) * 2):
        monkeypatch.setattr("pamusic.training.machine_choice.available_memory", lambda device, n=available: n)
        found.append(fitting_micro_batch(shape, training, CPU, RunPlan.ranks))
    assert found[0] == 1
    assert found[1] in (1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus of each kind, and a short run of each architecture."""
    folder = tmp_path_factory.mktemp("trained")
    for tokenizer in ("performance", "notes"):
        small_corpus(folder / tokenizer, tokenizer=tokenizer)
    for architecture in ARCHITECTURES:
        own = {"architecture": architecture, "out": folder / architecture, "steps": 2}
        new_run(folder / "performance", **{**SHORT, **own}).train()
    return folder


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["performance", "--architecture", "lstm"],
            "unknown architecture 'lstm'; use one of perceiver-ar, transformer",
        ),
        (["performance", "--architecture", "transformer", "--ledger"], "ledger belongs to perceiver-ar, not to trans"),
        (["performance", "--architecture", "transformer", "--recall"], "recall belongs to perceiver-ar, not to trans"),
        (["notes", "--architecture", "transformer-xl", "--set", "clock=true"], "clock belongs to perceiver-ar"),
        (
            ["notes", "--architecture", "transformer-xl", "--set", "offsets=true", "--set", "conv_width=4"],
            "offsets, conv_width belong to perceiver-ar, not to transformer-xl; leave them out",
        ),
        (["performance", "--architecture", "transformer", "--prefix-dropout", "0.5"], "prefix_dropout belongs to perc"),
        (["performance", "--architecture", "transformer", "--set", "cross_num_heads=2"], "cross_num_heads belongs to"),
        (["--resume", "transformer", "--architecture", "perceiver-ar"], "trained weights keep their architecture"),
        (["--resume", "perceiver-ar", "--architecture", "transformer-xl"], "trained weights keep their architecture"),
        (["performance", "--architecture", "transformer", "--set", "min_latents=8"], "min_latents belongs to percei"),
        (["--resume", "transformer", "--prefix-dropout", "0.5"], "prefix_dropout belongs to perceiver-ar"),
        (
            ["performance", "--init-from", "transformer", "--architecture", "transformer-xl"],
            "trained weights keep their architecture; leave these settings out",
        ),
        (["performance", "--init-from", "transformer", "--ledger"], "ledger belongs to perceiver-ar"),
        (["performance", "--init-from", "transformer-xl", "--train-only", "ledger"], "unknown part 'ledger'"),
    ],
)
def test_what_does_not_belong_to_an_architecture_is_refused_in_one_line(trained, monkeypatch, words, reason):
    monkeypatch.chdir(trained)
    before = sorted(path.name for path in trained.iterdir())
    shape = [] if {"--resume", "--init-from"} & set(words) else ["--size", "tiny"]
    told = CliRunner().invoke(app, ["train", *words, *shape, "--out", "new", "--no-compile"])

    assert told.exit_code == 2, told.output
    assert reason in told.stderr
    assert told.stderr.count("\n") == 1
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize("architecture", RIVALS)
def test_a_trained_rival_samples_evaluates_and_tunes(trained, monkeypatch, tmp_path, architecture):
    monkeypatch.chdir(trained)

    def pamusic(*words, code=0):
        told = CliRunner().invoke(app, [str(word) for word in words])
        assert told.exit_code == code, told.output
        return told

    pamusic("sample", "--checkpoint", architecture, "--length", 150, "--seed", 1, "-o", tmp_path / "a.mid")
    pamusic("sample", "--checkpoint", architecture, "--length", 150, "--seed", 1, "-o", tmp_path / "b.mid")
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    in_int8 = ("--precision", "int8", "-o", tmp_path / "c.mid")
    told = pamusic("sample", "--checkpoint", architecture, *in_int8, code=2).stderr
    assert told.count("\n") == 1
    assert f"precision int8 is for perceiver-ar, not for {architecture}" in told

    pamusic("evaluate", architecture, "performance", "--split", "validation", "--stride", 4)
    drift = pamusic("evaluate", architecture, "performance", "--split", "validation", "--cache-drift", code=2)
    assert "is about the latents of a perceiver-ar" in drift.stderr
    run = new_run("performance", init_from=architecture, steps=1, compile=False, out=tmp_path / "tuned")
    before, after = load_checkpoint(trained / architecture / "last").model, run.model
    assert (after.config.architecture, after.config.num_layers) == (architecture, before.config.num_layers)
    tokens = torch.randint(0, 380, (1, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(after.eval()(tokens), before(tokens), atol=1e-5, rtol=1e-5)


def test_another_context_is_refused_where_the_state_is_carried_along(trained):
    model = load_checkpoint(trained / "transformer-xl" / "last").model
    corpus = new_run(trained / "performance", **SHORT, steps=1, out=trained / "unused").corpus
    with pytest.raises(UsageError, match="a transformer-xl carries its state along a piece"):
        evaluate(model, corpus, "validation", context_length=32)
    longer = evaluate(model, corpus, "validation", num_latents=32)
    assert np.isfinite(longer.nats_per_token)


def test_a_run_of_a_shape_from_before_there_were_architectures_is_resumed(trained, tmp_path):
    """Its record has no `architecture`."""
    import json
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained / "perceiver-ar", run)
    record = json.loads((run / "run.json").read_text())
    assert record["model"].pop("architecture") == "perceiver-ar"
    (run / "run.json").write_text(json.dumps(record))

    trainer = resumed_run(run, steps=3)
    assert isinstance(trainer, Trainer)
    assert trainer.model.config == dataclasses.replace(trainer.model.config, architecture="perceiver-ar")
    assert isinstance(trainer.model, type(build_model(tiny_config())))
    trainer.train()
    assert trainer.step == 3
