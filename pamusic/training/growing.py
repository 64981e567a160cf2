"""Grow a trained model deeper, with the same logits at first.

Knows a checkpoint's model; trains nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from pamusic.checkpoint import Checkpoint
from pamusic.model.architectures import build_model

OF_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
ADDS_TO_STREAM = ("attention.output.weight", "mlp.down.weight")  # with zeros here, a block is the identity


def grown(checkpoint: Checkpoint, num_layers: int) -> Checkpoint:
    """Return a checkpoint in memory with more self-attention layers and the same logits.

    The new layers are spread evenly among the old ones. Each begins as a copy of the layer before it, so that its
    attention works from the first step (stacking: Gong et al. 2019). But its output projections begin at zero, as in a
    new model, so it adds nothing to the residual stream (function-preserving growth: Chen et al. 2016,
    arXiv:1511.05641).

    Args:
        checkpoint: Checkpoint to grow.
        num_layers: New number of layers, at least the present one.
    """
    trained, depth = checkpoint.model.state_dict(), checkpoint.model.config.num_layers
    model = build_model(replace(checkpoint.model.config, num_layers=num_layers))
    source = [layer * depth // num_layers for layer in range(num_layers)]

    def begins(name: str, weight: Tensor) -> Tensor:
        match = OF_LAYER.fullmatch(name)
        if match is None:
            return trained[name]
        layer, part = int(match[1]), match[2]
        if depth == 0 or (layer > 0 and source[layer] == source[layer - 1] and part in ADDS_TO_STREAM):
            return weight
        return trained[f"layers.{source[layer]}.{part}"]

    model.load_state_dict({name: begins(name, weight) for name, weight in model.state_dict().items()})
    return Checkpoint(checkpoint.path, model.eval(), checkpoint.tokenizer, checkpoint.metadata)
