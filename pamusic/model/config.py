"""Configure the shape of a model, and define the named sizes. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pamusic.errors import UsageError

PERCEIVER_AR, TRANSFORMER, TRANSFORMER_XL = "perceiver-ar", "transformer", "transformer-xl"
ARCHITECTURES = (PERCEIVER_AR, TRANSFORMER, TRANSFORMER_XL)
PARTS = ("ledger", "recall", "offsets", "clock")  # of a Perceiver AR; the others are plain
MAX_CONV_WIDTH = 64
MAX_LAYERS = 1000  # deeper than any trained model; without a limit, a typo would build layers for hours


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Ranges of ids that open a slot, close a slot, and let time pass.

    Attributes:
        num_slots: Number of slots.
        first_opening, first_closing: Ids that open and close slot 0; those of the other slots follow one by one.
        first_tick, num_ticks: First id and number of the time shifts, of 1, 2 … `num_ticks` ticks.
    """

    num_slots: int
    first_opening: int
    first_closing: int
    first_tick: int
    num_ticks: int


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Ranges of ids that open a slot, close a slot, and stand for numbers; and the measure of similarity.

    Attributes:
        num_slots: Number of slots.
        first_opening, first_closing: Ids that open and close slot 0; those of the other slots follow one by one.
        numbers: Ranges of ids that stand for consecutive numbers, each as first id and count.
        decay: Weight of an opening in a state, relative to the next opening.
        like: Cosine of two states at which a copy weighs as much as doubt.
        sharp: Gain of a copy's weight, in nats, per 1 of cosine.
        far: Smallest distance, in ids, of a copy.
        reach: Slots of a state on each side of the last opened slot.
        spread: Difference, in steps, at which the nearness of two numbers has fallen to 1/e. At 0 only equal ids are
            near.
    """

    num_slots: int
    first_opening: int
    first_closing: int
    numbers: tuple[tuple[int, int], ...]
    decay: float = 0.8
    like: float = 0.97
    sharp: float = 100.0
    far: int = 128
    reach: int = 40
    spread: float = 1.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple((first, count) for first, count in self.numbers))  # JSON has lists
        if min(self.num_slots, self.far, self.reach) < 1:
            raise UsageError(f"num_slots, far and reach of recall must be at least 1, got {self}")
        if not 0 <= self.spread < 1000:
            raise UsageError(f"spread of recall must be at least 0 and below 1,000, got {self.spread}")
        if not (0 < self.decay < 1 and -1 <= self.like <= 1 and 0 < self.sharp * max(1 - self.like, 1e-3) <= 50):
            raise UsageError(
                "recall needs a decay between 0 and 1, a like between -1 and 1, and a positive sharp of at most"
                f" 50 / (1 - like), got {self}"
            )


def _edges(edges: Sequence[int]) -> tuple[int, ...]:
    """Return edges as a tuple; JSON has lists.

    Raises:
        UsageError: The edges are not whole numbers that rise from 0.
    """
    is_rising = edges[:1] in ([0], (0,)) and all(type(b) is int and a < b for a, b in pairwise(edges))
    if not is_rising:
        raise UsageError(f"edges must be whole numbers that rise from 0, got {len(edges)} that start with {edges[:1]}")
    return tuple(edges)


@dataclass(frozen=True, kw_only=True)
class OffsetsConfig:
    """Times of the first and the last field of a position, and the copying of the ends of sounding notes.

    Attributes:
        shift_edges: Edges, in ticks, of the bins of the first field: the time since the position before.
        length_edges: Edges, in ticks, of the bins of the last field: the time until the position ends.
        num_positions: Number of last positions whose ends are counted.
        reach: Ids on each side of an end whose logits that end changes.
    """

    shift_edges: tuple[int, ...]
    length_edges: tuple[int, ...]
    num_positions: int = 24
    reach: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift_edges", _edges(self.shift_edges))
        object.__setattr__(self, "length_edges", _edges(self.length_edges))
        is_whole = type(self.num_positions) is int and type(self.reach) is int
        if not is_whole or self.num_positions < 1 or self.reach < 0:
            raise UsageError(f"offsets need num_positions of at least 1 and reach of at least 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Times of the first field of a position, for a rotary embedding by time.

    Attributes:
        shift_edges: Edges of the first field, as in `OffsetsConfig`.
        rotary_fraction: Fraction of each head that is rotated by time, beside the fraction rotated by position.
    """

    shift_edges: tuple[int, ...]
    rotary_fraction: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift_edges", _edges(self.shift_edges))
        if not 0 < self.rotary_fraction < 1:
            raise UsageError(f"rotary_fraction of the clock must be above 0 and below 1, got {self.rotary_fraction}")


