"""Define the request for a piece: one value for the command line, the API, the record in a file, and replay.

Knows the names and defaults of options; knows no terminal and no model. Defaults are only here. A field whose name in a
record (format 1) differs from its own has `_recorded_as`; a record keeps its names and their order.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args, get_type_hints

from pamusic.errors import PamusicError, UsageError
from pamusic.sampling.config import MAX_TEMPERATURE, SamplingConfig

if TYPE_CHECKING:
    from pamusic.inference.session import InferenceConfig
    from pamusic.sampling.ending import StopCondition
    from pamusic.sampling.returns import ReturnsConfig
    from pamusic.tokens.continuation import Placement
    from pamusic.tokens.prime import PrimeRange

DEFAULT_SECONDS = 60.0  # length of new music without another request
RETURNS = ("auto", "planned", "none")
MAX_SAMPLES = 1024  # pieces of one batch; no present machine has memory for the caches of more
MAX_CONTEXT = 2**31 - 1  # tokens; a long piece has a hundred thousand
BOUNDS: dict[str, tuple[int, int]] = {
    "seed": (0, 2**63 - 1),
    "num_samples": (1, MAX_SAMPLES),
    "best_of": (1, MAX_SAMPLES),
    "keep": (1, MAX_SAMPLES),
    "length": (1, 2**62),
    "context_length": (1, MAX_CONTEXT),
    "num_latents": (1, MAX_CONTEXT),
    **{f"temperature_{name}": (0, MAX_TEMPERATURE) for name in ("time", "pitch", "velocity", "length")},
}
"""Smallest and largest value of options that are counts, seeds or temperatures of a class."""

SUGGESTED = ("temperature_time", "temperature_pitch")  # options that a checkpoint has its own defaults for

T = TypeVar("T")


def _recorded_as(name: str, default: T) -> T:
    """Return a dataclass field with another name in a record."""
    return field(default=default, metadata={"record": name})


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A request for music, with everything that the result depends on.

    Attributes:
        prime: MIDI file to continue; None to begin without one.
        seed: Seed; the same seed gives the same music. None draws one.
        num_samples: Number of pieces, with this seed and the next ones.
        best_of: Number of candidates to generate and rank, instead of `num_samples`.
        keep: Number of best candidates to keep; 1 by default.
        length: Largest number of new tokens, or positions; None for no limit besides `seconds`.
        seconds, minutes: Length of new music; pass one of them. 60 seconds if `length` is not given either.
        end_near_length: Bring the piece to a close near this length, at 1.25 times the length at the latest.
        allow_end: Let the model end the piece earlier.
        tracks: Parts of the prime's file to read: `piano`, `all` (except drums), or numbers.
        prime_start, prime_end: Part of the prime to read, in seconds.
        same_track: Write the new music to the track of the prime instead of a new track.
        continuation_only: Leave the prime out of the file.
        temperature, top_p, top_k, min_p, typical_p, release_bias: Settings of `SamplingConfig`.
        temperature_time, temperature_pitch, temperature_velocity, temperature_length: Extra temperatures among time
            shifts, pitches, velocities and note lengths. None: as the checkpoint suggests (`suggested`), else 1.
        returns: With a model of notes, `auto` limits exact repetition, `planned` also returns to earlier passages at
            about the rates of real music, and `none` does neither. Temperature 0 implies `none`.
        guard: Take back loops and silences, and release stuck notes; None: only for single pieces that no port plays.
        checkpoint: Name or folder of a checkpoint; None for the default one.
        context_length, num_latents, refill: Settings of `InferenceConfig`.
        precision: Precision of the weights: fp32, bf16, int8, or auto for the fastest.
        compile: Use the C++ kernel if a compiler is found.
        device: Device: auto, cpu, cuda, cuda:1, mps.
    """

    prime: Path | None = None
    seed: int | None = None
    num_samples: int = _recorded_as("num", 1)
    best_of: int | None = None
    keep: int | None = None
    length: int | None = None
    seconds: float | None = None
    minutes: float | None = None
    end_near_length: bool = _recorded_as("end", False)
    allow_end: bool = _recorded_as("may_end", False)
    tracks: str = "piano"
    prime_start: float | None = _recorded_as("prime_from", None)
    prime_end: float | None = _recorded_as("prime_to", None)
    same_track: bool = _recorded_as("one_track", False)
    continuation_only: bool = False
    temperature: float = SamplingConfig.temperature
    top_p: float = SamplingConfig.top_p
    top_k: int = SamplingConfig.top_k
    min_p: float = SamplingConfig.min_p
    typical_p: float = SamplingConfig.typical_p
    temperature_time: float | None = None
    temperature_pitch: float | None = None
    temperature_velocity: float = 1.0
    temperature_length: float = field(default=1.0, metadata={"omit": True})
    release_bias: float = _recorded_as("let_go", SamplingConfig.release_bias)
    returns: str = "auto"
    guard: bool | None = None
    checkpoint: str | None = None
    context_length: int | None = None
    num_latents: int | None = None
    refill: str = "half"
    precision: str = "auto"
    compile: bool = True
    device: str = "auto"

    @classmethod
    def from_record(cls, options: Mapping[str, object], *, defaults: Mapping[str, object] | None = None) -> Self:
        """Return the request from options by their names in a record.

        Args:
            options: Some or all options.
            defaults: Values of missing options, instead of the fields' own defaults: `LEGACY_DEFAULTS` for a file.

        Raises:
            PamusicError: An option is unknown, or its value has the wrong type.
        """
        names = {record_name: name for name, record_name in RECORD_NAMES.items()}
        if unknown := sorted(options.keys() - names.keys()):
            raise PamusicError(f"was made with unknown options ({', '.join(unknown)}); update pamusic")
        for name, value in options.items():
            if not _fits(value, _hints()[names[name]]):
                raise PamusicError(f"its record was changed ({name} is {value!r}); use the original file")
        return cls.from_options({names[name]: value for name, value in {**(defaults or {}), **options}.items()})

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Return the request from options by the names of fields.

        Raises:
            UsageError: A value has the wrong type.
            TypeError: An option is unknown.
        """
        hints = _hints()
        values: dict[str, Any] = {}
        for name, given in options.items():
            value = str(given) if name == "refill" and isinstance(given, int) else given
            if name not in hints:
                close = get_close_matches(name, hints, 1)
                raise TypeError(f"unknown option {name!r}{f' (did you mean {close[0]}?)' if close else ''}")
            if not _fits(value, hints[name]):
                raise UsageError(f"--{name.replace('_', '-')} must be {_expected(hints[name])}, got {value!r}")
            values[name] = _as_hinted(value, hints[name])
        return cls(**values)

    def to_record(self) -> dict[str, object]:
        """Return all options by their names in a record, in its order.

        Later options are left out at their defaults, so that a replay of an older file writes the same bytes.
        """
        later = (each for each in fields(self) if each.metadata.get("omit"))
        omitted = {each.name for each in later if getattr(self, each.name) == each.default}
        return {record_name: getattr(self, name) for name, record_name in RECORD_NAMES.items() if name not in omitted}

    def completed(self, *, is_live: bool = False) -> Self:
        """Return the request with seed, length and guard filled in.

        Args:
            is_live: True if a port plays the music while it is generated; then the guard is off by default.

        Raises:
            UsageError: An option is invalid, or two contradict each other.
        """
        self._check_bounds()
        if self.returns not in RETURNS:
            raise UsageError(f"--returns must be {', '.join(RETURNS[:-1])} or {RETURNS[-1]}, got {self.returns!r}")
        self._check_pieces()
        if self.same_track and self.continuation_only:
            raise UsageError("--same-track writes a file with the prime, --continuation-only leaves it out; use one")
        seconds = self._seconds()
        return replace(
            self,
            seconds=DEFAULT_SECONDS if seconds is None and self.length is None else seconds,
            guard=self.is_one_piece and not is_live if self.guard is None else self.guard,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
        )

    def suggested(self, metadata: Mapping[str, Any]) -> Self:
        """Return the request with the temperatures that a checkpoint suggests, or else 1, where they are left open.

        Args:
            metadata: Metadata of the checkpoint. Its `sampling` may have values for `SUGGESTED`.

        Raises:
            PamusicError: A suggested value is not a temperature.
        """
        given = metadata.get("sampling", {})
        if not isinstance(given, dict):
            raise PamusicError(
                f"sampling in the config.json of the checkpoint must be a table, got {given!r}; restore the folder"
            )
        values: dict[str, Any] = {name: given.get(name, 1.0) for name in SUGGESTED if getattr(self, name) is None}
        for name, value in values.items():
            if not _fits(value, float) or not 0 <= value <= MAX_TEMPERATURE:
                raise PamusicError(
                    f"sampling.{name} in the config.json of the checkpoint must be between 0 and {MAX_TEMPERATURE},"
                    f" got {value!r}; restore the folder"
                )
        return replace(self, **values)

    @property
    def num_drawn(self) -> int:
        """Number of pieces to draw."""
        return self.best_of or self.num_samples

    @property
    def num_kept(self) -> int:
        """Number of pieces to keep."""
        return self.keep or 1 if self.best_of else self.num_samples

    @property
    def is_one_piece(self) -> bool:
        """True if a single piece is drawn; it has a guard by default, unless a port plays it."""
        return self.num_drawn == 1

    @property
    def max_seconds(self) -> float | None:
        """Seconds after which a piece is cut in any case; None for a length in tokens."""
        ending = self.stop.ending
        return self.seconds if ending is None or self.seconds is None else self.seconds * ending.deadline

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling settings."""
        return SamplingConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            class_temperatures=(
                1.0 if self.temperature_time is None else self.temperature_time,
                1.0 if self.temperature_pitch is None else self.temperature_pitch,
                self.temperature_velocity,
                self.temperature_length,
            ),
            release_bias=self.release_bias,
        )

    @property
    def returns_config(self) -> ReturnsConfig | None:
        """Settings of returns to earlier passages, for a model of notes."""
        from pamusic.sampling.returns import ReturnsConfig

        if self.returns == "none" or self.temperature == 0:
            return None
        return ReturnsConfig() if self.returns == "planned" else ReturnsConfig(lags=(), rates=())

    @property
    def stop(self) -> StopCondition:
        """Condition that ends a piece."""
        from pamusic.sampling.ending import EndingConfig, StopCondition

        return StopCondition(
            max_tokens=self.length,
            seconds=self.seconds,
            min_tokens_before_end=1 if self.allow_end else None,
            ending=EndingConfig() if self.end_near_length else None,
        )

    @property
    def inference(self) -> InferenceConfig:
        """Settings of inference, with an unresolved precision."""
        from pamusic.inference.session import InferenceConfig

        return InferenceConfig(
            context_length=self.context_length,
            num_latents=self.num_latents,
            refill=self.refill,
            precision=self.precision,
        )

    @property
    def prime_range(self) -> PrimeRange:
        """Part of the prime to read."""
        from pamusic.tokens.prime import PrimeRange

        return PrimeRange(self.prime_start or 0.0, self.prime_end)

    @property
    def placement(self) -> Placement:
        """Placement of new music in a file."""
        return "alone" if self.continuation_only else "same track" if self.same_track else "new track"

    def _check_bounds(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"--{name.replace('_', '-')} must be between {least} and {most}, got {value}")

    def _check_pieces(self) -> None:
        if self.best_of is not None and self.num_samples != 1:
            raise UsageError("--num-samples keeps all pieces, --best-of some of them; use one of the two")
        if self.keep is not None and (self.best_of is None or self.keep > self.best_of):
            raise UsageError(
                f"--keep {self.keep} needs --best-of with {self.keep} or more; without it all pieces are kept"
            )
        if not self.is_one_piece and self.temperature == 0:
            raise UsageError(
                f"--temperature 0 is deterministic, so all {self.num_drawn} pieces would be equal; request one piece"
            )

    def _seconds(self) -> float | None:
        if self.minutes is not None and self.seconds is not None:
            raise UsageError("--minutes and --seconds both set the length; use one of them")
        for name, asked in (("seconds", self.seconds), ("minutes", self.minutes)):
            if asked is not None and not 0 < 60 * asked < inf:
                raise UsageError(f"--{name} must be a number above 0, got {asked:g}")
        return self.seconds if self.minutes is None else 60 * self.minutes


