"""The prime stays as it was; what follows begins where it ends, with the feet off the pedals."""

from pathlib import Path

import numpy as np
import pytest
from event_ids import ids, piano_ids
from flat_sampling import compose
from models import tiny_model

from pamusic.checkpoint import Checkpoint
from pamusic.errors import PamusicError
from pamusic.music.performance import PEDAL, SOFT, SUSTAIN, Performance
from pamusic.tokens.continuation import continuation, decode_continuation, join
from pamusic.tokens.prime import PrimeRange, encode_prime, prime_ids
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER, PIANO = load_tokenizer("performance"), load_tokenizer("piano")


def performance(*notes, pedal=()):
    onset, offset, pitch, velocity = np.array(notes).T
    return Performance.from_arrays(onset, offset, pitch, velocity, np.array(list(pedal), PEDAL))


def notes(music):
    return [
        (round(onset, 6), round(offset, 6), pitch, velocity) for onset, offset, pitch, velocity in music.notes.tolist()
    ]


def pedal(music):
    return [(round(time, 6), control, value) for time, control, value in music.pedal.tolist()]


def test_the_prime_stays_as_it_was_and_the_music_follows_it():
    prime = performance((0.1234, 0.5678, 60, 99), (0.4321, 1.0018, 64, 30))

    music = join(TOKENIZER, ids("wait 10", "velocity 16", "on 67", "wait 50", "off 67"), prime=prime)

    assert music.notes[:2].tolist() == prime.notes.tolist()
    # The prime ends at 1.00 on the grid, but its last key is let go at 1.0018.
    assert notes(music)[2:] == [(1.1018, 1.6018, 67, 63)]


def test_the_music_begins_where_the_sound_of_the_prime_ends():
    prime = performance((0.0, 1.0, 60, 80), pedal=[(0.5, SUSTAIN, 127), (3.0, SUSTAIN, 0)])

    assert notes(join(TOKENIZER, ids("on 67", "wait 1", "off 67"), prime=prime))[1][0] == 3.0


def test_the_feet_leave_the_pedals_where_the_music_begins():
    moves = [(0.5, SOFT, 50), (0.6, SUSTAIN, 127), (2.0, SUSTAIN, 0), (2.5, SUSTAIN, 90), (9.0, SOFT, 0)]
    prime = performance((0.0, 1.0, 60, 80), (2.6, 3.0, 60, 80), pedal=[*moves, (4.0, SUSTAIN, 30)])

    music = join(TOKENIZER, ids("wait 1", "on 67", "wait 1", "off 67"), prime=prime)

    assert pedal(music) == [*moves[:4], (4.0, SUSTAIN, 0), (4.0, SOFT, 0)]
    assert notes(music)[-1][0] == 4.01


def test_a_pedal_that_is_up_needs_no_lifting():
    prime = performance((0.0, 1.0, 60, 80), pedal=[(0.2, SUSTAIN, 127), (0.8, SUSTAIN, 0)])

    assert pedal(join(TOKENIZER, ids("on 67", "wait 1"), prime=prime)) == pedal(prime)


def test_loudness_goes_on_from_the_prime_until_new_ids_speak_of_another():
    prime = performance((0.0, 1.0, 60, 20))

    music = continuation(TOKENIZER, ids("on 67", "wait 9", "velocity 30", "on 69", "wait 9"), prime=prime)

    assert [velocity for *_, velocity in notes(music)] == [19, 119]


def test_without_a_prime_the_music_begins_at_zero():
    new = ids("velocity 16", "on 67", "wait 50", "off 67")

    assert notes(join(TOKENIZER, new)) == notes(continuation(TOKENIZER, new)) == [(0.0, 0.5, 67, 63)]


def test_of_the_continuation_alone_the_prime_is_left_out():
    prime = performance((0.0, 1.0, 60, 80), pedal=[(0.5, SUSTAIN, 127)])
    music = continuation(TOKENIZER, ids("wait 10", "on 67", "wait 50", "off 67"), prime=prime)

    assert [note[:3] for note in notes(music)] == [(0.1, 0.6, 67)]
    assert pedal(music) == []


