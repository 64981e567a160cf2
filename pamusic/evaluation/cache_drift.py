"""Measure the cost of cached latents: the likelihood of the same tokens under each refill policy.

Task: predict an excerpt of some pieces token by token, through the sampler's own path (`inference.session`), given the
whole context. Convention: the excerpt is the middle of the piece, so that a long context precedes it. N tokens before
it are read one by one, so that no latent is left from the parallel prefill. Metrics: nats per token, and the difference
from R = N, which recomputes all N latents at each token, with its standard error over tokens. Excerpts of whole refill
cycles are fair to all policies: N tokens are two cycles of `half`. Reading token by token is slow, most of all with
R = N, so only few tokens are scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pamusic.corpus.corpus import Corpus
from pamusic.errors import UsageError
from pamusic.evaluation.likelihood import require_finite, select_pieces
from pamusic.inference.prediction import Prediction
from pamusic.inference.session import InferenceConfig, InferenceSession, refill_of
from pamusic.model.config import PERCEIVER_AR
from pamusic.model.sequence_model import SequenceModel
from pamusic.tokens.vocabulary import Position

BEST = "all"  # the policy that the others are compared with


@dataclass(frozen=True)
class CacheDrift:
    """The cost of one refill policy.

    Attributes:
        refill: Name of the policy.
        latents: R; 0 if the oldest latent is dropped.
        nats_per_token, num_tokens: Mean cost, and number of scored tokens.
        more_than_all: Nats per token above R = N.
        standard_error: Standard error of `more_than_all`.
        tokens_per_second: Speed in this measurement, including the tokens read one by one before the excerpt.
    """

    refill: str
    latents: int
    nats_per_token: float
    num_tokens: int
    more_than_all: float
    standard_error: float
    tokens_per_second: float

    def numbers(self) -> dict[str, float | int | str]:
        """Return all values by name, rounded."""
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**rounded, "tokens_per_second": round(self.tokens_per_second, 1)}


def policies(num_latents: int) -> list[str]:
    """Return the policies to compare, `BEST` first; `last-128` only if it differs from the others."""
    return [BEST, "half", *(["last-128"] if num_latents > 256 else []), "slide"]


def drift(
    model: SequenceModel,
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
        model: Model in evaluation mode.
        corpus: Corpus with the model's tokenizer, which the caller must ensure.
        split: Train, validation or test.
        num_pieces: Number of pieces, spread evenly over the split.
        num_tokens: Tokens to score of each piece; N by default.
        num_latents, context_length: Shape of the model; its own by default.
        progress: Called after each excerpt with the policy, the number of excerpts done, and their total.

    Raises:
        PamusicError: The split is empty, or the model's logits are not numbers.
        UsageError: The arguments do not fit together, or the model has no latents.
    """
    if model.config.architecture != PERCEIVER_AR:
        raise UsageError(f"cache drift is about the latents of a {PERCEIVER_AR}, not of a {model.config.architecture}")
    config = model.config.resized(context_length=context_length, num_latents=num_latents)
    stretches = select_excerpts(corpus, split, num_pieces, num_tokens or config.num_latents)
    tried = policies(config.num_latents)
    nats: dict[str, np.ndarray] = {}
    speeds = {}
    for way, policy in enumerate(tried):
        costs, num_read, began = [], 0, time.perf_counter()
        for index, (tokens, first) in enumerate(stretches, start=1):
            ahead = min(first - 1, config.num_latents)  # so that no latent comes from the prefill
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


@torch.inference_mode()
def costs_of(session: InferenceSession, tokens: Sequence[Position], first: int) -> np.ndarray:
    """Return the nats of each token from index `first` on, read one by one after a prefill of the others, float64."""
    nats = [_nats(session.prefill(tokens[:first]), tokens[first])]
    for token, following in pairwise(tokens[first:]):
        nats.append(_nats(session.step(torch.tensor([token])), following))
    return np.array(nats)


def _nats(prediction: Prediction, following: Position) -> float:
    """Return the nats of the next token, or of all fields of the next position, predicted for one row."""
    if isinstance(prediction, Tensor):
        return -float(prediction[0].log_softmax(-1)[following])
    ids = torch.tensor([following])
    fields = enumerate(prediction.slices)
    log_p = (
        prediction.logits(field, ids[:, :field])[0].log_softmax(-1)[ids[0, field] - its.start] for field, its in fields
    )
    return -sum(map(float, log_p))


def select_excerpts(corpus: Corpus, split: str, num_pieces: int, num_tokens: int) -> list[tuple[list[Position], int]]:
    """Select excerpts from the middle of pieces that are spread evenly over a split.

    Returns:
        For each piece, its tokens (with start and end) up to the end of the excerpt, and the index of its beginning.

    Raises:
        PamusicError: The split is empty.
    """
    pieces = select_pieces(corpus, split, None)
    vocabulary = corpus.tokenizer.vocabulary
    stretches, num_pieces = [], min(num_pieces, len(pieces))
    for index in np.unique(np.linspace(0, len(pieces) - 1, num_pieces + 2)[1:-1].round().astype(int)):
        start, end = (vocabulary.border(kind).tolist() for kind in ("start", "end"))
        tokens = [start, *corpus.piece(pieces[index]).tolist(), end]
        length = min(num_tokens, len(tokens) - 1)
        first = max(1, (len(tokens) - length) // 2)
        stretches.append((tokens[: first + length], first))
    return stretches
