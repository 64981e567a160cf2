"""Transfer trained weights to another vocabulary, so that training can continue with them.

Knows a checkpoint and a tokenizer; trains nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pamusic.checkpoint import Checkpoint
from pamusic.model.architectures import build_model
from pamusic.model.config import KeyRecallConfig, LedgerConfig, ModelConfig
from pamusic.tokens.grammar import ledger_ranges, recall_ranges
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary_map import NOTHING, nearest_ids


def transfer_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Checkpoint:
    """Return a checkpoint in memory that reads another tokenizer's ids.

    In embedding, head and ledger, every id begins with the weights of the id of nearest meaning
    (`tokens.vocabulary_map.nearest_ids`). Events of a new kind begin with a random embedding, as in a new model, and
    with the mean of all logits. All other weights stay as they are. Ages in the ledger stay counted in steps, even if
    the length of a step changes.
    """
    before, vocabulary = checkpoint.tokenizer.vocabulary, tokenizer.vocabulary
    nearest = torch.from_numpy(nearest_ids(vocabulary, among=before))
    config = checkpoint.model.config
    weights = checkpoint.model.state_dict()
    embedding, head = weights["embedding.weight"], weights["head.weight"]
    random = torch.randn(len(vocabulary), config.d_model, generator=torch.Generator().manual_seed(0))
    weights["embedding.weight"] = _rows(embedding, nearest, otherwise=random)
    weights["head.weight"] = _rows(head, nearest, otherwise=head.mean(0))
    if config.ledger is not None:
        presses = vocabulary.range("note_on")
        of_slot = nearest[presses.start : presses.start + len(presses)] - before.range("note_on").start
        table = weights["ledger.weight"].unflatten(1, (config.ledger.num_slots, -1))
        weights["ledger.weight"] = table[:, of_slot].flatten(1)
    model = build_model(_for_vocabulary(config, tokenizer))
    model.load_state_dict(weights)
    return Checkpoint(checkpoint.path, model.eval(), tokenizer, checkpoint.metadata)


def _rows(table: Tensor, nearest: Tensor, *, otherwise: Tensor) -> Tensor:
    """Return the nearest row of a table for each id, `[vocab, d]`; rows of `otherwise` if there is none."""
    return torch.where((nearest == NOTHING)[:, None], otherwise, table[nearest.clamp(min=0)])


def _for_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    vocabulary = tokenizer.vocabulary
    ledger = None if config.ledger is None else LedgerConfig(**ledger_ranges(vocabulary))
    assert not isinstance(config.recall, KeyRecallConfig), "only weights with one id a position change their ids"
    recall = None if config.recall is None else replace(config.recall, **recall_ranges(vocabulary))
    return replace(config, vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"), ledger=ledger, recall=recall)
