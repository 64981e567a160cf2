"""Compute the learning rate: it rises, stays constant, and falls linearly to zero. Knows numbers only.

The constant part does not depend on the end of the run, so a cooldown can begin at any of its steps.
"""

from __future__ import annotations

from pamusic.training.config import TrainingConfig


def rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of update number `step` (from 0), as a share of the peak."""
    rising = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    falls = config.cooldown_steps > 0 and step >= config.steps - config.cooldown_steps
    falling = config.cooldown_from * (config.steps - step) / config.cooldown_steps if falls else 1.0
    return max(0.0, min(1.0, rising, falling))
