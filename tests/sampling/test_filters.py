"""Filters take out what they say, and nothing else."""

import pytest
import torch

from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.filters import (
    OUT,
    apply_filters,
    with_min_p,
    with_temperature,
    with_temperature_within,
    with_top_k,
    with_top_p,
    with_typical_p,
)

PROBABILITIES = [0.5, 0.25, 0.15, 0.1]


def left(logits):
    """The probabilities after a filter, to three places."""
    return [[round(p, 3) for p in row] for row in logits.softmax(-1).tolist()]


@pytest.fixture
def logits():
    return torch.tensor([PROBABILITIES, PROBABILITIES[::-1]]).log()


def test_a_temperature_divides_logits():
    logits = torch.tensor([[1.0, 2.0, -4.0]])

    assert with_temperature(logits, 2.0).tolist() == [[0.5, 1.0, -2.0]]
    assert with_temperature(logits, 1.0).tolist() == logits.tolist()


def test_temperature_zero_leaves_the_likeliest_alone(logits):
    assert left(with_temperature(logits, 0)) == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert left(with_temperature(torch.zeros(1, 3), 0)) == [[1, 0, 0]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-7, 2e-6, 1000])
def test_no_temperature_leads_out_of_the_numbers(temperature):
    logits = torch.tensor([[30.0, -30.0, OUT, 29.0]])
    probabilities = apply_filters(logits, SamplingConfig(temperature=temperature, top_p=1.0)).softmax(-1)
    assert probabilities.sum().item() == pytest.approx(1)
    assert probabilities[0, 2] == 0
    assert probabilities.argmax() == 0


def test_top_k_leaves_k(logits):
    assert left(with_top_k(logits, 1)) == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert left(with_top_k(logits, 2)) == [[0.667, 0.333, 0, 0], [0, 0, 0.333, 0.667]]
    assert left(with_top_k(logits, 100)) == left(logits)


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.01, [1, 0, 0, 0]),
        (0.49, [1, 0, 0, 0]),
        (0.51, [0.667, 0.333, 0, 0]),
        (0.74, [0.667, 0.333, 0, 0]),
        (0.76, [0.556, 0.278, 0.167, 0]),
        (0.91, PROBABILITIES),
        (1.0, PROBABILITIES),
    ],
)
def test_top_p_leaves_the_fewest_that_reach_p(logits, p, kept):
    assert left(with_top_p(logits, p)) == [kept, kept[::-1]]


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.0, PROBABILITIES), (0.21, [0.556, 0.278, 0.167, 0]), (0.49, [0.667, 0.333, 0, 0]), (1.0, [1, 0, 0, 0])],
)
def test_min_p_leaves_what_is_not_much_less_likely_than_the_likeliest(logits, p, kept):
    assert left(with_min_p(logits, p)) == [kept, kept[::-1]]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        # The entropy is 1.208 nats; surprises are 0.693, 1.386, 1.897, 2.303; so 0.25 is nearest, then 0.5, 0.15, 0.1.
        (0.01, [0, 1, 0, 0]),
        (0.24, [0, 1, 0, 0]),
        (0.26, [0.667, 0.333, 0, 0]),
        (0.74, [0.667, 0.333, 0, 0]),
        (0.76, [0.556, 0.278, 0.167, 0]),
        (0.91, PROBABILITIES),
    ],
)
def test_typical_p_leaves_those_first_that_surprise_as_much_as_is_expected(logits, p, kept):
    assert left(with_typical_p(logits, p)) == [kept, kept[::-1]]


def test_of_a_certain_id_and_of_equals_typical_p_leaves_some():
    assert left(with_typical_p(torch.tensor([[0.0, OUT, OUT]]), 0.5)) == [[1, 0, 0]]
    assert left(with_typical_p(torch.zeros(1, 4), 0.5)) == [[0.5, 0.5, 0, 0]]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        # Within the first two, 0.5 and 0.25 of 0.75: to the power of 1 / T, then again 0.75 together.
        (0.5, [0.6, 0.15, 0.15, 0.1]),
        (1, PROBABILITIES),
        (1000, [0.375, 0.375, 0.15, 0.1]),
        (0, [0.75, 0, 0.15, 0.1]),
    ],
)
def test_a_temperature_within_a_class_changes_nothing_but_the_choice_among_its_ids(temperature, expected):
    logits = torch.tensor([PROBABILITIES]).log() + 5  # whatever is added to all logits changes nothing
    inside = torch.tensor([True, True, False, False])

    assert left(with_temperature_within(logits, temperature, inside)) == [expected]


def test_a_class_that_is_out_stays_out():
    logits = torch.tensor([[OUT, OUT, 0.0, 0.0], [OUT, 0.0, 0.0, OUT]])
    inside = torch.tensor([True, True, False, False])

    for temperature in (0, 0.5, 2):
        assert left(with_temperature_within(logits, temperature, inside)) == [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 0]]


def test_temperatures_of_classes_come_after_the_general_one_and_before_the_rest(logits):
    classes = torch.tensor([0, 0, 1, -1])
    config = SamplingConfig(temperature=0.5, class_temperatures=(2.0, 0.5), top_p=0.9)

    # At 0.5: 0.725, 0.181, 0.065, 0.029; the first two, at 2 within them: 0.604, 0.302; then those that reach 0.9.
    assert left(apply_filters(logits, config, classes))[0] == [0.667, 0.333, 0, 0]
    assert left(apply_filters(logits, config))[0] == [0.8, 0.2, 0, 0]


def test_what_is_out_stays_out(logits):
    logits[:, 1] = float("-inf")

    for config in (
        SamplingConfig(),
        SamplingConfig(temperature=0),
        SamplingConfig(top_k=4),
        SamplingConfig(top_p=1, min_p=1e-6),
        SamplingConfig(top_p=1, typical_p=0.99),
    ):
        assert apply_filters(logits, config)[:, 1].tolist() == [float("-inf")] * 2


def test_temperature_comes_first_then_top_k_then_top_p_then_min_p(logits):
    # At temperature 0.5 the probabilities are as 0.25 : 0.0625 : 0.0225 : 0.01; of three, 0.746, 0.187, 0.067.
    assert left(apply_filters(logits, SamplingConfig(temperature=0.5, top_k=3, top_p=0.94)))[0] == [
        0.746,
        0.187,
        0.067,
        0,
    ]
    assert left(apply_filters(logits, SamplingConfig(temperature=0.5, top_k=3, top_p=0.93)))[0] == [0.8, 0.2, 0, 0]
    assert left(apply_filters(logits, SamplingConfig(temperature=0.5, top_k=3, top_p=0.94, min_p=0.2)))[0] == [
        0.8,
        0.2,
        0,
        0,
    ]


def test_a_filter_returns_new_logits(logits):
    before = logits.clone()
    apply_filters(logits, SamplingConfig(temperature=0.5, top_k=2, top_p=0.5, min_p=0.5))

    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1001},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 2},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"typical_p": 0},
        {"typical_p": 1.1},
    ],
)
def test_a_value_out_of_range_is_named(wrong):
    ((name, value),) = wrong.items()

    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}$"):
        SamplingConfig(**wrong)
