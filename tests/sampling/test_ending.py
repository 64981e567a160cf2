"""A piece comes to an end near the length that was wanted, where the rules allow it, by the deadline in any case."""

import pytest
import torch
from flat_sampling import generate, generate_rows, of_vocabulary, token_sampler
from models import END, PAD, START, outspoken_model

from pamusic.errors import UsageError
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import GrammarTables
from pamusic.sampling.ending import CERTAIN, FORBIDDEN, EndingConfig, Pauses
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import load_tokenizer

VOCABULARY, PIANO = (load_tokenizer(name).vocabulary for name in ("performance", "piano"))
ENDING = EndingConfig()


def numbers(values):
    return torch.tensor(list(values), dtype=torch.float64)


def test_the_end_is_barred_then_ever_more_likely_then_sure():
    def biases(*shares, closes):
        return ENDING.bias(numbers(shares), torch.full((len(shares),), closes)).tolist()

    assert biases(0, 0.999, closes=False) == [FORBIDDEN] * 2
    assert biases(1, 1.075, 1.15, closes=False) == pytest.approx([0, 10, 20])
    assert biases(1, 1.2, 2, closes=True) == [CERTAIN] * 3


def test_it_closes_at_a_breath_as_long_as_the_longest_lately_and_the_shorter_the_later_it_comes():
    shares = numbers([0.999, 1.0, 1.05, 1.1, 1.125, 1.15, 1.3])
    longest = numbers([0.1, 2.0, 2.0, 0.6, 3.0, 5.0, 5.0])
    waited = numbers([60.0, 2.0, 4 / 3, 0.2, 0.5, 0.0, 0.0])

    assert ENDING.closes(shares, waited + 1e-9, longest).tolist() == [False] + [True] * 6
    assert ENDING.closes(shares, waited - 1e-3, longest).tolist() == [False] * 6 + [True]


ID = VOCABULARY.id
WAIT = {seconds: ID("time_shift", round(seconds * 100)) for seconds in (0.25, 0.5, 1.0)}
STRIKE = [ID("velocity", 9), ID("note_on", 60)]


def pauses(prime, num_rows=1, vocabulary=VOCABULARY):
    return Pauses(GrammarTables(**grammar_arrays(vocabulary)), vocabulary.seconds_of_id.tolist(), prime, num_rows)


def test_waiting_begins_with_each_stroke_and_the_prime_counts():
    found = pauses([WAIT[1.0], ID("note_on", 60), WAIT[0.5]], num_rows=2)
    assert found.waited().tolist() == [0.5, 0.5]
    found.advance(torch.tensor([ID("note_off", 60), ID("note_on", 62)]))
    found.advance(torch.tensor([WAIT[0.25]] * 2))
    assert found.waited().tolist() == [0.75, 0.25]
    assert pauses([WAIT[1.0]]).waited().tolist() == [1.0]
    assert pauses([]).waited().tolist() == [0.0]


def test_a_pause_counts_from_the_stroke_that_ends_it_and_fades():
    found = pauses([*STRIKE, WAIT[1.0], WAIT[1.0]])
    assert found.longest().tolist() == [0.0]
    found.advance(torch.tensor([ID("note_on", 62)]))
    assert found.longest().tolist() == [2.0]
    for _ in range(30):
        found.advance(torch.tensor([WAIT[1.0]]))
    assert found.longest().item() == pytest.approx(2 / 2.718282)


def test_pauses_are_those_of_each_row_and_of_a_prime_what_they_are_one_by_one():
    rows = [
        [*STRIKE, WAIT[1.0], WAIT[0.5], *STRIKE, WAIT[0.25], *STRIKE, *STRIKE, WAIT[0.5], ID("note_off", 60)],
        [WAIT[0.5], *STRIKE, WAIT[0.25], *STRIKE, WAIT[1.0], WAIT[1.0], *STRIKE, WAIT[1.0], *STRIKE],
    ]
    rows = [row + [ID("velocity", 3)] * (20 - len(row)) for row in rows]
    found = pauses([], num_rows=3)
    for ids in zip(rows[0], rows[1], rows[1], strict=True):
        found.advance(torch.tensor(ids))
    found.select(torch.tensor([2, 0]))

    for place, row in enumerate((rows[1], rows[0])):
        alone = pauses(row)
        for together, expected in zip(found.states(), alone.states(), strict=True):
            assert together[place].item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.longest()[0] > 1.9 > found.longest()[1] > 1.4


