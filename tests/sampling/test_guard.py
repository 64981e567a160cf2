"""The guard notices loops, silences and slots that stay open, and takes them back; real music hardly ever trips it."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from flat_sampling import Monitor, compose, stream_many
from models import tiny_model

from pamusic.checkpoint import Checkpoint
from pamusic.compose.job import Collector
from pamusic.music.performance import CHORD
from pamusic.sampling import guard as guards
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import GrammarTables, TokenConstraints
from pamusic.sampling.ending import EndingConfig
from pamusic.sampling.grammar_state import GrammarState
from pamusic.sampling.guard import DegenerationDetector, GuardConfig
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")
VOCABULARY = TOKENIZER.vocabulary
RULES, SECONDS = GrammarTables(**grammar_arrays(VOCABULARY)), VOCABULARY.seconds_of_id.tolist()


def ids(*events):
    """Ids of events such as "on 60", "off 60", "wait 50" (steps of 10 ms; as many shifts as that takes)."""
    kinds = {"on": "note_on", "off": "note_off", "velocity": "velocity"}
    found = []
    for kind, value in (event.split() for event in events):
        if kind == "wait":
            seconds, rest = divmod(int(value), 100)
            found += [VOCABULARY.id("time_shift", 100)] * seconds
            found += [VOCABULARY.id("time_shift", rest)] if rest else []
        else:
            found.append(VOCABULARY.id(kinds[kind], int(value)))
    return found


def troubles(new, guard=None, prime=()):
    """All that a watch tells of new ids."""
    watch = DegenerationDetector(guard or GuardConfig(), TokenConstraints(grammar=RULES, seconds_of_id=SECONDS), prime)
    return [trouble for trouble in map(watch.advance, new) if trouble is not None]


def strokes(*chords, wait=25, jitter=0, seed=0):
    """Chords, each a tuple of pitches, `wait` steps apart, give or take `jitter`."""
    rng = np.random.default_rng(seed)
    events = []
    for chord in chords:
        events += [*(f"on {pitch}" for pitch in chord), f"wait {wait - 5 + int(rng.integers(-jitter, jitter + 1))}"]
        events += [*(f"off {pitch}" for pitch in chord), "wait 5"]
    return ids(*events)


def test_a_moment_is_what_a_chord_is_to_those_who_know_music():
    assert guards.CHORD == CHORD


LOOP = [(48, 60), (64,), (67,), (64,)]  # a second, at four a second


def test_a_loop_is_noticed_after_six_seconds_of_coming_again():
    found = troubles(strokes(*LOOP * 12))

    assert found[0].kind == "repetition"
    assert found[0].since == pytest.approx(1, abs=0.3)
    assert found[0].at == pytest.approx(7, abs=0.3)


def test_a_little_unevenness_and_an_order_within_chords_make_it_no_other():
    shuffled = [chord[::-1] if index % 3 else chord for index, chord in enumerate(LOOP * 12)]

    assert troubles(strokes(*shuffled, jitter=2))[0].kind == "repetition"


def test_a_long_loop_must_come_three_times():
    phrase = [(48 + (7 * i) % 30,) for i in range(32)]  # eight seconds

    assert not troubles(strokes(*phrase * 2))
    assert troubles(strokes(*phrase * 4))[0].at == pytest.approx(24, abs=0.5)


@pytest.mark.parametrize("change", [1, 5])
def test_what_changes_as_it_comes_again_is_no_loop(change):
    """A sequence: each time the figure is somewhat higher."""
    rising = [tuple(pitch + change * (index // 4) % 40 for pitch in chord) for index, chord in enumerate(LOOP * 12)]

    assert not troubles(strokes(*rising))


def test_silence_is_counted_from_the_last_stroke_or_from_the_primes_end():
    said = ids("velocity 16", "on 60", "wait 50", "off 60", "wait 1590")

    assert [(trouble.kind, trouble.since) for trouble in troubles(said)[:1]] == [("silence", 0.0)]
    assert not troubles(said[:-2])
    assert troubles(ids("wait 2100"), prime=ids("on 60", "wait 100"))[0].since == 0.0


def test_a_slot_that_stays_open_is_noticed_even_if_the_prime_opened_it():
    uneven = strokes(*np.random.default_rng(0).integers(50, 90, (200, 1)).tolist())

    assert troubles([*ids("on 40"), *uneven])[0].kind == "held"
    assert troubles(uneven, prime=ids("on 40", "wait 100"))[0].since == 0.0
    assert not troubles([*ids("on 40", "wait 100", "off 40"), *uneven])


@pytest.mark.skipif("PAMUSIC_MAESTRO" not in os.environ, reason="MAESTRO is not at hand")
def test_real_music_hardly_ever_trips_it():
    from pamusic.corpus.sources import find_sources
    from pamusic.music.midi import read_midi

    sources = [each for each in find_sources([Path(os.environ["PAMUSIC_MAESTRO"])])[0] if each.split == "validation"]
    found, seconds = 0, 0.0
    for source in sources[::10]:
        tokens = TOKENIZER.encode(read_midi(source.read(), source.name)).tolist()
        at = np.array([trouble.at for trouble in troubles(tokens)])
        found += int((np.diff(at, prepend=-np.inf) > GuardConfig().lookback_seconds).sum())
        seconds += sum(SECONDS[id] for id in tokens)

    assert seconds > 3600
    assert found / (seconds / 3600) < 1


def composer(seed):
    """A tiny model of random weights; that of seed 14, always doing what is likeliest, falls into loops."""
    model = tiny_model(seed, vocab_size=len(VOCABULARY), pad_id=VOCABULARY.id("pad"))
    return Checkpoint(Path("tiny"), model, TOKENIZER, {})


GREEDY = SamplingConfig(temperature=0, release_bias=0)
STRICT = GuardConfig(held=1e9, repeated=2.0, lookback_seconds=10.0)


def composed(who, *, seed=1, length=600, sampling=GREEDY, guard=STRICT, **how):
    """New ids and the alarms on their way."""
    alarms = []
    monitor = Monitor(on_intervention=lambda piece, alarm: alarms.append(alarm))
    drawn = stream_many(who, seed=seed, length=length, sampling=sampling, guard=guard, monitor=monitor, **how)
    return [id for (id,) in drawn], alarms


def test_untroubled_a_row_is_what_it_would_be_without_a_guard():
    who = composer(0)
    sampling = SamplingConfig()

    assert composed(who, sampling=sampling) == (list(compose(who, seed=1, length=600, sampling=sampling)), [])


def test_a_loop_is_left_and_one_that_comes_again_and_again_ends_the_row():
    new, alarms = composed(composer(14))

    assert troubles(list(compose(composer(14), seed=1, length=600, sampling=GREEDY)), STRICT)
    assert troubles(new, STRICT) == []
    assert {alarm.detection.kind for alarm in alarms} == {"repetition"}
    assert alarms[1].detection.since > alarms[0].detection.at, "the first loop was left for good"
    assert [alarm.gave_up for alarm in alarms] == [False] * (len(alarms) - 1) + [True]
    assert sum(SECONDS[id] for id in new) == pytest.approx(alarms[-1].back_to)
    assert len(new) < 600


def test_it_goes_back_before_the_trouble_farther_each_time_but_never_beyond_its_look_back():
    _, alarms = composed(composer(14))

    farthest = 0.0  # that the piece had come; what is out since then stays
    for alarm in alarms:
        farthest = max(farthest, alarm.detection.at)
        assert alarm.detection.at - STRICT.lookback_seconds - 1 <= alarm.back_to
        assert alarm.back_to < alarm.detection.since or alarm.back_to <= farthest - STRICT.lookback_seconds + 1
    assert (
        alarms[0].detection.since - STRICT.backoff_seconds - 1
        < alarms[0].back_to
        <= alarms[0].detection.since - STRICT.backoff_seconds
    )


def test_what_is_let_out_is_older_than_the_look_back_and_stays():
    """Ids come out as if the troubles had never been; when an alarm comes, what it takes back is not out yet."""
    who, out, out_at_alarm = composer(14), [], []
    monitor = Monitor(lambda piece, alarm: out_at_alarm.append((sum(SECONDS[id] for id in out), alarm)))
    drawn = stream_many(who, seed=1, length=600, sampling=GREEDY, guard=STRICT, monitor=monitor)
    for (id,) in drawn:
        out.append(id)

    assert out_at_alarm
    farthest = 0.0
    for seconds, alarm in out_at_alarm:
        farthest = max(farthest, alarm.detection.at)
        assert seconds <= min(alarm.back_to, farthest - STRICT.lookback_seconds) + 1e-6
    assert out == composed(who)[0]


def test_a_stream_that_is_left_early_is_the_beginning_of_the_whole():
    drawn = stream_many(composer(14), seed=1, length=600, sampling=GREEDY, guard=STRICT)

    assert [id for (id,) in islice(drawn, 100)] == composed(composer(14))[0][:100]


def test_pieces_take_turns_and_each_is_what_its_seed_gives_alone():
    who, warm, alarms = composer(1), SamplingConfig(temperature=0.1), []
    how = {"length": 250, "sampling": warm, "guard": STRICT}
    monitor = Monitor(lambda piece, alarm: alarms.append(piece))
    together = list(stream_many(who, seed=4, num_pieces=3, monitor=monitor, **how))

    rows = [[id for id in ids if id is not None] for ids in zip(*together, strict=True)]
    assert rows == [list(compose(who, seed=4 + row, **how)) for row in range(3)]
    assert len({tuple(row) for row in rows}) > 1


ANY = SamplingConfig(top_p=1, release_bias=0)


def test_a_silence_is_taken_back_too():
    """Random models strike nothing for a while, at times."""
    guard = GuardConfig(held=1e9, silence=1.2)
    new, alarms = composed(composer(0), length=300, sampling=ANY, guard=guard)

    assert {alarm.detection.kind for alarm in alarms} == {"silence"}
    assert troubles(new, guard) == []


@pytest.mark.parametrize("held", [5.0, 40.0])
def test_a_key_that_stays_down_is_let_go_however_long_ago_it_was_struck(held):
    """Random models hold keys for long; the first of these could be taken back, the stroke of the second is out."""
    guard = GuardConfig(held=held, lookback_seconds=30.0)
    new, alarms = composed(composer(0), length=600, sampling=ANY, guard=guard)
    ungoverned = troubles(list(compose(composer(0), seed=1, length=600, sampling=ANY)), guard)
    found = troubles(new, guard)

    assert len(new) == 600
    assert {alarm.detection.kind for alarm in alarms} == {"held"}
    assert all((alarm.back_to, alarm.gave_up) == (alarm.detection.at, False) for alarm in alarms)
    assert found == [alarm.detection for alarm in alarms], "each is there still, up to where it was noticed"
    assert all(0 <= trouble.at - trouble.since - held <= 1 for trouble in found)
    assert max(trouble.at - trouble.since for trouble in ungoverned) > held + 1
    follow_rules(new)


def follow_rules(new):
    """Sees that the grammar, of which the guard knows little, allows each id."""
    row = GrammarState(RULES)
    row.advance([VOCABULARY.id("start")])
    for id in new:
        assert not row.forbidden()[id]
        row.advance([id])


def test_keys_that_are_let_go_do_not_make_a_piece_longer():
    guard = GuardConfig(held=5.0)
    for length in range(60, 90):
        assert len(composed(composer(0), length=length, sampling=ANY, guard=guard)[0]) == length


def test_a_piece_that_comes_to_its_close_is_no_longer_watched():
    """What trips the guard only after the wanted length is left to the ending."""
    guard = GuardConfig(held=10.5)
    new, alarms = composed(composer(0), length=None, seconds=10.0, ending=EndingConfig(), sampling=ANY, guard=guard)

    assert 10 <= sum(SECONDS[id] for id in new) <= 1.25 * 10 + 1
    assert troubles(new, guard), "it would have been noticed"
    assert alarms == []


def test_what_can_no_longer_be_taken_back_is_let_out_at_once():
    """Past the wanted length, while the piece is brought to its close."""
    drawn, waiting = [], []
    rows = stream_many(
        composer(0), seed=1, seconds=10.0, ending=EndingConfig(closing=1.6, deadline=1.7), sampling=ANY,
        guard=GuardConfig(held=100.0, lookback_seconds=4.0),
        monitor=Monitor(on_snapshot=lambda piece, kept: drawn.append(kept.num_drawn)),
    )  # fmt: skip
    passed = 0.0
    for place, (id,) in enumerate(rows, start=1):
        passed += SECONDS[id]
        waiting.append((passed, drawn[-1] - place))
    assert max(behind for at, behind in waiting if at < 5) > 20
    after = [behind for at, behind in waiting if at > 10.5]
    assert len(after) > 20
    assert not any(after)


@pytest.mark.slow
@pytest.mark.parametrize(("guard", "sampling"), [(STRICT, GREEDY), (GuardConfig(held=5.0), ANY)], ids=["loops", "held"])
def test_what_there_is_at_any_moment_can_be_made_again(guard, sampling):
    """Held back or not, with all that was taken back on the way, from the number of draws alone."""
    how, moments = {"seed": 1, "length": 400, "sampling": sampling, "guard": guard}, {}

    def keeping(row, kept):
        moments[kept.num_drawn] = kept, kept.row

    list(stream_many(composer(14), monitor=Monitor(on_snapshot=keeping), **how))
    alarms = [moments[n][0].num_alarms for n in sorted(moments)]
    just_after = {n for n in moments if n - 1 in moments and moments[n][0].num_alarms > moments[n - 1][0].num_alarms}
    assert list(moments) == list(range(1, len(moments) + 1))
    assert alarms == sorted(alarms)
    assert len(just_after) > 1

    for num_drawn in sorted({1, 2, 50, *sorted(just_after)[:3], len(moments) - 1, len(moments)}):
        kept, row = moments[num_drawn]
        again, told = composed(composer(14), max_draws=num_drawn, **how)
        assert again == row == kept.row, "a list that was told of is not shortened afterwards"
        assert len(told) == kept.num_alarms


@pytest.mark.parametrize("draws", [1, 40, 300])
def test_interrupted_all_that_was_drawn_is_kept_also_what_was_held_back(draws):
    num_drawn, how = {}, {"seed": 1, "length": 600, "sampling": GREEDY, "guard": STRICT, "num_pieces": 3}
    collector = Collector(3)

    def keeping(piece, kept):
        collector.on_snapshot(piece, kept)
        num_drawn[piece] = kept.num_drawn
        if sum(num_drawn.values()) == draws:
            raise KeyboardInterrupt

    got = collector.collect(stream_many(composer(14), monitor=Monitor(on_snapshot=keeping), **how))

    assert isinstance(got.interruption, KeyboardInterrupt)
    assert sum(got.num_drawn) == draws
    for row in range(3):
        if got.num_drawn[row]:
            again, told = composed(
                composer(14), max_draws=got.num_drawn[row], **{**how, "num_pieces": 1, "seed": 1 + row}
            )
            assert (again, len(told)) == (got.pieces[row], got.num_alarms[row])


def test_interrupted_before_anything_was_drawn_there_is_nothing_to_keep():
    def drawn():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        Collector(1).collect(drawn())


@pytest.mark.parametrize(
    "wrong", [{"silence": 0}, {"backoff_seconds": 0}, {"backoff_seconds": 40}, {"times": 0}, {"max_retries": -1}]
)
def test_a_guard_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError):
        GuardConfig(**wrong)


def test_arguments_that_do_not_fit_are_refused_at_once():
    with pytest.raises(ValueError):
        compose(composer(0), seed=0, length=0, guard=GuardConfig())
