"""Trained weights in a deeper model: the same music, with room to learn."""

import pytest
import torch
from corpora import small_corpus
from models import tiny_model
from trainers import new_run, resumed_run

from pamusic.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pamusic.errors import UsageError
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training.growing import grown

HERE = {"device": "cpu", "precision": "fp32", "compile": False}


def trained(num_layers):
    return Checkpoint("trained", tiny_model(num_layers=num_layers), load_tokenizer("performance"), {"step": 7})


def layers_of(model):
    return [{name: weight.clone() for name, weight in layer.named_parameters()} for layer in model.layers]


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 3), (3, 8), (2, 2), (0, 2)])
def test_a_grown_model_says_what_the_one_before_it_said(before, now):
    checkpoint = trained(before)
    deeper = grown(checkpoint, now).model
    tokens = torch.randint(1, checkpoint.model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))

    assert deeper.config.num_layers == len(deeper.layers) == now
    with torch.no_grad():
        assert torch.equal(deeper(tokens, 8), checkpoint.model(tokens, 8))


def test_the_new_layers_stand_spread_among_the_old_and_begin_as_the_one_before_but_say_nothing():
    checkpoint = trained(3)
    old, new = layers_of(checkpoint.model), layers_of(grown(checkpoint, 5).model)
    says = {"attention.output.weight", "mlp.down.weight"}

    for layer, source in zip(new, [0, 0, 1, 1, 2], strict=True):
        assert all(torch.equal(layer[name], old[source][name]) for name in layer.keys() - says)
    silent = [all(not layer[name].any() for name in says) for layer in new]
    assert silent == [False, True, False, True, False]
    for layer, source in ((0, 0), (2, 1), (4, 2)):
        assert all(torch.equal(new[layer][name], old[source][name]) for name in says)


def test_a_run_that_asks_for_more_layers_grows_the_weights_and_trains_all_of_them(tmp_path):
    checkpoint = trained(2)
    save_checkpoint(tmp_path / "trained", checkpoint.model, checkpoint.tokenizer, metadata={})
    corpus = small_corpus(tmp_path / "c").path
    how = {"init_from": str(tmp_path / "trained"), "steps": 3, "cooldown_steps": 0, **HERE}
    trainer = new_run(corpus, out=tmp_path / "run", num_layers=3, **how)
    begun = layers_of(trainer.model)
    shallow = new_run(corpus, out=tmp_path / "shallow", **how)

    assert trainer.plan.started_from == f"{tmp_path / 'trained'}, grown from 2 to 3 layers"
    assert trainer._score_windows() == shallow._score_windows()
    trainer.train()
    changed = [
        {name for name, weight in now.items() if not torch.equal(weight, before[name])}
        for now, before in zip(layers_of(trainer.model), begun, strict=True)
    ]
    assert all({"attention.output.weight", "mlp.down.weight"} <= names for names in changed)
    assert load_checkpoint(tmp_path / "run" / "last").model.config.num_layers == 3


def test_layers_are_not_taken_away_nor_added_to_a_run_that_goes_on(tmp_path):
    checkpoint = trained(2)
    save_checkpoint(tmp_path / "trained", checkpoint.model, checkpoint.tokenizer, metadata={})
    corpus = small_corpus(tmp_path / "c").path
    how = {"init_from": str(tmp_path / "trained"), "steps": 2, "cooldown_steps": 0, **HERE}
    new_run(corpus, out=tmp_path / "run", **how).train()

    for layers in (0, 1):
        with pytest.raises(UsageError, match="trained weights keep their num_layers"):
            new_run(corpus, num_layers=layers, **how)
    for layers in (-1, 1001):
        with pytest.raises(
            UsageError, match=f"num_layers must be between 0 and 1,000, got {layers}|keep their num_layers"
        ):
            new_run(corpus, num_layers=layers, **how)
    with pytest.raises(UsageError, match="trained weights keep their num_layers"):
        resumed_run(tmp_path / "run", num_layers=3, steps=4)