def test_closing_comes_after_the_wanted_length_and_before_the_deadline():
    for wrong in ({"closing": 1.0}, {"closing": 1.3}):
        with pytest.raises(ValueError, match="closing"):
            EndingConfig(**wrong)


def quiet_model():
    """A model whose logits are all 0, whatever it reads."""
    model = outspoken_model()
    torch.nn.init.zeros_(model.head.weight)
    return model


@pytest.mark.slow
def test_without_rules_it_ends_by_the_known_odds():
    """All 24 logits are 0: after step n the end has the odds exp(20 * (n / 100 - 1) / 0.15) to the other 21."""
    lengths = [
        len(list(generate(quiet_model(), [START], seed=seed, length=100, end_id=END, ending=ENDING,
                          forbidden_ids=[START, PAD], sampling=SamplingConfig(top_p=1))))
        for seed in range(60)
    ]  # fmt: skip
    odds = torch.tensor([20 * (n / 100 - 1) / 0.15 for n in range(100, 115)]).exp()
    survives = torch.cumprod(21 / (21 + odds), 0)
    expected = 100 + survives.sum().item()

    assert min(lengths) >= 100
    assert max(lengths) <= 115
    assert sum(lengths) / 60 == pytest.approx(expected, abs=0.6)


def test_greedily_it_ends_as_soon_as_the_bias_has_made_the_end_the_likeliest():
    """Logits are 0 and of equals the lowest id is taken; the end, id 22, wins with the first bias above 0."""
    greedy = SamplingConfig(temperature=0)
    for length in (10, 100):
        ids = list(generate(quiet_model(), [3], seed=0, length=length, end_id=END, ending=ENDING, sampling=greedy))
        assert len(ids) == length + 1


