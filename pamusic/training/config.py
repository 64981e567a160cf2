"""Configure how a model is trained. Knows numbers only; the model's shape is in `model.config`."""

from __future__ import annotations

from dataclasses import dataclass

from pamusic.device import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what a run computes, apart from model, corpus and machine.

    Attributes:
        steps: number of optimiser updates.
        batch_size: windows per step.
        micro_batch: windows computed at once, by default all of a step; their gradients are accumulated.
        lr: peak learning rate of Muon, for the matrices of the blocks.
        adamw_lr_ratio: learning rate of AdamW, for all other parameters, divided by `lr`.
        weight_decay: decay of the matrices, decoupled and multiplied by the rate.
        warmup_steps: first steps, in which the rates rise from 0.
        cooldown_steps: last steps, in which the rates fall in a straight line to 0; with 0 they stay up to the end.
        cooldown_from: share of the peak from which they fall; below 1 if a cooldown that has begun is drawn out.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        z_loss: weight of logsumexp squared (official code: 1e-4).
        ema_decay: decay of the moving average of the weights, which is validated beside them; 0 for no average.
        patience: validations in a row without a new best after which the run ends; None for no such end.
        recompute: compute the layers again in the backward pass instead of keeping their results: slower, less memory.
        shard: spread weights, gradients and optimisers over all processes, if there are several.
        prefix_dropout: share of the prefix that no latent attends to; the paper calls it cross-attend dropout.
        transpose_down, transpose_up: most semitones by which a window is transposed.
        stretch: largest share by which a window is played slower or faster.
        only: name of the one part of the model that is trained; empty for the whole model.
        mistakes: share of the cooldown's windows before whose scored part the music has mistakes like a model's own
            (`training.mistakes`); learned is how it goes on.
        seed: seed of weights, windows, augmentation and dropout.
        precision: precision of the arithmetic; weights are always float32.
        validate_every: steps between validations.
        validation_windows: number of fixed windows of the validation split that are scored.
        save_every_minutes: minutes between saves: the most work that a crash can cost.
    """

    steps: int = 6000
    batch_size: int = 8
    micro_batch: int | None = None
    lr: float = 0.02
    adamw_lr_ratio: float = 0.15
    weight_decay: float = 0.01
    warmup_steps: int = 100
    cooldown_steps: int = 2400
    cooldown_from: float = 1.0
    max_grad_norm: float = 1.0
    z_loss: float = 1e-4
    ema_decay: float = 0.999
    patience: int | None = None
    recompute: bool = False
    shard: bool = False
    prefix_dropout: float = 0.7
    transpose_down: int = 5
    transpose_up: int = 6
    stretch: float = 0.05
    mistakes: float = 0.5
    only: str = ""
    seed: int = 1
    precision: str = "auto"
    validate_every: int = 250
    validation_windows: int = 48
    save_every_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "validate_every", "validation_windows", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is at least 0 and below 2**63, not {self.seed}")
        if self.batch_size % self.windows_at_once:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch_size ({self.batch_size})")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr is above 0, not {self.lr}")
        if not 0 <= self.prefix_dropout < 1:
            raise ValueError(f"prefix_dropout is at least 0 and below 1, not {self.prefix_dropout}")
        if not 0 <= self.stretch < 0.5:
            raise ValueError(f"stretch is at least 0 and below 0.5, not {self.stretch}")
        if not 0 <= self.mistakes <= 1:
            raise ValueError(f"mistakes is 0 to 1, not {self.mistakes}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is at least 0 and below 1, not {self.ema_decay}")
        if self.transpose_down < 0 or self.transpose_up < 0:
            raise ValueError("transposition is given in semitones from 0 up, both ways")
        if self.warmup_steps < 0 or self.cooldown_steps < 0:
            raise ValueError("warmup_steps and cooldown_steps are at least 0")
        if not 0 < self.cooldown_from <= 1:
            raise ValueError(f"cooldown_from is above 0 and at most 1, not {self.cooldown_from}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")

    @property
    def windows_at_once(self) -> int:
        """The micro-batch, resolved."""
        return self.micro_batch or self.batch_size
