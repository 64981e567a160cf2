"""Nothing is allowed but what the encoder could have written, and all that it writes is."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import steadily
from flat_sampling import generate
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model
from strategies import PERFORMANCE, PIANO, SHIPPED, performances, tokenizers, tokenizers_and_ids

from pamusic.corpus.sources import find_sources
from pamusic.music.midi import read_midi
from pamusic.sampling.constraints import GrammarTables
from pamusic.sampling.grammar_state import BatchGrammarState, GrammarState
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import Repairs

MAESTRO = os.environ.get("PAMUSIC_MAESTRO")
SOME = settings(steadily, max_examples=60)


def rules(tokenizer):
    return GrammarTables(**grammar_arrays(tokenizer.vocabulary))


class PlainGrammar:
    """The rules of `tokens/grammar.py` by their words, an event at a time."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.played = vocabulary.sustain == "played"
        self.last = None  # the event that came last
        self.strokes = []  # (number, pitch) of all that sound, oldest first
        self.num_strokes = 0
        self.last_released = 0  # number of the youngest stroke released in this step
        self.last_struck = -1  # pitch of the last onset in this step
        self.velocity = None
        self.depth = dict.fromkeys(vocabulary.pedals, 0)
        self.depth_before = dict.fromkeys(vocabulary.pedals)  # None where the depth has lasted, or was never left
        self.lasted = dict.fromkeys(vocabulary.pedals, 0)

    def follow(self, kind, value):
        if kind == "time_shift":
            self.last_released, self.last_struck = 0, -1
            for pedal in self.depth:
                self.lasted[pedal] += value
                if self.lasted[pedal] >= self.vocabulary.shortest_steps:
                    self.depth_before[pedal] = None
        elif kind == "note_on":
            self.strike(value)
        elif kind == "note_off":
            numbers = [number for number, pitch in self.strokes if pitch == value]
            if numbers:
                self.strokes.remove((numbers[0], value))
                self.last_released = max(self.last_released, numbers[0])
        elif kind == "velocity":
            self.velocity = value
        elif kind in self.depth and value != self.depth[kind]:
            if self.vocabulary.shortest_steps:
                self.depth_before[kind] = self.depth[kind]
            self.depth[kind], self.lasted[kind] = value, 0
        if kind not in ("start", "end", "pad"):
            self.last = kind, value

    def strike(self, pitch):
        self.num_strokes += 1
        self.last_struck = pitch
        if self.played:
            self.strokes = [stroke for stroke in self.strokes if stroke[1] != pitch]
        if sum(stroke[1] == pitch for stroke in self.strokes) < 2:
            self.strokes.append((self.num_strokes, pitch))

    def allows(self, kind, value):
        """Whether an event may follow."""
        if not any(self.keeps_the_rules(*self.vocabulary.event(id)) for id in range(len(self.vocabulary))):
            return kind == "time_shift"
        return self.keeps_the_rules(kind, value)

    def keeps_the_rules(self, kind, value):
        return kind not in ("start", "pad") and self.in_order(kind) and getattr(self, f"may_{kind}")(value)

    def in_order(self, kind):
        last = self.last[0] if self.last else None
        if last == "time_shift" and self.last[1] < self.vocabulary.range("time_shift").last:
            return kind not in ("time_shift", "end")
        if last == "velocity":
            return kind == "note_on"
        place = ["note_off", *self.vocabulary.pedals, "velocity", "note_on", "time_shift", "end"]
        if last is None:
            return True
        if last == "time_shift":
            return kind != "end"
        if last == kind:
            return kind not in self.depth
        return place.index(kind) > place.index(last) or (last, kind) == ("note_on", "velocity")

    def may_end(self, _):
        return not self.strokes and not any(self.depth.values())

    def may_time_shift(self, _):
        return True

    def may_velocity(self, value):
        pitches = self.vocabulary.range("note_on")
        some_key = any(self.may_strike(pitch) for pitch in range(pitches.first, pitches.last + 1))
        exists = (value - 1) * self.vocabulary.velocity_bin_width + 1 <= 127
        return value != self.velocity and some_key and exists

    def may_note_on(self, pitch):
        return self.velocity is not None and self.may_strike(pitch)

    def may_strike(self, pitch):
        sounding = sum(stroke[1] == pitch for stroke in self.strokes)
        return sounding == 0 and pitch > self.last_struck if self.played else sounding < 2

    def may_note_off(self, pitch):
        numbers = [number for number, stroke in self.strokes if stroke == pitch]
        return bool(numbers) and numbers[0] > self.last_released

    def may_pedal(self, kind, depth):
        here, before = self.depth[kind], self.depth_before[kind]
        if depth == here:
            return False
        if before is None or self.vocabulary.pedals[kind] == 1:
            return True
        on_the_way = before < here < depth or before > here > depth
        tremor = depth == before and abs(here - before) == 1
        return not on_the_way and not tremor

    def may_sustain(self, depth):
        return self.may_pedal("sustain", depth)

    def may_sostenuto(self, depth):
        return self.may_pedal("sostenuto", depth)

    def may_soft(self, depth):
        return self.may_pedal("soft", depth)

    def is_silent(self):
        return self.may_end(0)

    def raises_pedal(self):
        """A pedal goes down, or further."""
        events = map(self.vocabulary.event, range(len(self.vocabulary)))
        return [kind in self.depth and depth > self.depth[kind] for kind, depth in events]

    def forbidden(self):
        events = [self.vocabulary.event(id) for id in range(len(self.vocabulary))]
        keeping = [self.keeps_the_rules(*event) for event in events]
        if not any(keeping):
            keeping = [kind == "time_shift" for kind, _ in events]
        return [not each for each in keeping]


