"""The piece to listen to first is the one most like performances, or like its prime."""

from math import inf, nan

import numpy as np
import pytest

from pamusic.evaluation.ranking import LIKE_THE_PRIME, MAX_DEVIATION, MIN_PRIME_NOTES, TYPICAL, rank, targets
from pamusic.evaluation.statistics import statistics
from pamusic.music.performance import Performance


def music(num_notes=600, seconds=60.0, seed=0, velocity=61, pitches=(40, 86), scale=(0, 2, 4, 5, 7, 9, 11)):
    """Random notes of a scale, as dense, wide and loud as is said."""
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.uniform(0, seconds, num_notes))
    pitch = rng.choice([each for each in range(*pitches) if each % 12 in scale], num_notes)
    return Performance.from_arrays(
        onset, onset + rng.uniform(0.1, 1.0, num_notes), pitch, rng.normal(velocity, 16, num_notes).clip(1, 127)
    )


def loop(seconds=60.0):
    onset = np.arange(0, seconds, 0.1)
    return Performance.from_arrays(onset, onset + 0.1, np.tile([48, 60, 72, 84], len(onset))[: len(onset)], onset + 30)


WANTED = targets(None, with_pedal=False)


def test_what_is_typical_is_told_of_statistics_that_there_are():
    measured = statistics(music())

    assert all(len(measured[name]) == 1 for name in TYPICAL)
    assert set(LIKE_THE_PRIME) <= set(TYPICAL)


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        (loop(), "repetition_2s"),
        (music(3000), "density"),
        (music(30), "density"),
        (music(velocity=110), "velocity"),
        (music(pitches=(60, 64)), "pitch_range"),
        (music(scale=range(12)), "pitch_class_entropy"),
    ],
)
def test_a_piece_unlike_any_performance_comes_last_and_is_told_why(worse, name):
    standings = rank([worse, music(seed=1), music(seed=2)], [2.0] * 3, WANTED)

    last = standings[-1]
    assert last.row == 0
    assert abs(last.deviations[name]) > 2


def test_a_piece_that_costs_the_model_much_less_or_more_than_the_others_is_worse():
    alike = [music(seed=1)] * 5

    standings = rank(alike, [2.0, 0.5, 1.9, 4.0, 2.1], WANTED)

    assert {each.row for each in standings[:3]} == {0, 2, 4}
    assert standings[0].row == 0
    assert [each.deviations["nats"] for each in sorted(standings, key=lambda each: each.row)][1::2] == [
        -MAX_DEVIATION,
        MAX_DEVIATION,
    ]


def test_a_piece_without_a_note_is_the_worst():
    standings = rank([Performance(), music(30)], [nan, 2.0], WANTED)

    assert [each.row for each in standings] == [1, 0]
    assert standings[-1].cost == inf


def test_silence_and_repetition_are_no_fault_where_there_is_little_of_them():
    (standing,) = rank([music(2000, pitches=(21, 109))], [2.0], WANTED)

    assert standing.values["silence"] < TYPICAL["silence"].mean
    assert standing.deviations["silence"] == standing.deviations["repetition_2s"] == 0


def test_after_a_prime_a_piece_is_held_to_its_last_minute():
    soft, loud = music(200, velocity=30, seed=3), music(200, velocity=90, seed=4)
    prime = loud.joined(soft.shifted(60.0))
    wanted = targets(prime, with_pedal=False)

    assert wanted["velocity"][0] == pytest.approx(30, abs=3)
    assert wanted["repetition_12s"] == WANTED["repetition_12s"]
    assert [each.row for each in rank([loud, soft], [2.0, 2.0], wanted)] == [1, 0]


def test_a_prime_of_a_few_notes_says_nothing():
    assert targets(music(MIN_PRIME_NOTES - 1), with_pedal=False) == WANTED
    assert targets(music(100, seconds=5.0), with_pedal=False) == WANTED


def test_only_who_has_a_pedal_is_held_to_one():
    assert "sustain" not in WANTED
    assert targets(None, with_pedal=True)["sustain"] == (TYPICAL["sustain"].mean, TYPICAL["sustain"].spread)
