"""Count the floating-point operations of a model. Knows its shape; runs nothing.

Only matrix products count, with a multiplication and an addition as two operations: projections, MLPs, head, and the
causal part of attention. Norms, rotations, softmax, embeddings and the optimiser do not count, nor does recall (one
product per pair of openings, not of positions). Backward takes twice the operations of forward. This holds for cached
states without a gradient too, because the gains of the norm before their projections have one.
"""

from __future__ import annotations

from pamusic.model.config import PERCEIVER_AR, TRANSFORMER, ModelConfig
from pamusic.model.fields import HIDDEN
from pamusic.model.ledger import NUM_AGES


def forward_flops(config: ModelConfig, *, num_keys: int, num_latents: int, new_keys: int | None = None) -> int:
    """Return the operations of one window of a Perceiver AR, forward.

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
    return keys_and_values + cross + ledger + config.num_layers * layer + _head(config, n)


def window_flops(config: ModelConfig, *, num_predicted: int | None = None) -> int:
    """Return the operations of one full window of a Transformer or Transformer-XL, forward.

    Args:
        config: Shape of the model.
        num_predicted: Number of last positions whose logits are computed; all by default.
    """
    d, m = config.d_model, config.context_length
    if config.architecture == TRANSFORMER:
        return _blocks(config, m, m, _attention(d, m, m)) + _head(config, num_predicted or m)
    n = min(config.num_latents, m)
    segments = -(-m // n)  # the last one is padded
    attention = _attention(d, n, n) + (segments - 1) * _attention(d, n, 2 * n)
    return _blocks(config, segments * n, (2 * segments - 1) * n, attention) + _head(config, num_predicted or m)


def training_flops(config: ModelConfig, *, prefix_dropout: float = 0.0) -> int:
    """Return the operations of one full window, forward and backward, after dropping a share of the prefix."""
    if config.architecture != PERCEIVER_AR:
        return 3 * window_flops(config)
    prefix = round((config.context_length - config.num_latents) * (1 - prefix_dropout))
    return 3 * forward_flops(config, num_keys=prefix + config.num_latents, num_latents=config.num_latents)


def scoring_flops(config: ModelConfig, *, block: int) -> float:
    """Return the operations per token when blocks are scored with a full context.

    A Perceiver AR has cached the keys and values of the context, a Transformer-XL the states of the last segment. A
    Transformer computes the whole context for each block.
    """
    if config.architecture == TRANSFORMER:
        return window_flops(config, num_predicted=block) / block
    if config.architecture != PERCEIVER_AR:
        attention = _attention(config.d_model, block, config.num_latents + block)
        return (_blocks(config, block, block, attention) + _head(config, block)) / block
    n, m = config.num_latents, config.context_length
    return forward_flops(config, num_keys=m, num_latents=n, new_keys=block) / block


def _blocks(config: ModelConfig, queries: int, keys: int, attention: int) -> int:
    """Return the operations of all blocks of a Transformer, with `attention` for the attention of a block."""
    d = config.d_model
    projections = 4 * d * d * (queries + keys)  # query and output, key and value
    return (1 + config.num_layers) * (projections + 4 * config.mlp_ratio * d * d * queries + attention)


def _head(config: ModelConfig, n: int) -> int:
    """Return the operations of the head, or of the heads of the fields, at `n` positions."""
    d = config.d_model
    return 2 * d * config.vocab_size * n + 4 * HIDDEN * d * d * n * max(0, len(config.field_sizes) - 1)


def _attention(d: int, queries: int, keys: int) -> int:
    """Return the operations of scores and weighted sums, for queries that belong to the last keys."""
    seen = queries * keys - queries * (queries - 1) // 2
    return 4 * d * seen