def piano(seed, vocabulary=VOCABULARY, **how):
    model = outspoken_model(vocab_size=len(vocabulary), pad_id=vocabulary.id("pad"))
    torch.nn.init.zeros_(model.head.weight)
    return list(
        generate(
            model, [vocabulary.id("start")], seed=seed, end_id=vocabulary.id("end"),
            grammar=GrammarTables(**grammar_arrays(vocabulary)), seconds_of_id=vocabulary.seconds_of_id.tolist(), **how,
        )
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_by_a_grammar_keys_are_let_go_and_none_is_struck_before_the_end(seed):
    """At random nothing is ever let go by itself: the even model strikes ten keys for each that it lets go."""
    ids = piano(seed, length=400, ending=ENDING)
    events = [VOCABULARY.event(id)[0] for id in ids]

    assert 400 <= len(ids) <= 500
    last_stroke = max(place for place, kind in enumerate(events) if kind == "note_on")
    assert last_stroke <= 460
    assert "velocity" not in events[last_stroke:]
    assert "note_off" in events[last_stroke:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocabulary", [VOCABULARY, PIANO], ids=["performance", "piano"])
def test_after_a_breath_nothing_is_struck_and_what_sounds_is_held(vocabulary, seed):
    """Long before closing begins in any case, when a velocity that was there would be followed by its stroke."""
    ending, wanted = EndingConfig(closing=3.0, deadline=4.0), 5.0
    ids = piano(seed, vocabulary, seconds=wanted, ending=ending)
    now, closed_at, num_released = 0.0, None, 0
    lately = pauses([], vocabulary=vocabulary)
    for id in ids:
        kind, _ = vocabulary.event(id)
        if ending.closes(numbers([now / wanted]), lately.waited(), lately.longest()):
            closed_at = closed_at or now
            assert kind not in ("velocity", "note_on")
            assert kind == "time_shift" or lately.waited() >= ending.hold_seconds
            num_released += kind == "note_off"
        lately.advance(torch.tensor([id]))
        now += vocabulary.seconds_of_id[id]

    assert wanted <= closed_at < 3 * wanted
    assert num_released > 3


def played(vocabulary, opening, phrase, wanted, sureness=50.0, seed=0):
    """What is drawn when a model is sure of a phrase, over and over, and of nothing else; and whether it ended."""
    ids = [vocabulary.id("start")]
    how = {"sampling": SamplingConfig(release_bias=0.0, top_p=1.0), "seconds": wanted, "ending": ENDING}
    sampler = token_sampler(ids, vocab_size=len(vocabulary), seed=seed, **of_vocabulary(vocabulary), **how)
    script = [vocabulary.id(*event) for event in opening]
    while vocabulary.seconds_of_id[ids].sum() < 1.25 * wanted:
        script = script or [vocabulary.id(*event) for event in phrase]
        logits = torch.zeros(1, len(vocabulary))
        logits[0, script[0]] = sureness
        ids.append(sampler.sample(logits).item())
        if ids[-1] == vocabulary.id("end"):
            return [vocabulary.event(id) for id in ids[1:-1]], True
        if ids[-1] == script[0] or vocabulary.seconds_of_id[[ids[-1], script[0]]].all():  # a wait is a wait
            script = script[1:]
    return [vocabulary.event(id) for id in ids[1:]], False


DRY = [("note_on", 60), ("time_shift", 25), ("note_off", 60), ("time_shift", 75)]
LEGATO = [
    ("note_off", 64), ("note_on", 60), ("time_shift", 50), ("note_off", 60), ("note_on", 64), ("time_shift", 50)
]  # fmt: skip


DRY_NOTE = [("note_on", 60), ("time_shift", 8), ("note_off", 60), ("time_shift", 12)]
QUICK = [
    ("note_on", 60), ("time_shift", 2), ("note_on", 64), ("time_shift", 6), ("note_off", 60), ("note_off", 64),
    ("time_shift", 12),
]  # fmt: skip


def seconds_of(events):
    return sum(steps for kind, steps in events if kind == "time_shift") / 100


@pytest.mark.parametrize("vocabulary", [VOCABULARY, PIANO], ids=["performance", "piano"])
def test_in_a_silence_it_ends_at_once(vocabulary):
    """Where the phrase pauses longest, instead of that pause."""
    events, ended = played(vocabulary, [("velocity", 9)], DRY, 10.0)
    assert ended
    assert events[-3:] == DRY[:3]
    assert 9 < seconds_of(events) <= 10 < seconds_of([*events, *DRY])  # the silence is there when the time is over


@pytest.mark.parametrize("vocabulary", [VOCABULARY, PIANO], ids=["performance", "piano"])
def test_in_a_line_that_never_stops_the_last_note_is_held(vocabulary):
    events, ended = played(vocabulary, [("velocity", 9), ("note_on", 64), ("time_shift", 50)], LEGATO, 20.0)
    assert ended
    (_, pitch) = events[-5]
    assert events[-5:] == [("note_on", pitch), *[("time_shift", 100)] * 3, ("note_off", pitch)]
    assert 19 < seconds_of(events[:-5]) <= 21


@pytest.mark.parametrize("vocabulary", [VOCABULARY, PIANO], ids=["performance", "piano"])
def test_a_quick_dry_passage_ends_with_a_chord_that_is_held(vocabulary):
    """In place of breaking off between two of its notes; the chord's notes belong together."""
    events, ended = played(vocabulary, [("velocity", 9)], QUICK, 20.0)
    assert ended
    assert events[-8:] == [*QUICK[:3], *[("time_shift", 100)] * 3, ("note_off", 60), ("note_off", 64)]
    assert 20 < seconds_of(events[:-8]) < 21


@pytest.mark.parametrize("seed", range(6))
def test_a_dry_phrase_does_not_break_off_because_the_end_is_likelier(seed):
    """The model thinks little of an end, 12 nats less than of what it plays; in a gap of the phrase that stays so."""
    phrase = [*(DRY_NOTE * 20), ("note_on", 62), ("time_shift", 20), ("note_off", 62), ("time_shift", 80)]
    events, ended = played(VOCABULARY, [("velocity", 9)], phrase, 30.0, sureness=12.0, seed=seed)
    last = max(place for place, (kind, _) in enumerate(events) if kind == "note_on")
    assert ended
    assert seconds_of(events[last:]) >= 2.5 or events[last:] == phrase[-4:-1]


def test_a_silence_that_only_a_pedal_breaks_ends_it_too():
    """After a gap behind which a chord should have come, but none does."""
    gap = [("sustain", 3), ("time_shift", 30), ("sustain", 0), *[("time_shift", 100)] * 40]
    events, ended = played(PIANO, [("velocity", 9)], [*(DRY_NOTE * 150), *gap], 29.9)
    assert ended
    assert ("sustain", 0) in events
    assert seconds_of(events) < 32


def test_after_half_a_lift_no_key_has_to_go_down():
    """Soon after a pedal has moved it goes no further, so a short wait behind that would leave nothing but strokes."""
    opening = [("sustain", 3), ("velocity", 9), ("note_on", 60), ("time_shift", 50), ("note_off", 60)]
    opening += [("time_shift", 100)] * 9
    for seed in range(4):
        events, ended = played(PIANO, opening, [("sustain", 1), ("time_shift", 2), ("note_on", 64)], 9.0, seed=seed)
        assert ended
        assert [event for event in events if event[0] != "time_shift"][-2:] == [("sustain", 1), ("sustain", 0)]
        assert ("time_shift", 2) not in events


def test_what_the_pedal_holds_rings_on():
    """The pedal is not moved because something has to be; it is lifted when all has rung for a while."""
    opening = [("velocity", 9), ("sustain", 3)]
    events, ended = played(PIANO, opening, DRY, 30.0, sureness=12.0)
    last = max(place for place, (kind, _) in enumerate(events) if kind == "note_on")
    rest = events[last + 1 :]
    lifted = next(place for place, (kind, _) in enumerate(rest) if kind == "sustain")
    assert ended
    assert seconds_of(events[: last + 1]) < 1.15 * 30
    assert 2.5 <= seconds_of(rest[:lifted]) <= 7
    assert [event for event in rest if event[0] == "sustain"][-1] == ("sustain", 0)


@pytest.mark.parametrize("seed", range(3))
def test_where_all_is_let_go_the_piece_is_what_the_grammar_lets_end(seed):
    ids = piano(seed, length=400, ending=EndingConfig(closing=1.05, deadline=5))
    sounding = 0
    for kind, _ in map(VOCABULARY.event, ids):
        sounding += (kind == "note_on") - (kind == "note_off")

    assert 400 <= len(ids) < 2000
    assert sounding == 0
    assert VOCABULARY.event(ids[-1])[0] == "note_off"


def test_seconds_count_as_well_as_ids_do():
    seconds = VOCABULARY.seconds_of_id[piano(0, seconds=20.0, ending=ENDING)].sum()

    assert 20 <= seconds <= 25 + 1  # the last time shift may go beyond by what it has


def test_each_row_ends_by_itself():
    drawn = generate_rows(quiet_model(), [START], seed=0, num_rows=6, length=50, end_id=END, ending=ENDING)
    rows = zip(*drawn, strict=True)
    lengths = [sum(id is not None for id in row) for row in rows]

    assert len(set(lengths)) > 1
    assert all(50 <= length <= 58 for length in lengths)


def test_it_needs_to_know_an_end_and_a_length():
    for wrong, missing in (({"end_id": END}, "length or seconds"), ({"length": 5}, "end_id")):
        with pytest.raises(UsageError, match=missing):
            generate(quiet_model(), [START], seed=0, ending=ENDING, **wrong)
