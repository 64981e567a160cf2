"""The sampler draws what the model says, for as long as one likes."""

from itertools import islice

import pytest
import torch
from flat_sampling import generate, generate_rows
from models import CONTEXT, END, PAD, START, VOCAB, N, uncached
from models import outspoken_model as tiny_model

from pamusic.errors import PamusicError
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import GrammarTables
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import load_tokenizer


def test_the_same_seed_gives_the_same_ids_and_another_others():
    model = tiny_model()
    first, again, other = (list(generate(model, [START, 3], length=100, seed=seed)) for seed in (5, 5, 6))

    assert first == again
    assert first != other
    assert list(generate(model, [START, 3], length=40, seed=5)) == first[:40]


def test_torchs_own_randomness_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(generate(tiny_model(seed=0), [START], length=5, seed=1))
    torch.manual_seed(0)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_the_length_is_exact(length):
    assert len(list(generate(tiny_model(), [START], length=length, seed=0))) == length


def test_without_a_length_there_is_no_end():
    ids = generate(tiny_model(context_length=16), [START], seed=0)

    assert len(list(islice(ids, 1000))) == 1000


def test_barred_ids_never_appear():
    loud = tiny_model()
    with torch.no_grad():
        loud.head.weight[3] *= 20  # a third of all draws, where it may be drawn
    free = list(generate(loud, [START], length=300, seed=0))
    barred = list(generate(loud, [START], length=300, seed=0, forbidden_ids=[3, START, PAD], end_id=END))

    assert 3 in free
    assert not {3, START, PAD, END} & set(barred)


def test_the_first_id_may_be_barred_more_than_the_others():
    later = []
    for seed in range(20):
        barred = range(5, tiny_model().config.vocab_size)
        first, *rest = generate(tiny_model(), [START], length=40, seed=seed, forbidden_next=barred)
        assert first < 5
        later += rest
    assert max(later) > 5


def test_what_is_barred_at_first_follows_where_nothing_else_may():
    barred = range(VOCAB)

    assert len(list(generate(tiny_model(), [START], length=5, seed=0, forbidden_next=barred))) == 5


def test_what_was_drawn_before_counts_as_if_it_had_just_been():
    seconds_of_id = [0.0] * VOCAB
    seconds_of_id[5] = 1.5
    before = [3, 5, 5, 4]
    how = {"seconds_of_id": seconds_of_id, "num_resumed": 4}

    assert len(list(generate(tiny_model(), [START, *before], seed=0, length=10, num_resumed=4))) == 6
    assert list(generate(tiny_model(), [START, *before], seed=0, seconds=6, **how)).count(5) == 2
    assert (
        len(
            list(
                generate(tiny_model(), [START, *before], seed=0, length=10, end_id=END, min_tokens_before_end=9, **how)
            )
        )
        > 4
    )


@pytest.mark.parametrize("min_tokens_before_end", [0, 50])
def test_the_end_is_barred_before_its_time_and_ends_the_piece_after(min_tokens_before_end):
    ids = list(
        generate(tiny_model(), [START], length=5000, seed=0, end_id=END, min_tokens_before_end=min_tokens_before_end)
    )

    assert min_tokens_before_end <= len(ids) < 5000
    assert END not in ids


def test_it_stops_with_the_id_that_completes_the_seconds():
    seconds_of_id = [0.0] * VOCAB
    seconds_of_id[5] = 1.5
    ids = list(generate(tiny_model(), [START], seconds=4, seconds_of_id=seconds_of_id, seed=0))

    assert ids.count(5) == 3
    assert ids[-1] == 5


def rows_of(drawn, num_rows):
    """The ids of each row, without those that say that it has ended."""
    return [[id for id in ids if id is not None] for ids in zip(*drawn, strict=True)] or [[]] * num_rows


@pytest.mark.parametrize("refill", ["half", "slide"])
def test_each_row_of_a_batch_is_what_its_seed_gives_alone(refill):
    """In float64, where the rounding of a product over more rows is too small to change a draw."""
    model = tiny_model(seed=3).double()
    how = {"end_id": END, "min_tokens_before_end": 20, "refill": refill}
    together = list(generate_rows(model, [START, 3], seed=7, num_rows=5, length=200, **how))
    alone = [list(generate(model, [START, 3], seed=7 + row, length=200, **how)) for row in range(5)]

    assert rows_of(together, 5) == alone
    assert len({len(ids) for ids in alone}) > 1, "some row should have ended before another"
    for row, ids in enumerate(alone):
        assert [ids[row] is not None for ids in together] == [step < len(ids) for step in range(len(together))]


def test_so_it_is_by_a_grammar_and_by_seconds():
    vocabulary = load_tokenizer("performance").vocabulary
    model = tiny_model(vocab_size=len(vocabulary), pad_id=vocabulary.id("pad")).double()
    how = {
        "grammar": GrammarTables(**grammar_arrays(vocabulary)),
        "seconds": 5.0,
        "seconds_of_id": vocabulary.seconds_of_id.tolist(),
    }
    prime = [vocabulary.id("start"), vocabulary.id("velocity", 20), vocabulary.id("note_on", 60)]
    together = generate_rows(model, prime, seed=0, num_rows=4, **how)

    rows = rows_of(together, 4)
    assert rows == [list(generate(model, prime, seed=seed, **how)) for seed in range(4)]
    assert len({len(ids) for ids in rows}) > 1
    for ids in rows:
        assert vocabulary.seconds_of_id[ids[:-1]].sum() < 5 <= vocabulary.seconds_of_id[ids].sum()


def test_what_is_barred_at_first_may_follow_later():
    ids = list(generate(tiny_model(), [START], length=300, seed=0, forbidden_next=range(1, VOCAB)))

    assert ids[0] == 0
    assert set(ids[1:]) - {0}


def test_temperature_zero_takes_the_likeliest_id_whatever_the_seed():
    model, greedy = tiny_model(), SamplingConfig(temperature=0)
    first, other = (list(generate(model, [START], length=N // 2, seed=seed, sampling=greedy)) for seed in (1, 2))

    ids = [START]
    for in_use in range(1, N // 2 + 1):
        ids.append(int(uncached(model, ids, in_use).argmax()))
    assert first == other == ids[1:]


@pytest.mark.slow
def test_drawn_ids_follow_the_models_distribution():
    model = tiny_model()
    expected = uncached(model, [START], 1).softmax(-1)
    sampling = SamplingConfig(top_p=1)
    first = [next(generate(model, [START], seed=seed, sampling=sampling)) for seed in range(1000)]
    counted = torch.bincount(torch.tensor(first), minlength=VOCAB) / len(first)

    assert (counted - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"prime_ids": []},
        {"length": 0},
        {"num_rows": 0},
        {"seconds": 0.0},
        {"seconds": 1.0},
        {"num_latents": CONTEXT + 1},
        {"refill": N + 1},
        {"refill": "none"},
        {"forbidden_ids": range(VOCAB)},
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(wrong):
    with pytest.raises(ValueError):
        generate(tiny_model(), **{"prime_ids": [START], "seed": 0, **wrong})


def test_a_model_gone_astray_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))

    with pytest.raises(PamusicError, match="not numbers"):
        next(generate(model, [START], seed=0))
