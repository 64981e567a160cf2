"""What a listener would notice, in numbers: each checked by eye on music of a few notes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pamusic.evaluation.statistics import STATISTICS, distance, excerpt, statistics
from pamusic.music.performance import PEDAL, SUSTAIN, Performance

HISTOGRAMS = ("pitch_classes", "melody", "harmony", "inter_onsets", "lengths")


def performance(*notes, pedal=()):
    """Notes as (onset, offset, pitch, velocity); pedal as (second, value)."""
    onset, offset, pitch, velocity = np.array(notes).T
    moves = np.array([(time, SUSTAIN, value) for time, value in pedal], PEDAL)
    return Performance.from_arrays(onset, offset, pitch, velocity, moves)


def value(music, name):
    (number,) = statistics(music)[name].tolist()
    return number


def scale(*pitches, every=0.5, lasts=0.4):
    return performance(*((every * i, every * i + lasts, pitch, 60) for i, pitch in enumerate(pitches)))


def test_density_is_notes_a_second_and_varies_from_four_seconds_to_the_next():
    music = performance(*((0.5 * i, 0.5 * i + 0.1, 60, 60) for i in range(8)), (4.0, 8.0, 60, 60))

    assert value(music, "density") == 9 / 8
    assert value(music, "density_spread") == np.std([8, 1]) / 4


def test_polyphony_counts_strings_while_any_sounds_and_the_pedal_makes_them_sound():
    music = performance((0, 1, 60, 60), (0, 1, 64, 60), (2, 4, 67, 60))

    assert value(music, "polyphony") == pytest.approx(4 / 3)
    assert value(music, "silence") == pytest.approx(1 / 4)
    held = performance((0, 1, 60, 60), (0, 1, 64, 60), (2, 4, 67, 60), pedal=[(0.5, 127), (2, 0)])
    assert value(held, "polyphony") == pytest.approx(1.5)
    assert value(held, "silence") == 0
    assert value(held, "sustain") == pytest.approx(1.5 / 4)


def test_pitch_is_told_by_mean_range_and_class():
    music = performance((0, 1, 48, 60), (1, 2, 60, 60), (11, 12, 64, 60), (12, 20, 67, 60))

    assert value(music, "pitch") == (48 + 60 + 64 + 67) / 4
    assert value(music, "pitch_range") == (12 + 3) / 2
    shares = [0.5 if pitch == 0 else 0.25 if pitch in (4, 7) else 0 for pitch in range(12)]
    assert statistics(music)["pitch_classes"].tolist() == shares
    assert value(music, "pitch_class_entropy") == pytest.approx((0 + 1) / 2)


def test_a_melody_is_the_highest_notes_of_chords():
    """C4 under E4, struck 20 ms after it; then G4, then a leap of more than an octave."""
    music = performance((0, 1, 64, 60), (0.02, 1, 60, 60), (1, 2, 67, 60), (2, 3, 86, 60))

    assert statistics(music)["melody"].tolist() == [0, 0, 0, 0.5, *[0] * 9, 0.5]


def test_harmony_is_what_sounds_together_by_interval():
    triad = performance((0, 2, 60, 60), (0, 2, 64, 60), (0, 2, 67, 60))
    tritone = performance((0, 2, 60, 60), (0, 2, 66, 60))

    assert statistics(triad)["harmony"].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert statistics(tritone)["harmony"].tolist() == [0, 0, 0, 0, 0, 1]


def test_times_and_lengths_are_counted_by_doublings():
    music = performance((0, 0.04, 60, 60), (0.02, 0.5, 64, 60), (0.5, 10, 67, 60))

    assert statistics(music)["inter_onsets"].tolist() == [0, 0.5, 0, 0, 0, 0, 0.5, 0, 0]
    assert statistics(music)["lengths"].tolist() == pytest.approx([1 / 3, 0, 0, 0, 1 / 3, 0, 0, 0, 1 / 3])


def test_touch_is_told_by_mean_spread_and_change():
    music = performance((0, 1, 60, 40), (1, 2, 60, 80), (2, 3, 60, 60))

    assert value(music, "velocity") == 60
    assert value(music, "velocity_spread") == pytest.approx(np.std([40, 80, 60]))
    assert value(music, "velocity_change") == 30


def test_similarity_is_one_where_the_harmony_stays_and_low_where_it_changes():
    stays = performance(*((float(i), i + 1.0, pitch, 60) for i in range(32) for pitch in (60, 64, 67)))
    thirds = [(60, 64, 67), (61, 65, 68)]
    changes = performance(*((float(i), i + 1.0, pitch, 60) for i in range(32) for pitch in thirds[i % 2]))

    assert [value(stays, f"similarity_{n}s") for n in (1, 4, 16)] == pytest.approx([1, 1, 1])
    assert value(changes, "similarity_1s") < 0
    assert value(changes, "similarity_4s") == pytest.approx(1), "four seconds hold both chords, and so do the next"


def test_self_repetition_is_the_share_of_stretches_heard_before():
    once = scale(*range(40, 80))
    loop = scale(*([60, 62, 64, 65] * 10))

    assert value(once, "self_repetition") == 0
    assert value(loop, "self_repetition") == (33 - 4) / 33
    assert value(scale(60, 62, 64), "self_repetition") == 0


def test_what_was_heard_more_than_a_minute_ago_is_no_repetition():
    phrase = list(range(60, 68))

    assert value(scale(*phrase, *range(30, 60), *phrase), "self_repetition") > 0
    assert value(scale(*phrase, *[100] * 5, *range(30, 60), *phrase, every=1.5), "self_repetition") == 0


def test_a_repetition_counts_where_the_nearest_one_was():
    phrase, others = [60, 64, 62, 67, 65, 69, 71, 72, 74], iter(range(21, 1000))

    def repetitions(*rests, every=0.25):
        """The phrase of nine notes, again after each of some numbers of other notes; shares by lag, in figures."""
        keys = [*phrase]
        for rest in rests:
            keys += [*(30 + (next(others) * 7) % 25 for _ in range(rest)), *phrase]
        music = scale(*keys, every=every)
        num_figures = len(keys) - 7
        return [round(value(music, f"repetition_{name}") * num_figures) for name in ("2s", "12s", "60s", "later")]

    assert repetitions(20) == [0, 2, 0, 0]  # two figures of eight notes, 29 notes or 7.25 s later
    assert repetitions(20, every=1.0) == [0, 0, 2, 0]
    assert repetitions(20, every=3.0) == [0, 0, 0, 2]
    assert repetitions(20, 0, every=0.2) == [
        2,
        2,
        0,
        0,
    ]  # the third is near the second, though it is far from the first
    assert repetitions(0, every=0.2) == [2, 0, 0, 0]
    assert repetitions(20, 0, every=1.1) == [0, 2, 2, 0]


def test_an_order_of_notes_within_a_chord_is_no_difference():
    chords = [(60, 64, 67), (62, 65, 69), (59, 62, 67)]
    rng = np.random.default_rng(0)
    notes = []
    for i in range(12):
        for pitch, late in zip(chords[i % 3], rng.permutation([0, 0.01, 0.02]), strict=True):
            notes.append((i * 0.5 + late, i * 0.5 + 0.4, pitch, 60))

    assert value(performance(*notes), "self_repetition") == (29 - 9) / 29


def test_an_excerpt_begins_with_the_first_note():
    music = performance((3, 4, 60, 60), (5, 9, 62, 60), (9, 10, 64, 60), pedal=[(1, 127)])

    part = excerpt(music, 4)

    assert part.notes.tolist() == [(0, 1, 60, 60), (2, 4, 62, 60)]
    assert part.pedal.tolist() == [(0, SUSTAIN, 127)]


def test_a_distance_is_euclidean_in_one_value_and_in_many():
    low, high = statistics(performance((0, 1, 60, 40))), statistics(performance((0, 1, 61, 80)))

    assert distance(low, high, "velocity") == 40
    assert distance(low, high, "pitch_classes") == pytest.approx(np.sqrt(2))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.001, 20), st.integers(0, 127), st.integers(1, 127)), max_size=40),
    st.lists(st.tuples(st.floats(0, 80), st.integers(0, 127)), max_size=10),
)
def test_whatever_the_music_every_statistic_is_a_number_and_histograms_sum_up_to_one(notes, pedal):
    onset, lasts, pitch, velocity = (np.array(each) for each in zip(*notes, strict=True)) if notes else ([],) * 4
    moves = np.array([(time, SUSTAIN, value) for time, value in pedal], PEDAL)
    told = statistics(Performance.from_arrays(onset, np.add(onset, lasts), pitch, velocity, moves))

    assert set(told) == set(STATISTICS)
    for name, values in told.items():
        assert np.isfinite(values).all(), name
        assert name not in HISTOGRAMS or values.sum() == pytest.approx(1) or not values.any(), name
    assert 0 <= told["sustain"][0] <= 1 + 1e-9
    assert 0 <= told["self_repetition"][0] <= 1
