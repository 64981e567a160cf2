"""What a round trip is said to lose is what it loses: small cases by eye, a slow twin, and sums of many."""

from itertools import combinations

import numpy as np
import pytest
from builders import performance, random_midi, steadily
from hypothesis import given
from hypothesis import strategies as st

from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.music.performance import SOFT, Performance
from pamusic.tokens.roundtrip import Errors, aligned, round_trip
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = load_tokenizer("performance")


class WithPedals(Tokenizer):
    """A tokenizer that keeps keys and pedals as they are but for a grid of 10 ms and halves of the pedal's way, and
    loses the second of two strokes of a key in one step. What it keeps lies beside its ids, which are mere numbers."""

    def encode(self, played):
        self._kept = self._on_grid(played)
        return np.zeros(len(self._kept) + len(self._kept.pedal), np.uint16)

    def decode(self, ids):
        return self._kept

    def normalised(self, played):
        return played

    def _on_grid(self, played):
        notes, pedal = played.notes.copy(), played.pedal.copy()
        notes["onset"], notes["offset"] = np.round(notes["onset"], 2), np.round(notes["offset"], 2)
        _, first = np.unique(notes[["onset", "pitch"]], return_index=True)
        pedal["time"], pedal["value"] = np.round(pedal["time"], 2), np.where(pedal["value"] < 64, 0, 127)
        return Performance(notes[first], pedal)


def trip(*notes, pedal=(), tokenizer=TOKENIZER):
    return round_trip(performance(*notes, pedal=pedal), tokenizer)


def three(errors):
    return [errors.within(0.5), errors.within(0.99), errors.maximum]


def test_three_notes_by_eye():
    """On the grid of 10 ms and in bins of four: 4 ms early, 3 late; 78 comes back as 79."""
    lost = trip((0.0, 0.5, 60, 79), (1.004, 1.5, 62, 78), (2.007, 2.502, 64, 77))

    assert (lost.num_tokens, lost.seconds) == (12, 2.502)
    assert three(lost.grid.onset_ms) == [3.0, 4.0, 4.0]
    assert three(lost.grid.offset_ms) == [0.0, 2.0, 2.0]
    assert three(lost.grid.velocity) == [1.0, 2.0, 2.0]
    assert (lost.grid.num_before, lost.grid.lost.total(), lost.grid.num_added) == (3, 0, 0)
    assert lost.meaning.offset_ms.share_of_some == 0


def test_the_folded_pedal_is_told_by_what_it_does_to_the_notes():
    lost = trip((0.0, 0.5, 60, 79), (1.0, 1.5, 62, 79), pedal=[(0.4, 127), (0.9, 0), (0.2, 50, SOFT), (0.3, 0, SOFT)])

    assert lost.folded
    assert lost.meaning.offset_ms.share_of_some == 0.5
    assert lost.meaning.offset_ms.maximum == 400
    assert {name: pedal.kept for name, pedal in lost.pedals.items()} == {"sustain": False, "soft": False}
    assert lost.pedals["sustain"].num_presses == 1


def test_why_notes_are_lost(tmp_path):
    (tmp_path / "piano.toml").write_text(
        TOKENIZER.vocabulary.toml().replace("first = 0\nlast = 127", "first = 21\nlast = 108")
    )
    piano = load_tokenizer(str(tmp_path / "piano.toml"))

    lost = trip(
        (0, 1, 20, 64),
        (0, 1, 21, 64),
        (0, 1, 60, 64),
        (0, 2, 60, 64),
        (0, 1, 109, 64),
        pedal=[(0, 127)],
        tokenizer=piano,
    )

    assert dict(lost.meaning.lost) == {"outside the pitches": 2}
    assert (lost.meaning.num_before, lost.meaning.num_doubled) == (5, 1)
    assert (lost.grid.num_before, lost.grid.lost.total()) == (2, 0)


def test_a_pedal_that_is_down_at_the_end_goes_up_there_and_is_no_error():
    """A lift that is lost on the way does not shift those that follow."""
    for tokenizer in (WithPedals(TOKENIZER.vocabulary), load_tokenizer("piano")):
        played = [(0.0, 1.0, 60, 79), (59.0, 60.0, 60, 79)]
        lost = trip(*played, pedal=[(1, 127), (20, 0), (30, 127), (40, 0), (50, 127)], tokenizer=tokenizer)

        sustain = lost.pedals["sustain"]
        assert (sustain.num_presses, sustain.num_lost, sustain.num_added) == (3, 0, 0)
        assert (len(sustain.release_ms), sustain.release_ms.maximum) == (3, 0)


def test_pedals_that_are_kept_are_measured():
    """Pressed 4 ms early, let go 3 ms late; a half-pedal of 100 is taken for 127, one of 30 for none."""
    keeping = WithPedals(TOKENIZER.vocabulary)
    lost = trip(
        (0.0, 10.0, 60, 64),
        pedal=[(1.004, 100), (2.007, 0), (5.0, 30), (6.0, 0), (7.0, 127), (9.0, 0)],
        tokenizer=keeping,
    )
    sustain = lost.pedals["sustain"]

    assert sustain.kept
    assert (sustain.num_presses, sustain.num_lost, sustain.num_added) == (2, 0, 0)
    assert three(sustain.press_ms) == [0.0, 4.0, 4.0]
    assert three(sustain.release_ms) == [0.0, 3.0, 3.0]
    assert sustain.seconds_apart == pytest.approx(0.007)
    assert sustain.value_seconds == pytest.approx(0.004 * 127 + 1.003 * 27 + 0.003 * 127 + 1.0 * 30)
    assert sustain.largest == 127


