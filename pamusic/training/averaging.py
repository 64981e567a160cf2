"""Average the weights of several checkpoints: a model soup (Wortsman et al. 2022, arXiv:2203.05482).

Knows checkpoints; trains nothing. Runs that begin with the same weights may end in the same valley of the loss, on
different sides of its minimum. Their mean then has a lower loss than each of them. This worked for `small` and a run
that began with it (`docs/experiments.md`). It does not work for unrelated runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError
from pamusic.model.architectures import build_model

MAX_VALUE_CHARS = 80  # length of two different values; an error message leaves out longer ones


def average_checkpoints(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return a checkpoint in memory with the mean weights of several; everything else comes from the first.

    Args:
        checkpoints: Checkpoints to average, at least one.

    Raises:
        PamusicError: The models have different shapes or vocabularies.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise PamusicError(
                f"{other.path} reads {other.tokenizer.name} events ({other.tokenizer.fingerprint}), {first.path} reads"
                f" {first.tokenizer.name} ({first.tokenizer.fingerprint}); average only models of one tokenizer"
            )
        differs = [
            f"{name} {before} and {value}" if len(f"{before}{value}") < MAX_VALUE_CHARS else name
            for name, value in vars(other.model.config).items()
            if value != (before := getattr(first.model.config, name))
        ]
        if differs:
            raise PamusicError(
                f"{first.path} and {other.path} have different shapes ({', '.join(differs)}); average only models of"
                " one shape"
            )
    states = [each.model.state_dict() for each in checkpoints]
    model = build_model(first.model.config)
    model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    about = {"mean_of": [{"checkpoint": each.title, "step": each.metadata.get("step")} for each in checkpoints]}
    return Checkpoint(first.path, model.eval(), first.tokenizer, about)
