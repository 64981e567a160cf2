"""What was copied from the training split is found, whatever its key and tempo; what was not, is short."""

import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from builders import zipped
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.corpus.corpus import DERIVED, FILES, open_corpus
from pamusic.corpus.writer import check_corpus_place, writing_corpus
from pamusic.errors import PamusicError
from pamusic.evaluation import originality
from pamusic.evaluation.originality import (
    COMMON,
    NoteSequence,
    Reference,
    excerpts,
    kept_index,
    kept_reference,
    line,
    longest_match,
    make_index,
    make_reference,
    nearest_reference_seconds,
)
from pamusic.music.midi import midi_bytes
from pamusic.music.performance import Performance
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")


def music(seed, num_notes=400, seconds_a_note=0.15):
    """Chords and single notes at random: what two of them have in common is chance."""
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0, 0.011, 0.06, 0.2, 0.41], num_notes) * seconds_a_note / 0.15)
    pitch = rng.integers(36, 90, num_notes)
    return Performance.from_arrays(onset, onset + 0.3, pitch, np.full(num_notes, 64))


def trill(num_notes):
    onset = 0.1 * np.arange(num_notes)
    return Performance.from_arrays(onset, onset + 0.09, 60 + np.arange(num_notes) % 2, np.full(num_notes, 64))


