"""Positions with lengths become events one at a time: the same events as when all positions are there."""

import numpy as np
import pytest
from builders import performance, steadily
from fields import NOTES, folded_text, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming_decoder import by_number, streamed_positions

from pamusic.music.events import Event, EventType, events
from pamusic.music.performance import SOFT, SUSTAIN, Performance
from pamusic.tokens.continuation import continuation, decode_continuation, join, streaming
from pamusic.tokens.position_decoder import PositionDecoder
from pamusic.tokens.prime import PrimeRange, encode_prime, ids_before

NOTE_OFF, PEDAL, NOTE_ON = EventType
WHOLE, CUT, BOTH_ENDS = PrimeRange(), PrimeRange(0, 1.064), PrimeRange(0.3, 2.2)


def position(shift=0, key="note_on 60", velocity=16, length=10, tokenizer=NOTES):
    """The ids of a position, by the values of its fields; a pedal has no velocity."""
    vocabulary = tokenizer.vocabulary
    kind, value = key.split()
    loudness = velocity if kind == "note_on" else 0
    shift, length = (vocabulary.id(name, number) for name, number in (("time_shift", shift), ("length", length)))
    return [shift, vocabulary.id(kind, int(value)), vocabulary.id("velocity", loudness), length]


@st.composite
def positions(draw, tokenizer=NOTES):
    """Any positions, also such as no encoder writes; few keys and times, so that they meet."""
    kinds = [*(f"note_on {pitch}" for pitch in (21, 60, 61)), "end 0"]
    kinds += [f"{kind} {depth}" for kind in tokenizer.vocabulary.pedals for depth in (1,)]
    kinds += [f"sustain {depth}" for depth in (2, 3) if tokenizer.vocabulary.pedals]
    of_one = st.tuples(
        st.sampled_from([0, 0, 0, 1, 2, 3, 40, 5999]), st.sampled_from(kinds), st.sampled_from([1, 16, 32]),
        st.sampled_from([0, 1, 2, 3, 4, 60, 5999]),
    )  # fmt: skip
    return [position(*each, tokenizer) for each in draw(st.lists(of_one, max_size=40))]


def music():
    strokes = [(0.1 * i, 0.1 * i + 0.35 + 0.01 * i, 60 + i % 12, 40 + i) for i in range(24)]
    return performance(*strokes, pedal=[(0.2, 127), (0.9, 0), (1.0, 80), (1.9, 0), (0.5, 100, SOFT), (3.0, 0, SOFT)])


@given(positions(), st.sampled_from([None, 0.02, 0.4, 3.0]))
@settings(steadily, max_examples=300)
def test_any_positions_stream_to_what_they_decode_to(new, seconds):
    given = streamed_positions(streaming(NOTES, seconds=seconds), new)

    assert by_number(given) == by_number(events(continuation(NOTES, new, seconds=seconds)))


@given(positions(), st.sampled_from([WHOLE, CUT, BOTH_ENDS]), st.sampled_from([None, 0.3, 4.0]))
@settings(steadily, max_examples=300)
def test_what_follows_a_prime_streams_to_what_it_decodes_to(new, cut, seconds):
    prime, shifts = music(), NOTES.vocabulary.range("time_shift")
    gap = encode_prime(NOTES, prime, cut).gap_steps
    for first in new[:1]:  # none begins before the cut
        first[0] = max(first[0], shifts.start + int(shifts.place(np.array(gap))))
    given = streamed_positions(streaming(NOTES, prime=prime, prime_range=cut, seconds=seconds), new)

    whole = continuation(NOTES, new, prime=prime, prime_range=cut, seconds=seconds)
    assert by_number(given) == by_number(events(whole))


def test_folded_pedals_stream_to_what_they_decode_to(tmp_path):
    folded = tokenizer_of(tmp_path, folded_text())
    for cut in (WHOLE, CUT, BOTH_ENDS):
        gap = encode_prime(folded, music(), cut).gap_steps
        new = [position(gap + 30, "note_on 60", 9, 40, folded), position(20, "note_on 60", 9, 5, folded)]
        given = streamed_positions(streaming(folded, prime=music(), prime_range=cut), new)
        assert given == events(continuation(folded, new, prime=music(), prime_range=cut))
        assert len(given) == 4