def test_a_release_of_a_key_that_only_the_prime_struck_does_nothing():
    prime = performance((0.0, 1.0, 60, 80))

    assert notes(join(TOKENIZER, ids("wait 50", "off 60", "wait 50"), prime=prime)) == [(0.0, 1.0, 60, 80)]


def test_every_note_is_closed_and_a_key_is_let_go_before_it_is_struck_anew():
    new = ids("on 60", "wait 10", "on 60", "on 60", "on 64", "wait 10", "off 60", "wait 10", "off 60", "wait 10")

    assert [note[:3] for note in notes(continuation(TOKENIZER, new))] == [(0, 0.1, 60), (0.1, 0.4, 60), (0.1, 0.4, 64)]


def test_it_stops_at_the_seconds_asked_for_even_within_a_note():
    music = continuation(TOKENIZER, ids("on 60", "wait 100", "wait 100", "on 64", "wait 1"), seconds=1.5)

    assert [note[:3] for note in notes(music)] == [(0, 1.5, 60)]


def test_no_ids_are_no_music():
    assert len(continuation(TOKENIZER, [])) == 0


def test_a_prime_of_which_the_tokenizer_knows_no_note_is_refused():
    with pytest.raises(PamusicError, match="no note between pitches 21 and 108"):
        prime_ids(PIANO, performance((0.0, 1.0, 5, 80), pedal=[(0.5, SUSTAIN, 127)]))


def test_where_pedals_are_played_they_start_as_the_prime_leaves_them():
    moves = [(0.2, SOFT, 127), (0.3, SUSTAIN, 60), (0.9, SUSTAIN, 80)]
    prime = performance((0.0, 1.0, 60, 80), pedal=moves)
    new = piano_ids("wait 50", "on 67", "wait 50", "sustain 0", "wait 10", "off 67")

    assert PIANO.vocabulary.event(prime_ids(PIANO, prime)[-1]) == ("note_off", 60)  # nothing was lifted
    assert pedal(join(PIANO, new, prime=prime)) == [
        *moves,
        (1.0, SOFT, 127),
        (1.0, SUSTAIN, 85),  # the depth that 80 is in
        (2.0, SUSTAIN, 0),
        (2.1, SOFT, 0),  # nobody lifted it
    ]
    assert pedal(continuation(PIANO, new, prime=prime)) == [
        (0.0, SOFT, 127),
        (0.0, SUSTAIN, 85),
        (1.0, SUSTAIN, 0),
        (1.1, SOFT, 0),
    ]


def test_a_pedal_that_the_music_lifts_at_once_is_lifted_where_it_begins():
    prime = performance((0.0, 1.0, 60, 80), pedal=[(0.3, SUSTAIN, 127)])
    new = piano_ids("sustain 0", "on 67", "wait 50", "off 67")

    assert pedal(join(PIANO, new, prime=prime)) == [(0.3, SUSTAIN, 127), (1.0, SUSTAIN, 0)]
    assert pedal(continuation(PIANO, new, prime=prime)) == []


def test_a_pedal_hardly_touched_in_the_prime_is_up_in_the_music():
    prime = performance((0.0, 1.0, 60, 80), pedal=[(0.3, SUSTAIN, 10)])

    music = join(PIANO, piano_ids("wait 50", "on 67", "wait 50", "off 67"), prime=prime)

    assert pedal(music) == [(0.3, SUSTAIN, 10), (1.0, SUSTAIN, 0)]


@pytest.mark.parametrize("seconds", [None, 0.3, 0.5, 0.7, 5.0])
def test_every_pedal_is_up_at_the_end_wherever_that_is(seconds):
    new = piano_ids("sustain 3", "soft 1", "on 60", "wait 50", "sustain 1", "on 64", "wait 50")
    music = continuation(PIANO, new, seconds=seconds)
    values = {control: value for _, control, value in music.pedal.tolist()}

    assert values == {SUSTAIN: 0, SOFT: 0}
    assert music.duration == min(seconds or 1.0, 1.0)


