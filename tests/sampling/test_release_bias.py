"""What is open is not opened again, and closing is the likelier the longer ago that was, in each row by itself."""

import numpy as np
import pytest
import torch
from flat_sampling import generate, generate_rows, of_vocabulary
from models import tiny_model

from pamusic.compose.token_stream import constraints_of
from pamusic.model.config import LedgerConfig
from pamusic.model.ledger import Ledger
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.grammar_state import Grammar
from pamusic.sampling.guard import DegenerationDetector, GuardConfig
from pamusic.sampling.release_bias import ReleaseBias
from pamusic.tokens.grammar import ledger_ranges
from pamusic.tokens.tokenizer import load_tokenizer

VOCABULARY = load_tokenizer("performance").vocabulary
HOW = of_vocabulary(VOCABULARY)
ids = VOCABULARY.id


def followed(prime, num_rows=1):
    """Who knows when keys were struck, and which releases are barred after a prime."""
    return ReleaseBias(HOW["grammar"], HOW["seconds_of_id"], prime, num_rows), Grammar(HOW["grammar"], prime, num_rows)


def advance(both, row_ids):
    for each in both:
        each.advance(torch.tensor(row_ids))


def raised(both, release_bias=3.0):
    """By how much each logit is raised, `[rows, vocab]`, but for releases of silent keys."""
    held, grammar = both
    sounding = grammar.is_open()
    logits = torch.randn(len(sounding), len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    found = (held.apply_bias(logits, release_bias, sounding) - logits).round(decimals=5)
    first = ids("note_off", 0)
    found[:, first : first + 128] *= sounding
    return found


@pytest.mark.parametrize(("hundredths", "by"), [(0, 0), (50, 0), (100, 1), (200, 2), (400, 3), (900, 3)])
def test_a_release_gains_by_each_doubling_of_the_notes_age(hundredths, by):
    whole, rest = divmod(hundredths, 100)
    waits = [ids("time_shift", 100)] * whole + ([ids("time_shift", rest)] if rest else [])
    found = raised(followed([ids("start"), ids("velocity", 9), ids("note_on", 60), *waits]))[0]

    assert found[ids("note_off", 60)].item() == pytest.approx(by, abs=1e-5)
    found[ids("note_off", 60)] = 0
    assert not found.any()


@pytest.mark.parametrize(("num_keys", "times"), [(1, 1), (8, 1), (9, 6), (10, 11), (24, 81)])
def test_where_many_keys_are_down_each_gains_more(num_keys, times):
    keys = [ids("note_on", 40 + key) for key in range(num_keys)]
    found = raised(followed([*keys, ids("time_shift", 100)]))[0]

    first = ids("note_off", 40)
    assert found[first : first + num_keys].tolist() == pytest.approx([times] * num_keys, abs=1e-4)
    found[first : first + num_keys] = 0
    assert not found.any()


def test_each_row_is_crowded_by_itself():
    both = followed([*(ids("note_on", 40 + key) for key in range(8)), *[ids("time_shift", 100)] * 2], num_rows=2)
    advance(both, [ids("note_on", 60), ids("note_off", 40)])
    found = raised(both)
    assert found[0, ids("note_off", 41)].item() == pytest.approx(2 * 6, abs=1e-4)
    assert found[1, ids("note_off", 41)].item() == pytest.approx(2, abs=1e-4)


def test_what_was_let_go_and_struck_anew_is_young():
    wait = [ids("time_shift", 100)] * 5
    both = followed([ids("note_on", 60), ids("note_on", 64), *wait, ids("note_off", 60)])
    assert raised(both)[0].nonzero().flatten().tolist() == [ids("note_off", 64)]
    advance(both, [ids("note_on", 60)])
    assert raised(both)[0].nonzero().flatten().tolist() == [ids("note_off", 64)]


def test_each_row_has_its_own_keys():
    both = followed([ids("note_on", 60), *[ids("time_shift", 100)] * 5], num_rows=3)
    advance(both, [ids("note_off", 60), ids("note_on", 62), ids("note_on", 62)])
    advance(both, [ids("time_shift", 100)] * 3)
    for each in both:
        each.select(torch.tensor([2, 0]))

    found = raised(both)
    assert found[0].nonzero().flatten().tolist() == [ids("note_off", 60), ids("note_off", 62)]
    assert not found[1].any()


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_key_that_sounds_is_not_struck(num_rows):
    model, length = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad")), 600
    how = {**HOW, "sampling": SamplingConfig(release_bias=0.0), "length": length}
    rows = list(zip(*generate_rows(model, [ids("start")], seed=1, num_rows=num_rows, **how), strict=True))
    most = 0
    for row in rows:
        sounding = set()
        for kind, pitch in map(VOCABULARY.event, row):
            if kind == "note_on":
                assert pitch not in sounding
                sounding.add(pitch)
            elif kind == "note_off":
                sounding.remove(pitch)
            most = max(most, len(sounding))
    assert most > 20


def test_all_who_follow_know_the_same_keys_to_be_down():
    """The grammar (a row, and many), the ledger and the guard, at each token of pieces that a random model invents."""
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad"))
    ledger = Ledger(LedgerConfig(**ledger_ranges(VOCABULARY)), len(VOCABULARY), 8)
    entries, watch = (
        ledger.new_entries(1),
        DegenerationDetector(GuardConfig(), constraints_of(VOCABULARY), []),
    )
    one, many = Grammar(HOW["grammar"], [], 1), Grammar(HOW["grammar"], [], 2)
    drawn = list(generate(model, [ids("start")], seed=2, length=500, **HOW))
    most = 0
    for id in drawn:
        for each, row in ((one, [id]), (many, [id, id])):
            each.advance(torch.tensor(row))
        watch.advance(id)
        ledger.step(torch.tensor([id]), entries, 10**6)
        is_open = one.is_open()[0]
        assert torch.equal(many.is_open(), is_open.expand(2, -1))
        assert torch.equal(entries.ages(10**6)[0] >= 0, is_open)
        assert [bool(watch._open_since.get(slot)) for slot in range(len(is_open))] == is_open.tolist()
        most = max(most, int(is_open.sum()))
    assert most > 5
    assert int(is_open.sum()) == sum(
        (kind == "note_on") - (kind == "note_off") for kind, _ in map(VOCABULARY.event, drawn)
    )


def test_rows_of_a_batch_are_what_their_seeds_give_alone():
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad")).double()
    sampling, how = SamplingConfig(release_bias=4.0), {**HOW, "length": 150}
    rows = zip(*generate_rows(model, [ids("start")], seed=3, num_rows=3, sampling=sampling, **how), strict=True)
    alone = [list(generate(model, [ids("start")], seed=seed, sampling=sampling, **how)) for seed in (3, 4, 5)]
    assert [list(row) for row in rows] == alone


@pytest.mark.slow
def test_what_a_model_leaves_open_is_closed():
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad"))
    lengths = []
    for release_bias in (0.0, 8.0):
        drawn = list(
            generate(
                model, [ids("start")], seed=1, length=1500, sampling=SamplingConfig(release_bias=release_bias), **HOW
            )
        )
        grid = load_tokenizer("performance").grid_from_ids(np.array(drawn))
        lengths.append((grid.offset - grid.onset) / 100)

    assert np.quantile(lengths[1], 0.8) < 0.3 * np.quantile(lengths[0], 0.8)


def test_without_rules_nothing_is_raised():
    drawn = [
        list(generate(tiny_model(), [388], seed=0, length=50, sampling=SamplingConfig(release_bias=release_bias)))
        for release_bias in (0.0, 5.0)
    ]
    assert drawn[0] == drawn[1]
