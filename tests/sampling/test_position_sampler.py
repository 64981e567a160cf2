"""Positions are drawn in the order of an encoder, after a prime, up to an ending, and under a guard."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import performance
from fields import NOTES, compound_text, tokenizer_of
from flat_sampling import Monitor, compose, stream_many
from models import tiny_config

from pamusic.checkpoint import Checkpoint
from pamusic.compose.token_stream import constraints_of, gap_seconds
from pamusic.errors import UsageError
from pamusic.inference.prediction import FieldPrediction
from pamusic.model.fields import FieldHeads, Hints
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.music.performance import SUSTAIN
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import PrimeTokens
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.ending import EndingConfig, StopCondition
from pamusic.sampling.guard import DegenerationDetector, GuardConfig
from pamusic.sampling.position_ending import PositionEnding
from pamusic.sampling.position_sampler import PositionSampler
from pamusic.tokens.prime import PrimeRange, encode_prime
from pamusic.tokens.tokenizer import Repairs

VOCABULARY = NOTES.vocabulary
CONSTRAINTS = constraints_of(VOCABULARY)
START, END = (VOCABULARY.border(kind).tolist() for kind in ("start", "end"))
SIZES = tuple(field.size for field in VOCABULARY.fields)


def position(shift=0, key="note_on 60", length=10):
    kind, value = key.split()
    velocity = VOCABULARY.id("velocity", 16 if kind == "note_on" else 0)
    shift, length = (VOCABULARY.id(name, number) for name, number in (("time_shift", shift), ("length", length)))
    return [shift, VOCABULARY.id(kind, int(value)), velocity, length]


def checkpoint_of(tokenizer=NOTES, seed=0):
    """A model with random weights: it draws anything that it may."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.vocabulary
    sizes = tuple(field.size for field in vocabulary.fields)
    config = tiny_config(vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"), field_sizes=sizes, context_length=48)
    model = PerceiverAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return Checkpoint(Path("random"), model, tokenizer, {})


def prediction_of(num_rows=1):
    """All ids are equally likely."""
    heads = FieldHeads(SIZES, 8)
    return FieldPrediction(torch.zeros(num_rows, 8), Hints(), heads, torch.zeros(len(VOCABULARY), 8))


def sampler(prime=(START,), *, num_rows=64, stop=None, sampling=None, forbidden_next=(), **changes):
    decoding = DecodingConfig(
        constraints=CONSTRAINTS, sampling=sampling or SamplingConfig(), stop=stop or StopCondition(), **changes
    )
    told = PrimeTokens(list(prime), forbidden_next=forbidden_next)
    return PositionSampler(told, decoding, vocab_size=len(VOCABULARY), seed=1, num_rows=num_rows)


@torch.inference_mode()
def first_positions(num_rows=64, **options):
    return sampler(num_rows=num_rows, **options).sample(prediction_of(num_rows))


def ranks(ids):
    kinds, values = VOCABULARY.kind_of_id[ids], VOCABULARY.value_of_id[ids]
    return CONSTRAINTS.rank_of_id[ids], kinds, values


@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_is_what_the_encoder_writes(seed):
    drawn = np.array(list(compose(checkpoint_of(seed=seed), seed=seed, length=300)))

    grid, repairs = NOTES.grid_from_ids(drawn), NOTES.decode_counted(drawn)[1]
    assert repairs == Repairs(idle_pedals=repairs.idle_pedals)  # a press that is held already
    assert len(grid) > 200
    keys = [(ids[0], CONSTRAINTS.rank_of_id[ids[1]]) for ids in drawn]
    for (_, before), (shift, rank) in pairwise(keys):
        assert VOCABULARY.value_of_id[shift] > 0 or rank > before


def test_at_the_highest_key_time_must_pass():
    zero = VOCABULARY.id("time_shift", 0)
    after_highest = first_positions(prime=[START, position(3, "note_on 108")])[:, 0]
    after_lowest = first_positions(prime=[START, position(3, "soft 1")], num_rows=4096)[:, 0]

    assert (after_highest != zero).all()
    assert (after_lowest == zero).any()


def test_the_end_is_drawn_only_where_it_may_be_and_never_first():
    end, prime = VOCABULARY.id("end"), [START, position(5)]
    many = {"num_rows": 4096, "prime": prime}

    assert (first_positions(**many)[:, 1] != end).all()
    assert (first_positions(**many, stop=StopCondition(min_tokens_before_end=1))[:, 1] != end).all()
    resumed = PrimeTokens(prime, num_resumed=1)
    decoding = DecodingConfig(constraints=CONSTRAINTS, stop=StopCondition(min_tokens_before_end=1))
    may_end = PositionSampler(resumed, decoding, vocab_size=len(VOCABULARY), seed=1, num_rows=4096)
    with torch.inference_mode():
        drawn = may_end.sample(prediction_of(4096))
    ended = drawn[drawn[:, 1] == end]
    assert len(ended) > 10
    assert (ended[:, 2:] == torch.tensor(END[2:])).all()  # no velocity, no length


def test_what_is_forbidden_next_is_drawn_later():
    shifts = VOCABULARY.range("time_shift")
    early = list(range(shifts.start, shifts.start + 200))
    rows = sampler(forbidden_next=early, num_rows=512)
    with torch.inference_mode():
        first, second = rows.sample(prediction_of(512)), rows.sample(prediction_of(512))

    assert first[:, 0].min() >= 200
    assert second[:, 0].min() < 200


def test_temperatures_act_within_their_fields():
    def cold(**temperatures):
        names = ("time", "pitch", "velocity", "length")
        sampling = SamplingConfig(class_temperatures=tuple(temperatures.get(name, 1.0) for name in names))
        return first_positions(num_rows=400, sampling=sampling)

    for name, field in (("time", 0), ("velocity", 2), ("length", 3)):
        drawn = cold(**{name: 0.0})
        several = [len(set(drawn[:, each].tolist())) > 1 for each in range(4)]
        of_notes = drawn[drawn[:, 2] != VOCABULARY.id("velocity", 0)]
        assert len(set(of_notes[:, field].tolist())) == 1
        assert sum(several) >= 3
    keys = cold(pitch=0.0)[:, 1].tolist()
    assert {VOCABULARY.event(key)[0] for key in keys} > {"note_on", "sustain"}  # pedals stay as likely as they were
    assert len({key for key in keys if VOCABULARY.event(key)[0] == "note_on"}) == 1


def test_a_prime_is_followed_from_its_cut_on():
    prime = performance(*((0.25 * i, 0.25 * i + 0.2, 60 + i % 5, 70) for i in range(12)), pedal=[(0.1, 127), (5, 0)])
    checkpoint, cut = checkpoint_of(), PrimeRange(0, 1.93)
    gap = encode_prime(NOTES, prime, cut).gap_steps
    firsts = [next(iter(compose(checkpoint, prime, prime_range=cut, seed=seed))) for seed in range(30)]

    assert gap == 18
    assert min(VOCABULARY.value_of_id[ids[0]] for ids in firsts) >= gap
    assert next(iter(compose(checkpoint, prime, prime_range=cut, seed=1))) == firsts[1]
    other = performance(*((0.25 * i, 0.25 * i + 0.2, 72 - i % 5, 20) for i in range(12)))
    assert firsts != [next(iter(compose(checkpoint, other, prime_range=cut, seed=seed))) for seed in range(30)]


@pytest.mark.parametrize("guard", [None, GuardConfig()])
def test_seconds_count_from_the_end_of_the_prime(guard):
    prime = performance(*((0.25 * i, 0.25 * i + 0.2, 60 + i % 5, 70) for i in range(12)), (3.0, 11.0, 64, 70))
    checkpoint, asked = checkpoint_of(), {"seconds": 30.0, "guard": guard}
    for cut, gap in ((PrimeRange(), 1.0), (PrimeRange(0, 9.0), 6.0)):
        assert gap_seconds(NOTES, prime, cut) == pytest.approx(gap)
        drawn = [list(compose(checkpoint, prime, prime_range=cut, seed=seed, **asked)) for seed in range(12)]
        passed = [CONSTRAINTS.seconds_of(piece) - gap for piece in drawn]
        assert max(passed) < 30
        assert max(passed) > 30 - gap  # the gap is no part of the seconds
        assert min(CONSTRAINTS.seconds_of(piece[:1]) for piece in drawn if piece) >= gap
    assert gap_seconds(NOTES, None) == 0


def test_a_gap_before_new_music_is_no_silence_of_it():
    first = position(550)  # 5.5 s after the last onset of the prime, which are 0.5 s after its end
    silences = []
    for gap in (0.0, 5.0):
        watch = DegenerationDetector(GuardConfig(silence=3.0), CONSTRAINTS, [START, position(5)], gap)
        silences.append(watch.advance(first))
    assert silences[0].kind == "silence"
    assert silences[1] is None


def test_several_pieces_are_what_their_seeds_give_alone():
    checkpoint = checkpoint_of()
    together = list(stream_many(checkpoint, seed=5, num_pieces=3, length=40))

    for piece in range(3):
        assert [step[piece] for step in together] == list(compose(checkpoint, seed=5 + piece, length=40))


def test_seconds_end_a_piece_before_the_position_that_begins_later():
    drawn = list(compose(checkpoint_of(), seed=1, seconds=200.0))
    passed = [CONSTRAINTS.seconds_of(drawn[: n + 1]) for n in range(len(drawn))]

    assert passed[-1] < 200
    assert passed == sorted(passed)


def ending(prime=(START,), seconds=10.0, **config):
    stop = StopCondition(seconds=seconds, ending=EndingConfig(**config))
    return PositionEnding(PrimeTokens(list(prime)), CONSTRAINTS, stop, num_rows=1)


def ends_with(tracker, *positions):
    """The number of the position in whose place the end came; None if it did not."""
    for number, ids in enumerate(positions):
        if tracker.advance(torch.tensor([ids])).tolist() == [END]:
            return number
    return None


def test_a_piece_ends_in_the_next_pause_after_its_length_if_its_last_notes_ring():
    beat = [position(50, length=120) for _ in range(19)]  # 0.5 s apart, each rings for 1.2 s

    assert ends_with(ending(), *beat, position(60)) == 19  # a longer pause than before, at 10.1 s
    assert ends_with(ending(), *beat, *([position(10)] * 9)) is None  # no pause
    assert ends_with(ending(seconds=60.0), *beat, position(300)) is None  # too early
    assert ends_with(ending(), *beat, *([position(20, length=120)] * 9)) == 25  # the later, the shorter it may be


def test_where_nothing_rings_the_next_chord_is_the_last_and_is_held():
    dry = [position(50, length=5) for _ in range(19)]
    tracker = ending()

    assert ends_with(tracker, *dry, position(60, length=5)) is None  # a short gap between two quick notes
    unfit = tracker.unfit_lengths()[0].nonzero().flatten().tolist()
    lengths = VOCABULARY.range("length")
    fits = [bool(250 <= lengths.middle[place] <= 625) for place in range(len(lengths))]
    assert unfit == [lengths.start + place for place in range(1, len(lengths)) if not fits[place]]
    assert sum(fits) > 5
    assert ends_with(tracker, position(3, "note_on 64", 300), position(100)) == 1  # its chord belongs to it
    assert ends_with(ending(), *dry, position(120)) == 19  # a rest is an end by itself


def test_pedals_hold_what_sounds():
    dry = [position(50, length=5) for _ in range(18)]
    pedalled = [*dry, position(50, "sustain 3", 200), position(0, length=5)]

    assert ends_with(ending(), *pedalled, position(60)) == 20
    assert not CONSTRAINTS.sustains[VOCABULARY.id("soft", 1)]


def test_a_random_model_comes_to_an_end_near_the_length():
    checkpoint, stop = checkpoint_of(), {"seconds": 120.0, "ending": EndingConfig()}
    for seed in range(5):
        drawn = list(compose(checkpoint, seed=seed, **stop))
        assert CONSTRAINTS.seconds_of(drawn) <= 150
        assert END not in drawn
        # It ends in a pause that crosses 120 seconds, and random pauses last up to 60.
        assert CONSTRAINTS.seconds_of(drawn) > 60


def detections(*positions, prime=()):
    watch = DegenerationDetector(GuardConfig(), CONSTRAINTS, list(prime))
    return [found for ids in positions if (found := watch.advance(ids)) is not None]


def test_a_guard_sees_loops_silences_and_notes_that_are_too_long():
    loop = [position(25, f"note_on {pitch}") for _ in range(20) for pitch in (60, 64, 67)]
    assert next(each.kind for each in detections(*loop)) == "repetition"

    assert [(each.kind, each.since) for each in detections(position(), position(1700))] == [("silence", 0.0)]
    long = detections(position(), position(50, length=5000))
    assert [(each.kind, each.slots) for each in long] == [("held", (60,))]
    assert detections(position(), position(100, "sustain 3", 5000), position(100)) == []  # a pedal may stay down
    music = [position(30, f"note_on {40 + 7 * i % 37}", 40) for i in range(100)]
    assert detections(*music, prime=[START, position(2000, length=5500)]) == []


def test_a_guard_takes_back_and_the_same_seed_gives_the_same():
    checkpoint, interventions = checkpoint_of(), []
    guard = GuardConfig(silence=30.0, held=20.0)
    monitor = Monitor(lambda piece, intervention: interventions.append(intervention))

    drawn = [ids for (ids,) in stream_many(checkpoint, seed=2, length=120, guard=guard, monitor=monitor)]
    again = [ids for (ids,) in stream_many(checkpoint, seed=2, length=120, guard=guard)]
    assert drawn == again
    assert {each.detection.kind for each in interventions} == {"silence", "held"}
    plain = list(compose(checkpoint, seed=2, length=120))
    longest = [max(VOCABULARY.value_of_id[ids[3]] for ids in row) for row in (drawn, plain)]
    assert longest[0] < 2000 < longest[1]


def test_logits_that_are_no_numbers_are_marked():
    broken = FieldPrediction(
        torch.full((2, 8), float("nan")), Hints(), FieldHeads(SIZES, 8), torch.ones(len(VOCABULARY), 8)
    )
    with torch.inference_mode():
        assert (sampler(num_rows=2).sample(broken) == -1).all()


def test_events_of_several_fields_are_sampled_from_nothing_only(tmp_path):
    compound = checkpoint_of(tokenizer_of(tmp_path, compound_text()))

    assert len(list(compose(compound, seed=1, length=50))) == 50
    prime = performance((0, 1, 60, 64), pedal=[(0.5, 127, SUSTAIN)])
    for asked, what in (({"prime": prime}, "a prime"), ({"guard": GuardConfig()}, "--guard")):
        with pytest.raises(UsageError, match=f"{what} needs note lengths; leave it out"):
            compose(compound, asked.pop("prime", None), seed=1, length=5, **asked)


def test_constraints_of_another_vocabulary_are_refused():
    with pytest.raises(UsageError, match="must fit the 10 ids of the model, got 722"):
        CONSTRAINTS.forbidden(10)
