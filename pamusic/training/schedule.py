"""Compute the learning rate: it rises, stays level, and falls in a straight line to zero. Knows numbers only.

The level part does not depend on where the run ends, so a cooldown can begin at any step of it.
"""

from __future__ import annotations

from pamusic.training.config import TrainingConfig


def rate(step: int, config: TrainingConfig) -> float:
    """Return the share of the peak rate that update number `step` (from 0) is made with."""
    rising = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    falls = config.cooldown_steps > 0 and step >= config.steps - config.cooldown_steps
    falling = config.cooldown_from * (config.steps - step) / config.cooldown_steps if falls else 1.0
    return max(0.0, min(1.0, rising, falling))
