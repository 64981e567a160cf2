"""The score equals a plain, slow one, and scores every token once."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import LEDGER, tiny_model

from pamusic.errors import PamusicError
from pamusic.evaluation.likelihood import STRETCHES, Likelihood, evaluate, score, transposition_maps
from pamusic.evaluation.sweep import contexts_and_latents, sweep
from pamusic.model.flops import forward_flops, scoring_flops, training_flops
from pamusic.tokens.tokenizer import load_tokenizer


@torch.inference_mode()
def plain_score(model, tokens, block, num_latents, context_length):
    """The protocol spelled out: each block by one pass over its window."""
    nats = []
    num_scored = len(tokens) - 1
    ends = list(range(num_scored, 0, -block))[::-1]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        window = torch.tensor(tokens[max(0, end - context_length) : end].astype(np.int64))[None]
        log_p = model(window, num_latents=min(num_latents, window.shape[1]))[0].log_softmax(-1)
        for i in range(start, end):
            nats.append(-log_p[i - end, tokens[i + 1]].item())
    return np.array(nats)


@pytest.mark.parametrize(("length", "block", "num_latents", "context_length"), [
    (200, 8, 16, 64), (200, 16, 16, 64), (37, 5, 16, 64), (10, 8, 16, 64), (200, 1, 4, 32),
    (300, 8, 8, 300), (2, 8, 16, 64),
])  # fmt: skip
def test_the_score_equals_the_plain_one(length, block, num_latents, context_length):
    model = tiny_model(num_layers=3)
    tokens = np.random.default_rng(length).integers(0, 390, length)

    nats, _ = score(model, tokens, block=block, num_latents=num_latents, context_length=context_length)

    assert len(nats) == length - 1
    np.testing.assert_allclose(nats, plain_score(model, tokens, block, num_latents, context_length), atol=2e-4)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(tmp_path):
    corpus = small_corpus(tmp_path / "c")
    model = tiny_model()
    torch.nn.init.zeros_(model.head.weight)

    total = evaluate(model, corpus, "train")

    notes = sum(corpus.pieces[piece].num_notes for piece in corpus.split("train"))
    tokens = sum(corpus.pieces[piece].num_tokens + 1 for piece in corpus.split("train"))
    assert total.num_tokens == tokens
    assert total.nats_per_token == pytest.approx(math.log(391), abs=1e-5)
    assert total.bits_per_note == pytest.approx(math.log2(391) * tokens / notes, rel=1e-5)


def test_memory_grows_with_a_piece_and_not_with_its_square(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(1500,), splits=("train",))
    num_tokens = corpus.pieces[0].num_tokens
    assert num_tokens > 4000
    tracemalloc.start()
    try:
        evaluate(tiny_model(num_layers=1), corpus, "train")  # what NumPy holds is traced; tensors are not
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 500 * num_tokens  # its square would be 8 bytes times 4,000


def test_accuracy_counts_the_likeliest_tokens():
    assert Likelihood(nats=2.0, num_tokens=8, num_correct=6).accuracy == 0.75


def test_an_empty_split_is_told(tmp_path):
    with pytest.raises(PamusicError, match="no test pieces"):
        evaluate(tiny_model(), small_corpus(tmp_path / "c"), "test")


def test_the_stretches_of_a_piece_add_up_to_the_whole(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model()
    total = evaluate(model, corpus, "train")

    assert total.nats_of_stretch.sum() == pytest.approx(total.nats)
    assert total.tokens_of_stretch.sum() == total.num_tokens
    by_hand = {first: [] for first in STRETCHES}
    for piece in corpus.split("train"):
        nats, _ = score(model, np.concatenate([[388], corpus.piece(piece), [389]]))
        for position, cost in enumerate(nats):
            by_hand[max(first for first in STRETCHES if first <= position)].append(cost)
    for stretch in total.by_position():
        assert stretch["tokens"] == len(by_hand[stretch["from"]])
        assert stretch["nats_per_token"] == pytest.approx(np.mean(by_hand[stretch["from"]]), abs=1e-4)


def transposed(tokens, semitones):
    """By hand: ids 0 to 127 strike keys, 128 to 255 let them go."""
    return np.array([(id + semitones) % 128 + id // 128 * 128 if id < 256 else id for id in tokens])


@pytest.mark.slow
def test_in_several_keys_a_token_costs_what_the_mean_of_its_probabilities_says(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model(num_layers=2)
    total = evaluate(model, corpus, "train", num_keys=4)

    nats = right = 0
    for piece in corpus.split("train"):
        tokens = np.concatenate([[388], corpus.piece(piece), [389]])
        scores = [score(model, transposed(tokens, semitones)) for semitones in (0, 1, -1, 2)]
        nats -= np.log(np.mean([np.exp(-costs) for costs, _ in scores], axis=0)).sum()
        right += scores[0][1].sum()
    assert total.nats == pytest.approx(nats)
    assert total.num_correct == right
    assert total.num_tokens == evaluate(model, corpus, "train").num_tokens


@pytest.mark.parametrize("name", ["performance", "piano"])
def test_in_another_key_no_two_ids_are_one_and_only_pitches_move(name):
    vocabulary = load_tokenizer(name).vocabulary
    keys = transposition_maps(vocabulary, 5)
    assert keys[0].tolist() == list(range(len(vocabulary)))
    for key, semitones in zip(keys[1:], [1, -1, 2, -2], strict=True):
        assert sorted(key) == list(range(len(vocabulary)))
        for kind in ("note_on", "note_off"):
            assert key[vocabulary.id(kind, 60)] == vocabulary.id(kind, 60 + semitones)
        for kind in ("start", "end", "time_shift", "velocity"):
            pitches = vocabulary.range(kind)
            assert (key[pitches.start : pitches.start + len(pitches)] == pitches.start + np.arange(len(pitches))).all()


def test_a_sweep_compares_the_same_tokens(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model()
    ways = contexts_and_latents(model)
    assert ways == [(64, 16), (128, 16), (64, 4), (64, 8), (64, 32)]
    points = sweep(model, corpus, "train", [(32, 16), (64, 16), (64, 32)])

    late = sum(max(0, corpus.pieces[piece].num_tokens + 1 - 64) for piece in corpus.split("train"))
    assert [point.num_tokens for point in points] == [late] * 3
    whole = evaluate(model, corpus, "train", from_position=64)
    assert points[1].nats_per_token == pytest.approx(whole.nats_per_token)
    assert points[0].flops < points[1].flops


def test_a_sweep_of_some_pieces_looks_at_their_lengths_alone(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(5, 60, 5), splits=("train",) * 3)
    points = sweep(tiny_model(), corpus, "train", [(32, 16), (64, 16)], num_pieces=2)

    short = sum(corpus.pieces[piece].num_tokens + 1 for piece in (0, 2))
    assert [point.num_tokens for point in points] == [short] * 2


def test_some_pieces_stand_for_all(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(30,) * 5, splits=("train",) * 5)
    assert evaluate(tiny_model(), corpus, "train", num_pieces=3).num_pieces == 3
    assert evaluate(tiny_model(), corpus, "train", num_pieces=99).num_pieces == 5


@pytest.mark.parametrize("ledger", [None, LEDGER])
def test_operations_are_those_that_torch_counts_where_nothing_is_masked(ledger):
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model(ledger=ledger)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 64, dtype=torch.long))
    # torch counts whole squares of attention, of which half of the latents' own is beyond causality.
    d, n, m, layers = 32, 16, 64, 2
    beyond = 4 * d * (n * (n - 1) // 2) * (1 + layers)
    assert counter.get_total_flops() == forward_flops(model.config, num_keys=m, num_latents=n) + beyond
    assert training_flops(model.config) == 3 * forward_flops(model.config, num_keys=m, num_latents=n)
    assert training_flops(model.config, prefix_dropout=0.5) == 3 * forward_flops(
        model.config, num_keys=n + (m - n) // 2, num_latents=n
    )
    assert (
        scoring_flops(model.config, block=8) == forward_flops(model.config, num_keys=m, num_latents=n, new_keys=8) / 8
    )
