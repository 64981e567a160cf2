"""Trained weights in a deeper model, which at first says what the shallower one did.

Knows a checkpoint's model; trains nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from pamusic.checkpoint import Checkpoint
from pamusic.model.perceiver_ar import PerceiverAR

OF_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
ADDS_TO_STREAM = ("attention.output.weight", "mlp.down.weight")  # of a block: at zero, it is the identity


def grown(checkpoint: Checkpoint, num_layers: int) -> Checkpoint:
    """Return a checkpoint with more self-attention layers than it had, in memory, and the same logits.

    The new layers stand spread among the old. Each begins as the one before it, so that it attends to something and
    finds something from the first step on (stacking: Gong et al. 2019), but adds nothing to the residual stream: its
    output projections begin at zero, as a new model's do (growth that keeps the function: Chen et al. 2016,
    arXiv:1511.05641).

    Args:
        checkpoint: whose weights they are.
        num_layers: at least as many as it has.
    """
    trained, depth = checkpoint.model.state_dict(), checkpoint.model.config.num_layers
    model = PerceiverAR(replace(checkpoint.model.config, num_layers=num_layers))
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