def events(vocabulary, ids):
    return [vocabulary.event(id) for id in ids]


def test_at_a_cut_what_sounds_is_open_in_the_ids():
    prime = performance((0.0, 2.0, 60, 80), (0.3, 0.4, 64, 80), (0.3, 0.5, 67, 80), (1.2, 1.3, 71, 80),
                        pedal=[(0.35, SUSTAIN, 127), (0.45, SUSTAIN, 0), (0.48, SUSTAIN, 127)])  # fmt: skip
    read = encode_prime(TOKENIZER, prime, PrimeRange(0.0, 0.7))

    kinds = events(TOKENIZER.vocabulary, read.ids)
    assert [event for event in kinds if event[0].startswith("note")] == [
        ("note_on", 60), ("note_on", 64), ("note_on", 67), ("note_off", 64)
    ]  # fmt: skip
    assert (read.cut_step, read.gap_steps) == (70, 25)  # the string of 67 is held by the pedal


def test_keys_and_pedals_are_open_where_they_are_played():
    prime = performance((0.0, 2.0, 60, 80), (0.3, 0.6, 64, 80), pedal=[(0.35, SUSTAIN, 127), (0.8, SUSTAIN, 0)])
    read = encode_prime(PIANO, prime, PrimeRange(0.0, 0.7))

    assert [event for event in events(PIANO.vocabulary, read.ids) if event[0] not in ("time_shift", "velocity")] == [
        ("note_on", 60), ("note_on", 64), ("sustain", 3), ("note_off", 64)
    ]  # fmt: skip
    assert read.gap_steps == 10


def test_a_silence_before_the_cut_is_in_the_ids_as_far_as_the_encoder_writes_it():
    prime = performance((0.0, 0.1, 60, 80), (5.0, 5.1, 62, 80))

    cuts = [(0.1, [10], 0), (0.3, [10], 20), (1.1, [10], 100), (1.11, [10, 100], 1), (4, [10, 100, 100, 100], 90)]
    for end, shifts, gap in cuts:
        read = encode_prime(TOKENIZER, prime, PrimeRange(0.0, end))
        written = events(TOKENIZER.vocabulary, read.ids)
        assert [value for kind, value in written if kind == "time_shift"] == shifts
        assert read.gap_steps == gap


@pytest.mark.parametrize("tokenizer", [TOKENIZER, PIANO], ids=["performance", "piano"])
def test_nothing_new_begins_before_the_cut_and_the_model_closes_what_is_open(tokenizer):
    prime = performance((0.5, 4.0, 60, 80), (0.7, 0.9, 64, 80), (3.0, 4.0, 67, 80))
    model = tiny_model(vocab_size=len(tokenizer.vocabulary), pad_id=tokenizer.vocabulary.id("pad"))
    checkpoint = Checkpoint(Path("tiny"), model, tokenizer, {})
    cut = PrimeRange(0.0, 2.345)
    for seed in range(5):
        drawn = list(compose(checkpoint, prime, prime_range=cut, seed=seed, length=150))
        seam = decode_continuation(tokenizer, drawn, prime=prime, prime_range=cut)
        whole = join(tokenizer, drawn, prime=prime, prime_range=cut)

        assert seam.music.notes["onset"].min() >= 0
        together = np.concatenate([encode_prime(tokenizer, prime, cut).ids, drawn])
        assert tokenizer.decode_counted(together)[1].releases_of_silent_keys == 0
        assert sorted(seam.releases) == [60]
        first = whole.notes[0]
        assert first["onset"] == 0.5
        strikes = [cut.end + onset for onset, _, pitch, _ in seam.music.notes.tolist() if pitch == 60]
        assert first["offset"] == min([seam.releases[60], *strikes]) >= cut.end


