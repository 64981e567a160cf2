"""How many floating-point operations a model takes. Knows its shape; runs nothing.

Counted are the products of matrices, a multiplication and an addition as two operations: projections, MLPs, head, and
of the attention only what causality leaves. Norms, rotations, softmax and the look-up of embeddings are not counted,
nor is what is recalled (a product for each pair of openings, not of positions), nor the optimiser. Backward takes
twice as many as forward.
"""

from __future__ import annotations

from pamusic.model.config import ModelConfig
from pamusic.model.fields import HIDDEN
from pamusic.model.ledger import NUM_AGES


def forward_flops(config: ModelConfig, *, num_keys: int, num_latents: int, new_keys: int | None = None) -> int:
    """Operations of one window forward.

    Args:
        config: the model's shape; its context and latents do not enter.
        num_keys: positions that the cross-attention sees, those of the latents among them.
        num_latents: this many of its last positions are latents.
        new_keys: positions whose keys and values are computed; the others' come from a cache. All by default.
    """
    d, n = config.d_model, num_latents
    keys_and_values = 4 * d * d * (num_keys if new_keys is None else new_keys)
    mlp = 4 * config.mlp_ratio * d * d
    cross = n * (2 * d * d + 4 * d * d + mlp) + _attention(d, n, num_keys)  # to_latents; query and output; MLP
    layer = n * (8 * d * d + mlp) + _attention(d, n, n)
    ledger = 0 if config.ledger is None else 2 * d * config.ledger.num_slots * NUM_AGES * n
    head = 2 * d * config.vocab_size * n + 4 * HIDDEN * d * d * n * max(0, len(config.field_sizes) - 1)
    return keys_and_values + cross + ledger + config.num_layers * layer + head


def training_flops(config: ModelConfig, *, prefix_dropout: float = 0.0) -> int:
    """Operations of one full window, forward and backward, where a share of the prefix is left out."""
    prefix = round((config.context_length - config.num_latents) * (1 - prefix_dropout))
    return 3 * forward_flops(config, num_keys=prefix + config.num_latents, num_latents=config.num_latents)


def scoring_flops(config: ModelConfig, *, block: int) -> float:
    """Operations a token, where blocks are scored with a full context, whose keys and values are computed once."""
    n, m = config.num_latents, config.context_length
    return forward_flops(config, num_keys=m, num_latents=n, new_keys=block) / block


def _attention(d: int, queries: int, keys: int) -> int:
    """Score and weighted sums of queries that stand at the end of the keys."""
    seen = queries * keys - queries * (queries - 1) // 2
    return 4 * d * seen
