"""Small performances, MIDI files and corpora for the tests to share. Knows mido; asserts nothing."""

import io
import json
import zipfile

import mido
import numpy as np
from hypothesis import HealthCheck, settings

from pamusic.music.midi import midi_bytes
from pamusic.music.performance import NOTE, PEDAL, SUSTAIN, Performance

# For hypothesis: the same examples each time, and no clock, since the machine may have other work.
steadily = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

MAESTRO_HEADER = (
    "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration\n"  # of maestro-v3.0.0.csv
)


def performance(*notes, pedal=()):
    """A performance from `(onset, offset, pitch, velocity)` and `(time, value)` or `(time, value, control)`."""
    movements = [(time, rest[1] if len(rest) > 1 else SUSTAIN, rest[0]) for time, *rest in pedal]
    records = np.array(list(notes), NOTE) if notes else np.empty(0, NOTE)
    return Performance.from_arrays(
        *(records[field] for field in ("onset", "offset", "pitch", "velocity")),
        np.array(movements, PEDAL) if movements else None,
    )


def midi_file(*tracks, ticks_per_quarter=384, kind=1):
    """The bytes of a Standard MIDI File; a track is a list of `(tick, message)`, in the order of the file."""
    file = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_quarter)
    for events in tracks:
        now, track = 0, mido.MidiTrack()
        for tick, message in events:
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def note_on(pitch, velocity=64, channel=0):
    return mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def note_off(pitch, channel=0):
    return mido.Message("note_off", note=pitch, velocity=64, channel=channel)


def control(value, number=SUSTAIN, channel=0):
    return mido.Message("control_change", control=number, value=value, channel=channel)


def program(number, channel=0):
    return mido.Message("program_change", program=number, channel=channel)


def tempo(microseconds_per_quarter):
    return mido.MetaMessage("set_tempo", tempo=microseconds_per_quarter)


def random_midi(seed, *, num_events=200, ticks_per_quarter=None):
    """A hard piece on one track: few keys, so that strokes of one key overlap; many events at one tick; tempo, pedal.

    Releases come without strokes and strokes without releases, but never within the tick of their stroke.
    """
    rng = np.random.default_rng(seed)
    ticks_per_quarter = ticks_per_quarter or int(rng.choice([96, 220, 384, 480, 1000]))
    keys = rng.integers(0, 128, 6)
    struck = dict.fromkeys(keys.tolist(), -1)
    tick, tempi, events = 0, [(0, tempo(int(rng.integers(200_000, 1_500_000))))], []
    for _ in range(num_events):
        tick += int(rng.choice([0, 0, 1, 2, 5, 30, 400], p=[0.2, 0.2, 0.1, 0.1, 0.1, 0.25, 0.05]))
        key = int(rng.choice(keys))
        what = rng.random()
        if what < 0.4:
            events.append((tick, note_on(key, int(rng.integers(1, 128)))))
            struck[key] = tick
        elif what < 0.7 and struck[key] < tick:
            events.append((tick, note_off(key)))
        elif 0.7 <= what < 0.95:
            events.append((tick, control(int(rng.choice([0, 20, 63, 64, 100, 127])))))
        elif what >= 0.95:
            tempi.append((tick, tempo(int(rng.integers(200_000, 1_500_000)))))
    events += [(tick + 50, note_off(int(key))) for key in rng.permutation(keys)]
    return midi_file(tempi, events, ticks_per_quarter=ticks_per_quarter)


def tune(seed, num_notes=20):
    """The bytes of a small, well-behaved piece; another one for each seed."""
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.uniform(0, 5, num_notes)).round(3)
    offset = onset + rng.uniform(0.1, 0.8, num_notes).round(3)
    pitch, velocity = rng.integers(40, 90, num_notes), rng.integers(20, 110, num_notes)
    pedal = np.array([(1.0, SUSTAIN, 100), (2.0, SUSTAIN, 0)], PEDAL)
    return midi_bytes(Performance.from_arrays(onset, offset, pitch, velocity, pedal))


def folder_of_tunes(folder, num_files=6, start=0):
    """Writes `0.mid`, `1.mid`, … into a new folder."""
    folder.mkdir(parents=True)
    for number in range(num_files):
        (folder / f"{number}.mid").write_bytes(tune(start + number))
    return folder


def maestro_like(folder, splits=("train", "validation", "test")):
    """A folder laid out as MAESTRO: a file a split in `2004/`, and the table."""
    (folder / "2004").mkdir(parents=True)
    rows = []
    for number, split in enumerate(splits):
        (folder / "2004" / f"take-{number}.midi").write_bytes(tune(number))
        rows.append(f"Composer,Title,{split},2004,2004/take-{number}.midi,2004/take-{number}.wav,5.0\n")
    (folder / "maestro-v3.0.0.csv").write_text(MAESTRO_HEADER + "".join(rows))
    return folder


def zipped(path, members):
    """Writes a zip archive of `{name: bytes}`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def about(corpus):
    """What `corpus.json` says."""
    return json.loads((corpus / "corpus.json").read_text())
