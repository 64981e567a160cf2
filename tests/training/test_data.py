"""What a model is shown: windows that end anywhere, padding that is never scored, augmentation that stays music."""

import itertools

import numpy as np
import pytest
import torch
from builders import performance
from corpora import random_grid, small_corpus
from models import tiny_config, tiny_model

from pamusic.music.performance import Performance
from pamusic.tokens.tokenizer import NOTE_OFF, NOTE_ON, load_tokenizer
from pamusic.training.augmentation import stretched_ids, transposed_ids
from pamusic.training.config import TrainingConfig
from pamusic.training.data import (
    NOT_SCORED,
    TrainingBatches,
    latents_of_step,
    make_batch,
    validation_batches,
    with_borders,
)

PAD = 390
PIANO = load_tokenizer("piano")


def generators(count):
    return [np.random.default_rng(row) for row in range(count)]


def plain(**changes):
    return TrainingConfig(
        **{
            "batch_size": 4,
            "micro_batch": 2,
            "stretch": 0.0,
            "transpose_down": 0,
            "transpose_up": 0,
            **changes,
        }
    )


def test_a_long_window_fills_the_latents_and_the_padding_stands_before_its_prefix():
    batch = make_batch([np.arange(8)], tiny_config(context_length=10, num_latents=3))
    assert batch.tokens.tolist() == [[PAD, PAD, PAD, 0, 1, 2, 3, 4, 5, 6]]
    assert batch.targets.tolist() == [[5, 6, 7]]


def test_a_short_window_has_no_prefix_and_its_padding_is_not_scored():
    batch = make_batch([np.arange(3)], tiny_config(context_length=10, num_latents=4))
    assert batch.tokens.tolist() == [[PAD] * 6 + [0, 1, PAD, PAD]]
    assert batch.targets.tolist() == [[1, 2, NOT_SCORED, NOT_SCORED]]


def test_prefix_dropout_keeps_a_share_of_each_rows_own_prefix_in_order():
    config = tiny_config(context_length=64, num_latents=16)
    batch = make_batch([np.arange(65), np.arange(37), np.arange(5)], config, 0.75, generators(3))
    long, short, none = batch.prefix_indices.tolist()

    assert len(long) == 12
    assert long == sorted(long)
    assert 0 <= min(long) < max(long) < 48
    assert sum(place >= 0 for place in short) == 5  # a quarter of 20
    assert all(28 <= place < 48 for place in short if place >= 0)
    assert none == [-1] * 12


def test_prefix_dropout_may_leave_nothing_of_a_prefix():
    config = tiny_config(context_length=24, num_latents=16)
    batch = make_batch([np.arange(25), np.arange(5)], config, 0.99, generators(2))
    model = tiny_model(context_length=24)

    assert batch.prefix_indices.shape == (2, 0)
    alone = model(batch.tokens[:, -16:])
    assert torch.allclose(model(batch.tokens, prefix_indices=batch.prefix_indices), alone, atol=1e-5)


def test_a_batch_is_a_pure_function_of_seed_and_step(tmp_path):
    corpus, config = small_corpus(tmp_path / "c"), tiny_config()
    first, again = (TrainingBatches(corpus, config, TrainingConfig(batch_size=4)) for _ in range(2))
    again.batch(3)  # what was read before does not matter
    for one, other in zip(first.batch(7).micro(4), again.batch(7).micro(4), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.prefix_indices, other.prefix_indices)
    assert not torch.equal(first.batch(7).tokens, first.batch(8).tokens)
    other_seed = TrainingBatches(corpus, config, TrainingConfig(batch_size=4, seed=2))
    assert not torch.equal(first.batch(7).tokens, other_seed.batch(7).tokens)


