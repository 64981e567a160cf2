"""What Perceiver AR promises: it never looks ahead, and neither padding nor place changes what it says."""

import math

import pytest
import torch
from models import tiny_config, tiny_model

from pamusic.model.config import PRESETS, ModelConfig, preset
from pamusic.model.perceiver_ar import PerceiverAR


def random_tokens(batch=2, length=64):
    return torch.randint(0, 390, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_changing_a_token_changes_nothing_before_it():
    model, tokens = tiny_model(), random_tokens()
    changed = tokens.clone()
    changed[:, 56] = (changed[:, 56] + 1) % 390
    before, after = model(tokens), model(changed)  # the latents are positions 48 to 63

    assert torch.equal(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-6


@torch.inference_mode()
def test_every_latent_sees_the_whole_prefix():
    model, tokens = tiny_model(), random_tokens()
    for position in (0, 20, 47):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 390
        assert (model(tokens) - model(changed)).abs().amax(-1).min() > 1e-7


@torch.inference_mode()
def test_padding_before_the_prefix_changes_nothing():
    model, tokens = tiny_model(), random_tokens(length=40)
    padded = torch.cat([torch.full((2, 24), model.config.pad_id), tokens], dim=1)
    torch.testing.assert_close(model(padded), model(tokens), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_padding_behind_a_short_piece_changes_nothing():
    model, tokens = tiny_model(), random_tokens(length=10)
    padded = torch.cat([tokens, torch.full((2, 6), model.config.pad_id)], dim=1)
    torch.testing.assert_close(model(padded)[:, :10], model(tokens), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_keeping_every_position_of_the_prefix_is_no_dropout():
    model, tokens = tiny_model(), random_tokens()
    kept = torch.arange(48).expand(2, 48)
    torch.testing.assert_close(model(tokens, prefix_indices=kept), model(tokens), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_dropped_position_is_not_seen_and_a_kept_one_is():
    model, tokens = tiny_model(), random_tokens()
    kept = torch.tensor([[-1, 3, 30], [5, 6, 47]])
    logits = model(tokens, prefix_indices=kept)

    dropped = tokens.clone()
    dropped[:, 10] = (dropped[:, 10] + 1) % 390
    assert torch.equal(model(dropped, prefix_indices=kept), logits)
    seen = tokens.clone()
    seen[0, 30] = (seen[0, 30] + 1) % 390
    changed = model(seen, prefix_indices=kept)
    assert not torch.allclose(changed[0], logits[0], atol=1e-6)
    assert torch.equal(changed[1], logits[1])


@torch.inference_mode()
def test_with_as_many_latents_as_context_it_is_a_plain_decoder():
    model, tokens = tiny_model(), random_tokens()
    logits = model(tokens, num_latents=64)
    assert logits.shape == (2, 64, 391)
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 390
    assert torch.equal(model(changed, num_latents=64)[:, :40], logits[:, :40])


@torch.inference_mode()
def test_a_new_model_predicts_every_token_alike():
    logits = PerceiverAR(tiny_config())(random_tokens())
    nats = -logits.log_softmax(-1)
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(391)))


@pytest.mark.parametrize("size", [size for size in PRESETS if size != "base"])
def test_presets_are_models(size):
    config = preset(size, vocab_size=391, pad_id=390)
    assert size == "tiny" or config.context_length == 8192
    with torch.device("meta"):
        assert PerceiverAR(config).num_parameters() > 0


def test_base_is_the_papers_music_model():
    config = preset("base", vocab_size=391, pad_id=390)
    assert (config.num_layers, config.d_model, config.num_latents, config.context_length) == (12, 1024, 2048, 8192)
    assert config.d_model // config.cross_num_heads <= 128
    with torch.device("meta"):
        assert PerceiverAR(config).num_parameters() == pytest.approx(166e6, rel=0.02)


def test_a_preset_takes_another_context_and_fewer_latents():
    config = preset("small", vocab_size=391, pad_id=390, context_length=256, num_latents=None)
    assert (config.context_length, config.num_latents) == (256, 256)
    assert preset("small", vocab_size=391, pad_id=390, num_latents=64).num_latents == 64


def test_shapes_that_cannot_be_are_refused():
    for changes in (
        {"num_latents": 65},
        {"num_latents": 0},
        {"num_heads": 3},
        {"num_heads": 0},
        {"num_heads": -2},
        {"d_model": 0},
        {"num_layers": -1},
        {"num_layers": 1001},
        {"rotary_fraction": 0},
        {"dropout": 1.0},
    ):
        with pytest.raises(ValueError):
            tiny_config(**changes)
    with pytest.raises(ValueError, match="tiny, small, medium, base"):
        preset("huge", vocab_size=391, pad_id=390)


def test_a_configuration_survives_json():
    from dataclasses import asdict

    assert ModelConfig(**asdict(tiny_config())) == tiny_config()