def test_strokes_of_one_key_in_one_step_are_told_apart_from_the_others():
    keeping = WithPedals(TOKENIZER.vocabulary)

    lost = trip((0.0, 0.5, 60, 64), (0.5, 0.502, 60, 65), (0.504, 1.0, 60, 66), (0.7, 1.1, 60, 67), tokenizer=keeping)

    assert dict(lost.grid.lost) == {"same key in the same step": 1}
    assert lost.grid.onset_ms.maximum == 0
    assert lost.grid.velocity.maximum == 0


TIMES = st.lists(st.integers(0, 200).map(lambda step: step / 10), max_size=9).map(sorted).map(np.array)


@steadily
@given(TIMES, TIMES)
def test_alignment_is_the_best_of_all(before, after):
    here, there = aligned(before, after)

    assert len(here) == len(there) == min(len(before), len(after))
    assert (np.diff(here) > 0).all()
    assert (np.diff(there) > 0).all()
    longer, shorter = (before, after) if len(before) >= len(after) else (after, before)
    best = min(
        sum(abs(longer[place] - time) for place, time in zip(places, shorter, strict=True))
        for places in combinations(range(len(longer)), len(shorter))
    )
    assert np.abs(before[here] - after[there]).sum() == pytest.approx(best)


def test_a_note_that_is_dropped_does_not_shift_the_others():
    onset = np.arange(1000) * 0.5
    here, there = aligned(onset, np.delete(onset, [0, 500, 501, 999]) + 0.004)

    assert sorted(set(range(1000)) - set(here.tolist())) == [0, 500, 501, 999]
    assert there.tolist() == list(range(996))


def test_more_than_can_be_weighed_is_refused():
    with pytest.raises(PamusicError, match="more notes are lost than can be matched"):
        aligned(np.arange(20_000.0), np.arange(10_000.0))


def plainly(before, after):
    """The slow twin: (errors of onset in ms, of offset, of velocity) of notes, pitch by pitch; none may be lost."""
    found = []
    for pitch in range(128):
        here, there = ([note for note in side.notes.tolist() if note[2] == pitch] for side in (before, after))
        assert len(here) == len(there)
        for one, other in zip(sorted(here, key=lambda n: n[0]), sorted(there, key=lambda n: n[0]), strict=True):
            found.append([abs(one[0] - other[0]) * 1000, abs(one[1] - other[1]) * 1000, abs(one[3] - other[3])])
    return np.array(found).T


def quantile(values, share):
    """The smallest value that at least this share of all does not exceed."""
    return next(value for value in sorted(values) if sum(v <= value for v in values) >= share * len(values))


@pytest.mark.parametrize("seed", range(8))
def test_the_numbers_are_those_of_the_slow_twin(seed):
    played = read_midi(random_midi(seed, num_events=150))
    lost = round_trip(played, TOKENIZER)

    twin = plainly(TOKENIZER.normalised(played), TOKENIZER.decode(TOKENIZER.encode(played)))

    for errors, values in zip((lost.grid.onset_ms, lost.grid.offset_ms, lost.grid.velocity), twin, strict=True):
        wanted = [quantile(values, 0.5), quantile(values, 0.99), max(values)]
        assert three(errors) == pytest.approx(wanted, abs=0.0051 if max(values) < 100 else 0.51)
    assert lost.grid.onset_ms.maximum <= 5.0
    assert lost.grid.velocity.maximum <= 2


def test_what_comes_back_loses_nothing_a_second_time():
    once = TOKENIZER.decode(TOKENIZER.encode(read_midi(random_midi(3))))
    lost = round_trip(once, TOKENIZER)

    assert (lost.grid.onset_ms.maximum, lost.grid.offset_ms.maximum, lost.grid.velocity.maximum) == (0, 0, 0)
    assert (lost.grid.lost.total(), lost.meaning.lost.total(), lost.pedals) == (0, 0, {})


@steadily
@given(st.lists(st.floats(0, 99), max_size=20), st.lists(st.floats(0, 99), max_size=20))
def test_errors_added_are_errors_of_all(first, others):
    together, added = Errors.of(np.array(first + others)), Errors.of(np.array(first)) + Errors.of(np.array(others))

    assert together.sizes.tolist() == added.sizes.tolist()
    assert together.counts.tolist() == added.counts.tolist()
    assert len(added) == len(first) + len(others)


def test_pieces_added_are_weighed_by_their_notes():
    first = trip((0.0, 0.5, 60, 79), (1.004, 1.5, 62, 78), pedal=[(0.4, 127), (0.9, 0)])
    second = trip((2.007, 2.502, 64, 77))

    both = first + second

    assert (both.num_tokens, both.seconds) == (first.num_tokens + second.num_tokens, 1.5 + 2.502)
    assert (both.meaning.num_before, both.grid.onset_ms.maximum, both.grid.onset_ms.within(0.5)) == (3, 4.0, 3.0)
    assert both.pedals["sustain"].num_presses == 1
