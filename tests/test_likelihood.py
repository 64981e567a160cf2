"""The score equals a plain, slow one, and scores every token once."""

import math

import numpy as np
import pytest
import torch
from corpora import small_corpus
from models import tiny_model

from pamusic.errors import PamusicError
from pamusic.evaluation.likelihood import Likelihood, evaluate, score


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


def test_accuracy_counts_the_likeliest_tokens():
    assert Likelihood(nats=2.0, num_tokens=8, num_correct=6).accuracy == 0.75


def test_an_empty_split_is_told(tmp_path):
    with pytest.raises(PamusicError, match="no test pieces"):
        evaluate(tiny_model(), small_corpus(tmp_path / "c"), "test")