def corpus_of(folder, **splits):
    with writing_corpus(folder, TOKENIZER) as writer:
        for split, pieces in splits.items():
            for number, piece in enumerate(pieces):
                writer.add(
                    TOKENIZER.encode(piece), name=f"{split} {number}", split=split, num_notes=len(piece),
                    seconds=piece.duration, sha256=sha256(f"{split} {number}".encode()).hexdigest(),
                )  # fmt: skip
        writer.close(sources=[], refused=[])
    return open_corpus(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve pieces to train on, five for tests, the first of which is longer than a minute."""
    test = [music(100, num_notes=900), *(music(100 + seed) for seed in range(1, 5))]
    return corpus_of(tmp_path_factory.mktemp("corpora") / "corpus", train=map(music, range(12)), test=test)


@pytest.fixture(scope="module")
def index(corpus):
    return make_index(corpus)


def between(before, stretch, after):
    """Music with a stretch of other music in it, which begins half a second after what is before."""
    joined = before.joined(stretch.shifted(before.duration + 0.5))
    return joined.joined(after.shifted(joined.duration + 0.5))


def of_notes(piece, first, last):
    notes = piece.notes[first:last]
    return Performance(notes).shifted(-float(notes["onset"][0]))


def found_in(index, corpus, performance):
    return longest_match(index, corpus, line(TOKENIZER, performance))


@pytest.mark.parametrize("semitones", [0, 3, -7])
@pytest.mark.parametrize("tempo", [1.0, 1.1, 0.8])
def test_a_planted_copy_is_found_in_any_key_and_at_any_tempo(index, corpus, semitones, tempo):
    stretch = of_notes(music(7), 120, 220).transposed(semitones).stretched(1 / tempo)
    performance = between(music(50, 80), stretch, music(53, 80))

    match = found_in(index, corpus, performance)
    assert match.piece == "train 7"
    assert match.notes >= 85
    assert match.transposed == semitones
    assert match.tempo == pytest.approx(tempo, rel=0.01)
    begins = float(music(50, 80).duration) + 0.5
    assert begins - 0.05 <= match.start < match.end <= begins + stretch.duration
    onset = music(7).notes["onset"]
    assert onset[120] - 0.05 <= match.piece_start < match.piece_end <= onset[219] + 0.05


def test_six_notes_may_differ_where_six_agree_behind_them_and_seven_may_not(index, corpus):
    piece = music(3)
    wrong = {number: of_notes(piece, 100, 200).notes for number in (6, 7)}
    for number, notes in wrong.items():
        notes["pitch"][50 : 50 + number] = 100 + np.arange(number) % 5  # no note of the piece is that high
        notes["onset"][:] = 0.2 * np.arange(100)
        notes["offset"][:] = notes["onset"] + 0.1
    onset = 0.2 * np.arange(400)
    slow = Performance.from_arrays(onset, onset + 0.1, piece.notes["pitch"], np.full(400, 64))

    of_slow = corpus_of(corpus.path.with_name("slow"), train=[slow])
    matches = {
        number: longest_match(make_index(of_slow), of_slow, line(TOKENIZER, Performance(notes)))
        for number, notes in wrong.items()
    }
    assert (matches[6].notes, matches[6].differing) == (94, 6)
    assert (matches[7].notes, matches[7].differing) == (50, 0)


def test_what_was_not_copied_has_no_long_stretch(index, corpus):
    matches = [found_in(index, corpus, music(1000 + seed)) for seed in range(10)]

    assert max(match.notes if match else 0 for match in matches) < 20


def test_a_figure_that_is_everywhere_begins_no_stretch_but_belongs_to_one(tmp_path):
    onset = 5 + 0.2 * np.arange(12)
    phrase = Performance.from_arrays(onset, onset + 0.1, [50, 57, 53, 61, 44, 70, 48, 65, 52, 59, 41, 66], [64] * 12)
    piece = trill(50).joined(phrase)
    corpus = corpus_of(tmp_path / "corpus", train=[piece, *(trill(200) for _ in range(COMMON // 90))])
    index = make_index(corpus)

    assert found_in(index, corpus, trill(40)) is None
    match = found_in(index, corpus, of_notes(piece, 20, 62))
    assert match.notes + match.repeating == 42
    assert match.notes < 20


def test_a_chord_is_the_same_in_whatever_order_the_fingers_come_down(index, corpus):
    def shuffled(seed):
        rng, chords = np.random.default_rng(seed), np.random.default_rng(5)
        beat = np.repeat(0.3 * np.arange(60), 3)
        pitch = np.concatenate([chords.choice(np.arange(40, 80), 3, replace=False) for _ in range(60)])
        onset = beat + rng.uniform(0, 0.025, 180)
        return Performance.from_arrays(onset, beat + 0.25, pitch, np.full(180, 64))

    of_chords = corpus_of(corpus.path.with_name("chords"), train=[shuffled(1)])
    match = longest_match(make_index(of_chords), of_chords, line(TOKENIZER, shuffled(2)))

    assert match.notes == 180


def test_what_only_repeats_is_not_counted_again(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[trill(90), music(1)])
    index = make_index(corpus)

    match = found_in(index, corpus, trill(80))
    assert (match.notes, match.repeating) == (6, 74)  # four to begin with, and a step up or down behind them
    longer = found_in(index, corpus, between(trill(80), of_notes(music(1), 30, 60), trill(80)))
    assert (longer.piece, longer.notes) == ("train 1", 30)


def plainly_counted(ours, theirs):
    """The plain twin, without differences: the notes that count in any run of steps two pitch sequences share."""
    best = 0
    steps, others = np.diff(ours).tolist(), np.diff(theirs).tolist()
    for shift in range(-len(others) + 9, len(steps) - 8):
        figures, run = set(), 0
        for i in range(max(0, shift), min(len(steps), len(others) + shift)):
            agrees = steps[i] == others[i - shift]
            figures, run = (figures, run + 1) if agrees else (set(), 0)
            if run >= 4:
                figures.add(tuple(steps[i - 3 : i + 1]))
            if run >= 8:
                best = max(best, 4 + len(figures))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_at_least_what_a_plain_search_finds(seed, tmp_path):
    """Of few pitches, so that runs of ten and more come by chance."""
    rng = np.random.default_rng(seed)
    onset = 0.1 * np.arange(700)
    ours, *pieces = (
        Performance.from_arrays(onset, onset + 0.05, 60 + rng.integers(0, 3, 700), np.full(700, 64)) for _ in range(3)
    )
    corpus = corpus_of(tmp_path / "corpus", train=pieces)

    plainly = max(plainly_counted(*(line(TOKENIZER, each).pitch for each in (ours, piece))) for piece in pieces)
    assert found_in(make_index(corpus), corpus, ours).notes >= plainly >= 10


def test_music_of_fewer_than_nine_notes_has_no_stretch(index, corpus):
    assert found_in(index, corpus, music(0, 8)) is None
    assert longest_match(index, corpus, NoteSequence(np.empty(0), np.empty(0, np.int16))) is None
    assert found_in(index, corpus, of_notes(music(0), 0, 9)).notes == 9


def test_the_index_lies_in_the_corpus_folder_and_is_made_anew_for_another(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[music(1), music(2)])
    made = []

    def lines():
        made.clear()
        return kept_index(corpus, progress=lambda done, of: made.append((done, of)))

    first = lines()
    assert made == [(1, 2), (2, 2)]
    kept = lines()
    assert made == []
    assert all(np.array_equal(getattr(first, name), getattr(kept, name)) for name in vars(first))
    (tmp_path / "corpus" / "originality.npz").write_bytes(b"broken")
    lines()
    assert len(made) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
    assert open_corpus(corpus.path).fingerprint == corpus.fingerprint

    for file in (tmp_path / "corpus").iterdir():
        file.unlink()
    (tmp_path / "corpus").rmdir()
    corpus = corpus_of(tmp_path / "corpus", train=[music(3)])
    assert len(lines().start) == 2
    assert made == [(1, 1)]


def test_what_is_kept_in_its_folder_is_no_reason_to_keep_a_corpus(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[music(1)], test=[music(2)])
    kept_reference(kept_index(corpus), corpus, 10)
    (tmp_path / "corpus" / ".pamusic-0123.npz").touch()  # of a program that was killed
    assert {path.name for path in corpus.path.iterdir()} > DERIVED

    with writing_corpus(corpus.path, TOKENIZER, force=True) as writer:
        writer.close(sources=[], refused=[])
    assert {path.name for path in corpus.path.iterdir()} == FILES
    (corpus.path / "notes.txt").touch()
    with pytest.raises(PamusicError, match=r"has files that do not belong to a corpus \(notes.txt\)"):
        check_corpus_place(corpus.path, force=True)


def test_where_nothing_can_be_kept_it_is_told(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[music(1)])
    (tmp_path / "corpus" / "originality.npz").mkdir()
    told = []

    assert len(kept_index(corpus, tell=told.append).start) == 2
    assert told == [f"the index is not kept: cannot write {corpus.path / 'originality.npz'}: it is a folder; "
                    "use the name of a file"]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_corpus_that_cannot_be_written_to_is_looked_up_all_the_same(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[music(1)], test=[music(2)])
    corpus.path.chmod(0o500)
    told = []

    index = kept_index(corpus, tell=told.append)
    assert len(told) == 1
    assert "permission denied" in told[0]
    assert kept_reference(index, corpus, 10) == make_reference(index, corpus, 10)


def test_a_corpus_without_training_pieces_is_refused(tmp_path):
    with pytest.raises(PamusicError, match="no training pieces"):
        make_index(corpus_of(tmp_path / "corpus", test=[music(1)]))


def test_the_reference_is_of_excerpts_of_pieces_that_were_held_out(index, corpus):
    (excerpt,) = excerpts(corpus, "test", 60, 100)
    first = line(TOKENIZER, music(100, num_notes=900))
    place = int(np.flatnonzero(first.onset == excerpt.onset[0])[0])

    assert excerpt.onset[-1] - excerpt.onset[0] < 60 < 1.1 * (excerpt.onset[-1] - excerpt.onset[0])
    assert np.array_equal(excerpt.pitch, first.pitch[place : place + len(excerpt)])
    reference = make_reference(index, corpus, 60)
    match = longest_match(index, corpus, excerpt)
    assert (reference.split, reference.notes) == ("test", (match.notes if match else 0,))
    assert len(make_reference(index, corpus, 10, num=4).notes) == 4
    assert make_reference(index, corpus, 10_000) is None


def test_a_piece_that_was_held_out_and_copied_all_the_same_shows_in_the_reference(tmp_path):
    held_out = between(music(60), of_notes(music(4), 50, 150), music(61))
    corpus = corpus_of(tmp_path / "corpus", train=map(music, range(6)), validation=[music(62), held_out])

    reference = make_reference(make_index(corpus), corpus, int(held_out.duration) - 1)
    assert reference.split == "validation"
    assert reference.num_at_least(80) == 1


def test_the_reference_is_kept(index, tmp_path):
    corpus = corpus_of(tmp_path / "corpus", train=[music(1)], test=[music(2)])
    index, searched = make_index(corpus), []
    first = kept_reference(index, corpus, 10, lambda done, of: searched.append(done))

    assert kept_reference(index, corpus, 10, lambda done, of: searched.append(done)) == first
    assert searched == [1]
    kept_reference(index, corpus, 20, lambda done, of: searched.append(done))
    assert json.loads((corpus.path / "originality.json").read_text())["references"].keys() == {"10", "20"}


def test_a_reference_says_how_many_have_as_much():
    reference = Reference("test", 60, (0, 10, 20, 20, 50), (0.0, 1.0, 2.0, 3.0, 9.0))

    assert [reference.num_at_least(notes) for notes in (0, 10, 11, 20, 51)] == [5, 4, 3, 3, 0]
    assert reference.numbers()["notes"] == {"median": 20, "90%": 38, "maximum": 50}
    assert [nearest_reference_seconds(seconds) for seconds in (0, 30, 100, 110, 2000)] == [60, 60, 60, 180, 180]


@pytest.fixture
def at_corpus(tmp_path, monkeypatch):
    """A folder with a corpus in it and two files: one with a copy, one without."""
    monkeypatch.chdir(tmp_path)
    corpus_of(tmp_path / "corpus", train=map(music, range(6)), test=[music(200, num_notes=900)])
    (tmp_path / "songs").mkdir()
    copy = between(music(60, 80), of_notes(music(4), 50, 150).transposed(3).stretched(1 / 1.1), music(61, 80))
    (tmp_path / "songs" / "copy.mid").write_bytes(midi_bytes(copy))
    (tmp_path / "songs" / "own.mid").write_bytes(midi_bytes(music(63, 80)))
    return tmp_path


def asked(*words):
    return CliRunner().invoke(app, ["originality", *map(str, words)])


def test_the_command_says_what_stands_where_and_what_that_means(at_corpus):
    done = asked("songs/copy.mid")

    assert done.exit_code == 0, done.stderr
    notes, name = done.stdout.split()
    assert int(notes) >= 85
    assert name == "songs/copy.mid"
    said = " ".join(done.stderr.split())
    assert "occur in train 4 from" in said
    assert ", 3 semitones lower; here they are 1.10 times as fast" in said
    assert "a match this long is in none of 1 excerpts of 60 seconds from test" in said


def test_files_of_one_name_are_told_apart_and_one_may_come_down_a_pipe(at_corpus):
    (at_corpus / "more" / "deeper").mkdir(parents=True)
    (at_corpus / "more" / "deeper" / "copy.mid").write_bytes((at_corpus / "songs" / "copy.mid").read_bytes())
    zipped(at_corpus / "more.zip", {"a/copy.mid": (at_corpus / "songs" / "copy.mid").read_bytes()})
    words = ["originality", "songs/copy.mid", "more", "more.zip", "-"]
    done = CliRunner().invoke(app, words, input=(at_corpus / "songs" / "copy.mid").read_bytes())

    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for _, name in lines] == ["songs/copy.mid", "more/deeper/copy.mid", "more.zip/a/copy.mid", "-"]
    assert len({notes for notes, _ in lines}) == 1
    assert all(f"{name}: {notes} notes from" in " ".join(done.stderr.split()) for notes, name in lines)


def test_what_cannot_be_read_is_left_out_unless_it_is_all_there_is(at_corpus):
    (at_corpus / "songs" / "text.mid").write_text("no music")
    done, alone = asked("songs"), asked("songs/text.mid", "songs/text.mid")

    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 2)
    assert "songs/text.mid: is not a MIDI file" in done.stderr
    assert alone.exit_code == 1
    assert alone.stderr.startswith("pamusic: error: songs/text.mid: is not a MIDI file")


def test_json_has_all_of_it_for_a_folder(at_corpus):
    about = json.loads(asked("songs", "--json").stdout)

    copy, own = about["files"]
    assert copy["longest"]["piece"] == "train 4"
    assert copy["longest"]["transposed"] == 3
    assert copy["reference"] == {"split": "test", "excerpt_seconds": 60, "excerpts": 1, "with_as_many": 0}
    assert own["longest"] is None or own["longest"]["notes"] < 20
    assert about["references"][0]["excerpts"] == 1


def test_the_reference_can_be_asked_for_alone(at_corpus):
    told = asked("--reference")

    assert (told.exit_code, told.stdout) == (0, "")
    assert "1 excerpts of 60 s from test" in told.stderr
    assert asked().exit_code == 2
    assert asked("songs/none.mid").exit_code == 1
    assert "no corpus there" in asked("songs", "--corpus", "elsewhere").stderr
    assert Path("corpus/originality.json").is_file()
    assert originality.NUM_EXCERPTS == 100
