"""Measure how well a model predicts a split: nats per token, and bits per note and second.

Task: predict every token of every piece of a split once, the end token included, from the tokens before it.
Convention: the official Perceiver AR code. A piece is cut into blocks aligned to its end. A block is scored by the last
latents of a pass with all latents and the whole context before it. A block has half as many tokens as there are latents
by default. A Transformer scores a block in one pass over the context, and a Transformer-XL reads it as a segment after
the cached states. Metrics: the sum of nats divided by the number of tokens; in bits, divided by the number of notes and
by the seconds of music.
Difference from the official code: keys and values of the context are computed once per piece, with the same result.
Extension: the piece can be scored in several transpositions. The mean of their probabilities is a better prediction, at
more computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.corpus.corpus import Corpus
from pamusic.errors import PamusicError, UsageError
from pamusic.model.fields import by_field
from pamusic.model.sequence_model import SequenceModel
from pamusic.tokens.vocabulary import Vocabulary

# Borders, in tokens, of the ranges of positions in a piece; a piece of MAESTRO has 20,000 tokens on average.
STRETCHES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 2**62)


def _zeros() -> np.ndarray:
    return np.zeros(len(STRETCHES) - 1)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of a split under a model.

    Attributes:
        nats: Total nats.
        num_tokens: Number of predicted tokens, end tokens included; positions if a position has several fields.
        num_correct: Number of tokens that were the most likely prediction, in the original key.
        num_notes, seconds: Notes and seconds of the music before tokenization.
        num_pieces: Number of scored pieces.
        nats_of_stretch, tokens_of_stretch: Nats and tokens by range of positions in a piece (`STRETCHES`), `[ranges]`.
        nats_of_field: Nats of each field by name, including its bins; empty for one field.
        nats_within_bins: Part of `nats` that selects a value within its bin (`Vocabulary.nats_within_id`).
    """

    nats: float = 0.0
    num_tokens: int = 0
    num_correct: int = 0
    num_notes: int = 0
    seconds: float = 0.0
    num_pieces: int = 0
    nats_of_stretch: np.ndarray = field(default_factory=_zeros)
    tokens_of_stretch: np.ndarray = field(default_factory=_zeros)
    nats_of_field: dict[str, float] = field(default_factory=dict)
    nats_within_bins: float = 0.0

    @property
    def nats_per_token(self) -> float:
        """Mean nats of a token, or of a position with several fields."""
        return self.nats / self.num_tokens

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the most likely prediction."""
        return self.num_correct / self.num_tokens

    @property
    def bits_per_note(self) -> float:
        """Total bits divided by the number of notes."""
        return self.nats / math.log(2) / self.num_notes

    @property
    def bits_per_second(self) -> float:
        """Total bits divided by the seconds of music."""
        return self.nats / math.log(2) / self.seconds

    def __add__(self, other: Likelihood) -> Likelihood:
        """Return the sum of two likelihoods."""
        names = {**self.nats_of_field, **other.nats_of_field}
        added = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in _SUMMED}
        of_field = {name: self.nats_of_field.get(name, 0.0) + other.nats_of_field.get(name, 0.0) for name in names}
        return Likelihood(**added, nats_of_field=of_field)

    def numbers(self) -> dict[str, float | int]:
        """Return the figures to report, by name, rounded."""
        parts = {**self.nats_of_field, "within_bins": self.nats_within_bins} if self.nats_of_field else {}
        of_parts = {
            f"bits_per_note_{name}": round(nats / math.log(2) / self.num_notes, 3) for name, nats in parts.items()
        }
        return {
            "nats_per_token": round(self.nats_per_token, 4),
            "bits_per_note": round(self.bits_per_note, 3),
            "bits_per_second": round(self.bits_per_second, 2),
            "accuracy": round(self.accuracy, 4),
            "num_tokens": self.num_tokens,
            "num_pieces": self.num_pieces,
            **of_parts,
        }

    def by_position(self) -> list[dict[str, float | int]]:
        """Return first position, tokens and nats per token of each range of positions that has tokens."""
        stretches = zip(STRETCHES, self.tokens_of_stretch, self.nats_of_stretch, strict=False)
        return [
            {"from": first, "tokens": int(tokens), "nats_per_token": round(float(nats / tokens), 4)}
            for first, tokens, nats in stretches
            if tokens
        ]


_SUMMED = [each for each in fields(Likelihood) if each.name != "nats_of_field"]


def evaluate(
    model: SequenceModel,
    corpus: Corpus,
    split: str,
    *,
    block: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    num_pieces: int | None = None,
    num_keys: int = 1,
    from_position: int = 0,
    progress: Callable[[Likelihood, int, int], None] = lambda so_far, done, of: None,
) -> Likelihood:
    """Score a split.

    Args:
        model: Model in evaluation mode; it computes in the dtype of its weights.
        corpus: Corpus with the model's tokenizer, which the caller must ensure.
        split: Train, validation or test.
        block: Tokens to score at a time; half the latents by default.
        num_latents, context_length: Shape of the model; its own by default. A Transformer-XL takes no other context.
        num_pieces: Number of pieces to score, spread evenly over the split; all by default.
        num_keys: Number of transpositions whose probabilities are averaged: the original, a semitone higher, one lower,
            two higher, and so on. Each is read as a separate piece.
        from_position: First position of a piece to score; if above 0, notes and seconds are not counted.
        progress: Called after each piece with the likelihood so far, tokens done, and tokens in all.

    Raises:
        PamusicError: The split is empty, or the model's logits are not numbers.
        UsageError: The length of the context is given for a model that carries its state along a piece.
    """
    if context_length not in (None, model.config.context_length) and model.num_held(model.config) is None:
        raise UsageError(
            f"a {model.config.architecture} carries its state along a piece, so another context_length would change"
            " nothing; use another number of latents, the length of its segments"
        )
    pieces = select_pieces(corpus, split, num_pieces)
    vocabulary = corpus.tokenizer.vocabulary
    keys = transposition_maps(vocabulary, num_keys)
    in_all = sum(corpus.pieces[piece].num_tokens + 1 for piece in pieces)

    def score_tokens(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return score(model, tokens, block=block, num_latents=num_latents, context_length=context_length)

    total, done = Likelihood(), 0
    for index in pieces:
        piece = corpus.pieces[index]
        total += score_piece(
            score_tokens, vocabulary, corpus.piece(index), num_notes=piece.num_notes, seconds=piece.seconds, keys=keys,
            from_position=from_position,
        )  # fmt: skip
        done += piece.num_tokens + 1
        progress(total, done, in_all)
    return total


def score_piece(
    score_tokens: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    vocabulary: Vocabulary,
    ids: np.ndarray,
    *,
    num_notes: int,
    seconds: float,
    keys: Sequence[np.ndarray] = (),
    from_position: int = 0,
) -> Likelihood:
    """Return the likelihood of one piece, its end included.

    Args:
        score_tokens: Function like `score`, for a model.
        vocabulary: Vocabulary of the ids.
        ids: Ids `[n]` or `[n, fields]`, without start and end.
        num_notes, seconds: Notes and seconds of the music before tokenization.
        keys: Result of `transposition_maps`; only the original key by default.
        from_position: As for `evaluate`.

    Raises:
        PamusicError: The model's logits are not numbers.
    """
    tokens = np.concatenate([vocabulary.border("start")[None], ids, vocabulary.border("end")[None]])
    scores = [score_tokens(key[tokens]) for key in keys] if keys else [score_tokens(tokens)]
    of_fields, correct = np.stack([nats for nats, _ in scores]), scores[0][1]
    require_finite(of_fields)
    costs = of_fields if not vocabulary.shape else of_fields.sum(-1)
    nats = math.log(len(scores)) - np.logaddexp.reduce(-costs)
    within = vocabulary.nats_within_id[tokens[1:]].reshape(len(nats), -1)
    nats = nats + within.sum(1)
    position = np.arange(from_position, len(nats))
    nats, correct = nats[from_position:], correct[from_position:]
    stretch = np.searchsorted(STRETCHES, position, side="right") - 1
    names = [each.name for each in vocabulary.fields]
    return Likelihood(
        nats=float(nats.sum()),
        num_tokens=len(nats),
        num_correct=int(correct.sum()),
        num_notes=0 if from_position else num_notes,
        seconds=0 if from_position else seconds,
        num_pieces=int(bool(len(nats))),
        nats_of_stretch=np.bincount(stretch, nats, minlength=len(STRETCHES) - 1),
        tokens_of_stretch=np.bincount(stretch, minlength=len(STRETCHES) - 1),
        nats_of_field=_by_name(names, of_fields[0].reshape(within.shape)[from_position:], within[from_position:]),
        nats_within_bins=float(within[from_position:].sum()),
    )


def _by_name(names: list[str], nats: np.ndarray, within: np.ndarray) -> dict[str, float]:
    """Sum the nats of each field, `[n, fields]` and within bins, in the original key; return {} for one field."""
    if len(names) == 1:
        return {}
    return {name: float(its) for name, its in zip(names, (nats + within).sum(0), strict=True)}


def select_pieces(corpus: Corpus, split: str, num_pieces: int | None) -> list[int]:
    """Return the pieces of a split, or `num_pieces` of them, spread evenly over it.

    Raises:
        PamusicError: The split is empty.
    """
    if num_pieces is not None and num_pieces < 1:
        raise UsageError(f"--max-pieces must be at least 1, got {num_pieces}")
    pieces = corpus.split(split)
    if not pieces:
        raise PamusicError(f"{corpus.path}: has no {split} pieces to score; use another split or corpus")
    if num_pieces is None:
        return list(pieces)
    places = np.linspace(0, len(pieces) - 1, min(num_pieces, len(pieces))).round().astype(int)
    return [pieces[i] for i in np.unique(places)]


def transposition_maps(vocabulary: Vocabulary, num_keys: int) -> list[np.ndarray]:
    """Return the transposed ids, `[vocab]`, for each of `num_keys` keys, the original first.

    Pitches wrap around at the ends of their range. So the map is one-to-one, and a prediction in another key is a
    distribution over the ids of the original one.
    """
    keys = []
    for i in range(num_keys):
        semitones, key = (i + 1) // 2 * (1 if i % 2 else -1), np.arange(len(vocabulary))
        for pitches in (vocabulary.range(kind) for kind in ("note_on", "note_off") if vocabulary.has(kind)):
            ids = np.arange(pitches.start, pitches.start + len(pitches))
            key[ids] = np.roll(ids, -semitones)
        keys.append(key)
    return keys


def require_finite(nats: np.ndarray) -> None:
    """Raise an error if the nats of a token are not finite.

    Raises:
        PamusicError: A value is not finite.
    """
    if not np.isfinite(nats).all():
        raise PamusicError("the model's logits are not numbers; its training diverged, use another checkpoint")


def score(
    model: SequenceModel,
    tokens: np.ndarray,
    *,
    block: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    first: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nats of each token of a piece from index `first` on, given the tokens before it.

    Args:
        model: Model in evaluation mode.
        tokens: Ids `[n]` or `[n, fields]`, `n > first`.
        block, num_latents, context_length: As for `evaluate`.
        first: Index of the first token to score, at least 1. The tokens before it are only read into the context.

    Returns:
        Nats `[n - first]` or `[n - first, fields]`, float64, of each field given the fields before it. A mask
        `[n - first]`, True if the most likely token was right in all fields.
    """
    piece = torch.from_numpy(np.asarray(tokens, np.int64)).to(model.embedding.weight.device)
    nats, correct = costs(
        model, piece, block=block, num_latents=num_latents, context_length=context_length, first=first
    )
    return nats.cpu().double().numpy(), correct.cpu().numpy()


