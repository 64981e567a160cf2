"""Say what is asked of a run: its settings, where it is kept, what it begins with.

Knows names and types of settings; reads no file and no command line. `TrainingConfig` and `ModelConfig` explain the
settings and hold their defaults. Here None leaves a setting open, which a configuration cannot say.
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
    """The settings that were asked for; None leaves one open.

    Names and meanings are those of `TrainingConfig` and `ModelConfig`, with these exceptions.

    Attributes:
        size: the name of a preset of `model.config`.
        ledger, recall, offsets, clock: whether the model has this part. The vocabulary decides how the part looks.
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
    prefix_dropout: float | None = None
    transpose_down: int | None = None
    transpose_up: int | None = None
    stretch: float | None = None
    mistakes: float | None = None
    only: str | None = None
    seed: int | None = None
    precision: str | None = None
    validate_every: int | None = None
    validation_windows: int | None = None
    save_every_minutes: float | None = None
    # of ModelConfig
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
        """Take the settings out of options by name; other options are ignored."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def updated(self, newer: RunSettings) -> RunSettings:
        """Return these settings, with those of `newer` where it has any."""
        given = {field.name: getattr(newer, field.name) for field in fields(newer)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def training_config(self, base: TrainingConfig | None = None) -> TrainingConfig:
        """Return a configuration, the default one by default, with these settings.

        Raises:
            ValueError: they do not fit together.
        """
        given = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(base or TrainingConfig(), **changes)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to begin or to resume.

    Attributes:
        settings: what was asked for; all else is as usual, or as before in a resumed run.
        corpus: the corpus' folder; by default `corpus`, or where a resumed run has it.
        out: the run's folder; by default a free name under `runs/`, or the folder of the resumed run.
        init_from: name or folder of a checkpoint whose weights a new run begins with. It decides the size.
        resume_from: folder of the run to resume. With `out` it is left as it is, and a branch begins.
        device: as for `choose_machine`.
        compile: by default where there is a compiler and the run is long enough, or as before in a resumed run.
        overwrite: replace a run that is in `out`.
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
            raise UsageError("--resume continues a run, --init-from starts one from other weights; give one of them")
        if (self.resume_from is not None or self.init_from is not None) and self.settings.size is not None:
            raise UsageError("trained weights keep their size; leave --size out")
