"""Tiny real models for tests."""

import torch

from pamusic.model.config import ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR


def tiny_config(**changes):
    fields = {
        "vocab_size": 391, "pad_id": 390, "context_length": 64, "num_latents": 16, "d_model": 32, "num_layers": 2,
        "num_heads": 2, "cross_num_heads": 1,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def tiny_model(seed=0, **changes):
    """A model whose every weight is random: a new one predicts a uniform distribution, for its head is zero."""
    torch.manual_seed(seed)
    model = PerceiverAR(tiny_config(**changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model
