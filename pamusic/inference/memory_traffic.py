"""Count the bytes that one decode step reads, which limit its speed. Knows shapes; runs nothing.

The count has the weights that `inference.token_step`, or `inference.field_step`, reads, once a step for all rows, and
the caches of each row. It leaves out activations, look-ups of single rows, and refills, which read little and compute
much.
"""

from __future__ import annotations

from pamusic.inference.precision import num_bytes
from pamusic.inference.token_step import num_turned
from pamusic.model.cache import context_headroom
from pamusic.model.config import PERCEIVER_AR, TRANSFORMER, KeyRecallConfig, ModelConfig
from pamusic.model.fields import HIDDEN
from pamusic.model.ledger import NUM_AGES

FLOAT, ID = 4, 8  # bytes of a number in a cache, and of an id
OPENINGS = 0.25  # share of ids that open a slot, in MAESTRO with performance events


def step_bytes(
    config: ModelConfig,
    precision: str,
    *,
    num_rows: int,
    num_latents: float,
    num_seen: int,
    in_bytes: bool = False,
    recorded: bool = False,
) -> float:
    """Return the bytes that one step reads.

    Args:
        config: Shape of the model; its context and latents count only for recorded steps, and its latents in a
            Transformer-XL.
        precision: Resolved precision of the weights.
        num_rows: Number of pieces at once.
        num_latents: Mean number of latents in use.
        num_seen: Positions of the context in the cache.
        in_bytes: True if a kernel computes blocks, with weights and caches in int8 (`inference.int8`).
        recorded: True if steps are recorded (`inference.cuda_graph`); these read whole buffers.
    """
    if config.architecture != PERCEIVER_AR:
        return _step_bytes_of_plain(config, precision, num_rows, num_seen)
    if config.field_sizes:
        return _step_bytes_of_fields(config, precision, num_rows, num_latents, num_seen, in_bytes)
    d = config.d_model
    matrices = d * d * ((1 + 2 * config.mlp_ratio) + config.num_layers * (4 + 2 * config.mlp_ratio))
    tables = config.vocab_size * d * FLOAT * (1 if recorded else 3)  # the head; keys and values of ids
    assert not isinstance(config.recall, KeyRecallConfig)
    tables += 0 if config.recall is None else config.vocab_size**2 * FLOAT  # nearness of ids
    tables += 0 if config.ledger is None else config.ledger.num_slots * NUM_AGES * d * FLOAT
    turned = config.cross_num_heads * num_turned(d // config.cross_num_heads, config.rotary_fraction)
    seen = turned + FLOAT * config.cross_num_heads if in_bytes else turned * FLOAT  # a position's keys
    numbers = d + FLOAT * config.num_heads if in_bytes else d * FLOAT  # a latent's keys, or values, in a layer
    caches = num_seen * (seen + ID) + config.num_layers * num_latents * 2 * numbers
    if recorded:
        room = config.context_length + context_headroom(config.context_length) + config.num_layers * config.num_latents
        caches = room * 2 * d * FLOAT
    if config.recall is not None:
        entries = config.context_length + context_headroom(config.context_length) if recorded else num_seen
        compared = (2 * config.recall.reach + 1) * (1 if recorded else OPENINGS)  # numbers of a state that are compared
        caches += round(entries * ((2 + compared) * FLOAT + 2 * ID))  # norm, product; id, previous id
    weights = matrices * (1 if in_bytes else num_bytes(precision, num_rows))
    return weights + tables + num_rows * caches


def _step_bytes_of_fields(
    config: ModelConfig, precision: str, num_rows: int, num_latents: float, num_seen: int, in_bytes: bool
) -> float:
    """Return the same for a model with several ids a position (`inference.field_step`): the cache has whole keys."""
    d = config.d_model
    matrices = d * d * (1 + config.num_layers) * (4 + 2 * config.mlp_ratio)
    heads = (len(config.field_sizes) - 1) * 2 * HIDDEN * d * d
    weights = (matrices + heads) * (1 if in_bytes else num_bytes(precision, num_rows))
    numbers = d + FLOAT * config.num_heads if in_bytes else d * FLOAT  # the keys, or values, of a position in a layer
    caches = 2 * numbers * (num_seen + config.num_layers * num_latents)
    return weights + (d * d + config.vocab_size * d) * FLOAT + num_rows * caches


def _step_bytes_of_plain(config: ModelConfig, precision: str, num_rows: int, num_seen: int) -> float:
    """Return the same for a model without a cross-attention (`inference.plain_step`)."""
    d = config.d_model
    matrices = d * d * (1 + config.num_layers) * (4 + 2 * config.mlp_ratio)
    heads = max(0, len(config.field_sizes) - 1) * 2 * HIDDEN * d * d * FLOAT
    seen = num_seen if config.architecture == TRANSFORMER else min(num_seen, 1.5 * config.num_latents)  # on average
    weights, number = matrices * num_bytes(precision, num_rows), num_bytes(precision, 1)
    return weights + heads + config.vocab_size * d * FLOAT + num_rows * (1 + config.num_layers) * 2 * d * seen * number
