"""Configure training. Knows numbers only; the shape of the model is in `model.config`."""

from __future__ import annotations

from dataclasses import dataclass

from pamusic.device import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of training: everything that decides a run's result, apart from model, corpus and machine.

    Attributes:
        steps: Number of optimiser updates.
        batch_size: Windows per step.
        micro_batch: Windows computed at once, by default all of a step; their gradients are accumulated.
        lr: Peak learning rate of Muon, for the matrices of the blocks.
        adamw_lr_ratio: Learning rate of AdamW, for all other parameters, divided by `lr`.
        weight_decay: Decay of the matrices, decoupled and multiplied by the rate.
        warmup_steps: First steps, in which the rates rise from 0.
        cooldown_steps: Last steps, in which the rates fall linearly to 0; 0 for no cooldown.
        cooldown_from: Share of the peak from which the rates fall; below 1 if a cooldown is extended.
        max_grad_norm: Norm to which larger gradients are scaled down.
        z_loss: Weight of logsumexp squared (official code: 1e-4).
        ema_decay: Decay of the moving average of the weights, which is validated too; 0 for no average.
        patience: Consecutive validations without a new best after which the run ends; None for no limit.
        recompute: Compute the layers again in the backward pass instead of keeping their results: slower, less memory.
        shard: Spread weights, gradients and optimisers over all processes, if there are several.
        min_latents: Train each step with a random number of latents, from this one to the model's: the model's number,
            half of it, a quarter, and so on, each equally likely. None: always the model's number.
        prefix_dropout: Share of the prefix that no latent attends to; the paper calls it cross-attend dropout.
        transpose_down, transpose_up: Most semitones by which a window is transposed.
        stretch: Largest share by which a window is played slower or faster.
        only: Name of the only part of the model to train; empty for the whole model.
        seed: Seed of weights, windows, augmentation and dropout.
        precision: Precision of the arithmetic; weights are always float32.
        validate_every: Steps between validations.
        validation_windows: Number of fixed windows of the validation split to score.
        save_every_minutes: Minutes between saves: the most work that a crash can cost.
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
    min_latents: int | None = None
    prefix_dropout: float = 0.7
    transpose_down: int = 5
    transpose_up: int = 6
    stretch: float = 0.05
    only: str = ""
    seed: int = 1
    precision: str = "auto"
    validate_every: int = 250
    validation_windows: int = 48
    save_every_minutes: float = 5.0

    def __post_init__(self) -> None:
        sizes = ("steps", "batch_size", "micro_batch", "min_latents")
        for name in (*sizes, "validate_every", "validation_windows", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        if self.batch_size % self.windows_at_once:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch_size ({self.batch_size})")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.prefix_dropout < 1:
            raise ValueError(f"prefix_dropout must be at least 0 and below 1, got {self.prefix_dropout}")
        if not 0 <= self.stretch < 0.5:
            raise ValueError(f"stretch must be at least 0 and below 0.5, got {self.stretch}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.transpose_down < 0 or self.transpose_up < 0:
            raise ValueError(
                "transpose_down and transpose_up must be at least 0 semitones, got"
                f" {self.transpose_down} and {self.transpose_up}"
            )
        if self.warmup_steps < 0 or self.cooldown_steps < 0:
            raise ValueError(
                f"warmup_steps and cooldown_steps must be at least 0, got {self.warmup_steps} and {self.cooldown_steps}"
            )
        if not 0 < self.cooldown_from <= 1:
            raise ValueError(f"cooldown_from must be above 0 and at most 1, got {self.cooldown_from}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @property
    def windows_at_once(self) -> int:
        """Resolved micro-batch: windows computed at once."""
        return self.micro_batch or self.batch_size