@torch.inference_mode()
def costs(
    model: SequenceModel,
    piece: Tensor,
    *,
    block: int | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    first: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute `score` as tensors on the device of `piece` `[n]`, without waiting for the device."""
    config = model.config.resized(context_length=context_length, num_latents=num_latents)
    block = block or max(1, config.num_latents // 2)
    if not 1 <= block <= config.num_latents:
        raise UsageError(f"block must be between 1 and num_latents ({config.num_latents}), got {block}")
    piece = piece[None]
    caches = model.new_caches(1, config.num_latents, config.context_length)
    num_scored = piece.shape[1] - 1
    nats, correct = [], []
    scored = first - 1
    if scored:
        model.read(piece[:, :scored], caches)
    while scored < num_scored:
        # The first block takes the remainder, so that the last block ends with the piece.
        stop = scored + ((num_scored - scored - 1) % block + 1)
        logits = model.block_logits(piece[:, : stop + 1], scored, caches, config.num_latents)[0].float()
        of_fields, is_right = _of_positions(logits, piece[0, scored + 1 : stop + 1], config.field_sizes)
        nats.append(of_fields)
        correct.append(is_right)
        scored = stop
    return torch.cat(nats), torch.cat(correct)


def _of_positions(logits: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the nats of targets, `[n]` or `[n, fields]`, and a mask of correct predictions in all fields, `[n]`."""
    fields = list(by_field(logits, targets, sizes))
    nats = [F.cross_entropy(of_field, target, reduction="none") for of_field, target in fields]
    is_right = torch.stack([of_field.argmax(-1) == target for of_field, target in fields]).all(0)
    return torch.stack(nats, dim=-1) if sizes else nats[0], is_right
