"""Configure how the next id is drawn. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from pamusic.errors import UsageError

MAX_TEMPERATURE = 1000  # by then all ids are equally likely
MAX_RELEASE_BIAS = 20  # nats; by then every old note is released


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling settings of one row, in the order in which they are applied.

    Attributes:
        temperature: Divisor of the logits: below 1 more predictable, above 1 bolder; 0 always takes the likeliest id.
        class_temperatures: One more temperature for each class of ids, applied within the class; the total probability
            of the class stays the same. Empty: 1 for all classes.
        top_k: Number of likeliest ids to keep; 0 keeps all.
        top_p: Probability that the likeliest ids must reach together to be kept (nucleus sampling: Holtzman et al.
            2020, arXiv:1904.09751); 1 keeps all.
        min_p: Smallest probability of a kept id, as a share of the likeliest one's (Nguyen et al. 2024,
            arXiv:2407.01082); 0 keeps all.
        typical_p: Probability that the kept ids must reach together, starting with those whose surprise is nearest to
            the entropy: locally typical sampling (Meister et al. 2022, arXiv:2202.00666); 1 keeps all.
        release_bias: Logit bias, in nats, on closing slots that are open for long, larger when many are open
            (`sampling.release_bias`). It is applied before everything else. Without a grammar and the seconds of ids,
            it has no effect.

    Raises:
        UsageError: A value is out of its range.
    """

    temperature: float = 1.0
    class_temperatures: tuple[float, ...] = ()
    top_k: int = 0
    top_p: float = 0.99
    min_p: float = 0.0
    typical_p: float = 1.0
    release_bias: float = 0.15

    def __post_init__(self) -> None:
        for whose, temperature in [
            ("", self.temperature),
            *((" of a class", each) for each in self.class_temperatures),
        ]:
            if not 0 <= temperature <= MAX_TEMPERATURE:
                raise UsageError(
                    f"temperature{whose} must be between 0 (always the likeliest) and {MAX_TEMPERATURE},"
                    f" got {temperature}"
                )
        if self.top_k < 0:
            raise UsageError(f"top_k must be at least 1, or 0 to keep all, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1 (keeps all), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p must be between 0 (keeps all) and 1, got {self.min_p}")
        if not 0 <= self.release_bias <= MAX_RELEASE_BIAS:
            raise UsageError(f"release_bias must be between 0 and {MAX_RELEASE_BIAS}, got {self.release_bias:g}")
        if not 0 < self.typical_p <= 1:
            raise UsageError(f"typical_p must be above 0 and at most 1 (keeps all), got {self.typical_p}")
