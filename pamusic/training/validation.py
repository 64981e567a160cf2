"""Score a model on the fixed windows of a run. Knows models and batches; knows no corpus and no files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule

from pamusic.device import Machine
from pamusic.model.fields import by_field
from pamusic.model.sequence_model import SequenceModel
from pamusic.training.data import NOT_SCORED, Batch
from pamusic.training.distributed import ProcessGroup


@torch.inference_mode()
def score_windows(model: SequenceModel, batches: Sequence[Batch], machine: Machine, ranks: ProcessGroup) -> float:
    """Return the mean nats per token of a model on batches, over all ranks, and leave it in evaluation mode.

    Each rank scores its share of the batches. With sharded weights, a forward pass needs all ranks, so each rank scores
    all batches.
    """
    model.eval()
    nats, tokens, sizes = 0.0, 0, model.config.field_sizes
    is_spread = isinstance(model, FSDPModule)
    for batch in batches if is_spread else batches[ranks.rank :: ranks.size]:
        batch = batch.to(machine.device)
        with machine.autocast():
            logits = model(batch.tokens, following=batch.targets.clamp(min=0) if sizes else None).float()
        for of_field, target in by_field(logits.flatten(0, 1), batch.targets.flatten(0, 1), sizes):
            nats += F.cross_entropy(of_field, target, ignore_index=NOT_SCORED, reduction="sum").item()
        tokens += int(batch.num_scored)
    if not is_spread:
        nats, tokens = ranks.sum(torch.tensor([nats, tokens], device=machine.device)).tolist()
    return nats / tokens
