"""Count the floating-point operations of a model. Knows its shape; runs nothing.

Only matrix products count, with a multiplication and an addition as two operations: projections, MLPs, head, and the
causal part of attention. Norms, rotations, softmax, embeddings and the optimiser do not count, nor does recall (one
product per pair of openings, not of positions). Backward takes twice the operations of forward.
"""

from __future__ import annotations

from pamusic.model.config import ModelConfig
from pamusic.model.fields import HIDDEN
from pamusic.model.ledger import NUM_AGES


def forward_flops(config: ModelConfig, *, num_keys: int, num_latents: int, new_keys: int | None = None) -> int:
    """Return the operations of one window, forward.

    Args:
        config: Shape of the model; its own context and latents are ignored.
        num_keys: Positions that the cross-attention sees, latents included.
        num_latents: Number of latents.
        new_keys: Positions whose keys and values are computed rather than read from a cache; all by default.
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
    """Return the operations of one full window, forward and backward, after dropping a share of the prefix."""
    prefix = round((config.context_length - config.num_latents) * (1 - prefix_dropout))
    return 3 * forward_flops(config, num_keys=prefix + config.num_latents, num_latents=config.num_latents)


def scoring_flops(config: ModelConfig, *, block: int) -> float:
    """Return the operations per token when blocks are scored with a full context whose keys and values are cached."""
    n, m = config.num_latents, config.context_length
    return forward_flops(config, num_keys=m, num_latents=n, new_keys=block) / block


def _attention(d: int, queries: int, keys: int) -> int:
    """Return the operations of scores and weighted sums, for queries that belong to the last keys."""
    seen = queries * keys - queries * (queries - 1) // 2
    return 4 * d * seen
