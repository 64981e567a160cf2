"""Define the request for a run: its settings, its folder, and its initial weights.

Knows names and types of settings; reads no file and no command line. `TrainingConfig` and `ModelConfig` explain the
settings and have their defaults. Unlike there, None here leaves a setting open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from pamusic.errors import UsageError
from pamusic.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The requested settings; None leaves a setting open.

    Names and meanings are as in `TrainingConfig` and `ModelConfig`, with these exceptions.

    Attributes:
        size: Name of a preset of `model.config`.
        ledger, recall, offsets, clock: True if the model has this part. The vocabulary decides its shape.
    """

    size: str | None = None
    # of TrainingConfig
    steps: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    lr: float | None = None
    adamw_lr_ratio: float | None = None
    weight_decay: float | None = None
    warmup_steps: int | None = None
    cooldown_steps: int | None = None
    cooldown_from: float | None = None
    max_grad_norm: float | None = None
    z_loss: float | None = None
    ema_decay: float | None = None
    patience: int | None = None
    recompute: bool | None = None
    shard: bool | None = None
    min_latents: int | None = None
    prefix_dropout: float | None = None
    transpose_down: int | None = None
    transpose_up: int | None = None
    stretch: float | None = None
    only: str | None = None
    seed: int | None = None
    precision: str | None = None
    validate_every: int | None = None
    validation_windows: int | None = None
    save_every_minutes: float | None = None
    # of ModelConfig
    architecture: str | None = None
    context_length: int | None = None
    num_latents: int | None = None
    d_model: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    cross_num_heads: int | None = None
    rotary_fraction: float | None = None
    mlp_ratio: int | None = None
    dropout: float | None = None
    ledger: bool | None = None
    recall: bool | None = None
    offsets: bool | None = None
    clock: bool | None = None
    conv_width: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the settings among the options, by name; ignore other options."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def updated(self, newer: RunSettings) -> RunSettings:
        """Return these settings, overridden by the settings that `newer` has."""
        given = {field.name: getattr(newer, field.name) for field in fields(newer)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def training_config(self, base: TrainingConfig | None = None) -> TrainingConfig:
        """Return `base`, or the default configuration, with these settings.

        Raises:
            ValueError: The settings do not fit together.
        """
        given = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(base or TrainingConfig(), **changes)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A request to begin or to resume a run.

    Attributes:
        settings: Requested settings; open ones get their defaults, or their earlier values in a resumed run.
        corpus: Folder of the corpus; by default `corpus`, or the corpus of the resumed run.
        out: Folder of the run; by default a free name under `runs/`, or the folder of the resumed run.
        init_from: Name or folder of a checkpoint that a new run begins with. It decides the size.
        resume_from: Folder of the run to resume. With `out`, that run stays as it is, and a branch begins.
        device: Device, as for `choose_machine`.
        compile: Compile the model; by default if there is a compiler and the run is long enough, or as before in a
            resumed run.
        overwrite: Replace a run in `out`.
    """

    settings: RunSettings = RunSettings()
    corpus: Path | None = None
    out: Path | None = None
    init_from: str | None = None
    resume_from: Path | None = None
    device: str = "auto"
    compile: bool | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.resume_from is not None and self.init_from is not None:
            raise UsageError("--resume continues a run, --init-from starts one from other weights; pass one of them")
        if (self.resume_from is not None or self.init_from is not None) and self.settings.size is not None:
            raise UsageError("trained weights keep their size; leave --size out")