def test_a_note_ends_when_its_length_has_passed_or_its_key_is_played_again():
    decoder = PositionDecoder(NOTES.vocabulary)

    assert decoder.follow(position(5, length=50)) == []
    assert decoder.follow(position(10, "note_on 64", length=10)) == [Event(0.05, NOTE_ON, 60, 63)]
    assert decoder.seconds == 0.15
    assert decoder.follow(position(20, length=3)) == [Event(0.15, NOTE_ON, 64, 63), Event(0.25, NOTE_OFF, 64)]
    assert [(round(time, 2), *rest) for time, *rest in decoder.end()] == [
        (0.35, NOTE_OFF, 60, 0), (0.35, NOTE_ON, 60, 63), (0.38, NOTE_OFF, 60, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [WHOLE, CUT, BOTH_ENDS])
def test_a_prime_is_read_up_to_the_cut_with_the_lengths_of_the_file(cut):
    encoded = encode_prime(NOTES, music(), cut)
    read = NOTES.decode(encoded.ids)
    notes = NOTES.normalised(music()).notes
    wanted = notes[(notes["onset"] >= cut.start) & (notes["onset"] < (cut.end or 99))]

    assert len(read) == len(wanted) == encoded.num_notes
    assert np.abs(read.notes["onset"] + cut.start - wanted["onset"]).max() <= 0.0051
    assert np.abs(read.notes["offset"] + cut.start - wanted["offset"]).max() <= 0.0101  # also beyond the cut
    end = music().duration if cut.end is None else cut.end
    onset = read.notes["onset"].max()
    assert encoded.gap_steps * 0.01 + max(onset, read.pedal["time"][read.pedal["value"] > 0].max()) == pytest.approx(
        end - cut.start, abs=0.011
    )


def test_after_a_long_last_chord_the_model_reads_a_second_and_the_file_keeps_all_of_it():
    prime = performance((0.0, 0.5, 60, 80), (1.0, 13.0, 64, 80), pedal=[(1.2, 127), (12.0, 0)])
    encoded = encode_prime(NOTES, prime)
    read = NOTES.decode(encoded.ids)

    assert encoded.gap_steps == 100  # from the pedal, which is the last position
    assert read.notes["offset"].tolist() == pytest.approx([0.5, 2.2], abs=0.011)
    new = [position(encoded.gap_steps + 50, "note_on 67", 16, 30)]
    told = join(NOTES, new, prime=prime)
    assert [(round(each["onset"], 2), round(each["offset"], 2)) for each in told.notes] == [
        (0.0, 0.5), (1.0, 13.0), (13.5, 13.8),
    ]  # fmt: skip


@pytest.mark.parametrize("silence", [20.0, 70.0, 400.0])
def test_a_long_silence_in_a_prime_moves_no_cut(silence):
    later = [(silence + 0.5 * i, silence + 0.5 * i + 0.3, 64, 80) for i in range(8)]
    prime = performance((0.0, 0.5, 60, 80), *later, pedal=[(silence + 2.2, 127), (silence + 3.4, 0)])
    encoded = encode_prime(NOTES, prime, PrimeRange(0, silence + 1.8))

    assert encoded.num_notes == 5
    assert len(encoded.ids) == 5  # the pedal comes after the cut
    assert encoded.gap_steps == 30


def test_the_first_new_note_is_at_the_cut_or_later():
    encoded = encode_prime(NOTES, music(), CUT)
    shifts = NOTES.vocabulary.range("time_shift")
    forbidden = ids_before(NOTES, encoded.gap_steps)

    assert encoded.gap_steps > 0
    assert forbidden == list(range(shifts.start, shifts.start + encoded.gap_steps))


def test_open_notes_of_the_prime_keep_their_ends_and_new_onsets_of_their_keys_cut_them_on_one_piano():
    prime = performance((0.0, 3.0, 60, 80), (0.5, 2.5, 64, 80), pedal=[(0.8, 127), (2.0, 0)])
    cut = PrimeRange(0, 1.0)
    gap = encode_prime(NOTES, prime, cut).gap_steps
    new = [position(gap + 50, "note_on 60", 16, 20)]

    seam = decode_continuation(NOTES, new, prime=prime, prime_range=cut)
    assert seam.releases == {60: 3.0, 64: 2.5}
    assert [(each["time"], each["value"]) for each in seam.music.pedal] == [(0.0, 127), (1.0, 0)]
    assert [(each["time"], each["control"], each["value"]) for each in seam.pedal][-1] == (2.0, SUSTAIN, 0)

    joined = join(NOTES, new, prime=prime, prime_range=cut)
    assert [(each["onset"], round(each["offset"], 2), each["pitch"]) for each in joined.notes] == [
        (0.0, 1.5, 60), (0.5, 2.5, 64), (1.5, 1.7, 60),
    ]  # fmt: skip


def test_a_new_press_of_a_pedal_ends_the_one_of_the_prime():
    prime = performance((0.0, 0.5, 60, 80), (2.0, 2.5, 60, 80), pedal=[(0.2, 127), (2.2, 0)])
    cut = PrimeRange(0, 1.0)
    gap = encode_prime(NOTES, prime, cut).gap_steps
    new = [position(gap + 10, "sustain 2", 0, 30), position(10, "note_on 64", 16, 40)]

    told = continuation(NOTES, new, prime=prime, prime_range=cut)
    assert [(round(each["time"], 2), each["value"]) for each in told.pedal] == [(0.0, 127), (0.1, 85), (0.4, 0)]
    assert isinstance(told, Performance)


def test_after_a_silence_longer_than_any_shift_new_music_begins_at_the_cut():
    prime = performance((0.0, 0.5, 60, 80), (90.0, 91.0, 60, 80))
    cut = PrimeRange(0, 80.0)
    encoded = encode_prime(NOTES, prime, cut)
    (shift,) = set(range(*NOTES.vocabulary.range("time_shift").start + np.array([0, 255]))) - set(
        ids_before(NOTES, encoded.gap_steps)
    )
    new = [[shift, *position(0, "note_on 64", 16, 30)[1:]]]

    assert [
        (each["onset"], each["offset"]) for each in continuation(NOTES, new, prime=prime, prime_range=cut).notes
    ] == [(0.0, 0.3)]
    assert join(NOTES, new, prime=prime, prime_range=cut).notes["onset"].tolist() == [0.0, 80.0]
