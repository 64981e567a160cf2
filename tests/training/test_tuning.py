"""Trained weights tuned on one's own pieces; settings from a file."""

from dataclasses import asdict

import pytest
import torch
from corpora import small_corpus
from models import tiny_config, tiny_model
from trainers import make_trainer, new_run, resumed_run

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.cli.option_values import read_values
from pamusic.cli.reports.training import plan_lines
from pamusic.device import Machine
from pamusic.errors import PamusicError, UsageError
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.config import TrainingConfig
from pamusic.training.config_file import settings_of
from pamusic.training.metrics import read_metrics

HERE = {"device": "cpu", "precision": "fp32", "compile": False}


def settings_in(path):
    """The settings that a file has, by name."""
    return {
        name: value
        for name, value in asdict(settings_of(read_values(path, []), str(path))).items()
        if value is not None
    }


@pytest.fixture
def trained(tmp_path):
    save_checkpoint(tmp_path / "trained", tiny_model(), load_tokenizer("performance"), metadata={})
    return tmp_path / "trained"


@pytest.mark.slow
def test_tuning_begins_with_the_weights_and_brings_the_loss_down_on_the_new_corpus(tmp_path, trained):
    corpus = small_corpus(tmp_path / "mine", notes_of_pieces=(300, 60), splits=("train", "validation"))
    trainer = new_run(corpus.path, init_from=str(trained), out=tmp_path / "run", validate_every=20, steps=160, **HERE)
    before = load_checkpoint(trained).model

    assert all(torch.equal(weight, before.state_dict()[name]) for name, weight in trainer.model.state_dict().items())
    assert f"starts from the weights of {trained}" in plan_lines(trainer)
    first = trainer._score_windows()
    outcome = trainer.train()

    assert outcome.best_nats < first - 0.3
    assert load_checkpoint(tmp_path / "run" / "best").metadata["run"]["started_from"] == str(trained)


def test_a_branch_of_a_tuned_run_knows_what_that_began_with(tmp_path, trained):
    corpus = small_corpus(tmp_path / "mine", notes_of_pieces=(300, 60), splits=("train", "validation"))
    new_run(corpus.path, init_from=str(trained), out=tmp_path / "run", steps=4, validate_every=4, **HERE).train()

    branch = resumed_run(tmp_path / "run", out=tmp_path / "branch", steps=6)

    assert not any("begins with" in line for line in plan_lines(branch))
    branch.train()
    assert load_checkpoint(tmp_path / "branch" / "last").metadata["run"]["started_from"] == str(trained)


def test_weights_without_a_ledger_can_be_given_one_that_says_nothing_until_it_has_learned_to(tmp_path, trained):
    corpus = small_corpus(tmp_path / "mine", notes_of_pieces=(300, 60), splits=("train", "validation"))
    how = {"init_from": str(trained), "steps": 20, "cooldown_steps": 0, **HERE}
    without = new_run(corpus.path, out=tmp_path / "a", **how)
    trainer = new_run(corpus.path, out=tmp_path / "b", ledger=True, **how)

    assert without.model.ledger is None
    assert trainer.model.config.ledger.num_slots == 128
    assert trainer._score_windows() == without._score_windows()
    trainer.train()
    tuned = load_checkpoint(tmp_path / "b" / "last").model
    assert tuned.ledger.weight.abs().max() > 0
    resumed = resumed_run(tmp_path / "b", steps=30, ledger=True)
    assert torch.equal(resumed.model.ledger.weight, trainer.model.ledger.weight)
    for again in (lambda: new_run(corpus.path, init_from=str(tmp_path / "b"), ledger=False, **HERE),
                  lambda: resumed_run(tmp_path / "b", steps=30, ledger=False)):  # fmt: skip
        with pytest.raises(UsageError, match="trained weights keep their ledger"):
            again()


@pytest.mark.slow
def test_weights_can_be_taught_to_recall_and_nothing_else_changes(tmp_path, trained):
    corpus = small_corpus(tmp_path / "mine", notes_of_pieces=(300, 60), splits=("train", "validation"))
    how = {"init_from": str(trained), "steps": 20, "cooldown_steps": 0, "context_length": 512, **HERE}
    trainer = new_run(corpus.path, out=tmp_path / "run", recall=True, only="recall", lr=0.05, **how)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    assert before["recall.gate.weight"].abs().max() == 0
    assert any(line.startswith("trains only its recall, ") for line in plan_lines(trainer))
    trainer.train()

    after = trainer.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        "recall.gate.weight",
        "recall.gate.bias",
    }
    kept = load_checkpoint(tmp_path / "run" / "last").model
    assert kept.config.recall.num_slots == 128
    resumed = resumed_run(tmp_path / "run", steps=22)
    assert torch.equal(resumed.model.recall.gate.weight, after["recall.gate.weight"])
    resumed.train()
    assert torch.equal(resumed.model.head.weight, before["head.weight"])
    with pytest.raises(UsageError, match="trained weights keep their recall"):
        resumed_run(tmp_path / "run", steps=30, recall=False)


