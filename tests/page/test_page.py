"""The page: what travels in it is the music, nothing in a file can do harm in it, and it plays on time.

What runs in browsers is run by node where there is one; `PAMUSIC_BROWSER` may name a Chromium that opens a page, too.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders import performance, steadily
from hypothesis import given
from strategies import performances

import pamusic.page.document
from pamusic.errors import PamusicError
from pamusic.music.midi import midi_bytes
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import SOFT, Performance
from pamusic.page.document import SCRIPTS, Piece, document, packed_notes, packed_pedal

FOLDER = Path(pamusic.page.document.__file__).parent
NODE = shutil.which("node")
BROWSER = os.environ.get("PAMUSIC_BROWSER")
HOSTILE = "</script><script>alert(1)</script><!-- \"'&amp;\u2028@@SCRIPT@@ \udcff"

in_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="PAMUSIC_BROWSER names no Chromium")


def piece(name="a.mid", music=None, **told):
    music = music or performance((0.5, 1.0, 60, 64), (0.5, 2.25, 64, 100), pedal=[(0.75, 127), (2.0, 0)])
    return Piece(name, music, midi_bytes(music), **told)


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and the text in each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.title, self.inside = [], [], "", ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside == "title":
            self.title += data

    @property
    def pieces(self):
        return json.loads(self.scripts[0])


def rows(packed, width):
    """The plain reader of what is packed: seven bits a byte, the lowest first."""
    numbers, bits, number = [], 0, 0
    for byte in packed:
        number |= (byte & 0x7F) << bits
        bits += 7
        if byte < 0x80:
            numbers.append(number)
            bits = number = 0
    return [numbers[i : i + width] for i in range(0, len(numbers), width)]


def in_ms(seconds):
    return round(float(seconds) * 1000)


def run_node(code, data=None):
    """What a program prints as JSON; it knows what stands in the scripts without a page, and `data`."""
    known = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("music.js", "piano.js"))
    program = f"{known}\nconst data = {json.dumps(data)};\n{code}"
    done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@steadily
@given(performances())
def test_the_notes_are_those_of_the_file_to_the_millisecond(music):
    onset, read = 0, []
    for later, key, _, pitch, velocity in rows(packed_notes(music), 5):
        onset += later
        read.append((onset, onset + key, pitch, velocity))

    assert read == [(in_ms(on), in_ms(off), pitch, velocity) for on, off, pitch, velocity in music.notes.tolist()]


@steadily
@given(performances())
def test_a_string_sounds_as_long_as_the_pedal_has_it(music):
    onset, read = 0, []
    for later, _, sound, pitch, velocity in rows(packed_notes(music), 5):
        onset += later
        read += [(onset, onset + sound, pitch, velocity)] if sound else []

    folded = [
        (in_ms(on), in_ms(off), pitch, velocity) for on, off, pitch, velocity in sustain_folded(music).notes.tolist()
    ]
    assert read == [note for note in folded if note[1] > note[0]]


@steadily
@given(performances())
def test_the_pedals_are_those_of_the_file(music):
    time, read = 0, []
    for later, control, value in rows(packed_pedal(music), 3):
        time += later
        read.append((time, control, value))

    assert read == [(in_ms(time), control, value) for time, control, value in music.pedal.tolist()]


def test_an_hour_and_nothing_travel_too():
    long = performance((0.0, 3600.0, 21, 1), (86_399.0, 86_400.0, 108, 127))

    assert rows(packed_notes(long), 5) == [[0, 3_600_000, 3_600_000, 21, 1], [86_399_000, 1000, 1000, 108, 127]]
    assert packed_notes(Performance()) == packed_pedal(Performance()) == b""


def test_a_page_holds_what_was_told_and_the_very_bytes_of_the_file():
    one = piece(new_from=1.25, facts=(("seed", "7"),), commands=(("again", "pamusic replay a.mid"),))

    page = Page(document([one, piece("b.mid")], "Two pieces"))

    first, second = page.pieces
    assert page.title == "Two pieces"
    assert (first["name"], first["seconds"], first["newFrom"]) == ("a.mid", 2.25, 1.25)
    assert (first["facts"], first["commands"]) == ([["seed", "7"]], [["again", "pamusic replay a.mid"]])
    assert base64.b64decode(first["midi"]) == one.midi
    assert base64.b64decode(first["notes"]) == packed_notes(one.performance)
    assert (second["name"], second["newFrom"], second["facts"]) == ("b.mid", None, [])


def test_the_same_pieces_make_the_same_page():
    assert document([piece()], "A") == document([piece()], "A")


def test_a_text_that_would_be_a_script_stays_a_text():
    told = {"facts": ((HOSTILE, HOSTILE),), "commands": ((HOSTILE, HOSTILE),)}
    harmless, page = Page(document([piece()], "a")), Page(document([piece(HOSTILE, **told)], HOSTILE))

    assert page.tags == harmless.tags
    assert page.scripts[1] == harmless.scripts[1]
    assert not set("<>&") & set(page.scripts[0])
    (got,) = page.pieces
    as_text = HOSTILE.replace("\udcff", "?")
    assert got["name"] == page.title == as_text
    assert got["facts"] == got["commands"] == [[as_text, as_text]]


def test_a_page_asks_for_nothing_from_elsewhere_and_runs_no_script_but_its_own():
    page = Page(document([piece()], "a"))

    (policy,) = [each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not [each for _, each in page.tags if each.keys() & {"src", "href", "action", "data"}]
    assert not re.search(r"https?:|//[a-z]+\.|innerHTML|eval\(|import\b", page.scripts[1])
    assert page.scripts[1] == "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


def test_ten_pieces_of_three_minutes_take_less_than_half_a_megabyte():
    rng = np.random.default_rng(0)
    onset = np.sort(rng.uniform(0, 180, 2000))  # MAESTRO has 10 notes a second on average
    notes = onset, onset + rng.uniform(0.05, 2, 2000), rng.integers(30, 100, 2000), rng.integers(30, 100, 2000)

    size = len(document([piece(f"{i}.mid", Performance.from_arrays(*notes)) for i in range(10)], "Ten"))
    assert size < 500_000, size


def test_more_than_a_browser_likes_is_refused(monkeypatch):
    monkeypatch.setattr(pamusic.page.document, "MAX_BYTES", 1000)

    with pytest.raises(PamusicError, match=r"^with piece 5 the page has more than .*; name fewer files$"):
        document([piece()] * 9, "a")


@in_node
def test_the_script_is_whole():
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)

    done = subprocess.run([NODE, "--check", "-"], input=script, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@in_node
def test_a_browser_reads_what_was_packed():
    music = performance((0.1234, 0.5, 60, 64), (0.1234, 200.0, 64, 1), pedal=[(0.3, 127), (0.9, 0), (0.95, 3, SOFT)])
    packed = [base64.b64encode(data).decode() for data in (packed_notes(music), packed_pedal(music))]

    notes, pedal = run_node("console.log(JSON.stringify([notesOf(data[0]), pedalOf(data[1])]))", packed)

    assert notes == [
        {"onset": 0.123, "offset": 0.5, "end": 0.9, "pitch": 60, "velocity": 64},
        {"onset": 0.123, "offset": 200, "end": 200, "pitch": 64, "velocity": 1},
    ]
    assert [tuple(move.values()) for move in pedal] == [(0.3, 64, 127), (0.9, 64, 0), (0.95, 67, 3)]


# A timeline on a clock of our own, with all that it does: [note's place, when, how far in], or "hush".
TIMELINE = """
let now = 100;
const done = [];
const timeline = new Timeline(data.notes, data.seconds, {
  clock: () => now,
  prepare: (coming) => (now += data.preparing ?? 0),
  strike: (note, ...times) => done.push([data.notes.indexOf(note), ...times.map((time) => Number(time.toFixed(6)))]),
  hush: () => done.push("hush"),
});
const tell = (...more) => console.log(JSON.stringify([done, ...more]));
"""


def timeline(code, *, seconds=20, notes=None, **data):
    notes = notes or [{"onset": float(i), "end": i + 1.5} for i in range(seconds)]
    return run_node(TIMELINE + code, {"notes": notes, "seconds": seconds, **data})


@in_node
def test_every_note_is_struck_once_at_its_instant_however_late_the_ticks_come():
    done, positions = timeline(
        """
        const positions = [];
        timeline.play();
        for (const nap of [0.2, 1.7, 0.05, 2.4, 0.9, 2.3, 2.5, 2.5, 2.4, 2.4, 2.4, 1.0]) {
          now += nap; timeline.tick(); positions.push(timeline.position());
        }
        tell(positions);
        """
    )

    assert done == [[i, 100.1 + i, 0] for i in range(20)]
    assert positions[1] == pytest.approx(1.8)
    assert positions[-1] == 20


@in_node
def test_nothing_is_handed_on_earlier_than_it_must_be():
    done = timeline("timeline.play(); tell();")[0]

    assert [place for place, _, _ in done] == [0, 1, 2]


@in_node
def test_what_took_its_time_to_prepare_is_struck_in_time():
    done = timeline("timeline.play(); tell();", preparing=3.0)[0]

    assert done == [[0, 103.1, 0], [1, 104.1, 0], [2, 105.1, 0]]


@in_node
def test_a_note_that_comes_too_late_is_begun_as_far_in_as_it_should_be_or_not_at_all():
    done = timeline("timeline.play(); now += 6; timeline.tick(); tell();")[0]

    late = [[5, 106, 0.9], [6, 106.1, 0], [7, 107.1, 0], [8, 108.1, 0]]
    assert done[3:] == late  # not 3, which has ended; and 4 ended at 105.6


@in_node
def test_a_seek_takes_up_what_sounds_there():
    done, position = timeline("timeline.seek(5.25); timeline.play(); tell(timeline.position());")

    assert done == [[4, 100.1, 1.25], [5, 100.1, 0.25], [6, 100.85, 0], [7, 101.85, 0]]
    assert position == 5.25


@in_node
def test_a_pause_hushes_and_goes_on_where_it_was():
    done, paused, later = timeline(
        """
        timeline.play(); now += 1.35; timeline.pause();
        const paused = timeline.position();
        now += 60;
        const later = timeline.position();
        timeline.play();
        tell(paused, later);
        """
    )

    assert paused == later == pytest.approx(1.25)
    assert done[3] == "hush"
    assert done[4:] == [[0, 161.45, 1.25], [1, 161.45, 0.25], [2, 162.2, 0], [3, 163.2, 0]]


@in_node
def test_a_seek_while_it_plays_goes_on_from_there_and_beyond_the_end_stops():
    done, playing, at, stopped = timeline(
        """
        timeline.play(); timeline.seek(18);
        const playing = timeline.isPlaying;
        timeline.seek(99);
        tell(playing, timeline.position(), timeline.isPlaying);
        """
    )

    assert [each for each in done if each != "hush"][3:] == [[17, 100.1, 1], [18, 100.1, 0], [19, 101.1, 0]]
    assert (playing, at, stopped) == (True, 20, False)


@in_node
def test_playing_at_the_end_begins_anew():
    done = timeline("timeline.seek(19.9); timeline.play(); tell();")[0]

    assert done == [[0, 100.1, 0], [1, 101.1, 0], [2, 102.1, 0]]


@in_node
def test_it_ends_after_the_last_string_has_rung_out_and_begins_anew():
    done, goes_on, ended, at = timeline(
        """
        timeline.play(); now += 2.5;
        const goesOn = timeline.tick();
        now += 3;
        const ended = timeline.tick(), at = timeline.position();
        timeline.play();
        tell(goesOn, ended, at);
        """,
        seconds=2,
    )

    assert (goes_on, ended, at) == (True, False, 0)
    assert done == [[0, 100.1, 0], [1, 101.1, 0], "hush", [0, 105.6, 0], [1, 106.6, 0]]


@in_node
@pytest.mark.parametrize("pitch", [21, 45, 69, 93, 108])
def test_a_tone_has_its_pitch_decays_and_ends_in_silence(pitch):
    rate = 32_000
    sound = np.array(run_node("console.log(JSON.stringify([...tone(data[0], data[1])]))", [pitch, rate]))

    def power(start, end):
        return float(np.mean(sound[round(start * len(sound)) : round(end * len(sound))] ** 2))

    assert np.isfinite(sound).all()
    assert 0.1 < np.abs(sound).max() < 2
    assert power(0, 0.1) > 10 * power(0.3, 0.4) >= 100 * power(0.9, 1.0)
    assert abs(sound[-1]) < 1e-3
    lowest = 440 * 2 ** ((pitch - 69) / 12)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**19))
    hertz = np.arange(len(spectrum)) * rate / 2**19
    near = (hertz > lowest * 0.8) & (hertz < lowest * 1.25)
    cents = 1200 * np.log2(hertz[near][spectrum[near].argmax()] / lowest)
    assert abs(cents) < 3


@in_node
def test_force_makes_it_louder_and_brighter():
    loud, bright = run_node(
        "const forces = [0.1, 0.3, 0.5, 0.7, 1];"
        "console.log(JSON.stringify([forces.map(loudness), forces.map((force) => brightness(60, force))]))"
    )

    assert loud == sorted(loud)
    assert bright == sorted(bright)
    assert loud[-1] / loud[0] > 30
    assert bright[-1] / bright[0] > 5


@in_node
def test_times_read_as_clocks_have_them():
    told = run_node("console.log(JSON.stringify([0, 59.99, 61, 3600, 36_005].map(clockTime)))")

    assert told == ["0:00", "0:59", "1:01", "1:00:00", "10:00:05"]


@in_a_browser
def test_a_browser_shows_every_piece_and_runs_nothing_of_theirs(tmp_path):
    told = {"facts": (("made by", HOSTILE),), "commands": (("again", HOSTILE),), "new_from": 1.0}
    (tmp_path / "page.html").write_bytes(document([piece(HOSTILE, **told), piece("b.mid")], HOSTILE))

    command = [BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    shown = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=120
    ).stdout

    assert len(re.findall("<article", shown)) == 3  # and the template's
    assert shown.count("0:02 · 2 notes · new from 0:01 on") == 2  # to read, and for those who cannot see
    assert len(re.findall(r"<script\b", shown)) == 2
    assert f'href="data:audio/midi;base64,{base64.b64encode(piece().midi).decode()}"' in shown
