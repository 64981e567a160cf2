"""What the sampler's caches cost: the likelihood of the same tokens under each policy of refill.

Task: a stretch of each of some pieces is predicted token by token by the sampler's own path, `inference.session`, with
all that precedes it up to the context. Convention: the stretch is the middle of the piece, so that a long context
precedes it; each policy but `all` has read N tokens one by one before it, so that no latent is left that began with the
rest in one pass. Metrics: nats per token, and how many more than with R = N, which makes all N latents anew at each
token; that with its standard error, from the differences of single tokens. Stretches of whole cycles are fair to all: N
tokens are two cycles of `half`. One logit at a time is slow, R = N above all, so few tokens are scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from pamusic.corpus.corpus import Corpus
from pamusic.evaluation.likelihood import require_finite, select_pieces
from pamusic.inference.session import InferenceConfig, InferenceSession, refill_of
from pamusic.model.perceiver_ar import PerceiverAR

BEST = "all"  # what the others are compared with


@dataclass(frozen=True)
class CacheDrift:
    """What one policy costs.

    Attributes:
        refill: its name.
        latents: R; 0 where the oldest latent is dropped.
        nats_per_token, num_tokens: what came out.
        more_than_all: nats per token beyond those of R = N.
        standard_error: of that.
        tokens_per_second: on this machine, this time; those read one by one before the stretch count as well.
    """

    refill: str
    latents: int
    nats_per_token: float
    num_tokens: int
    more_than_all: float
    standard_error: float
    tokens_per_second: float

    def numbers(self) -> dict[str, float | int | str]:
        """Return all of it by name, rounded."""
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**rounded, "tokens_per_second": round(self.tokens_per_second, 1)}


def policies(num_latents: int) -> list[str]:
    """Return those worth comparing, `BEST` first; `last-128` only where that is another than the rest."""
    return [BEST, "half", *(["last-128"] if num_latents > 256 else []), "slide"]


def drift(
    model: PerceiverAR,
    corpus: Corpus,
    split: str,
    *,
    num_pieces: int = 2,
    num_tokens: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    progress: Callable[[str, int, int], None] = lambda policy, done, of: None,
) -> list[CacheDrift]:
    """Score the same tokens under each policy.

    Args:
        model: in evaluation mode.
        corpus: made with the model's tokenizer; the caller sees to that.
        split: train, validation or test.
        num_pieces: so many, spread evenly over the split.
        num_tokens: of each piece; N by default.
        num_latents, context_length: the model's by default.
        progress: called after each stretch with the policy, how many of the stretches are done, and of how many.

    Raises:
        PamusicError: the split is empty, or the model's logits are no numbers.
        ValueError: the arguments do not fit together.
    """
    config = model.config.resized(context_length=context_length, num_latents=num_latents)
    stretches = select_excerpts(corpus, split, num_pieces, num_tokens or config.num_latents)
    tried = policies(config.num_latents)
    nats: dict[str, np.ndarray] = {}
    speeds = {}
    for way, policy in enumerate(tried):
        costs, num_read, began = [], 0, time.perf_counter()
        for index, (tokens, first) in enumerate(stretches, start=1):
            ahead = min(first - 1, config.num_latents)  # so that latents are as old as they get
            inference = InferenceConfig(
                num_latents=config.num_latents, context_length=config.context_length, refill=policy
            )
            session = InferenceSession(model, inference)
            costs.append(costs_of(session, tokens, first - ahead)[ahead:])
            require_finite(costs[-1])
            num_read += len(tokens) - (first - ahead)
            progress(policy, way * len(stretches) + index, len(tried) * len(stretches))
        nats[policy] = np.concatenate(costs)
        speeds[policy] = num_read / (time.perf_counter() - began)
    return [
        CacheDrift(
            refill=policy,
            latents=refill_of(policy, config.num_latents),
            nats_per_token=float(cost.mean()),
            num_tokens=len(cost),
            more_than_all=float((cost - nats[BEST]).mean()),
            standard_error=float((cost - nats[BEST]).std() / len(cost) ** 0.5),
            tokens_per_second=speeds[policy],
        )
        for policy, cost in nats.items()
    ]


def costs_of(session: InferenceSession, tokens: Sequence[int], first: int) -> np.ndarray:
    """Nats, float64, of each token `[n]` from number `first` on, read one after the other; those before it at once."""
    (logits,) = session.prefill(tokens[:first])
    nats = [-logits.log_softmax(-1)[tokens[first]].item()]
    for token, following in pairwise(tokens[first:]):
        (logits,) = session.step([token])
        nats.append(-logits.log_softmax(-1)[following].item())
    return np.array(nats)


def select_excerpts(corpus: Corpus, split: str, num_pieces: int, num_tokens: int) -> list[tuple[list[int], int]]:
    """Stretches from the middle of pieces that are spread evenly over a split.

    Returns:
        The tokens of each piece, start and end included, up to the end of its stretch, and where that begins.

    Raises:
        PamusicError: the split is empty.
    """
    pieces = select_pieces(corpus, split, None)
    vocabulary = corpus.tokenizer.vocabulary
    stretches, num_pieces = [], min(num_pieces, len(pieces))
    for index in np.unique(np.linspace(0, len(pieces) - 1, num_pieces + 2)[1:-1].round().astype(int)):
        tokens = [vocabulary.id("start"), *corpus.piece(pieces[index]).tolist(), vocabulary.id("end")]
        length = min(num_tokens, len(tokens) - 1)
        first = max(1, (len(tokens) - length) // 2)
        stretches.append((tokens[: first + length], first))
    return stretches
