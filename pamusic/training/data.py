"""Corpus -> batches of windows. Knows ids, splits and augmentation; knows torch only as the place where batches go.

A batch is a pure function of (corpus, configuration, seed, step): a resumed run needs no reader state.
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
from pamusic.training.mistakes import with_mistakes

NOT_SCORED = -100  # as a target: PyTorch's cross_entropy leaves it out


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of pieces.

    Attributes:
        tokens: `[batch, context]`, int64; of several fields `[batch, context, fields]`.
        targets: `[batch, latents]`, the tokens that follow the latents; `NOT_SCORED` where there is none. Of several
            fields `[batch, latents, fields]`.
        prefix_indices: `[batch, k]`, the positions of the prefix that are seen, -1 for none; None if all are.
    """

    tokens: Tensor
    targets: Tensor
    prefix_indices: Tensor | None

    @property
    def num_scored(self) -> Tensor:
        """How many positions are scored, a number."""
        return (_of_position(self.targets) != NOT_SCORED).sum()

    def to(self, device: torch.device) -> Batch:
        prefix_indices = None if self.prefix_indices is None else self.prefix_indices.to(device, non_blocking=True)
        return Batch(
            self.tokens.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), prefix_indices
        )

    def micro(self, size: int) -> list[Batch]:
        """Return the batch in parts of `size` windows."""
        prefix_indices = (
            [None] * (len(self.tokens) // size) if self.prefix_indices is None else self.prefix_indices.split(size)
        )
        return [
            Batch(*parts)
            for parts in zip(self.tokens.split(size), self.targets.split(size), prefix_indices, strict=True)
        ]


class TrainingBatches:
    """Windows that end anywhere in a piece, so that every length of prefix is learned.

    A piece is drawn as often as it is long (the official code draws every piece equally often; the score counts
    tokens). The end of its window is uniform over [latents + 1, length]; the window is what precedes it, at most
    context + 1 tokens, start and end tokens among them.

    A piece too short to fill the latents does not waste them: others stand before it, each of them once, as far as
    there are others. What follows a start token has nothing to do with what precedes it; the start is not scored.
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
        """Return the batch of update number `step`, from 0; all its rows, or only those that are asked for."""
        rows = range(self._training.batch_size) if rows is None else rows
        rngs = [np.random.default_rng([self._training.seed, step, row]) for row in rows]
        drawn = [self._recovery(rng) if self._has_mistakes(step, rng) else (self._window(rng), None) for rng in rngs]
        batch = make_batch([window for window, _ in drawn], self._model, self._training.prefix_dropout, rngs)
        is_start = batch.targets == self._corpus.tokenizer.vocabulary.id("start")
        batch.targets[is_start.any(-1) if is_start.dim() == 3 else is_start] = NOT_SCORED
        for row, (window, num_scored) in enumerate(drawn):
            if num_scored is not None:
                num_targets = min(len(window) - 1, self._model.num_latents)
                batch.targets[row, : num_targets - num_scored] = NOT_SCORED
        return batch

    def _has_mistakes(self, step: int, rng: np.random.Generator) -> bool:
        if not self._training.mistakes or step < self._training.steps - self._training.cooldown_steps:
            return False
        return rng.random() < self._training.mistakes

    def _recovery(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return a window with mistakes, and how many of its last tokens are scored: those from where they end on."""
        tokenizer = self._corpus.tokenizer
        grid = self._grid(self._drawn(rng))
        others = None if rng.random() < 0.5 else self._grid(self._drawn(rng))
        grid = grid.stretched(1 + rng.uniform(-self._training.stretch, self._training.stretch))
        grid, step = with_mistakes(grid, others, 1000 / tokenizer.vocabulary.time_step_ms, rng)
        ids = with_borders(tokenizer.ids_from_grid(tokenizer.settled(grid)), self._corpus)
        steps = np.cumsum(np.rint(tokenizer.vocabulary.seconds_of_id[ids] * 1000 / tokenizer.vocabulary.time_step_ms))
        first = int(np.searchsorted(steps, step))  # the time shift that leads there
        num_scored = int(rng.integers(max(1, self._model.num_latents // 2), self._model.num_latents + 1))
        end = min(first + num_scored, len(ids))
        window = self._transposed(ids[max(0, end - self._model.context_length - 1) : end], rng)
        return window, min(end - first, len(window) - 1)

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
        """Return a piece between its borders, played a little slower or faster."""
        stretch, tokenizer = self._training.stretch, self._corpus.tokenizer
        ids = stretched_ids(self._grid(piece), tokenizer, stretch, rng) if stretch else self._corpus.piece(piece)
        return with_borders(ids, self._corpus)

    def _transposed(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        down, up = self._training.transpose_down, self._training.transpose_up
        return transposed_ids(ids, self._corpus.tokenizer, down, up, rng)

    def _decoded(self, piece: int) -> GridNotes:
        return self._corpus.tokenizer.grid_from_ids(self._corpus.piece(piece))


def validation_batches(corpus: Corpus, model: ModelConfig, num_windows: int, batch_size: int) -> list[Batch]:
    """The same windows every time, spread evenly over the validation split; each scores its last half of latents.

    That is the protocol of a whole evaluation (blocks of latents / 2, with all that precedes them up to the context),
    on some of its blocks. Where there is no validation split there are no batches.
    """
    pieces = [with_borders(corpus.piece(piece), corpus) for piece in corpus.split("validation")]
    block = max(1, model.num_latents // 2)
    ends = [(piece, end) for piece in range(len(pieces)) for end in range(len(pieces[piece]), 1, -block)]
    chosen = [ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, num_windows).astype(int))] if ends else []
    windows = [pieces[piece][max(0, end - model.context_length - 1) : end] for piece, end in chosen]
    batches = [make_batch(windows[i : i + batch_size], model) for i in range(0, len(windows), batch_size)]
    for batch in batches:
        is_scored = _of_position(batch.targets) != NOT_SCORED
        scored = is_scored.flip(1).cumsum(1).flip(1)  # 1 at the last one scored, and so on
        batch.targets[scored > block] = NOT_SCORED
    return batches


def make_batch(
    windows: list[np.ndarray],
    model: ModelConfig,
    prefix_dropout: float = 0.0,
    rngs: Sequence[np.random.Generator] = (),
) -> Batch:
    """Windows, each of at least two tokens, as one batch.

    The latents are the last `num_latents` positions. A long window fills them, and padding stands before its prefix; a
    window too short to fill them has no prefix, and padding stands behind it, where causality hides it.
    """
    context, latents = model.context_length, model.num_latents
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
    """Of `[batch, n]` or `[batch, n, fields]` one target a position, `[batch, n]`: all or none of them are scored."""
    return targets if targets.dim() == 2 else targets[..., 0]


def with_borders(ids: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Return ids `[n]` or `[n, fields]` of a piece with its start and its end, `[n + 2]` or `[n + 2, fields]`."""
    vocabulary = corpus.tokenizer.vocabulary
    return np.concatenate([vocabulary.border("start")[None], ids, vocabulary.border("end")[None]])
