"""Ids become events while they are made, and come to the same notes and pedals as when all of them are there."""

import pytest
from builders import performance, steadily
from event_ids import ids, piano_ids
from flat_sampling import compose
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model
from strategies import tokenizers_and_ids

from pamusic.checkpoint import Checkpoint
from pamusic.music.events import Event, EventType, events
from pamusic.music.performance import SOFT, SUSTAIN
from pamusic.sampling.config import SamplingConfig
from pamusic.tokens.continuation import continuation, streaming
from pamusic.tokens.prime import PrimeRange
from pamusic.tokens.streaming_decoder import StreamingDecoder
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER, PIANO = load_tokenizer("performance"), load_tokenizer("piano")
NOTE_OFF, PEDAL, NOTE_ON = EventType


def by_number(given):
    """In what order different pedals move at one moment does not matter; what one pedal does then, does."""
    return sorted(given, key=lambda event: event[:3])


def streamed(decoder, new):
    """All that a decoder gives; what it gives up to an id is before the second it says, and in order."""
    return streamed_positions(decoder, [int(id) for id in new])


def streamed_positions(decoder, new):
    """The same for positions, which are ids or lists of them."""
    given = []
    for position in new:
        given += decoder.follow(position)
        assert all(event.time <= decoder.seconds for event in given[-1:])
    given += decoder.end()
    assert [event[:2] for event in given] == sorted(event[:2] for event in given)
    return given


@given(tokenizers_and_ids())
@settings(steadily, max_examples=300)
def test_any_ids_stream_to_what_they_decode_to(tokenizer_and_ids):
    tokenizer, new = tokenizer_and_ids

    assert streamed(StreamingDecoder(tokenizer.vocabulary), new) == events(continuation(tokenizer, new))


@given(tokenizers_and_ids(), st.floats(0.01, 3))
@settings(steadily, max_examples=200)
def test_any_ids_stream_to_what_they_decode_to_up_to_a_second(tokenizer_and_ids, seconds):
    tokenizer, new = tokenizer_and_ids

    given = streamed(streaming(tokenizer, seconds=seconds), new)
    assert by_number(given) == by_number(events(continuation(tokenizer, new, seconds=seconds)))


@pytest.mark.parametrize("tokenizer", [TOKENIZER, PIANO], ids=lambda tokenizer: tokenizer.name)
@pytest.mark.parametrize(
    "cut", [PrimeRange(), PrimeRange(0, 1.004), PrimeRange(0.3, 2.2)], ids=["whole", "cut", "both ends"]
)
@pytest.mark.parametrize("seconds", [None, 4.0])
def test_what_follows_a_prime_streams_to_what_it_decodes_to(tokenizer, cut, seconds):
    strokes = [(0.1 * i, 0.1 * i + 0.35 + 0.01 * i, 60 + i % 5, 40 + i) for i in range(24)]
    moves = [(0.2, 127), (0.9, 0), (1.0, 80), (0.5, 60, SOFT)]
    prime = performance(*strokes, pedal=moves)
    who = Checkpoint(None, tiny_model(vocab_size=len(tokenizer.vocabulary), pad_id=0), tokenizer, {})
    for seed in range(2):
        new = list(compose(who, prime, prime_range=cut, seed=seed, length=150, sampling=SamplingConfig(release_bias=0)))
        given = streamed(streaming(tokenizer, prime=prime, prime_range=cut, seconds=seconds), new)

        whole = events(continuation(tokenizer, new, prime=prime, prime_range=cut, seconds=seconds))
        assert by_number(given) == by_number(whole)
        assert sum(event.type == NOTE_ON for event in given) > 5


def test_a_stroke_is_given_with_the_time_that_passes_after_it_and_does_not_wait_for_its_release():
    decoder = StreamingDecoder(TOKENIZER.vocabulary)
    velocity, on, wait, off, wait_again = ids("velocity 16", "on 60", "wait 50", "off 60", "wait 1")

    assert decoder.follow(velocity) == decoder.follow(on) == []
    assert decoder.follow(wait) == [Event(0.0, NOTE_ON, 60, 63)]
    assert decoder.seconds == 0.5
    assert decoder.follow(off) == []
    assert decoder.follow(wait_again) == [Event(0.5, NOTE_OFF, 60)]
    assert decoder.end() == []


def test_what_is_open_at_the_end_is_let_go_there_and_the_pedals_go_up():
    decoder = StreamingDecoder(PIANO.vocabulary)

    given = streamed(decoder, piano_ids("sustain 3", "velocity 16", "on 60", "wait 20", "on 64"))
    assert [event for event in given if event.type != NOTE_ON] == [
        (0.0, PEDAL, SUSTAIN, 127), (0.2, NOTE_OFF, 60, 0), (0.21, NOTE_OFF, 64, 0), (0.21, PEDAL, SUSTAIN, 0),
    ]  # fmt: skip


def test_pedals_begin_where_the_prime_leaves_them_and_its_keys_are_let_go_first():
    prime = performance((0.0, 9.0, 60, 80), pedal=[(0.5, 127)])
    new = piano_ids("wait 100", "off 60", "on 60", "wait 50", "off 60", "wait 1")

    given = streamed(streaming(PIANO, prime=prime, prime_range=PrimeRange(0, 1.0)), new)
    assert given[0] == (0.0, PEDAL, SUSTAIN, 127)
    assert [(time, number) for time, type, number, _ in given if type != PEDAL] == [(0.5, 60), (1.0, 60)]


def test_the_gestures_of_a_performance_are_in_order_releases_before_pedals_before_strokes():
    music = performance((0.0, 0.5, 64, 70), (0.5, 1.0, 64, 71), (0.5, 1.0, 60, 72), pedal=[(0.5, 0), (0.5, 90)])

    assert events(music) == [
        (0.0, NOTE_ON, 64, 70), (0.5, NOTE_OFF, 64, 0), (0.5, PEDAL, SUSTAIN, 0), (0.5, PEDAL, SUSTAIN, 90),
        (0.5, NOTE_ON, 60, 72), (0.5, NOTE_ON, 64, 71), (1.0, NOTE_OFF, 60, 0), (1.0, NOTE_OFF, 64, 0),
    ]  # fmt: skip