@dataclass(frozen=True, kw_only=True)
class KeyRecallConfig:
    """Ids of keys, times of the first field, and the classes of matches that have a bias of their own.

    Attributes:
        first_key, num_keys: First id of the keys of notes, and their number; from low to high.
        shift_edges: Edges of the first field, as in `OffsetsConfig`.
        lengths: Smallest length of a match in each class, in notes or intervals, rising from 1. Longer matches than the
            last are not told apart.
        ages: Borders of the classes of age, in ticks, rising.
    """

    first_key: int
    num_keys: int
    shift_edges: tuple[int, ...]
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 9, 13)
    ages: tuple[int, ...] = (50, 200, 500, 1200, 3000, 6000, 12000)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift_edges", _edges(self.shift_edges))
        object.__setattr__(self, "lengths", _edges((0, *self.lengths))[1:])
        object.__setattr__(self, "ages", _edges((0, *self.ages))[1:])
        if self.lengths[:1] != (1,) or not self.ages:
            raise UsageError(f"recall of keys needs lengths from 1 and an age, got {self.lengths} and {self.ages}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a model: all that decides its weights and its computation.

    Attributes:
        vocab_size: Number of ids that the model reads and predicts, over all fields.
        pad_id: Id of padding.
        context_length: Number of tokens that the model sees. A Transformer-XL is trained on windows of this length.
        num_latents: Number of last positions that the layers work on; each predicts its next token. In a
            Transformer-XL, the length of a segment. In a Transformer, all positions work and predict, and this is only
            the basis of blocks: of `stride` in an evaluation and of `refill` in sampling.
        d_model: Width.
        num_layers: Number of self-attention blocks after the first block, which is the cross-attention in a Perceiver
            AR and another self-attention elsewhere.
        num_heads: Heads of each self-attention.
        cross_num_heads: Heads of the cross-attention; without effect elsewhere.
        rotary_fraction: Fraction of each head that is rotated by position.
        mlp_ratio: Width of an MLP's hidden layer, divided by `d_model`.
        dropout: Dropout, in training, of what each block adds to the residual stream.
        ledger: Embedding of the open slots (`model.ledger`), or None.
        recall: Mixture with copies from the context (`model.recall`); where a position has several ids, a bias on
            the keys (`model.key_recall`); or None.
        field_sizes: Number of ids of each field where a position has several (`model.fields`); empty where it has one
            id. The ids of a field follow those of the field before it.
        offsets: Copying of the ends of sounding notes (`model.fields`), or None.
        clock: Rotary embedding by the time of a position (`model.rotary`), or None.
        conv_width: Width of the causal convolution over embeddings (`model.convolution`), its own position included;
            1 for none.
        architecture: One of `ARCHITECTURES`. Only a Perceiver AR has a ledger, recall, offsets, a clock or a
            convolution.
    """

    vocab_size: int
    pad_id: int
    context_length: int
    num_latents: int
    d_model: int
    num_layers: int
    num_heads: int
    cross_num_heads: int
    rotary_fraction: float = 0.25
    mlp_ratio: int = 4
    dropout: float = 0.0
    ledger: LedgerConfig | None = None
    recall: RecallConfig | KeyRecallConfig | None = None
    field_sizes: tuple[int, ...] = ()
    offsets: OffsetsConfig | None = None
    clock: ClockConfig | None = None
    conv_width: int = 1
    architecture: str = PERCEIVER_AR

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ModelConfig:
        """Return the configuration from its `dataclasses.asdict`, as read from JSON.

        Raises:
            TypeError, ValueError: The fields are not a valid configuration.
        """
        fields = {**fields}
        if fields.get("ledger") is not None:
            fields["ledger"] = LedgerConfig(**fields["ledger"])
        if fields.get("recall") is not None:
            kind = KeyRecallConfig if fields.get("field_sizes") else RecallConfig
            fields["recall"] = kind(**fields["recall"])
        if fields.get("offsets") is not None:
            fields["offsets"] = OffsetsConfig(**fields["offsets"])
        if fields.get("clock") is not None:
            fields["clock"] = ClockConfig(**fields["clock"])
        return cls(**fields)

    def __post_init__(self) -> None:
        self._check_architecture()
        if not 1 <= self.num_latents <= self.context_length:
            raise UsageError(
                f"num_latents must be between 1 and context_length ({self.context_length}), got {self.num_latents}"
            )
        if not 0 <= self.num_layers <= MAX_LAYERS:
            raise UsageError(f"num_layers must be between 0 and {MAX_LAYERS:,}, got {self.num_layers}")
        for heads in (self.num_heads, self.cross_num_heads):
            if heads < 1 or self.d_model < 8:
                raise UsageError(f"d_model must be at least 8 with at least 1 head, got {self.d_model} with {heads}")
            if self.d_model % heads or (self.d_model // heads) % 8:
                raise UsageError(f"d_model must be heads times a multiple of 8, got {self.d_model} with {heads} heads")
        if not 0 < self.rotary_fraction <= 1:
            raise UsageError(f"rotary_fraction must be above 0 and at most 1, got {self.rotary_fraction}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UsageError(f"pad_id must be between 0 and {self.vocab_size - 1}, got {self.pad_id}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        object.__setattr__(self, "field_sizes", tuple(self.field_sizes))  # JSON has lists
        if self.field_sizes and (min(self.field_sizes) < 1 or sum(self.field_sizes) != self.vocab_size):
            raise UsageError(f"field_sizes must be positive and sum to {self.vocab_size}, got {self.field_sizes}")
        if self.field_sizes and (self.ledger is not None or isinstance(self.recall, RecallConfig)):
            raise UsageError("ledger and recall of ids need a model with one id a position; leave them out")
        if not self.field_sizes and isinstance(self.recall, KeyRecallConfig):
            raise UsageError("recall of keys needs several fields a position; leave it out")
        if not 1 <= self.conv_width <= MAX_CONV_WIDTH:
            raise UsageError(f"conv_width must be between 1 (none) and {MAX_CONV_WIDTH}, got {self.conv_width}")
        if not self.field_sizes and (self.offsets is not None or self.clock is not None or self.conv_width > 1):
            raise UsageError("offsets, clock and conv_width need several fields a position; leave them out")
        if self.clock is not None:
            if self.clock.rotary_fraction + self.rotary_fraction > 1:
                raise UsageError(
                    "the rotary_fraction of position and of clock must sum to at most 1; lower one of them"
                )
            if len(self.clock.shift_edges) - 1 != self.field_sizes[0]:
                raise UsageError(f"shift_edges of the clock must fit the {self.field_sizes[0]} ids of the first field")
        if self.offsets is not None:
            sizes = [len(edges) - 1 for edges in (self.offsets.shift_edges, self.offsets.length_edges)]
            if sizes != [self.field_sizes[0], self.field_sizes[-1]]:
                raise UsageError(f"edges of offsets must fit the ids of the first and the last field, got {sizes}")
        if self.ledger is not None:
            of_slots = (self.ledger.first_opening, self.ledger.first_closing)
            ends = [
                *(first + self.ledger.num_slots for first in of_slots),
                self.ledger.first_tick + self.ledger.num_ticks,
            ]
            if min(*of_slots, self.ledger.first_tick) < 0 or max(ends) > self.vocab_size:
                raise UsageError(f"ids of the ledger must be between 0 and {self.vocab_size - 1}, got {self.ledger}")
        if isinstance(self.recall, KeyRecallConfig):
            first, count = self.recall.first_key, self.recall.num_keys
            of_keys = range(self.field_sizes[0], sum(self.field_sizes[:2]))
            if count < 1 or first not in of_keys or first + count - 1 not in of_keys:
                raise UsageError(f"keys of recall must be ids of the second field, got {count} from {first}")
            if len(self.recall.shift_edges) - 1 != self.field_sizes[0]:
                raise UsageError(f"shift_edges of recall must fit the {self.field_sizes[0]} ids of the first field")
        if isinstance(self.recall, RecallConfig):
            of_slots = (self.recall.first_opening, self.recall.first_closing)
            if min(of_slots) < 0 or max(of_slots) + self.recall.num_slots > self.vocab_size:
                raise UsageError(f"ids of recall must be between 0 and {self.vocab_size - 1}, got {self.recall}")
            if any(first < 0 or count < 1 or first + count > self.vocab_size for first, count in self.recall.numbers):
                raise UsageError(
                    f"numbers of recall must be ids from 0 to {self.vocab_size - 1}, got {self.recall.numbers}"
                )

    def _check_architecture(self) -> None:
        """Raise an error for an unknown architecture, or for a part that it does not have.

        Raises:
            UsageError: The architecture is unknown, or a part does not belong to it.
        """
        if self.architecture not in ARCHITECTURES:
            raise UsageError(f"unknown architecture {self.architecture!r}; use one of {', '.join(ARCHITECTURES)}")
        if self.architecture == PERCEIVER_AR:
            return
        foreign = [name for name in PARTS if getattr(self, name) is not None]
        foreign += ["conv_width"] if self.conv_width > 1 else []
        if foreign:
            raise UsageError(
                f"{', '.join(foreign)} {'belong' if len(foreign) > 1 else 'belongs'} to {PERCEIVER_AR}, not to"
                f" {self.architecture}; leave {'them' if len(foreign) > 1 else 'it'} out"
            )

    @property
    def num_targets(self) -> int:
        """Number of last positions of a window that predict in training: the latents, or all without latents."""
        return self.num_latents if self.architecture == PERCEIVER_AR else self.context_length

    def resized(self, *, context_length: int | None = None, num_latents: int | None = None) -> ModelConfig:
        """Return this configuration with another context or number of latents; latents never exceed the context."""
        context_length = context_length or self.context_length
        num_latents = num_latents or min(self.num_latents, context_length)
        return replace(self, context_length=context_length, num_latents=num_latents)


# `base` is the music model of Hawthorne et al. 2022 (arXiv:2202.07765), with twice its context, and with its single
# cross-attention head split into eight of 128. The others are scaled down from it.
PRESETS: dict[str, dict[str, int | float]] = {
    "tiny": {"context_length": 1024, "num_latents": 128, "d_model": 128, "num_layers": 2},
    "small": {"context_length": 8192, "num_latents": 512, "d_model": 256, "num_layers": 6},
    "medium": {"context_length": 8192, "num_latents": 1024, "d_model": 512, "num_layers": 8},
    "base": {"context_length": 8192, "num_latents": 2048, "d_model": 1024, "num_layers": 12, "dropout": 0.1},
}
NUM_HEADS = {"tiny": (2, 1), "small": (4, 2), "medium": (8, 4), "base": (8, 8)}  # of self-attention, cross-attention


def preset(
    size: str,
    *,
    vocab_size: int,
    pad_id: int,
    ledger: LedgerConfig | None = None,
    recall: RecallConfig | KeyRecallConfig | None = None,
    field_sizes: tuple[int, ...] = (),
    offsets: OffsetsConfig | None = None,
    clock: ClockConfig | None = None,
    architecture: str = PERCEIVER_AR,
    **changes: int | float | None,
) -> ModelConfig:
    """Return the configuration of a named size, with changes; a change of None keeps the preset's value.

    Raises:
        UsageError: The size is unknown, or the changes do not fit together.
    """
    if size not in PRESETS:
        raise UsageError(f"unknown size {size!r}; use one of {', '.join(PRESETS)}")
    num_heads, cross_num_heads = NUM_HEADS[size]
    fields = {**PRESETS[size], "num_heads": num_heads, "cross_num_heads": cross_num_heads}
    fields |= {name: value for name, value in changes.items() if value is not None}
    if "num_latents" not in changes or changes["num_latents"] is None:
        fields["num_latents"] = min(fields["num_latents"], fields["context_length"])
    return ModelConfig(
        vocab_size=vocab_size,
        pad_id=pad_id,
        ledger=ledger,
        recall=recall,
        field_sizes=field_sizes,
        offsets=offsets,
        clock=clock,
        architecture=architecture,
        **fields,  # type: ignore[arg-type]
    )
