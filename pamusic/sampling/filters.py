"""Filter logits: temperatures, top-k, top-p, min-p, typical-p.

Knows logits; never what the ids mean. Every filter is a pure function of float logits `[batch, vocab]`. It sets the
logits of removed ids to -inf, so filters can be applied in any order; `apply_filters` has the order that we use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pamusic.sampling.config import SamplingConfig

OUT = float("-inf")
MIN_TEMPERATURE = 1e-6  # below it, logits divided by the temperature can overflow float32


def apply_filters(logits: Tensor, config: SamplingConfig, class_of_id: Tensor | None = None) -> Tensor:
    """Apply temperature, temperatures of classes, top-k, top-p, min-p and typical-p, in this order.

    Filters that would keep everything are skipped.

    Args:
        logits: `[batch, vocab]`.
        config: Sampling settings.
        class_of_id: Index of each id into `class_temperatures`, -1 for no class, `[vocab]`, int64.
    """
    if config.temperature != 1:
        logits = with_temperature(logits, config.temperature)
    if class_of_id is not None:
        for index, temperature in enumerate(config.class_temperatures):
            if temperature != 1:
                logits = with_temperature_within(logits, temperature, class_of_id == index)
    if config.top_k > 0:
        logits = with_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = with_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = with_min_p(logits, config.min_p)
    if config.typical_p < 1:
        logits = with_typical_p(logits, config.typical_p)
    return logits


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Return logits divided by the temperature; 0 keeps only the likeliest id, the lowest one in a tie."""
    if temperature > MIN_TEMPERATURE:
        return logits / temperature
    likeliest = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, OUT).scatter(-1, likeliest, 0.0)


def with_temperature_within(logits: Tensor, temperature: float, inside: Tensor) -> Tensor:
    """Apply a temperature to the ids `inside` (`[vocab]`, bool) and keep their total probability."""
    within = logits.masked_fill(~inside, OUT)
    together = within.logsumexp(-1, keepdim=True)
    tempered = with_temperature(within, temperature)
    shift = together - tempered.logsumexp(-1, keepdim=True)
    return torch.where(inside & (tempered > OUT), tempered + shift, logits.masked_fill(inside, OUT))


def with_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` likeliest ids, and ids that tie with the last of them."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, OUT)


def with_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest ids that together reach probability `p`; always keep the likeliest."""
    descending, ids = logits.sort(descending=True, stable=True)
    probabilities = descending.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities  # the probability of all ids before this one
    out = likelier >= p
    out[..., 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, ids, out), OUT)


def with_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the ids with at least `p` times the probability of the likeliest."""
    if p <= 0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), OUT)


def with_typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest ids that together reach probability `p`, those with the most typical surprise first.

    The surprise of an id is `-log p(id)`; its mean is the entropy. The first id is always kept.
    """
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).nansum(-1, keepdim=True)  # removed ids give 0 times infinity, NaN
    nearest, ids = (-log_p - entropy).abs().sort(stable=True)
    probabilities = log_p.exp().gather(-1, ids)
    nearer = probabilities.cumsum(-1) - probabilities  # the probability of all ids before this one
    out = (nearer >= p) | nearest.isinf()
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, ids, out), OUT)
