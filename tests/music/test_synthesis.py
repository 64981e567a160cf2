"""A performance can be heard: at the right pitch, as long as it should, and loud enough."""

import io
import shutil
import wave

import numpy as np
import pytest

from pamusic.errors import PamusicError
from pamusic.music.performance import Performance
from pamusic.music.soundfonts import BETTER, better_soundfonts, default_soundfont
from pamusic.music.synthesis import ENGINES, MAX_SECONDS, RING_OUT, SAMPLE_RATE, Sound, synthesize, wav_bytes

pytestmark = pytest.mark.usefixtures("no_better_soundfont")

A4 = 69


def held(pitch: int = A4, seconds: float = 2.0, velocity: int = 80, num_notes: int = 1) -> Performance:
    notes = range(num_notes)
    return Performance.from_arrays(
        np.zeros(num_notes),
        np.full(num_notes, seconds),
        np.array([pitch + i for i in notes]),
        np.full(num_notes, velocity),
    )


def strongest_frequency(sound: Sound) -> float:
    mono = sound.samples[SAMPLE_RATE // 4 : SAMPLE_RATE * 5 // 4].mean(axis=1)  # a second: bins of 1 Hz
    return float(np.abs(np.fft.rfft(mono * np.hanning(len(mono)))).argmax())


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def peak(samples: np.ndarray) -> float:
    """In dBFS."""
    return float(20 * np.log10(np.abs(samples.astype(np.float64)).max() / 32768))


@pytest.fixture(params=["midirenderer", "fluidsynth"])
def engine(request) -> str:
    if request.param == "fluidsynth" and shutil.which("fluidsynth") is None:
        pytest.skip("FluidSynth is not installed")
    return request.param


def test_a4_sounds_at_440_hertz(engine):
    assert strongest_frequency(synthesize(held(A4), engine=engine)) == pytest.approx(440, rel=0.01)


def test_an_octave_higher_sounds_at_twice_that(engine):
    assert strongest_frequency(synthesize(held(A4 + 12), engine=engine)) == pytest.approx(880, rel=0.01)


def test_a_sound_lasts_as_long_as_the_performance_and_rings_out(engine):
    sound = synthesize(held(seconds=2.0), engine=engine)

    assert sound.seconds == pytest.approx(2.0 + RING_OUT, abs=0.1)
    assert rms(sound.samples[:SAMPLE_RATE]) > 100
    assert rms(sound.samples[-SAMPLE_RATE // 10 :]) < 10
    dry = synthesize(held(seconds=2.0), engine=engine, dry=True)
    assert dry.seconds == sound.seconds


def test_the_wav_file_is_16_bit_stereo():
    sound = synthesize(held(), engine="midirenderer")

    with wave.open(io.BytesIO(wav_bytes(sound))) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (SAMPLE_RATE, 2, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert np.array_equal(samples, sound.samples)


@pytest.mark.parametrize("dry", [True, False])
def test_soft_or_loud_the_peak_is_one_decibel_below_full_scale(engine, dry):
    soft, loud, cluster = (
        synthesize(performance, engine=engine, dry=dry).samples
        for performance in (held(velocity=60), held(velocity=110), held(40, velocity=127, num_notes=40))
    )

    for samples in (soft, loud, cluster):
        assert peak(samples) == pytest.approx(-1, abs=0.01)


def test_a_piece_keeps_its_own_loud_and_soft(engine):
    onsets, velocities = np.array([0.0, 4.0]), np.array([40, 100])
    piece = Performance.from_arrays(onsets, onsets + 1, np.array([A4, A4]), velocities)
    samples = synthesize(piece, engine=engine).samples

    assert 5 * rms(samples[:SAMPLE_RATE]) < rms(samples[4 * SAMPLE_RATE : 5 * SAMPLE_RATE])


def test_a_room_makes_a_narrow_sound_wide_and_rings_where_a_note_has_ended(engine):
    dry, wet = (synthesize(held(seconds=0.5), engine=engine, dry=dry).samples for dry in (True, False))

    left_and_right = [np.corrcoef(samples.T.astype(float))[0, 1] for samples in (dry, wet)]
    assert left_and_right[1] < left_and_right[0] - 0.1
    after = slice(int(1.2 * SAMPLE_RATE), int(1.5 * SAMPLE_RATE))
    assert rms(wet[after]) > 2 * rms(dry[after])


def test_the_same_performance_sounds_the_same():
    one, two = (synthesize(held(), engine="midirenderer") for _ in range(2))

    assert np.array_equal(one.samples, two.samples)


def test_auto_takes_fluidsynth_where_it_is_found():
    found = shutil.which("fluidsynth") is not None

    assert synthesize(held(), engine="auto").engine == ("fluidsynth" if found else "midirenderer")


def test_an_unknown_engine_is_answered_with_the_list(engine):
    with pytest.raises(PamusicError, match=", ".join(ENGINES)):
        synthesize(held(), engine="gramophone")


def test_hours_are_refused_before_they_fill_the_memory():
    with pytest.raises(PamusicError, match=r"must be at most 2 hours long, got 277\.8"):
        synthesize(held(seconds=1e6))

    assert MAX_SECONDS < 1e6


def test_a_better_soundfont_is_taken_where_one_is_installed_and_can_be_read(tmp_path, monkeypatch):
    sf2, sf3 = (tmp_path / next(name for name in BETTER if name.endswith(kind)) for kind in (".sf2", ".sf3"))
    for path in (sf2, sf3):
        path.write_bytes(default_soundfont().read_bytes())
    assert better_soundfonts("midirenderer", [tmp_path]) == [sf2]  # which reads no compressed samples
    assert better_soundfonts("fluidsynth", [tmp_path / "none", tmp_path]) == [sf2, sf3]

    monkeypatch.setattr("pamusic.music.soundfonts.usual_folders", lambda: [tmp_path])
    assert synthesize(held(), engine="midirenderer").soundfont == sf2
    own = tmp_path / "own.sf2"
    own.write_bytes(default_soundfont().read_bytes())
    assert synthesize(held(), engine="midirenderer", soundfont=own).soundfont == own
    sf2.write_bytes(b"broken")
    assert synthesize(held(), engine="midirenderer").soundfont == default_soundfont()


def not_a_soundfont(path, good):
    path.write_bytes(b"MThd" + good[4:])


def cut_in_half(path, good):
    path.write_bytes(good[: len(good) // 2])


def zeroed_index(path, good):
    path.write_bytes(good[:-200_000] + bytes(200_000))


@pytest.mark.parametrize("spoil", [not_a_soundfont, cut_in_half, zeroed_index])
def test_a_broken_soundfont_is_one_line_and_nothing_else(tmp_path, spoil, engine, capfd):
    path = tmp_path / "broken.sf2"
    spoil(path, default_soundfont().read_bytes())

    with pytest.raises(PamusicError) as caught:
        synthesize(held(), soundfont=path, engine=engine)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_panic_in_the_engine_is_one_line_and_nothing_else(tmp_path, capfd):
    good = default_soundfont().read_bytes()
    second = good.rindex(b"ibag") + 8 + 4  # where the second zone's generators begin
    (tmp_path / "broken.sf2").write_bytes(good[:second] + b"\xff\xff" + good[second + 2 :])  # beyond the last

    with pytest.raises(PamusicError, match="midirenderer failed"):
        synthesize(held(), soundfont=tmp_path / "broken.sf2", engine="midirenderer")

    assert capfd.readouterr() == ("", "")
