"""How the next id is drawn. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

HOTTEST = 1000  # by then all ids are equally likely


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is left of a distribution before an id is drawn from it, in the order in which it is applied.

    Attributes:
        temperature: divides the logits: below 1 more predictable, above 1 bolder; 0 always takes the likeliest id.
        top_k: only the k likeliest ids are kept; 0 keeps all.
        top_p: only the likeliest ids are kept that together reach this probability (nucleus sampling: Holtzman et al.
            2020, arXiv:1904.09751); 1 keeps all.
        min_p: only ids are kept that have at least this share of the likeliest one's probability (Nguyen et al. 2024,
            arXiv:2407.01082); 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.97
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= HOTTEST:
            raise ValueError(f"temperature is 0 (always the likeliest) to {HOTTEST}, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k is 1 or more, or 0 to keep all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, which keeps all, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is 0, which keeps all, to 1, not {self.min_p}")