def test_a_random_number_of_latents_is_halved_and_the_same_tokens_are_seen(tmp_path):
    corpus, config = small_corpus(tmp_path / "c"), tiny_config()  # 16 latents, context 48
    always = TrainingBatches(corpus, config, plain(prefix_dropout=0.0))
    varied = TrainingBatches(corpus, config, plain(prefix_dropout=0.0, min_latents=3))
    counts = []
    for step in range(300):
        batch, same = varied.batch(step), always.batch(step)
        counts.append(batch.targets.shape[1])
        assert counts[-1] == latents_of_step(step, config, plain(min_latents=3))
        last = same.targets[:, -counts[-1] :]
        long = (same.tokens[:, 31] != PAD) & (same.targets[:, -1] != NOT_SCORED)  # fills 16 latents and more
        assert torch.equal(batch.targets[long], last[long])
        assert torch.equal(batch.tokens[long], same.tokens[long])
    shares = [counts.count(n) / 300 for n in (16, 8, 4)]
    assert sum(shares) == 1
    assert all(0.25 < share < 0.42 for share in shares)  # each 1/3, of 300


def test_windows_are_stretches_of_training_pieces_that_end_anywhere(tmp_path):
    corpus, config = small_corpus(tmp_path / "c", notes_of_pieces=(30, 45, 9)), tiny_config()
    pieces = [with_borders(corpus.piece(piece), corpus).tolist() for piece in corpus.split("train")]
    batches = TrainingBatches(corpus, config, plain(prefix_dropout=0.0))
    lengths, starts, ends = set(), 0, 0
    for step in range(60):
        batch = batches.batch(step)
        assert batch.prefix_indices is None
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            window = [*(token for token in tokens if token != PAD), targets[-1]]
            assert window[-16:] == targets
            assert any(window == piece[i : i + len(window)] for piece in pieces for i in range(len(piece)))
            lengths.add(len(window))
            starts += window[0] == corpus.tokenizer.vocabulary.id("start")
            ends += window[-1] == corpus.tokenizer.vocabulary.id("end")
    assert max(lengths) == 65  # the whole context and its last target
    assert len(lengths) > 5  # and short prefixes too
    assert starts
    assert ends


def test_a_piece_too_short_for_the_latents_stands_behind_others(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(3, 4, 5, 6), splits=("train",) * 4)
    pieces = [with_borders(corpus.piece(piece), corpus).tolist() for piece in corpus.split("train")]
    start = corpus.tokenizer.vocabulary.id("start")
    config = tiny_config(num_latents=40)
    assert all(len(piece) <= 40 for piece in pieces)

    batch = TrainingBatches(corpus, config, plain(prefix_dropout=0.0)).batch(0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert PAD not in tokens[-40:]
        window = [token for token in tokens if token != PAD]
        borders = [i for i, token in enumerate(window) if token == start]
        whole = [window[i:j] for i, j in itertools.pairwise([*borders, len(window)])]
        assert all(piece in pieces for piece in whole[:-1])
        assert any(piece[: len(whole[-1])] == whole[-1] for piece in pieces)
        assert len({tuple(piece) for piece in whole}) == len(whole)  # or it would learn to copy
        expected = [NOT_SCORED if token == start else token for token in window[-39:]]
        assert targets[:-1] == expected

    alone = small_corpus(tmp_path / "alone", notes_of_pieces=(5,), splits=("train",))
    lonely = TrainingBatches(alone, config, plain(prefix_dropout=0.0)).batch(0)
    assert lonely.tokens.tolist()[0].count(start) == 1


def test_longer_pieces_are_drawn_more_often(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(20, 380), splits=("train", "train"))
    batches = TrainingBatches(corpus, tiny_config(), plain())
    share = corpus.pieces[1].num_tokens / len(corpus.ids)
    long = {tuple(window) for window in np.lib.stride_tricks.sliding_window_view(corpus.piece(1), 14)}
    drawn = [tuple(row[:14]) in long for step in range(100) for row in batches.batch(step).targets.tolist()]
    assert np.mean(drawn) == pytest.approx(share, abs=0.05)


def test_validation_scores_the_last_half_of_the_latents_once_and_never_padding(tmp_path):
    corpus, config = small_corpus(tmp_path / "c"), tiny_config()
    (piece,) = (with_borders(corpus.piece(piece), corpus) for piece in corpus.split("validation"))
    batches = validation_batches(corpus, config, num_windows=10_000, batch_size=3)
    scored = [token for batch in batches for token in batch.targets.flatten().tolist() if token != NOT_SCORED]

    assert len(scored) == len(piece) - 1  # with windows enough, every token but the start, once
    assert sorted(scored) == sorted(piece[1:].tolist())
    again = validation_batches(corpus, config, num_windows=10_000, batch_size=3)
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(batches, again, strict=True))