def test_the_models_release_ends_the_primes_note():
    prime = performance((0.0, 9.0, 60, 80), (0.2, 9.0, 64, 80))
    new = ids("wait 50", "off 60", "on 60", "wait 20", "off 60")
    seam = decode_continuation(TOKENIZER, new, prime=prime, prime_range=PrimeRange(0.0, 0.5))

    assert {pitch: round(second, 6) for pitch, second in seam.releases.items()} == {60: 0.7, 64: 0.9}
    assert notes(seam.music) == [(0.2, 0.4, 60, 80 // 4 * 4 - 1)]
    assert notes(join(TOKENIZER, new, prime=prime, prime_range=PrimeRange(0.0, 0.5))) == [
        (0.0, 0.7, 60, 80), (0.2, 0.9, 64, 80), (0.7, 0.9, 60, 79)
    ]  # fmt: skip


def test_strings_that_the_pedal_holds_ring_until_the_model_ends_them():
    prime = performance((0.0, 0.2, 60, 80), (0.1, 9.0, 64, 80), pedal=[(0.1, SUSTAIN, 127), (9.0, SUSTAIN, 0)])
    new = ids("wait 100", "off 60", "on 72", "wait 50", "off 72", "off 64")
    seam = decode_continuation(TOKENIZER, new, prime=prime, prime_range=PrimeRange(0.0, 0.5))

    assert seam.pedal.tolist() == [(pytest.approx(1.1), SUSTAIN, 0)]
    assert seam.releases == {60: pytest.approx(1.1), 64: pytest.approx(1.6)}


def test_where_pedals_are_played_the_primes_follow_the_models_until_they_are_up():
    prime = performance((0.0, 0.2, 60, 80), (0.1, 9.0, 64, 80), pedal=[(0.1, SUSTAIN, 127), (9.0, SUSTAIN, 0)])
    new = piano_ids("wait 50", "sustain 0", "wait 50", "off 64", "sustain 3", "wait 50", "sustain 0", "on 60",
                    "wait 10", "sustain 3", "off 60")  # fmt: skip
    seam = decode_continuation(PIANO, new, prime=prime, prime_range=PrimeRange(0.0, 0.5))

    assert pedal(seam) == [(0.5, SUSTAIN, 127), (0.7, SUSTAIN, 0), (1.2, SUSTAIN, 127), (1.7, SUSTAIN, 0)]
    assert {pitch: round(second, 6) for pitch, second in seam.releases.items()} == {64: 1.2}


def test_a_prime_may_be_read_from_a_second_on():
    prime = performance((0.0, 9.0, 60, 80), (1.0, 1.5, 64, 80), (2.0, 9.0, 67, 80), pedal=[(0.5, SOFT, 127)])
    read = encode_prime(PIANO, prime, PrimeRange(0.9, 2.5))

    assert [event for event in events(PIANO.vocabulary, read.ids) if event[0] != "velocity"] == [
        ("soft", 1), ("time_shift", 10), ("note_on", 64), ("time_shift", 50), ("note_off", 64), ("time_shift", 50),
        ("note_on", 67),
    ]  # fmt: skip
    music = join(PIANO, piano_ids("wait 60", "off 67"), prime=prime, prime_range=PrimeRange(0.9, 2.5))
    assert [note[:3] for note in notes(music)] == [(0.0, 2.5, 60), (1.0, 1.5, 64), (2.0, 2.6, 67)]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda: PrimeRange(2.0, 2.0), "--prime-end must be after --prime-start"),
        (lambda: PrimeRange(-1.0), "--prime-start must be 0 or more"),
        (lambda: PrimeRange(0.0, float("nan")), "must be a finite number of seconds"),
        (lambda: PrimeRange(1.2, 1.4), "begin no note between pitches"),
        (lambda: PrimeRange(7.0), "the prime lasts 3.00 seconds, got --prime-start 7"),
        (lambda: PrimeRange(0.0, 9.0), "the prime lasts 3.00 seconds, not 9"),
    ],
)
def test_a_part_that_is_none_is_refused(cut, reason):
    with pytest.raises(PamusicError, match=reason):
        encode_prime(TOKENIZER, performance((0.0, 1.0, 60, 80), (2.0, 3.0, 60, 80)), cut())