def walk(tokenizer, length, rng, recklessness=0.0):
    """Ids that each were allowed, or, as often as the walk is reckless, any; all kinds are equally likely."""
    vocabulary, plain = tokenizer.vocabulary, PlainGrammar(tokenizer.vocabulary)
    ids = []
    for _ in range(length):
        choices = np.arange(len(vocabulary))
        if rng.random() >= recklessness:
            choices = choices[~np.array(plain.forbidden()) & (choices != vocabulary.id("end"))]
        kinds = vocabulary.kind_of_id[choices]
        ids.append(int(rng.choice(choices[kinds == rng.choice(np.unique(kinds))])))
        plain.follow(*vocabulary.event(ids[-1]))
    return ids


@pytest.mark.slow
@SOME
@given(tokenizers, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_arrays_say_what_the_words_say(tokenizer, seed, recklessness):
    vocabulary = tokenizer.vocabulary
    ids = walk(tokenizer, 40, np.random.default_rng(seed), recklessness)
    plain, row = PlainGrammar(vocabulary), GrammarState(rules(tokenizer))

    for place, id in enumerate(ids):
        barred = row.forbidden().tolist()
        differing = [
            vocabulary.event(i) for i, (a, b) in enumerate(zip(barred, plain.forbidden(), strict=True)) if a != b
        ]
        assert not differing, [vocabulary.event(id) for id in ids[:place]]
        assert (row.is_silent().item(), row.raises_pedal().tolist()) == (plain.is_silent(), plain.raises_pedal())
        row.advance((id,))
        plain.follow(*vocabulary.event(id))


@pytest.mark.slow
@SOME
@given(tokenizers, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0]))
def test_many_rows_at_once_say_what_each_says_alone(tokenizer, seed, recklessness):
    rng = np.random.default_rng(seed)
    pieces = [walk(tokenizer, 30, rng, recklessness) for _ in range(3)]
    each, together = [GrammarState(rules(tokenizer)) for _ in pieces], BatchGrammarState(rules(tokenizer), len(pieces))

    for ids in zip(*pieces, strict=True):
        assert torch.equal(together.forbidden(), torch.stack([row.forbidden().clone() for row in each]))
        assert torch.equal(together.is_silent(), torch.stack([row.is_silent() for row in each]))
        assert torch.equal(together.raises_pedal(), torch.stack([row.raises_pedal() for row in each]))
        together.advance(torch.tensor(ids))
        for row, id in zip(each, ids, strict=True):
            row.advance((id,))