RECORD_NAMES: dict[str, str] = {each.name: each.metadata.get("record", each.name) for each in fields(SampleRequest)}
LEGACY_DEFAULTS: dict[str, object] = {
    "precision": "fp32",
    "compile": False,
    "let_go": 0.0,
    "guard": False,
    "returns": "none",
    **dict.fromkeys(SUGGESTED, 1.0),
}


@cache
def _hints() -> dict[str, Any]:
    """Return the type of each field, by name."""
    return get_type_hints(SampleRequest)


def _expected(hint: Any) -> str:
    """Describe the values of an option of this type."""
    hints = get_args(hint) or (hint,)
    words = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
    return next(text for kind, text in words.items() if kind in hints)


def _as_hinted(value: object, hint: Any) -> Any:
    """Convert a valid value to the type of the option: a whole number to a float, a text to a path."""
    hints = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return value
    if isinstance(value, Real):
        return int(value) if int in hints and isinstance(value, Integral) else float(value)
    return Path(value) if isinstance(value, str) and Path in hints else value


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is valid for an option of this type; NumPy numbers are numbers, texts can be paths."""
    hints = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in hints  # and not int, though bool is a subclass
    if isinstance(value, Integral):
        return int in hints or float in hints
    if isinstance(value, Real):
        return float in hints
    return isinstance(value, hints) or (isinstance(value, str) and Path in hints)
