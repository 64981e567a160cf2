"""Decide the shape of a run's model from the settings, the initial weights and the vocabulary.

Knows settings, vocabularies and model configurations; builds no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from pamusic.corpus.corpus import Corpus
from pamusic.errors import UsageError
from pamusic.model.config import (
    PERCEIVER_AR,
    ClockConfig,
    KeyRecallConfig,
    LedgerConfig,
    ModelConfig,
    OffsetsConfig,
    RecallConfig,
    preset,
)
from pamusic.tokens.grammar import ledger_ranges, recall_ranges
from pamusic.tokens.positions import offset_edges
from pamusic.tokens.vocabulary import Vocabulary
from pamusic.training.settings import RunSettings

FREE = ("context_length", "num_latents", "dropout")  # fields that may change for trained weights
ADDABLE = ("ledger", "recall")  # parts that can be added to trained weights
Part = LedgerConfig | RecallConfig | KeyRecallConfig | OffsetsConfig | ClockConfig


def new_shape(size: str, settings: RunSettings, vocabulary: Vocabulary) -> ModelConfig:
    """Return the shape of a new model: a preset with the default parts, changed by the settings.

    Raises:
        ValueError: The size is unknown, or the settings do not fit together.
    """
    is_plain = settings.architecture not in (None, PERCEIVER_AR)
    asked = _fields_of(settings if is_plain else _usual_parts(vocabulary).updated(settings), vocabulary)
    sizes = tuple(field.size for field in vocabulary.fields) if vocabulary.shape else ()
    pad_id = int(vocabulary.id("pad"))
    return preset(size, vocab_size=len(vocabulary), pad_id=pad_id, field_sizes=sizes, **asked)  # type: ignore[arg-type]


def tuned_shape(before: ModelConfig, settings: RunSettings, vocabulary: Vocabulary) -> ModelConfig:
    """Return the shape for a new run from trained weights, to which parts can be added.

    Raises:
        ValueError: The weights do not fit the settings.
    """
    asked = _fields_of(settings, vocabulary)
    added = {name: asked[name] for name in ADDABLE if getattr(before, name) is None and asked.get(name) is not None}
    return _changed(replace(before, **added), asked)  # type: ignore[arg-type]


def resumed_shape(before: ModelConfig, settings: RunSettings, vocabulary: Vocabulary) -> ModelConfig:
    """Return the shape for resuming a run.

    Raises:
        ValueError: The weights do not fit the settings.
    """
    return _changed(before, _fields_of(settings, vocabulary))


def refuse_foreign_settings(settings: RunSettings, model: ModelConfig) -> None:
    """Raise an error if a setting has no meaning in the architecture of the model; `ModelConfig` refuses parts.

    Raises:
        UsageError: A setting belongs to another architecture.
    """
    foreign = [name for name in ("prefix_dropout", "cross_num_heads", "min_latents") if getattr(settings, name)]
    if foreign and model.architecture != PERCEIVER_AR:
        raise UsageError(
            f"{' and '.join(foreign)} belong{'' if len(foreign) > 1 else 's'} to {PERCEIVER_AR}, not to"
            f" {model.architecture}; leave {'them' if len(foreign) > 1 else 'it'} out"
        )


def refuse_foreign_parts(settings: RunSettings, corpus: Corpus) -> None:
    """Raise an error if a setting is for another kind of vocabulary.

    Raises:
        UsageError: A setting does not fit the vocabulary of the corpus.
    """
    tokenizer = corpus.tokenizer
    if tokenizer.vocabulary.shape and settings.ledger:
        raise UsageError(
            f"{corpus.path} has {tokenizer.name}, with {len(tokenizer.vocabulary.fields)} fields a position;"
            " --ledger is for events, with one id a position; leave it out"
        )
    if settings.offsets and not tokenizer.vocabulary.has("length"):
        raise UsageError(f"{corpus.path} has {tokenizer.name}, which has no lengths; leave offsets out")
    is_asked = {"clock": bool(settings.clock), "conv_width": settings.conv_width not in (None, 1)}
    of_fields = next((name for name, is_it in is_asked.items() if is_it), None)
    if of_fields is not None and not tokenizer.vocabulary.shape:
        raise UsageError(f"{corpus.path} has {tokenizer.name}, one id a position; leave {of_fields} out")


def _usual_parts(vocabulary: Vocabulary) -> RunSettings:
    """Return the default parts of a new model: those that are worth their time (`docs/experiments.md`)."""
    if not vocabulary.shape:
        return RunSettings(ledger=True)
    return RunSettings(conv_width=4, offsets=vocabulary.has("length"), clock=True)


def _fields_of(settings: RunSettings, vocabulary: Vocabulary) -> dict[str, int | float | Part | None]:
    """Return the fields of `ModelConfig` that the settings give; a part that is switched off is None."""
    parts: dict[str, Callable[[], Part]] = {
        "ledger": lambda: LedgerConfig(**ledger_ranges(vocabulary)),
        "recall": lambda: _recall(vocabulary),
        "offsets": lambda: OffsetsConfig(**offset_edges(vocabulary)),  # type: ignore[arg-type]
        "clock": lambda: ClockConfig(shift_edges=offset_edges(vocabulary)["shift_edges"]),
    }
    asked: dict[str, int | float | Part | None] = {}
    for field in fields(ModelConfig):
        value = getattr(settings, field.name, None)  # fields that the corpus decides, such as pad_id, are not settings
        if value is None:
            continue
        if field.name not in parts:
            asked[field.name] = value
        else:
            asked[field.name] = parts[field.name]() if value else None
    return asked


def _recall(vocabulary: Vocabulary) -> RecallConfig | KeyRecallConfig:
    """Return the recall that suits a vocabulary."""
    if not vocabulary.shape:
        return RecallConfig(**recall_ranges(vocabulary))
    keys = vocabulary.range("note_on")
    return KeyRecallConfig(
        first_key=keys.start, num_keys=len(keys), shift_edges=offset_edges(vocabulary)["shift_edges"]
    )


def _changed(model: ModelConfig, asked: dict[str, int | float | Part | None]) -> ModelConfig:
    """Return the shape with changes.

    Raises:
        ValueError: A change does not fit trained weights.
    """
    fixed = {name for name in asked if name not in FREE and asked[name] != getattr(model, name)}
    if fixed:
        raise ValueError(f"trained weights keep their {', '.join(sorted(fixed))}; leave these settings out")
    return replace(model, **asked)  # type: ignore[arg-type]
