"""How the next id is drawn. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

HOTTEST = 1000  # by then all ids are equally likely
MOST_LET_GO = 20  # by then nothing lasts that is old


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is left of a distribution before an id is drawn from it, in the order in which it is applied.

    Attributes:
        temperature: divides the logits: below 1 more predictable, above 1 bolder; 0 always takes the likeliest id.
        class_temperatures: a temperature more for each class of ids, within it: how likely the class is as a whole
            stays as it was; for all of them 1 where there are none.
        top_k: only the k likeliest ids are kept; 0 keeps all.
        top_p: only the likeliest ids are kept that together reach this probability (nucleus sampling: Holtzman et al.
            2020, arXiv:1904.09751); 1 keeps all.
        min_p: only ids are kept that have at least this share of the likeliest one's probability (Nguyen et al. 2024,
            arXiv:2407.01082); 0 keeps all.
        typical_p: only the ids are kept that together reach this probability, those first that are about as unlikely
            as the distribution leads one to expect: locally typical sampling (Meister et al. 2022, arXiv:2202.00666);
            1 keeps all.
        let_go: makes it likelier that what has been open for long is closed, by so many nats, and more where much is
            open (`release_bias`), before all else. Where nobody says which ids close what and what time passes, logits
            are left as they are.
    """

    temperature: float = 1.0
    class_temperatures: tuple[float, ...] = ()
    top_k: int = 0
    top_p: float = 0.99
    min_p: float = 0.0
    typical_p: float = 1.0
    let_go: float = 0.15

    def __post_init__(self) -> None:
        for whose, temperature in [
            ("", self.temperature),
            *((" of a class", each) for each in self.class_temperatures),
        ]:
            if not 0 <= temperature <= HOTTEST:
                raise ValueError(f"temperature{whose} is 0 (always the likeliest) to {HOTTEST}, not {temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k is 1 or more, or 0 to keep all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, which keeps all, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is 0, which keeps all, to 1, not {self.min_p}")
        if not 0 <= self.let_go <= MOST_LET_GO:
            raise ValueError(f"let_go is 0 to {MOST_LET_GO}, not {self.let_go}")
        if not 0 < self.typical_p <= 1:
            raise ValueError(f"typical_p is above 0 and at most 1, which keeps all, not {self.typical_p}")
