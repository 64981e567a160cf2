"""The shape of a model, and the shapes that have names. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pamusic.errors import UsageError

MAX_CONV_WIDTH = 64
MAX_LAYERS = 1000  # deeper than any that was trained; a slip of the finger would make layers for hours


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Which ids open a slot, which close one, and which let time pass: each a range of ids in a row.

    Attributes:
        num_slots: how many there are.
        first_opening, first_closing: the ids that open and that close slot 0.
        first_tick, num_ticks: the ids with which 1, 2 … `num_ticks` ticks pass.
    """

    num_slots: int
    first_opening: int
    first_closing: int
    first_tick: int
    num_ticks: int


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Which ids open a slot, which close one, which are numbers, and what is alike.

    Attributes:
        num_slots: how many there are.
        first_opening, first_closing: the ids that open and that close slot 0; the others' follow one by one.
        numbers: the ids that are numbers in a row, as first and count of each row.
        decay: what an opening weighs in a state, as a share of what the next one does.
        like: the cosine of two states at which a copy weighs as much as doubt.
        sharp: how much more a copy weighs that is more alike: in nats for a cosine higher by 1.
        far: ids back from which on is copied.
        reach: slots around the one opened last of which a state consists, to each side.
        spread: steps by which numbers differ that are near by a share of 1/e; at 0 only the same ids are.
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
            raise UsageError(f"recall has slots, a reach, and looks back 1 id or more, not {self}")
        if not 0 <= self.spread < 1000:
            raise UsageError(f"what recall takes for near spreads by 0 to 1,000 steps, not {self.spread}")
        if not (0 < self.decay < 1 and -1 <= self.like <= 1 and 0 < self.sharp * max(1 - self.like, 1e-3) <= 50):
            raise UsageError(f"recall has a decay between 0 and 1, a cosine, and a sharpness that counts, not {self}")


def _edges(edges: Sequence[int]) -> tuple[int, ...]:
    """Return edges as a tuple; JSON has lists.

    Raises:
        UsageError: they are no whole numbers that rise from 0.
    """
    is_rising = edges[:1] in ([0], (0,)) and all(type(b) is int and a < b for a, b in pairwise(edges))
    if not is_rising:
        raise UsageError(f"edges are whole numbers that rise from 0, not {len(edges)} from {edges[:1]}")
    return tuple(edges)


