"""Music with mistakes up to some step is music all the same, and from there on what it was."""

from dataclasses import replace

import numpy as np
import pytest
from builders import performance
from corpora import random_grid

from pamusic.tokens.grid import GridNotes
from pamusic.tokens.tokenizer import load_tokenizer
from pamusic.training import mistakes
from pamusic.training.mistakes import hurried, laid_over, struck_again, with_mistakes, with_stuck_keys

TOKENIZERS = [load_tokenizer("performance"), load_tokenizer("piano")]
PIANO = TOKENIZERS[1]
NOTHING = PIANO.grid_from_ids([])


def notes(*rows):
    """A grid of (onset, offset, pitch)."""
    onset, offset, pitch = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return GridNotes(onset, offset, pitch, np.full(len(rows), 16))


def rows(grid):
    return list(zip(grid.onset.tolist(), grid.offset.tolist(), grid.pitch.tolist(), strict=True))


def sounding(grid, step):
    """The pitches of notes that sound when a step begins."""
    return {int(p) for p, on, off in zip(grid.pitch, grid.onset, grid.offset, strict=True) if on < step <= off}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_it_is_what_an_encoder_could_have_written(tokenizer):
    grid, others = random_grid(200), random_grid(150, seed=1)
    kinds = set()
    for seed in range(60):
        found, _ = with_mistakes(grid, others, 100.0, rng(seed))
        ids = tokenizer.ids_from_grid(tokenizer.settled(found))

        assert np.array_equal(tokenizer.ids_from_grid(tokenizer.grid_from_ids(ids)), ids)
        kinds.add((len(found) > len(grid), found.last_step < grid.last_step))
    assert len(kinds) == 4  # laid over, hurried, both, neither


def chords(num, seed=0):
    """A grid of chords, the notes of each struck in an order of their own."""
    draws = rng(seed)
    onset = np.repeat(np.cumsum(draws.integers(20, 60, num)), 4)
    pitch = np.concatenate([draws.permutation(np.arange(40, 80))[:4] for _ in range(num)])
    return GridNotes(onset, onset + draws.integers(1, 20, 4 * num), pitch, np.full(4 * num, 16))


@pytest.mark.parametrize("others", [chords(50, seed=1), None])
def test_from_the_step_on_the_notes_are_those_of_the_piece(others):
    grid = chords(60)
    for seed in range(60):
        found, step = with_mistakes(grid, others, 100.0, rng(seed))
        after = found.onset >= step
        moved = int(found.onset[after][0] - grid.onset[-after.sum()])

        assert moved <= 0
        assert found.onset[after].tolist() == (grid.onset[-after.sum() :] + moved).tolist()
        assert found.pitch[after].tolist() == grid.pitch[-after.sum() :].tolist()


def test_an_empty_piece_stays_as_it_is():
    assert with_mistakes(NOTHING, random_grid(20), 100.0, rng()) == (NOTHING, 0)
    grid = random_grid(50)
    for seed in range(20):
        found, _ = with_mistakes(grid, NOTHING, 100.0, rng(seed))
        assert len(found) == len(grid)


def test_a_hurried_stretch_is_so_many_times_as_fast_and_what_surrounds_it_is_not():
    grid = notes((0, 50, 60), (100, 150, 62), (200, 260, 64), (300, 340, 65), (420, 430, 67))

    found, step = hurried(grid, 300, 200, 2.0)

    assert step == 200
    assert rows(found) == [(0, 50, 60), (100, 125, 62), (150, 180, 64), (200, 240, 65), (320, 330, 67)]
    assert hurried(grid, 300, 10**6, 2.0)[1] == 150  # from the beginning
    same, step = hurried(grid, 300, 200, 1.0)
    assert (rows(same), step) == (rows(grid), 300)


def test_pedals_hurry_along():
    grid = PIANO.to_grid(performance((0.0, 5.0, 60, 80), pedal=[(1.0, 127), (2.0, 0), (4.0, 127)]))
    steps = grid.pedal["step"].tolist()

    found, _ = hurried(grid, steps[2], steps[2] - steps[0], 2.0)

    assert steps[:3] == [100, 200, 400]
    assert found.pedal["step"].tolist()[:3] == [100, 150, 250]
    assert grid.pedal["step"].tolist() == steps


