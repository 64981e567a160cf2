"""Make batches of windows from a corpus. Knows ids, splits and augmentation; knows torch only as tensors of batches.

A batch is a pure function of corpus, configuration, seed and step, so a resumed run needs no reader state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pamusic.corpus.corpus import Corpus
from pamusic.errors import PamusicError
from pamusic.model.config import ModelConfig
from pamusic.tokens.grid import GridNotes
from pamusic.training.augmentation import stretched_ids, transposed_ids
from pamusic.training.config import TrainingConfig

NOT_SCORED = -100  # a target that PyTorch's cross_entropy ignores


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of windows.

    Attributes:
        tokens: Ids, `[batch, context]`, int64; with several fields, `[batch, context, fields]`.
        targets: Tokens after the latents, `[batch, latents]`, `NOT_SCORED` for none; with several fields,
            `[batch, latents, fields]`. Without latents, the tokens after all positions (`ModelConfig.num_targets`).
        prefix_indices: Visible positions of the prefix, `[batch, k]`, -1 for none; None if all are visible.
    """

    tokens: Tensor
    targets: Tensor
    prefix_indices: Tensor | None

    @property
    def num_scored(self) -> Tensor:
        """Number of scored positions, a scalar."""
        return (_of_position(self.targets) != NOT_SCORED).sum()

    def to(self, device: torch.device) -> Batch:
        prefix_indices = None if self.prefix_indices is None else self.prefix_indices.to(device, non_blocking=True)
        return Batch(
            self.tokens.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), prefix_indices
        )

    def micro(self, size: int) -> list[Batch]:
        """Split the batch into micro-batches of `size` windows."""
        prefix_indices = (
            [None] * (len(self.tokens) // size) if self.prefix_indices is None else self.prefix_indices.split(size)
        )
        return [
            Batch(*parts)
            for parts in zip(self.tokens.split(size), self.targets.split(size), prefix_indices, strict=True)
        ]


class TrainingBatches:
    """Training windows that end anywhere in a piece, so that the model learns every length of prefix.

    A piece is drawn with a probability proportional to its length (the official code draws all pieces equally often,
    but scores count tokens). The end of its window is uniform over [latents + 1, length]. The window has at most
    context + 1 tokens before that end, including start and end tokens.

    If a piece is too short to fill the latents, other pieces stand before it, each at most once. A start token cannot
    be predicted from the piece before it, so it is not scored.
    """

    def __init__(self, corpus: Corpus, model: ModelConfig, training: TrainingConfig) -> None:
        self._corpus, self._model, self._training = corpus, model, training
        self._pieces = np.array(corpus.split("train"), np.int64)
        if not len(self._pieces):
            raise PamusicError(f"{corpus.path}: has no training pieces; tokenize more files")
        weights = np.array([corpus.pieces[piece].num_tokens for piece in self._pieces], np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._grid = lru_cache(maxsize=2048)(self._decoded)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return the batch of update number `step`, from 0: all rows, or only some."""
        rows = range(self._training.batch_size) if rows is None else rows
        rngs = [np.random.default_rng([self._training.seed, step, row]) for row in rows]
        windows = [self._window(rng) for rng in rngs]
        model = self._model
        if self._training.min_latents is not None:
            model = model.resized(num_latents=latents_of_step(step, model, self._training))
        batch = make_batch(windows, model, self._training.prefix_dropout, rngs)
        is_start = batch.targets == self._corpus.tokenizer.vocabulary.id("start")
        batch.targets[is_start.any(-1) if is_start.dim() == 3 else is_start] = NOT_SCORED
        return batch

    def _window(self, rng: np.random.Generator) -> np.ndarray:
        full = self._model.num_latents + 1
        piece = self._drawn(rng)
        ids, joined = self._ids(piece, rng), {piece}
        end = int(rng.integers(min(full, len(ids)), len(ids) + 1))
        window = self._transposed(ids[max(0, end - self._model.context_length - 1) : end], rng)
        while len(window) < full and len(joined) < len(self._pieces):
            piece = self._drawn(rng)
            if piece not in joined:
                joined.add(piece)
                window = np.concatenate([self._transposed(self._ids(piece, rng)[-full:], rng), window])
        return window[-self._model.context_length - 1 :]

    def _drawn(self, rng: np.random.Generator) -> int:
        draw = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        return int(self._pieces[min(draw, len(self._pieces) - 1)])

    def _ids(self, piece: int, rng: np.random.Generator) -> np.ndarray:
        """Return the ids of a piece with start and end, randomly stretched in time."""
        stretch, tokenizer = self._training.stretch, self._corpus.tokenizer
        ids = stretched_ids(self._grid(piece), tokenizer, stretch, rng) if stretch else self._corpus.piece(piece)
        return with_borders(ids, self._corpus)

    def _transposed(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down, up = self._training.transpose_down, self._training.transpose_up
        return transposed_ids(ids, self._corpus.tokenizer, down, up, rng)

    def _decoded(self, piece: int) -> GridNotes:
        return self._corpus.tokenizer.grid_from_ids(self._corpus.piece(piece))


def latents_of_step(step: int, model: ModelConfig, training: TrainingConfig) -> int:
    """Return the number of last positions that predict in update number `step`, the same for all rows and processes.

    A random number is halved rather than drawn from a range, because each number of latents is compiled separately.
    """
    if training.min_latents is None:
        return model.num_targets
    halvings = (model.num_latents // training.min_latents).bit_length() - 1
    draw = np.random.default_rng([training.seed, step]).integers(halvings + 1)
    return model.num_latents >> int(draw)


def validation_batches(corpus: Corpus, model: ModelConfig, num_windows: int, batch_size: int) -> list[Batch]:
    """Return fixed windows, spread evenly over the validation split; each scores the last half of its latents.

    This is the protocol of a full evaluation (blocks of latents / 2, each with its context) on some of its blocks.
    Without a validation split there are no batches.
    """
    pieces = [with_borders(corpus.piece(piece), corpus) for piece in corpus.split("validation")]
    block = max(1, model.num_latents // 2)
    ends = [(piece, end) for piece in range(len(pieces)) for end in range(len(pieces[piece]), 1, -block)]
    chosen = [ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, num_windows).astype(int))] if ends else []
    windows = [pieces[piece][max(0, end - model.context_length - 1) : end] for piece, end in chosen]
    batches = [make_batch(windows[i : i + batch_size], model) for i in range(0, len(windows), batch_size)]
    for batch in batches:
        is_scored = _of_position(batch.targets) != NOT_SCORED
        scored = is_scored.flip(1).cumsum(1).flip(1)  # 1 at the last scored position, 2 at the one before
        batch.targets[scored > block] = NOT_SCORED
    return batches


def make_batch(
    windows: list[np.ndarray],
    model: ModelConfig,
    prefix_dropout: float = 0.0,
    rngs: Sequence[np.random.Generator] = (),
) -> Batch:
    """Return windows of at least two tokens as one batch.

    The latents are the last `num_latents` positions. A long window fills them, and padding precedes its prefix. A
    window that is too short to fill them has no prefix, and padding follows it, where causality hides it. In an
    architecture without latents, all positions of the context take their place.
    """
    context, latents = model.context_length, model.num_targets
    shape = windows[0].shape[1:]
    tokens = np.full((len(windows), context, *shape), model.pad_id, np.int64)
    targets = np.full((len(windows), latents, *shape), NOT_SCORED, np.int64)
    num_seen = round((context - latents) * (1 - prefix_dropout))
    prefix_indices = np.full((len(windows), num_seen), -1, np.int64)
    for row, window in enumerate(windows):
        n = len(window) - 1
        if n >= latents:
            tokens[row, context - n :] = window[:-1]
            targets[row] = window[-latents:]
            if prefix_dropout and rngs:
                prefix = n - latents
                count = min(num_seen, round(prefix * (1 - prefix_dropout)))
                prefix_indices[row, num_seen - count :] = np.sort(rngs[row].choice(prefix, count, replace=False)) + (
                    context - n
                )
        else:
            tokens[row, context - latents : context - latents + n] = window[:-1]
            targets[row, :n] = window[1:]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        torch.from_numpy(prefix_indices) if prefix_dropout and rngs else None,
    )


def _of_position(targets: Tensor) -> Tensor:
    """Return one target per position, `[batch, n]`; of the fields of a position, all or none are scored."""
    return targets if targets.dim() == 2 else targets[..., 0]


def with_borders(ids: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Add start and end to the ids of a piece: `[n]` to `[n + 2]`, or `[n, fields]` to `[n + 2, fields]`."""
    vocabulary = corpus.tokenizer.vocabulary
    return np.concatenate([vocabulary.border("start")[None], ids, vocabulary.border("end")[None]])