@dataclass(frozen=True, kw_only=True)
class OffsetsConfig:
    """What the first and the last field of a position say of time, and how what still lasts is copied.

    Attributes:
        shift_edges: ticks since the position before: each id of the first field stands for those from its own edge to
            the next one.
        length_edges: ticks until the position ends, by the ids of the last field, likewise.
        num_positions: number of the last positions whose ends are counted.
        reach: ids to each side of where one of them ends, whose logits it changes.
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
            raise UsageError(f"offsets are of 1 position or more, within a reach of 0 or more, not {self}")


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """What the first field of a position says of time, and how much of each head is turned by it.

    Attributes:
        shift_edges: the same as in `OffsetsConfig`.
        rotary_fraction: of each head, beside what is turned by position.
    """

    shift_edges: tuple[int, ...]
    rotary_fraction: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift_edges", _edges(self.shift_edges))
        if not 0 < self.rotary_fraction < 1:
            raise UsageError(f"a clock turns a fraction of each head, above 0 and below 1, not {self.rotary_fraction}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides which weights a model has and what it computes.

    Attributes:
        vocab_size: ids it reads and predicts, of all fields together.
        pad_id: the id of positions that are not there.
        context_length: tokens it can see.
        num_latents: the last positions of the context, worked on by the stack; each predicts its next token.
        d_model: width.
        num_layers: self-attention blocks behind the cross-attention.
        num_heads: of each self-attention.
        cross_num_heads: of the cross-attention.
        rotary_fraction: how much of each head is turned by position.
        mlp_ratio: width of the hidden layer of an MLP over `d_model`.
        dropout: of what is added to the residual stream, in training.
        ledger: how the model sees open slots (`model.ledger`); None for not at all.
        recall: by what it finds in its context what is like the present (`model.recall`); None for not at all.
        field_sizes: where a position has several fields, how many ids each has (`model.fields`); empty where it is one
            id. The ids of a field follow those of the field before it.
        offsets: whether, and how, ends of what still lasts are copied (`model.fields`); None for not at all.
        clock: whether heads are turned by the time of their positions, too (`model.rotary`); None for not.
        conv_width: positions, the last one its own, that what is read of a position is a sum of (`model.convolution`);
            1 for no others.
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
    recall: RecallConfig | None = None
    field_sizes: tuple[int, ...] = ()
    offsets: OffsetsConfig | None = None
    clock: ClockConfig | None = None
    conv_width: int = 1

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ModelConfig:
        """Return the configuration whose `dataclasses.asdict` this is, as JSON keeps it.

        Raises:
            TypeError, ValueError: it is none.
        """
        fields = {**fields}
        if fields.get("ledger") is not None:
            fields["ledger"] = LedgerConfig(**fields["ledger"])
        if fields.get("recall") is not None:
            fields["recall"] = RecallConfig(**fields["recall"])
        if fields.get("offsets") is not None:
            fields["offsets"] = OffsetsConfig(**fields["offsets"])
        if fields.get("clock") is not None:
            fields["clock"] = ClockConfig(**fields["clock"])
        return cls(**fields)

    def __post_init__(self) -> None:
        if not 1 <= self.num_latents <= self.context_length:
            raise UsageError(f"num_latents is 1 to context_length ({self.context_length}), not {self.num_latents}")
        if not 0 <= self.num_layers <= MAX_LAYERS:
            raise UsageError(f"num_layers is 0 to {MAX_LAYERS:,}, not {self.num_layers}")
        for heads in (self.num_heads, self.cross_num_heads):
            if heads < 1 or self.d_model < 8:
                raise UsageError(f"d_model is at least 8, and has heads; not {self.d_model} with {heads} of them")
            if self.d_model % heads or (self.d_model // heads) % 8:
                raise UsageError(f"{heads} heads do not divide d_model {self.d_model} into multiples of 8")
        if not 0 < self.rotary_fraction <= 1:
            raise UsageError(f"rotary_fraction is above 0 and at most 1, not {self.rotary_fraction}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UsageError(f"pad_id is 0 to {self.vocab_size - 1}, not {self.pad_id}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is at least 0 and below 1, not {self.dropout}")
        object.__setattr__(self, "field_sizes", tuple(self.field_sizes))  # JSON has lists
        if self.field_sizes and (min(self.field_sizes) < 1 or sum(self.field_sizes) != self.vocab_size):
            raise UsageError(f"fields have ids, {self.vocab_size} in all, not {self.field_sizes}")
        if self.field_sizes and (self.ledger is not None or self.recall is not None):
            raise UsageError("a ledger and recall are of models that read events, one id a position; leave them out")
        if not 1 <= self.conv_width <= MAX_CONV_WIDTH:
            raise UsageError(f"conv_width is 1 (none) to {MAX_CONV_WIDTH}, not {self.conv_width}")
        if not self.field_sizes and (self.offsets is not None or self.clock is not None or self.conv_width > 1):
            raise UsageError("offsets, clock and conv_width are for several fields a position; leave them out")
        if self.clock is not None:
            if self.clock.rotary_fraction + self.rotary_fraction > 1:
                raise UsageError("position and clock turn more than there is of a head")
            if len(self.clock.shift_edges) - 1 != self.field_sizes[0]:
                raise UsageError(f"a clock has edges for as many ids as the first field, {self.field_sizes[0]}")
        if self.offsets is not None:
            sizes = [len(edges) - 1 for edges in (self.offsets.shift_edges, self.offsets.length_edges)]
            if sizes != [self.field_sizes[0], self.field_sizes[-1]]:
                raise UsageError(f"offsets have edges for as many ids as the first and the last field, not {sizes}")
        if self.ledger is not None:
            of_slots = (self.ledger.first_opening, self.ledger.first_closing)
            ends = [
                *(first + self.ledger.num_slots for first in of_slots),
                self.ledger.first_tick + self.ledger.num_ticks,
            ]
            if min(*of_slots, self.ledger.first_tick) < 0 or max(ends) > self.vocab_size:
                raise UsageError(f"a ledger is of ids 0 to {self.vocab_size - 1}, not {self.ledger}")
        if self.recall is not None:
            of_slots = (self.recall.first_opening, self.recall.first_closing)
            if min(of_slots) < 0 or max(of_slots) + self.recall.num_slots > self.vocab_size:
                raise UsageError(f"recall is of ids 0 to {self.vocab_size - 1}, not {self.recall}")
            if any(first < 0 or count < 1 or first + count > self.vocab_size for first, count in self.recall.numbers):
                raise UsageError(f"numbers of recall are of ids 0 to {self.vocab_size - 1}, not {self.recall.numbers}")

    def resized(self, *, context_length: int | None = None, num_latents: int | None = None) -> ModelConfig:
        """Return the same weights at another context or number of latents; latents never exceed the context."""
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
    recall: RecallConfig | None = None,
    field_sizes: tuple[int, ...] = (),
    offsets: OffsetsConfig | None = None,
    clock: ClockConfig | None = None,
    **changes: int | float | None,
) -> ModelConfig:
    """Return the configuration of a named size, with changes; a change of None leaves the preset's value.

    Raises:
        UsageError: there is no such size, or the changes do not fit together.
    """
    if size not in PRESETS:
        raise UsageError(f"no size is called {size!r}; there is {', '.join(PRESETS)}")
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
        **fields,  # type: ignore[arg-type]
    )