def test_rows_keep_their_tensors_where_they_are():
    """Else no CUDA graph could be recorded."""
    rows = BatchGrammarState(rules(PIANO), 2)
    state = [name for name, value in vars(rows).items() if isinstance(value, torch.Tensor)]
    places = {name: (vars(rows)[name].data_ptr(), vars(rows)[name].shape) for name in state}
    for id in walk(PIANO, 50, np.random.default_rng(0)):
        rows.forbidden()
        rows.advance(torch.tensor([id, id]))

    assert {name: (vars(rows)[name].data_ptr(), vars(rows)[name].shape) for name in state} == places


@steadily
@given(tokenizers_and_ids())
def test_some_id_is_always_allowed_whatever_came_before(tokenizer_and_ids):
    tokenizer, ids = tokenizer_and_ids
    vocabulary, row = tokenizer.vocabulary, GrammarState(rules(tokenizer))
    never = [vocabulary.id("start"), vocabulary.id("pad")]
    for id in ids:
        barred = row.forbidden()
        barred[vocabulary.id("end")] = True  # the sampler may want no end
        assert not barred.all()
        assert barred[never].all()
        row.advance((int(id),))


def violations(tokenizer, ids):
    """The events of ids, the end among them, that the grammar bars where they stand."""
    vocabulary, row, found = tokenizer.vocabulary, GrammarState(rules(tokenizer)), []
    for place, id in enumerate([*ids.tolist(), vocabulary.id("end")]):
        if row.forbidden()[id]:
            found.append((place, vocabulary.event(id)))
        row.advance((id,))
    return found


@steadily
@given(tokenizers, performances(playable=True))
def test_all_that_the_encoder_writes_is_allowed(tokenizer, played):
    assert violations(tokenizer, tokenizer.encode(played)) == []


