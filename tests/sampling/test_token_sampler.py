"""What is drawn on a device that nobody waits for is what is drawn where each id is looked at."""

import pytest
import torch
from flat_sampling import generate_guarded, generate_rows, of_vocabulary, token_sampler
from models import START, VOCAB, outspoken_model, tiny_model
from recording import operations_of

from pamusic.errors import PamusicError
from pamusic.sampling import generate as sampler
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.ending import EndingConfig
from pamusic.sampling.guard import GuardConfig
from pamusic.sampling.token_sampler import NON_FINITE, RANDOM_BLOCK, TokenSampler
from pamusic.tokens.tokenizer import load_tokenizer

VOCABULARY = load_tokenizer("performance").vocabulary
HOW = of_vocabulary(VOCABULARY)
PRIME = [VOCABULARY.id("start"), VOCABULARY.id("velocity", 9), VOCABULARY.id("note_on", 60)]
CLASSES = (torch.arange(len(VOCABULARY)) // 128).clamp(max=2).tolist()
EVERYTHING = SamplingConfig(
    temperature=0.9,
    class_temperatures=(1.0, 1.2, 0.7),
    top_k=200,
    top_p=0.95,
    min_p=1e-4,
    typical_p=0.98,
    release_bias=2.0,
)


def draws(num_rows=3, prime=PRIME, **how):
    return token_sampler(prime, vocab_size=len(VOCABULARY), num_rows=num_rows, **{**HOW, **how})


def steps(count, num_rows=3):
    randomness = torch.Generator().manual_seed(1)
    return [torch.randn(num_rows, len(VOCABULARY), generator=randomness) * 2 for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"sampling": EVERYTHING, "class_of_id": CLASSES},
        {"sampling": SamplingConfig(temperature=0)},
        {"ending": EndingConfig(), "length": 150},
        {"ending": EndingConfig(), "seconds": 20.0, "min_tokens_before_end": 30},
        {"min_tokens_before_end": 20, "num_resumed": 2},
        {"grammar": None, "seconds_of_id": None},
    ],
)
def test_a_draw_that_was_recorded_draws_what_a_draw_draws(how):
    plain, recording = draws(**how), draws(**how, record=operations_of)
    rows = [0, 1, 2]
    for place, logits in enumerate(steps(RANDOM_BLOCK + 60)):
        if place in (100, 200):
            left = [2, 0] if place == 100 else [1]
            rows = [rows[each] for each in left]
            for each in (plain, recording):
                each.select(left)
        expected = plain.sample(logits[rows]).tolist()
        assert recording.sample(logits[rows]).tolist() == expected, f"draw {place}"


def test_a_row_alone_is_what_it_is_in_tensors():
    """On a CPU one row is followed in NumPy, elsewhere as many are."""
    alone, together = draws(num_rows=1, sampling=EVERYTHING), draws(num_rows=2, sampling=EVERYTHING)
    for logits in steps(RANDOM_BLOCK + 60, num_rows=1):
        assert alone.sample(logits).tolist() == together.sample(logits.expand(2, -1)).tolist()[:1]


def test_each_row_draws_with_its_own_seed():
    one, another = draws(num_rows=3), draws(num_rows=1)
    another._randomness = [torch.Generator().manual_seed(4 + 2)]
    for logits in steps(RANDOM_BLOCK + 5, num_rows=1):
        assert one.sample(logits.expand(3, -1)).tolist()[2] == another.sample(logits).item()


def test_logits_that_are_no_numbers_are_told_in_their_row():
    who, (logits,) = draws(), steps(1)
    logits[1, 7] = float("nan")

    first, second, third = who.sample(logits).tolist()
    assert second == NON_FINITE
    assert min(first, third) >= 0


def rows_of(model, **how):
    return list(zip(*generate_rows(model, **how), strict=True))


def piano_model(**changes):
    return tiny_model(vocab_size=len(VOCABULARY), pad_id=VOCABULARY.id("pad"), **changes).double()


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [1, 5, 1000])
@pytest.mark.parametrize(
    "how",
    [
        {"length": 90},
        {"seconds": 12.0},
        {"seconds": 8.0, "ending": EndingConfig()},
        {"length": 120, "min_tokens_before_end": 5, "forbidden_ids": [], "grammar": None},
    ],
)
def test_ahead_of_the_host_rows_are_what_they_are_in_step_with_it(monkeypatch, how, ahead):
    how = {**HOW, **how, "prime_ids": PRIME, "seed": 3, "num_rows": 4}
    model = piano_model()
    if "min_tokens_before_end" in how:
        with torch.no_grad():
            model.head.weight[VOCABULARY.id("end")] *= 9
    expected = rows_of(model, **how)
    monkeypatch.setitem(sampler.AHEAD, "cpu", ahead)
    found = rows_of(model, **how)

    assert found == expected
    lengths = {sum(id is not None for id in row) for row in found}
    assert len(lengths) > 1 or "seconds" not in how


def test_a_guard_takes_back_what_is_ahead_of_the_host_too(monkeypatch):
    how = {
        **HOW,
        "seed": 2,
        "length": 400,
        "guard": GuardConfig(silence=0.5, held=2.0, backoff_seconds=0.2, lookback_seconds=2.0),
    }
    alarms, found = [], []
    for ahead in (0, 7):
        monkeypatch.setitem(sampler.AHEAD, "cpu", ahead)
        told = []
        found.append(list(generate_guarded(piano_model(), PRIME, on_intervention=told.append, **how)))
        alarms.append(told)

    assert alarms[0]
    assert alarms[0] == alarms[1]
    assert found[0] == found[1]


def test_no_more_is_asked_for_than_a_length_allows(monkeypatch):
    monkeypatch.setitem(sampler.AHEAD, "cpu", 50)
    asked = []
    draw = TokenSampler.sample
    monkeypatch.setattr(TokenSampler, "sample", lambda self, logits: asked.append(0) or draw(self, logits))
    list(generate_rows(outspoken_model(), [START], seed=0, length=30, num_rows=2))

    assert len(asked) == 30


def test_rows_before_logits_went_astray_are_kept(monkeypatch):
    monkeypatch.setitem(sampler.AHEAD, "cpu", 4)
    model, kept = outspoken_model(), []
    ids = generate_rows(model, [START], seed=0, length=30, forbidden_ids=range(VOCAB - 2, VOCAB))
    kept.append(next(ids))
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))  # the step's copy of it stays; a refill reads it
    with pytest.raises(PamusicError, match="not numbers"):
        kept.extend(ids)

    assert len(kept) > 4
