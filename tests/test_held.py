"""All closing goes to what is open, the more the longer it has been, in each row by itself."""

import numpy as np
import pytest
import torch
from models import tiny_model

from pamusic.composition import of_vocabulary
from pamusic.generation.config import SamplingConfig
from pamusic.generation.held import Held
from pamusic.generation.sampler import generate, generate_rows
from pamusic.tokens.tokenizer import load_tokenizer

VOCABULARY = load_tokenizer("performance").vocabulary
HOW = of_vocabulary(VOCABULARY)
ids = VOCABULARY.id


def held(prime, num_rows=1):
    return Held(HOW["rules"], HOW["seconds_of_id"], prime, num_rows)


def releases(who):
    """Where those of open keys stand in `[rows, vocab]`."""
    first, found = ids("note_off", 0), torch.zeros(len(who._now), len(VOCABULARY), dtype=torch.bool)
    found[:, first : first + 128] = torch.from_numpy(np.isfinite(who._opened))
    return found


def raised(who, let_go=3.0):
    """By how much each id's logit is raised, `[rows, vocab]`, where nothing is given to the release of silent keys."""
    logits = torch.randn(len(who._now), len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    first = ids("note_off", 0)
    logits[:, first : first + 128][~releases(who)[:, first : first + 128]] = -1e4
    return (who.favoured(logits, let_go) - logits).round(decimals=5)


@pytest.mark.parametrize(("hundredths", "by"), [(0, 0), (50, 0), (100, 1), (200, 2), (400, 3), (900, 3)])
def test_a_release_gains_by_each_doubling_of_the_notes_age(hundredths, by):
    whole, rest = divmod(hundredths, 100)
    waits = [ids("time_shift", 100)] * whole + ([ids("time_shift", rest)] if rest else [])
    found = raised(held([ids("start"), ids("velocity", 9), ids("note_on", 60), *waits]))[0]

    assert found[ids("note_off", 60)].item() == pytest.approx(by, abs=1e-5)
    found[ids("note_off", 60)] = 0
    assert not found.any()


def test_what_was_let_go_and_struck_anew_is_young():
    wait = [ids("time_shift", 100)] * 5
    who = held([ids("note_on", 60), ids("note_on", 64), *wait, ids("note_off", 60)])
    assert raised(who)[0].nonzero().flatten().tolist() == [ids("note_off", 64)]
    who.advance([ids("note_on", 60)])
    assert raised(who)[0].nonzero().flatten().tolist() == [ids("note_off", 64)]


def test_each_row_has_its_own_keys():
    who = held([ids("note_on", 60), *[ids("time_shift", 100)] * 5], num_rows=3)
    who.advance([ids("note_off", 60), ids("note_on", 62), ids("note_on", 62)])
    who.advance([ids("time_shift", 100)] * 3)
    who.select([2, 0])

    found = raised(who)
    assert found[0].nonzero().flatten().tolist() == [ids("note_off", 60), ids("note_off", 62)]
    assert not found[1].any()


def test_what_is_given_to_silent_keys_goes_to_those_that_sound_in_proportion():
    who = held([ids("note_on", 60), ids("note_on", 64)], num_rows=2)
    who.advance([ids("note_off", 60), ids("note_on", 67)])
    logits = torch.randn(2, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    first = ids("note_off", 0)
    is_release = torch.zeros(len(VOCABULARY), dtype=torch.bool)
    is_release[first : first + 128] = True

    before, after = logits.softmax(-1), who.favoured(logits, 1.0)
    after = after.masked_fill(is_release & ~releases(who), -float("inf")).softmax(-1)

    assert [row.sum().item() for row in releases(who)] == [1, 3]
    assert torch.allclose(after[:, is_release].sum(1), before[:, is_release].sum(1))
    assert torch.allclose(after[:, ~is_release], before[:, ~is_release])
    shares = before[1][releases(who)[1]]
    assert torch.allclose(after[1][releases(who)[1]], shares * before[1, is_release].sum() / shares.sum())


def test_where_nothing_sounds_nothing_is_moved():
    logits = torch.randn(1, len(VOCABULARY))
    assert torch.equal(held([ids("start")]).favoured(logits, 1.0), logits)


def test_rows_of_a_batch_are_what_their_seeds_give_alone():
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad")).double()
    sampling, how = SamplingConfig(let_go=4.0), {**HOW, "length": 150}
    rows = zip(*generate_rows(model, [ids("start")], seed=3, num_rows=3, sampling=sampling, **how), strict=True)
    alone = [list(generate(model, [ids("start")], seed=seed, sampling=sampling, **how)) for seed in (3, 4, 5)]
    assert [list(row) for row in rows] == alone


def test_what_a_model_leaves_open_is_closed():
    model = tiny_model(vocab_size=len(VOCABULARY), pad_id=ids("pad"))
    lengths = []
    for let_go in (0.0, 8.0):
        drawn = list(
            generate(model, [ids("start")], seed=1, length=1500, sampling=SamplingConfig(let_go=let_go), **HOW)
        )
        grid = load_tokenizer("performance").grid_from_ids(np.array(drawn))
        lengths.append((grid.offset - grid.onset) / 100)

    assert np.quantile(lengths[1], 0.8) < 0.3 * np.quantile(lengths[0], 0.8)


def test_without_rules_nothing_is_raised():
    drawn = [
        list(generate(tiny_model(), [388], seed=0, length=50, sampling=SamplingConfig(let_go=let_go)))
        for let_go in (0.0, 5.0)
    ]
    assert drawn[0] == drawn[1]
