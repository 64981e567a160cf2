"""Find `tokenizers/` and `checkpoints/`, in a wheel or in a checkout. Knows nothing of their contents."""

from __future__ import annotations

from pathlib import Path

DEFAULT_CHECKPOINT = "nocturne"  # used where no checkpoint is named
DEFAULT_TOKENIZER = "notes"  # the default checkpoint reads it, so new corpora can fine-tune that checkpoint


def tokenizers_folder() -> Path:
    """Return the folder of the bundled vocabularies."""
    return _shipped("tokenizers")


def checkpoints_folder() -> Path:
    """Return the folder of the bundled checkpoints."""
    return _shipped("checkpoints")


def _shipped(name: str) -> Path:
    package = Path(__file__).parent
    in_wheel = package / "_shipped" / name
    return in_wheel if in_wheel.is_dir() else package.parent / name