def test_what_is_laid_over_is_struck_in_the_stretch_and_ends_soon_after():
    grid, others = random_grid(300), random_grid(300, seed=1)
    others = replace(others, velocity_bin=np.full(len(others), 31))
    usual = ((others.onset >= 500) & (others.onset < 3500)).sum() / 3
    for amount in (0.3, 1.0, 2.0):
        counts = []
        for seed in range(40):
            found = laid_over(grid, others, 2500, 1000, amount, 50.0, rng(seed))
            new = found.velocity_bin == 31
            counts.append(new.sum())

            assert ((found.onset[new] >= 1500) & (found.onset[new] < 2500)).all()
            assert (found.offset[new] - 2500).max(initial=0) < 50 * 10
            assert (np.diff(found.onset) >= 0).all()
            assert (found.offset <= struck_again(found)).all()
            assert (found.offset > found.onset).all()
        assert 0.7 * amount < np.mean(counts) / usual < 1.1 * amount  # at the end of the others a stretch has fewer


def test_nothing_that_comes_after_the_step_is_heard_before_it():
    grid = chords(400)
    grid = replace(grid, velocity_bin=np.arange(len(grid)))  # so that each note is known again
    more = 0
    for seed in range(60):
        found, step = with_mistakes(grid, None, 100.0, rng(seed))
        early = found.onset < step
        assert found.velocity_bin[early].max(initial=-1) < found.velocity_bin[~early].min()
        more += len(found) > len(grid)
    assert more > 20


def test_nothing_is_laid_over_what_was_before_the_beginning():
    found = laid_over(notes((10, 20, 60)), notes(*((n, n + 1, 50) for n in range(100))), 10, 60, 1.0, 5.0, rng())
    assert found.onset.min() >= 0


def test_stuck_keys_stay_down_until_a_step_and_are_let_go_as_other_notes_end():
    grid = random_grid(200)
    for seed in range(20):
        step = int(rng(seed).choice(grid.onset[:-20]))
        stuck = with_stuck_keys(grid, step, 1.0, 10.0, rng(seed))

        assert sounding(stuck, step) == {int(p) for p in grid.pitch[grid.onset < step]}
        assert np.array_equal(stuck.offset[grid.onset >= step], grid.offset[grid.onset >= step])
        longer = stuck.offset > grid.offset
        assert set(stuck.offset[longer & (stuck.offset != struck_again(grid))]) <= set(grid.offset[grid.offset > step])
        assert (stuck.offset[longer] <= struck_again(grid)[longer]).all()
    assert np.array_equal(with_stuck_keys(grid, step, 0.0, 10.0, rng()).offset, grid.offset)


def test_how_many_others_end_before_is_what_was_asked_for_on_average():
    grid = notes(*((0, 5, pitch) for pitch in range(30, 80)), *((20 + n, 21 + n, 100) for n in range(400)))
    for mean in (2.0, 20.0):
        passed = np.concatenate(
            [with_stuck_keys(grid, 20, 1.0, mean, rng(seed)).offset[:50] - 21 for seed in range(20)]
        )
        assert mean - 1 < passed.mean() < mean + 1


def test_where_nothing_ends_after_the_step_nothing_is_stuck():
    grid = notes((0, 10, 60), (5, 20, 64))
    assert with_stuck_keys(grid, 20, 1.0, 5.0, rng()) is grid


def test_a_stretch_astray_is_no_longer_than_told():
    low, high = mistakes.SECONDS_ASTRAY
    assert 0 < low < high
    grid = notes(*((n * 10, n * 10 + 5, 60 + n % 12) for n in range(20_000)))  # 200,000 steps
    for seed in range(40):
        found, step = with_mistakes(grid, grid, 100.0, rng(seed))
        early = found.onset < step - high * 100 - 1
        assert np.array_equal(found.onset[early], grid.onset[: early.sum()])