def test_a_corpus_without_validation_pieces_has_no_validation(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(50,), splits=("train",))
    assert validation_batches(corpus, tiny_config(), 8, 2) == []


def test_stretching_gives_what_the_encoder_could_have_written():
    tokenizer, grid = load_tokenizer("performance"), random_grid(200)
    ids = stretched_ids(grid, tokenizer, 0.1, np.random.default_rng(3))
    factor = 1 + np.random.default_rng(3).uniform(-0.1, 0.1)
    assert tokenizer.decode(ids).equals(tokenizer.from_grid(grid.stretched(factor)))
    lengths = [tokenizer.decode(tokenizer.ids_from_grid(grid.stretched(factor))).duration for factor in (1.0, 1.1)]
    assert lengths[1] / lengths[0] == pytest.approx(1.1, abs=1e-3)


def test_stretching_leaves_pedals_as_the_encoder_would_have_written_them():
    """Half as long, a half pedal is only on the way, and strokes that come together are in order."""
    moves = [(0.2, 85), (0.28, 127), (1.0, 60), (2.0, 127)]
    played = performance((0.01, 0.5, 64, 80), (0.02, 0.5, 60, 80), (1.0, 3.0, 60, 80), pedal=moves)
    half, grid = PIANO.settled(PIANO.to_grid(played).stretched(0.5)), PIANO.to_grid(played)

    assert half.pedal.tolist() == [(12, 2, 3), (50, 2, 1), (100, 2, 3), (150, 2, 0)]
    assert half.pitch.tolist() == [60, 64, 60]
    for seed in range(20):
        ids = stretched_ids(grid, PIANO, 0.5, np.random.default_rng(seed))
        assert PIANO.encode(PIANO.decode(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize("name", ["performance", "piano"])
def test_transposition_moves_every_note_alike_and_nothing_else(name):
    tokenizer = load_tokenizer(name)
    pedal = [(step / 10, value) for step, value in enumerate([127, 0, 90, 40] * 20)]
    ids = tokenizer.encode(Performance(tokenizer.from_grid(random_grid(100)).notes, performance(pedal=pedal).pedal))
    kind = tokenizer.vocabulary.kind_of_id[ids]
    is_note = (kind == NOTE_ON) | (kind == NOTE_OFF)
    seen = set()
    for seed in range(80):
        moved = transposed_ids(ids, tokenizer, 5, 6, np.random.default_rng(seed))
        shift = np.unique(moved[is_note].astype(int) - ids[is_note])
        assert len(shift) == 1
        assert np.array_equal(moved[~is_note], ids[~is_note])
        seen.add(int(shift[0]))
    assert seen == set(range(-5, 7))


def test_transposition_stays_on_the_keyboard():
    tokenizer = load_tokenizer("performance")
    vocabulary = tokenizer.vocabulary
    highest = np.array([vocabulary.id("note_on", 107), vocabulary.id("note_off", 107)], np.uint16)
    shifts = {int(transposed_ids(highest, tokenizer, 2, 6, np.random.default_rng(s))[0]) - 107 for s in range(60)}
    assert shifts == {-2, -1, 0, 1}


def test_settings_that_cannot_be_are_refused():
    for changes in (
        {"steps": 0},
        {"micro_batch": 3},
        {"lr": 0},
        {"prefix_dropout": 1.0},
        {"stretch": 0.7},
        {"precision": "int8"},
    ):
        with pytest.raises(ValueError):
            TrainingConfig(**{"batch_size": 4, "micro_batch": 4, **changes})