@pytest.mark.skipif(not MAESTRO, reason="PAMUSIC_MAESTRO, the path of MAESTRO's zip archive, is not set")
@pytest.mark.parametrize("tokenizer", SHIPPED, ids=lambda tokenizer: tokenizer.name)
def test_so_it_is_in_maestro(tokenizer):
    """A few pieces; `benchmarks/grammar.py` looks at all."""
    sources, _, _ = find_sources([Path(MAESTRO)])
    smaller_half = sorted(sources, key=lambda source: len(source.read()))[: len(sources) // 2]
    for source in random.Random(1).sample(smaller_half, 3):
        assert violations(tokenizer, tokenizer.encode(read_midi(source.read()))) == [], source.name


def ended(tokenizer, ids):
    """The ids, and what the grammar wants until the end may follow: keys let go, pedals lifted, as soon as they may."""
    vocabulary, row, ids = tokenizer.vocabulary, GrammarState(rules(tokenizer)), list(map(int, ids))
    row.advance(ids)
    lifts = [vocabulary.id(pedal, 0) for pedal in vocabulary.pedals]
    wait = vocabulary.id("time_shift", vocabulary.range("time_shift").last)
    wanted = [*ids_of(vocabulary, "note_off"), *lifts, wait, *ids_of(vocabulary, "velocity", "note_on")]
    for _ in range(2000):
        barred = row.forbidden()
        if not barred[vocabulary.id("end")]:
            return np.array(ids, np.int64)
        ids.append(next(id for id in wanted if not barred[id]))
        row.advance(ids[-1:])
    raise AssertionError("no end was ever allowed")


def ids_of(vocabulary, *kinds):
    return [vocabulary.range(kind).start + value for kind in kinds for value in range(len(vocabulary.range(kind)))]


def assert_canonical(tokenizer, ids):
    """The encoder writes these very ids for their music.

    Where keys are not played as they are, onsets of one step stand in the order of their real times, which decoded
    music cannot know: there the grid is asked, which keeps that order.
    """
    music, repairs = tokenizer.decode_counted(ids)
    assert not repairs, repairs
    assert tokenizer.ids_from_grid(tokenizer.settled(tokenizer.grid_from_ids(ids))).tolist() == ids.tolist()
    if tokenizer.vocabulary.sustain == "played":
        assert tokenizer.encode(music).tolist() == ids.tolist()
    else:
        again = tokenizer.encode(music)
        assert tokenizer.decode(again).equals(music)
        assert tokenizer.encode(tokenizer.decode(again)).tolist() == again.tolist()


@pytest.mark.slow
@SOME
@given(tokenizers, st.integers(0, 2**32 - 1))
def test_what_is_allowed_is_what_the_encoder_would_have_written(tokenizer, seed):
    assert_canonical(tokenizer, ended(tokenizer, walk(tokenizer, 60, np.random.default_rng(seed))))


def assert_only_cut(tokenizer, ids):
    """Pieces cut anywhere lack nothing but releases and lifted pedals; with these they are canonical."""
    _, repairs = tokenizer.decode_counted(ids)
    cut = Repairs(notes_without_end=repairs.notes_without_end, pedals_left_down=repairs.pedals_left_down)
    assert repairs == cut
    assert_canonical(tokenizer, ended(tokenizer, ids))


def ignorant_model(vocabulary, **changes):
    return tiny_model(
        vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"), num_layers=1, num_heads=1, num_latents=64, **changes
    )


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("tokenizer", SHIPPED, ids=lambda tokenizer: tokenizer.name)
def test_a_model_that_knows_nothing_writes_canonical_pieces(tokenizer):
    """Five hundred of each vocabulary, drawn together."""
    vocabulary, num_pieces, length = tokenizer.vocabulary, 500, 40
    model, rows = ignorant_model(vocabulary, d_model=8), BatchGrammarState(rules(tokenizer), num_pieces)
    ids = torch.full((num_pieces, 1), vocabulary.id("start"))
    randomness = torch.Generator().manual_seed(0)
    rows.advance(ids[:, 0])
    for _ in range(length):
        barred = rows.forbidden()
        barred[:, vocabulary.id("end")] = True
        logits = model(ids)[:, -1].masked_fill(barred, float("-inf"))
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=randomness)
        rows.advance(drawn[:, 0])
        ids = torch.cat([ids, drawn], dim=1)

    for piece in ids[:, 1:].numpy():
        assert_only_cut(tokenizer, piece)
    assert len(np.unique(ids.numpy(), axis=0)) == num_pieces


@pytest.mark.parametrize("tokenizer", SHIPPED, ids=lambda tokenizer: tokenizer.name)
def test_so_does_the_sampler(tokenizer):
    vocabulary, grammar = tokenizer.vocabulary, rules(tokenizer)
    model, start, end = ignorant_model(vocabulary, d_model=16), vocabulary.id("start"), vocabulary.id("end")
    for seed in range(10):
        ids = np.array(list(generate(model, [start], seed=seed, length=1 + 20 * seed, grammar=grammar, end_id=end)))
        assert len(ids) == 1 + 20 * seed
        assert_only_cut(tokenizer, ids)


def test_the_sampler_follows_a_prime_that_breaks_the_rules():
    vocabulary = PIANO.vocabulary
    on, off = (vocabulary.id(kind, 108) for kind in ("note_on", "note_off"))
    model = tiny_model(vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"))
    broken = [off, on, on, vocabulary.id("velocity", 1), vocabulary.id("velocity", 1)]  # no key is left to strike

    first, *_ = generate(model, broken, seed=0, length=5, grammar=rules(PIANO))

    assert vocabulary.event(first)[0] == "time_shift"


def test_rules_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="the grammar must fit the 24 ids of the model, got one for 391"):
        generate(tiny_model(vocab_size=24, pad_id=23), [0], seed=0, grammar=rules(PERFORMANCE))
