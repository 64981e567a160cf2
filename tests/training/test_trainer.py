"""A run learns, stops in order, goes on where it stopped, and ends well wherever it is cut short."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import tiny_config
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.exc import InductorError
from trainers import make_trainer, new_run, resumed_run

from pamusic.checkpoint import find_checkpoint, load_checkpoint
from pamusic.device import Machine, choose_machine
from pamusic.errors import PamusicError, UsageError
from pamusic.training.config import TrainingConfig
from pamusic.training.data import latents_of_step
from pamusic.training.schedule import rate

CPU = Machine(torch.device("cpu"), "fp32", False, "for tests")


def config(**changes):
    fields = {
        "steps": 8, "batch_size": 4, "micro_batch": 4, "warmup_steps": 2, "cooldown_steps": 4, "validate_every": 4,
        "validation_windows": 4,
    }  # fmt: skip
    return TrainingConfig(**{**fields, **changes})


def losses(run, split="train"):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["nats_per_token"]) for row in csv.DictReader(file) if row["split"] == split}


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.slow
def test_a_tiny_model_learns_one_piece_by_heart(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(25,), splits=("train",))
    shape = tiny_config(context_length=128, num_latents=96, d_model=64, num_layers=2)
    training = config(
        steps=200, batch_size=8, micro_batch=8, prefix_dropout=0.0, stretch=0.0, transpose_down=0,
        transpose_up=0, warmup_steps=10, cooldown_steps=100,
    )  # fmt: skip
    trainer = make_trainer(tmp_path / "run", corpus, shape, training, CPU)

    trainer.train()

    assert losses(tmp_path / "run")[200] < 0.1


def test_the_rate_rises_stays_and_falls_in_straight_lines():
    shape = config(steps=10, warmup_steps=2, cooldown_steps=4)
    assert [rate(step, shape) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_a_run_that_ended_at_a_level_rate_can_be_cooled_down(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "run", corpus, tiny_config(), config(steps=8, cooldown_steps=0), CPU).train()

    cooled = resumed_run(tmp_path / "run", cooldown_steps=4)

    assert [rate(step, cooled.training) for step in range(6, 12)] == [1, 1, 1, 0.75, 0.5, 0.25]


def test_a_cooldown_of_a_run_that_cools_already_goes_on_from_the_rate_it_has(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "run", corpus, tiny_config(), config(steps=8, cooldown_steps=4), CPU).train(
        lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 4 else None
    )
    branch = resumed_run(tmp_path / "run", out=tmp_path / "branch", cooldown_steps=6)
    assert branch.step == 5
    assert branch.in_cooldown
    assert [rate(step, branch.training) for step in (5, 7, 9, 10)] == pytest.approx([0.75, 0.5, 0.25, 0.125])

    drawn_out = resumed_run(tmp_path / "run", out=tmp_path / "branch", steps=8, cooldown_steps=6)
    assert [rate(step, drawn_out.training) for step in (5, 6, 7)] == pytest.approx([0.75, 0.5, 0.25])


def test_tokens_are_counted_through_a_change_of_shape(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "run", corpus, tiny_config(), config(steps=4), CPU).train()
    before = 4 * 4 * tiny_config().num_latents
    resumed = resumed_run(tmp_path / "run", steps=6, batch_size=2, micro_batch=2)
    resumed.train()
    assert resumed.latent_tokens == before + 2 * 2 * tiny_config().num_latents


def test_a_run_with_a_random_number_of_latents_counts_them_and_resumes(tmp_path):
    corpus, varied = small_corpus(tmp_path / "c"), config(steps=9, min_latents=4, validate_every=3)
    drawn = [latents_of_step(step, tiny_config(), varied) for step in range(9)]
    assert len(set(drawn)) > 1
    whole = make_trainer(tmp_path / "whole", corpus, tiny_config(), varied, CPU)
    whole.train()
    assert whole.latent_tokens == 4 * sum(drawn)

    stopped = make_trainer(tmp_path / "run", corpus, tiny_config(), varied, CPU)
    stopped.train(lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 3 else None)
    resumed = make_trainer(tmp_path / "run", corpus, tiny_config(), varied, CPU, resume_from=tmp_path / "run")
    assert resumed.step == 4
    resumed.train()

    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.latent_tokens == whole.latent_tokens
    with pytest.raises(UsageError, match=r"min_latents must be at most num_latents \(2\), got 4"):
        resumed_run(tmp_path / "run", steps=12, num_latents=2)


def test_a_run_leaves_metrics_its_settings_and_two_checkpoints(tmp_path):
    run = tmp_path / "run"
    outcome = make_trainer(run, small_corpus(tmp_path / "c"), tiny_config(), config(), CPU).train()

    assert outcome.complete
    assert set(losses(run, "validation")) == {4, 8}
    with (run / "metrics.csv").open(newline="") as file:  # the rate that the step was made with: 1/4 is the last
        rows = [(int(row["step"]), row["split"], float(row["rate"])) for row in csv.DictReader(file)]
    assert rows == [
        (4, "validation", 1),
        (4, "validation_ema", 1),
        (8, "train", 0.25),
        (8, "validation", 0.25),
        (8, "validation_ema", 0.25),
    ]
    assert outcome.best_nats == pytest.approx(min(losses(run, "validation").values()), abs=1e-4)
    about = json.loads((run / "run.json").read_text())
    assert about["training"]["seed"] == 1
    assert about["versions"]["torch"] == torch.__version__
    for which in ("best", "last"):
        assert load_checkpoint(run / which).model.config == tiny_config()
    assert (run / "finished").is_file()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert find_checkpoint("latest", runs=tmp_path) == run / "best"


def test_a_run_that_was_stopped_goes_on_as_if_it_never_had_been(tmp_path):
    corpus, settings = small_corpus(tmp_path / "c"), config(steps=20, validate_every=10)
    whole = make_trainer(tmp_path / "whole", corpus, tiny_config(dropout=0.1), settings, CPU)
    whole.train()

    stopped = make_trainer(tmp_path / "stopped", corpus, tiny_config(dropout=0.1), settings, CPU)
    stopped.train(lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 10 else None)
    assert stopped.step == 11
    resumed = make_trainer(
        tmp_path / "stopped", corpus, tiny_config(dropout=0.1), settings, CPU, resume_from=tmp_path / "stopped"
    )
    resumed.train()

    assert torch.equal(weights(resumed), weights(whole))


def test_accumulating_micro_batches_changes_nothing_but_rounding(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    at_once, in_parts = (
        make_trainer(tmp_path / f"m{size}", corpus, tiny_config(), config(steps=3, micro_batch=size), CPU)
        for size in (4, 1)
    )
    at_once.train()
    in_parts.train()
    assert losses(tmp_path / "m4")[3] == pytest.approx(losses(tmp_path / "m1")[3], abs=1e-4)


def test_ctrl_c_stops_in_order(tmp_path):
    trainer = make_trainer(
        tmp_path / "run", small_corpus(tmp_path / "c"), tiny_config(), config(steps=1000, validate_every=1000), CPU
    )
    handler = signal.getsignal(signal.SIGINT)

    outcome = trainer.train(lambda report: os.kill(os.getpid(), signal.SIGINT) if report.step == 10 else None)

    assert not outcome.complete
    assert outcome.step == 11
    assert load_checkpoint(tmp_path / "run" / "last").metadata["step"] == 11
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_time_limit_stops_in_order_and_a_cooldown_can_be_branched_off(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    trainer = new_run(
        corpus.path, out=tmp_path / "run", size="tiny", compile=False, steps=1000, batch_size=2, context_length=64,
        num_latents=16, precision="fp32", validation_windows=4,
    )  # fmt: skip
    assert trainer.training.cooldown_steps == 400
    trainer.train(max_minutes=0.01)
    step = trainer.step
    assert 0 < step < 1000

    branch = resumed_run(tmp_path / "run", out=tmp_path / "branch", cooldown_steps=5)
    assert branch.training.steps == step + 5
    assert [rate(step + i, branch.training) for i in range(5)] == pytest.approx(
        [1, 0.8, 0.6, 0.4, 0.2], abs=1e-6
    ) or step < 100
    outcome = branch.train()
    assert outcome.complete
    assert outcome.step == step + 5
    assert json.loads((tmp_path / "run" / "run.json").read_text())["training"]["steps"] == 1000


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_state(tmp_path):
    trainer = make_trainer(tmp_path / "run", small_corpus(tmp_path / "c"), tiny_config(), config(steps=40), CPU)
    trainer.learner.training = config(steps=10)
    trainer.train()
    good = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"]
    trainer.learner.training = config(steps=40)
    with torch.no_grad():
        trainer.model.head.weight.fill_(np.nan)

    with pytest.raises(PamusicError, match="the loss became nan"):
        trainer.train()

    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == good
    assert not torch.isnan(load_checkpoint(tmp_path / "run" / "last").model.head.weight).any()


def test_a_step_whose_gradients_are_no_numbers_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run", small_corpus(tmp_path / "c"), tiny_config(), config(steps=1), CPU)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * np.inf)

    with pytest.raises(PamusicError, match=r"gradient norm became (nan|inf).*start again at a lower rate"):
        trainer.train()
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_run_that_fails_before_it_has_anything_leaves_nothing(tmp_path):
    trainer = make_trainer(
        tmp_path / "run", small_corpus(tmp_path / "c"), tiny_config(), config(steps=20, validate_every=20), CPU
    )
    with torch.no_grad():
        trainer.model.head.weight.fill_(np.nan)
    with pytest.raises(PamusicError, match="the loss became nan"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_branch_keeps_the_best_of_its_own(tmp_path):
    corpus, settings = small_corpus(tmp_path / "c"), config(steps=4)
    trainer = make_trainer(tmp_path / "run", corpus, tiny_config(), settings, CPU)
    trainer.train()
    trainer._best_nats = 0.001  # no branch can be better
    trainer._save()

    branch = resumed_run(tmp_path / "run", out=tmp_path / "branch", steps=6)
    outcome = branch.train()
    assert outcome.best_nats == pytest.approx(losses(tmp_path / "branch", "validation")[6], abs=1e-4)
    assert find_checkpoint(str(tmp_path / "branch")) == tmp_path / "branch" / "best"

    assert resumed_run(tmp_path / "run", steps=6).best_nats == 0.001
    assert resumed_run(tmp_path / "run", steps=6, num_latents=8).best_nats == np.inf


def fails(graph, inputs):
    raise RuntimeError("Python.h: no such file")


def fails_on_the_way_back():
    def as_it_stands(graph, inputs):
        return make_boxed_func(graph.forward)

    def fails_as_inductor_does(graph, inputs):
        raise InductorError(RuntimeError("Python.h: no such file"), None)

    return aot_autograd(fw_compiler=as_it_stands, bw_compiler=fails_as_inductor_does)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [fails, fails_on_the_way_back()], ids=["forward", "backward"])
def test_a_model_that_cannot_be_compiled_is_trained_without_and_loses_no_step(tmp_path, compiler):
    corpus = small_corpus(tmp_path / "c")
    make_trainer(tmp_path / "plain", corpus, tiny_config(dropout=0.1), config(steps=2), CPU).train()
    trainer = make_trainer(tmp_path / "run", corpus, tiny_config(dropout=0.1), config(steps=2), CPU)
    trainer.learner._compiled = torch.compile(trainer.learner._eager_loss, backend=compiler)
    notes = []
    trainer.train(lambda report: notes.append(report.note))

    assert len(notes) == 1
    assert "cannot be compiled here" in notes[0]
    assert "Python.h: no such file" in notes[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["machine"]["compile"] is False
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_a_run_in_the_way_is_not_replaced_unless_asked(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    options = {"size": "tiny", "compile": False, "steps": 2, "context_length": 32, "num_latents": 8, "batch_size": 2}
    new_run(corpus.path, out=tmp_path / "run", **options).train()
    with pytest.raises(PamusicError, match="there is a run already"):
        new_run(corpus.path, out=tmp_path / "run", **options)
    assert (tmp_path / "run" / "state.pt").is_file()
    (tmp_path / "nothing").mkdir()
    nothing = small_corpus(tmp_path / "nothing" / "c", notes_of_pieces=(40,), splits=("test",))
    with pytest.raises(PamusicError, match="no training pieces"):
        new_run(nothing.path, out=tmp_path / "run", overwrite=True, **options)
    assert (tmp_path / "run" / "state.pt").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert new_run(corpus.path, out=tmp_path / "link", overwrite=True, **options).step == 0
    assert not any((tmp_path / "run").iterdir())

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(PamusicError, match="is not a run"):
        new_run(corpus.path, out=tmp_path / "mine", overwrite=True, **options)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_resuming_on_another_corpus_or_from_nothing_is_refused(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    options = {"size": "tiny", "compile": False, "steps": 4, "context_length": 32, "num_latents": 8, "batch_size": 2}
    new_run(corpus.path, out=tmp_path / "run", **options).train()
    other = small_corpus(tmp_path / "other", notes_of_pieces=(90, 10), splits=("train", "validation"))

    with pytest.raises(PamusicError, match="not the corpus"):
        resumed_run(tmp_path / "run", corpus=other.path, steps=8)
    with pytest.raises(PamusicError, match="all of its 4 steps"):
        resumed_run(tmp_path / "run")
    with pytest.raises(PamusicError, match="no run to resume"):
        resumed_run(tmp_path / "nowhere")
    (tmp_path / "run" / "state.pt").write_bytes((tmp_path / "run" / "state.pt").read_bytes()[:1000])
    with pytest.raises(PamusicError, match="cannot load the state"):
        resumed_run(tmp_path / "run", steps=8)
    (tmp_path / "run" / "state.pt").write_bytes(b"")
    with pytest.raises(PamusicError, match="it is empty"):
        resumed_run(tmp_path / "run", steps=8)


def test_the_machine_is_chosen_by_measuring_and_a_wrong_wish_is_answered():
    assert choose_machine("cpu").precision in ("bf16", "fp32")
    assert choose_machine("cpu", "fp32", compile=False) == Machine(torch.device("cpu"), "fp32", False, "as asked")
    with pytest.raises(PamusicError, match="fp16 needs a GPU"):
        choose_machine("cpu", "fp16")
    with pytest.raises(PamusicError, match="cannot be used"):
        choose_machine("quantum")