def test_a_part_that_is_not_there_is_refused_by_name(tmp_path, trained):
    corpus = small_corpus(tmp_path / "mine", notes_of_pieces=(300, 60), splits=("train", "validation"))
    with pytest.raises(UsageError, match=r"unknown part 'recall' of the model; use one of embedding, .*head"):
        new_run(corpus.path, out=tmp_path / "run", init_from=str(trained), only="recall", **HERE)
    assert not (tmp_path / "run").exists()


def test_a_new_model_recalls_if_it_is_to(tmp_path):
    corpus = small_corpus(tmp_path / "c").path
    (tmp_path / "recipe.toml").write_text("size = 'tiny'\nrecall = true\n")

    recalls = new_run(corpus, out=tmp_path / "a", **settings_in(tmp_path / "recipe.toml"), **HERE)
    assert recalls.model.recall is not None
    assert new_run(corpus, out=tmp_path / "b", size="tiny", **HERE).model.recall is None


def test_a_new_model_has_a_ledger_unless_it_is_to_have_none(tmp_path):
    corpus = small_corpus(tmp_path / "c").path
    (tmp_path / "recipe.toml").write_text("size = 'tiny'\nledger = false\n")

    assert new_run(corpus, out=tmp_path / "a", **settings_in(tmp_path / "recipe.toml"), **HERE).model.ledger is None
    assert new_run(corpus, out=tmp_path / "b", size="tiny", **HERE).model.ledger is not None


@pytest.mark.slow
def test_it_ends_when_validation_no_longer_improves(tmp_path):
    trainer = new_run(
        small_corpus(tmp_path / "mine", notes_of_pieces=(30, 60), splits=("train", "validation")).path,
        size="tiny", context_length=32, num_latents=16, steps=5000, validate_every=5, patience=3, batch_size=2,
        validation_windows=4, out=tmp_path / "run", **HERE,
    )  # fmt: skip
    outcome = trainer.train()

    assert outcome.complete
    assert outcome.step < 5000
    assert outcome.step == trainer._best_step + 15


def test_weights_that_cannot_serve_are_refused(tmp_path, trained):
    with pytest.raises(PamusicError, match="no checkpoint is called 'nobody'"):
        new_run(small_corpus(tmp_path / "mine").path, init_from="nobody", **HERE)
    with pytest.raises(UsageError, match="trained weights keep their d_model"):
        new_run(tmp_path / "mine", init_from=str(trained), d_model=64, **HERE)


def test_settings_come_from_a_file(tmp_path):
    (tmp_path / "recipe.toml").write_text("size = 'tiny'\nnum_layers = 1\nsteps = 3\nlr = 0.001\n")
    recipe = settings_in(tmp_path / "recipe.toml")
    trainer = new_run(small_corpus(tmp_path / "c").path, out=tmp_path / "run", **recipe, **HERE)

    assert trainer.model.config.num_layers == 1
    assert (trainer.training.steps, trainer.training.lr) == (3, 0.001)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stepz = 3", "unknown setting 'stepz'; did you mean steps?"),
        ("qqqqqq = 3", "unknown setting 'qqqqqq'; use one of "),
        ("steps = [3]", r"steps must be a whole number, got \[3\]"),
        ("steps = 1.5", "steps must be a whole number, got 1.5"),
        ("lr = 'high'", "lr must be a number, got 'high'"),
        ("patience = true", "patience must be a whole number, got True"),
        ("recompute = 1", "recompute must be true or false, got 1"),
        ("precision = 16", "precision must be a word, got 16"),
        ("steps 3", "is not a TOML file"),
    ],
)
def test_a_file_of_settings_that_is_none(tmp_path, text, reason):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(PamusicError, match=reason):
        settings_of(read_values(tmp_path / "recipe.toml", []), str(tmp_path / "recipe.toml"))
    with pytest.raises(PamusicError, match="no such file"):
        read_values(tmp_path / "missing.toml", [])


def test_memory_that_runs_out_halves_what_is_computed_at_once_and_the_result_is_the_same(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    machine = Machine(torch.device("cpu"), "fp32", False, "for tests")
    settings = {"steps": 3, "batch_size": 4, "warmup_steps": 2, "cooldown_steps": 0}

    def run(name, most):
        trainer = make_trainer(tmp_path / name, corpus, tiny_config(), TrainingConfig(**settings), machine)

        def runs_out(module, inputs):
            if len(inputs[0]) > most and trainer.model.training:
                raise torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")

        trainer.model.register_forward_pre_hook(runs_out)
        notes = []
        trainer.train(lambda report: notes.append(report.note))
        return trainer, notes

    whole, nothing = run("whole", 4)
    halved, notes = run("halved", 1)

    assert nothing == [None]
    assert "memory ran out with 2 windows at once; continuing with 1" in notes[0]
    assert halved.training.micro_batch == 1
    losses = [read_metrics(trainer.run / "metrics.csv")[0].nats_per_token for trainer in (halved, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    with pytest.raises(torch.OutOfMemoryError):
        run("none", 0)


def test_layers_computed_twice_give_the_same_gradients():
    tokens = torch.randint(0, 380, (2, 64), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model = tiny_model().train()
        model.recompute = recompute
        model(tokens).float().logsumexp(-1).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)
