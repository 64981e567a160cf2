"""Returns to earlier passages, and the limit on exact repetition: what they do to logits, and when."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from fields import NOTES

from pamusic.compose.token_stream import constraints_of
from pamusic.errors import UsageError
from pamusic.sampling import returns as module
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.returns import NUM_NUMBERS, Returns, ReturnsConfig

VOCABULARY = NOTES.vocabulary
CONSTRAINTS = constraints_of(VOCABULARY)
SHIFTS, KEYS, *_ = (slice(field.start, field.start + field.size) for field in VOCABULARY.fields)
NOTE, SUSTAIN = (VOCABULARY.range(kind).start for kind in ("note_on", "sustain"))
START = VOCABULARY.border("start").tolist()
PASSAGE = [40, 47, 52, 44, 49, 56, 43, 51, 60, 45, 57, 48]


def position(key, steps=20):
    """A note, or with a key beyond the notes a pedal, so many steps of 10 ms after the one before."""
    return [SHIFTS.start + steps, NOTE + key, VOCABULARY.fields[2].start + 16, VOCABULARY.fields[3].start + 10]


def returns(prime, num_rows=1, **config):
    """Returns that begin only if told to."""
    settings = ReturnsConfig(**{"rates": (0.0, 0.0, 0.0), **config})
    return Returns(PrimeTokens([START, *prime]), CONSTRAINTS, settings, num_rows=num_rows)


def rates_for(lag):
    """Rates with which a return of this range begins as soon as it can."""
    return tuple(1000.0 if place == lag else 0.0 for place in range(3))


def key_probabilities(state, logits, steps=20, number=0.5):
    """The probability of each key of the first row among the keys, after `favour_key`."""
    shifts = torch.full((len(logits),), SHIFTS.start + steps)
    numbers = torch.full((len(logits), NUM_NUMBERS), number)
    favoured = state.favour_key(logits, KEYS, shifts, numbers)
    return favoured[0, : len(VOCABULARY.range("note_on"))].softmax(-1)


def flat(num_rows=1):
    return torch.zeros(num_rows, KEYS.stop - KEYS.start)


def passage_and_rest(rest):
    """A note, a passage, then so many seconds of notes that are not in it."""
    others = [position(10 + n % 7 * 3, steps=50) for n in range(2 * rest)]
    return [position(5), *map(position, PASSAGE), *others]


def test_a_group_of_ids_is_moved_to_its_chance_and_the_others_keep_their_share():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])
    inside = torch.tensor([[False, True, False, True, False]])
    among = torch.tensor([[True, True, True, True, False]])
    before = logits.softmax(-1)

    after = module._moved(logits, inside, 0.9, among, highest=10.0).softmax(-1)

    torch.testing.assert_close(after[0, 4], before[0, 4])
    assert float(after[0, [1, 3]].sum() / after[0, :4].sum()) == pytest.approx(0.9, abs=1e-5)
    torch.testing.assert_close(after[0, 1] / after[0, 3], before[0, 1] / before[0, 3])
    torch.testing.assert_close(after[0, 0] / after[0, 2], before[0, 0] / before[0, 2])
    assert torch.equal(module._moved(logits, inside, 0.1, among, highest=10.0), logits)  # it is likelier already
    lowered = module._moved(logits, inside, 0.1, among, lowest=-math.inf).softmax(-1)
    assert float(lowered[0, [1, 3]].sum() / lowered[0, :4].sum()) == pytest.approx(0.1, abs=1e-5)


def test_a_bias_has_a_limit_and_what_cannot_be_drawn_stays_so():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    every = torch.ones(1, 3, dtype=torch.bool)
    first, last = torch.tensor([[True, False, False]]), torch.tensor([[False, False, True]])

    p = module._moved(logits, first, 0.99, every, highest=1.0).softmax(-1)[0, 0]
    assert float(p) == pytest.approx(math.e / (1 + math.e))
    assert torch.equal(module._moved(logits, last, 0.99, every, highest=1.0), logits)


def test_a_return_follows_the_passage_with_its_keys_and_times():
    state = returns(passage_and_rest(5), rates=rates_for(0), mean_keys=1000.0)
    likely = flat()
    likely[0, PASSAGE[0]] = 30.0  # its first key, so that the return leads there

    assert float(key_probabilities(state, likely)[PASSAGE[0]]) > 0.99
    for key, following in pairwise(PASSAGE):
        state.advance(torch.tensor([position(key)]), torch.full((1, NUM_NUMBERS), 0.5))
        times = state.favour_time(torch.zeros(1, SHIFTS.stop), SHIFTS).softmax(-1)[0]
        at_most = math.exp(6) / (3 * math.exp(6) + 252)  # 6 nats, for 0.2 s and a step to either side
        assert times[19:22].tolist() == pytest.approx([at_most] * 3, abs=1e-4)
        p = key_probabilities(state, flat())
        assert int(p.argmax()) == following
        assert float(p[following]) == pytest.approx(math.exp(6) / (math.exp(6) + 87), abs=1e-4)  # 6 nats are the most


def test_a_key_between_or_left_out_does_not_end_a_return_and_three_others_do():
    numbers = torch.full((1, NUM_NUMBERS), 0.5)

    def following(*keys, steps=20):
        state = returns(passage_and_rest(5), rates=rates_for(0), mean_keys=1000.0)
        likely = flat()
        likely[0, PASSAGE[0]] = 30.0
        key_probabilities(state, likely)
        state._rates = state._rates * 0  # no other return
        for key in keys:
            state.advance(torch.tensor([position(key)]), numbers)
        p = key_probabilities(state, flat(), steps=steps)
        return int(p.argmax()) if float(p.max()) > 0.5 else None

    assert following(*PASSAGE[:3]) == PASSAGE[3]
    assert following(*PASSAGE[:3], 70, 71) == PASSAGE[3]
    assert following(*PASSAGE[:3], *PASSAGE[5:6]) == PASSAGE[6]
    assert following(*PASSAGE[:3], 70, 71, 72) is None
    assert following(70) is None  # its first key was refused
    assert following(*PASSAGE, steps=50) == 10  # beyond the passage, on to what followed it
    assert following(*PASSAGE, steps=20) is None  # its time has not come
    assert following(*PASSAGE, steps=80) == 10  # late


def test_a_return_leads_only_to_its_range_of_lags():
    for rest, lag in ((5, 0), (30, 1), (90, 2)):
        for asked in range(3):
            state = returns(passage_and_rest(rest), rates=rates_for(asked), lags=(2.0, 12.0, 60.0))
            likely = flat()
            likely[0, PASSAGE[3]] = 30.0
            key_probabilities(state, likely)
            number = int(state._target)
            is_there = 1 <= number <= len(PASSAGE)
            assert is_there == (asked == lag)


def test_no_return_begins_within_a_chord_nor_without_memory():
    state = returns(passage_and_rest(5), rates=rates_for(0))
    key_probabilities(state, flat(), steps=1)
    assert int(state._target) == -1
    empty = returns([], rates=rates_for(0))
    key_probabilities(empty, flat())
    assert int(empty._target) == -1


def test_pedals_keep_their_probability_and_leave_a_return_as_it_is():
    state = returns(passage_and_rest(5), rates=rates_for(0), mean_keys=1000.0)
    likely = flat()
    likely[0, PASSAGE[0]] = 3.0
    before = likely.softmax(-1)
    after = state.favour_key(likely, KEYS, torch.tensor([20]), torch.full((1, NUM_NUMBERS), 0.5)).softmax(-1)
    pedals = slice(SUSTAIN - KEYS.start, SUSTAIN - KEYS.start + 3)
    torch.testing.assert_close(after[0, pedals], before[0, pedals])

    state.advance(torch.tensor([position(PASSAGE[0])]), torch.full((1, NUM_NUMBERS), 0.5))
    target, followed = int(state._target), int(state._followed)
    state.advance(torch.tensor([position(SUSTAIN - NOTE, steps=2)]), torch.full((1, NUM_NUMBERS), 0.5))
    assert (int(state._target), int(state._followed)) == (target, followed)


@pytest.mark.parametrize("memory", [4096, 30])
@pytest.mark.parametrize(("num_keys", "most"), [(7, None), (8, 0.78), (12, 0.78), (13, 0.84), (40, 0.84)])
def test_an_exact_repetition_goes_on_with_at_most_the_chance_of_real_music(num_keys, most, memory):
    figure = list(range(30, 43))  # 13 keys
    last = [figure[n % 13] for n in range(13 + num_keys)]
    state = returns([position(key) for key in [20, 21, 20, 22, *last]], memory=memory)
    logits = flat()
    following = figure[(13 + num_keys) % 13]
    logits[0, following] = 10.0
    p = float(key_probabilities(state, logits)[following])

    if most is None:
        assert p > 0.99
    else:
        assert p == pytest.approx(most, abs=1e-4)
    unlikely = flat()
    assert float(key_probabilities(state, unlikely)[following]) == pytest.approx(1 / 88)  # below it, nothing changes


def test_a_small_memory_forgets_and_a_row_does_not_depend_on_the_others():
    random = np.random.default_rng(0)
    keys = random.integers(20, 26, 200)
    wide, narrow = (returns([], num_rows=3, memory=memory, rates=(0.5, 0.5, 0.5)) for memory in (4096, 48))
    alone = returns([], memory=4096, rates=(0.5, 0.5, 0.5))
    same = 0
    for n, key in enumerate(keys):
        rows = torch.tensor([position(int(key)), position(int(key) + 1), position(int(keys[-1 - n]))])
        numbers = torch.from_numpy(random.random((3, NUM_NUMBERS))).float()
        logits = torch.from_numpy(random.normal(size=(3, KEYS.stop - KEYS.start))).float()
        shifts = torch.full((3,), 20)
        of_all = [each.favour_key(logits, KEYS, shifts, numbers) for each in (wide, narrow)]
        of_one = alone.favour_key(logits[2:], KEYS, shifts[2:], numbers[2:])
        assert torch.equal(of_one, of_all[0][2:])
        same += torch.equal(*of_all)
        for each in (wide, narrow):
            each.advance(rows, numbers)
        alone.advance(rows[2:], numbers[2:])
        if n < 40:
            assert torch.equal(*of_all)
    assert 40 < same < 200
    wide.select(torch.tensor([2]))
    assert torch.equal(wide._keys, alone._keys)
    assert torch.equal(wide._target, alone._target)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rates": (0.1,)}, "as many rates as lags"),
        ({"chance": 1.0}, "above 0 and below 1"),
        ({"mean_keys": 0.5}, "mean_keys of at least 1"),
        ({"memory": 3}, "memory of at least 26"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        ReturnsConfig(**wrong)
