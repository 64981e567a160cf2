"""Policies of refill are compared on the same tokens, by the sampler's own path, with the plain score as their rule."""

import json

import numpy as np
import pytest
from corpora import small_corpus
from models import tiny_model
from typer.testing import CliRunner

from pamusic.checkpoint import save_checkpoint
from pamusic.cli.app import app
from pamusic.errors import PamusicError
from pamusic.evaluation.cache_drift import costs_of, drift, policies
from pamusic.evaluation.likelihood import score
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.tokens.tokenizer import load_tokenizer


def test_making_all_latents_anew_is_scoring_one_token_at_a_time():
    model, tokens = tiny_model(), np.random.default_rng(0).integers(0, 390, 64).tolist()  # as many as it sees
    plain, _ = score(model, np.array(tokens), block=1)

    costs = costs_of(InferenceSession(model, InferenceConfig(refill="all")), tokens, first=20)

    assert len(costs) == 44
    np.testing.assert_allclose(costs, plain[19:], atol=2e-4)


@pytest.mark.slow
def test_half_costs_what_a_pass_over_as_many_latents_costs():
    model, tokens = tiny_model(), np.random.default_rng(0).integers(0, 390, 60).tolist()
    costs = costs_of(InferenceSession(model, InferenceConfig(refill="half")), tokens, first=20)

    cycle = list(range(8, 17))  # latents in use, from a refill to the next
    for index, cost in enumerate(costs):
        plain, _ = score(model, np.array(tokens[: 20 + index + 1]), block=1, num_latents=cycle[index % len(cycle)])
        assert cost == pytest.approx(plain[-1], abs=2e-4)


def test_all_policies_score_the_same_tokens_and_are_compared_with_all(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model()
    best, half, slide = drift(model, corpus, "train", num_tokens=32)

    assert [each.refill for each in (best, half, slide)] == policies(16) == ["all", "half", "slide"]
    assert [each.latents for each in (best, half, slide)] == [16, 8, 0]
    assert {each.num_tokens for each in (best, half, slide)} == {64}
    assert (best.more_than_all, best.standard_error) == (0, 0)
    for each in (half, slide):
        assert each.more_than_all == pytest.approx(each.nats_per_token - best.nats_per_token)
        assert each.standard_error > 0


def test_where_no_latent_hears_of_another_sliding_costs_nothing(tmp_path):
    corpus, model = small_corpus(tmp_path / "c"), tiny_model(num_layers=1)
    best, _, slide = drift(model, corpus, "train", num_tokens=32, context_length=4096)

    assert slide.more_than_all == pytest.approx(best.more_than_all, abs=1e-5)


def test_a_short_piece_is_scored_from_its_first_token_on(tmp_path):
    corpus = small_corpus(tmp_path / "c", notes_of_pieces=(3,), splits=("train",))
    best, *others = drift(tiny_model(), corpus, "train", num_tokens=1000)

    assert {each.num_tokens for each in (best, *others)} == {corpus.pieces[0].num_tokens + 1}


def test_an_empty_split_is_told(tmp_path):
    with pytest.raises(PamusicError, match="no test pieces"):
        drift(tiny_model(), small_corpus(tmp_path / "c"), "test")


def test_the_command_prints_a_line_each_or_json(tmp_path):
    small_corpus(tmp_path / "c")
    save_checkpoint(tmp_path / "tiny", tiny_model(), load_tokenizer("performance"), metadata={})
    words = ["evaluate", str(tmp_path / "tiny"), str(tmp_path / "c"), "--split", "train", "--cache-drift"]

    plain = CliRunner().invoke(app, [*words, "--drift-tokens", "9", "--max-pieces", "1"])
    as_json = CliRunner().invoke(app, [*words, "--drift-tokens", "9", "--max-pieces", "1", "--json"])

    assert plain.exit_code == as_json.exit_code == 0, (plain.stderr, as_json.stderr)
    told = json.loads(as_json.stdout)
    assert [each["refill"] for each in told["drift"]] == ["all", "half", "slide"]
    assert all(each["num_tokens"] == 9 for each in told["drift"])
    assert [line.split() for line in plain.stdout.splitlines()] == [
        [each["refill"], f"{each['nats_per_token']:.4f}"] for each in told["drift"]
    ]


def test_what_it_would_not_heed_is_refused(tmp_path):
    words = ["evaluate", "tiny", "corpus"]
    for others in (
        ["--sweep"],
        ["--plot", str(tmp_path / "x.png")],
        ["--stride", "4"],
        ["--precision", "bf16"],
        ["--num-keys", "2"],
    ):
        done = CliRunner().invoke(app, [*words, "--cache-drift", *others])
        assert done.exit_code == 2
        assert "leave out --sweep" in done.stderr
    done = CliRunner().invoke(app, [*words, "--drift-tokens", "9"])
    assert (done.exit_code, "--drift-tokens requires --cache-drift" in done.stderr) == (2, True)
