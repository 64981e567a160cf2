"""How the next id is drawn. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from pamusic.errors import UsageError

MAX_TEMPERATURE = 1000  # by then all ids are equally likely
MAX_RELEASE_BIAS = 20  # nats; by then nothing lasts that is old


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is left of a distribution before an id is drawn from it, in the order in which it is applied.

    Attributes:
        temperature: divides the logits: below 1 more predictable, above 1 bolder; 0 always takes the likeliest id.
        class_temperatures: one more temperature for each class of ids, within it: how likely the class is as a whole
            stays as it was. 1 for all of them where there are none.
        top_k: only the k likeliest ids are kept; 0 keeps all.
        top_p: only the likeliest ids are kept that together reach this probability (nucleus sampling: Holtzman et al.
            2020, arXiv:1904.09751); 1 keeps all.
        min_p: only ids are kept that have at least this share of the likeliest one's probability (Nguyen et al. 2024,
            arXiv:2407.01082); 0 keeps all.
        typical_p: only the ids are kept that together reach this probability, those first that are about as unlikely
            as the distribution leads one to expect: locally typical sampling (Meister et al. 2022, arXiv:2202.00666);
            1 keeps all.
        release_bias: nats added, before all else, to closing what has been open for long, and more where much is open
            (`sampling.release_bias`). Without a grammar and the seconds of ids, logits are left as they are.

    Raises:
        UsageError: a value is out of its range.
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
                    f"temperature{whose} is 0 (always the likeliest) to {MAX_TEMPERATURE}, not {temperature}"
                )
        if self.top_k < 0:
            raise UsageError(f"top_k is 1 or more, or 0 to keep all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is above 0 and at most 1, which keeps all, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is 0, which keeps all, to 1, not {self.min_p}")
        if not 0 <= self.release_bias <= MAX_RELEASE_BIAS:
            raise UsageError(f"release_bias is 0 to {MAX_RELEASE_BIAS}, not {self.release_bias:g}")
        if not 0 < self.typical_p <= 1:
            raise UsageError(f"typical_p is above 0 and at most 1, which keeps all, not {self.typical_p}")
