"""Average the weights of several checkpoints: a model soup (Wortsman et al. 2022, arXiv:2203.05482).

Knows checkpoints; trains nothing. Runs that begin with the same weights may end in one valley of the loss, each to a
side of its minimum. The loss of their mean is then lower than that of any of them. It was for `small` and the run that
began with it (`docs/experiments.md`). Weights of unrelated runs have no such mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError
from pamusic.model.perceiver_ar import PerceiverAR

MAX_VALUE_CHARS = 80  # of two values that differ; longer ones are left out of the message


def average_checkpoints(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return a checkpoint in memory whose weights are the mean of others; the rest is that of the first.

    Args:
        checkpoints: at least one.

    Raises:
        PamusicError: their models have other shapes, or their ids other meanings.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise PamusicError(
                f"{other.path} reads {other.tokenizer.name} events ({other.tokenizer.fingerprint}), {first.path}"
                f" {first.tokenizer.name} ({first.tokenizer.fingerprint}); only weights of the same have a mean"
            )
        differs = [
            f"{name} {before} and {value}" if len(f"{before}{value}") < MAX_VALUE_CHARS else name
            for name, value in vars(other.model.config).items()
            if value != (before := getattr(first.model.config, name))
        ]
        if differs:
            raise PamusicError(
                f"{first.path} and {other.path} are models of other shapes ({', '.join(differs)}); only weights of one"
                " shape have a mean"
            )
    states = [each.model.state_dict() for each in checkpoints]
    model = PerceiverAR(first.model.config)
    model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    about = {"mean_of": [{"checkpoint": each.title, "step": each.metadata.get("step")} for each in checkpoints]}
    return Checkpoint(first.path, model.eval(), first.tokenizer, about)
