"""`pamusic tokenize` as a person uses it, and what it says to what is wrong."""

import os
import signal
import subprocess
import sys
import time

import pytest
from builders import about, control, folder_of_tunes, maestro_like, midi_file, note_off, note_on, program, tune, zipped
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.corpus.corpus import open_corpus
from pamusic.corpus.sources import split_by_content


def pamusic(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def refusal(done, folder):
    """The one line of an error; nothing was written beside it."""
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert not [name for name in names(folder) if name.startswith(".")]
    (line,) = done.stderr.splitlines()
    assert line.startswith("pamusic: error: ")
    return line


def test_the_path_goes_to_standard_output_and_the_table_to_standard_error(tmp_path):
    folder = maestro_like(tmp_path / "maestro", splits=("train", "train", "test"))

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus", "--workers", 1)

    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'corpus'}\n"
    rows = [line.split() for line in done.stderr.replace("│", " ").splitlines()]
    assert [row[:3] for row in rows if row and row[0] in ("train", "validation", "test")] == [
        ["train", "2", "40"],
        ["validation", "0", "0"],
        ["test", "1", "20"],
    ]
    assert ["in", "all", "3", "60"] in [row[:4] for row in rows]
    assert done.stderr.splitlines()[-1].endswith("seconds")
    assert len(open_corpus(tmp_path / "corpus")) == 3


def test_where_nothing_can_be_trained_on_that_is_told(tmp_path):
    said = {}
    for split in ("train", "test"):
        folder = maestro_like(tmp_path / split, splits=(split,))
        said[split] = pamusic("tokenize", folder, "-o", tmp_path / f"of-{split}", "--workers", 1).stderr

    assert "there is nothing to train on" in said["test"]
    assert "there is nothing to train on" not in said["train"]


def test_a_corpus_without_a_validation_piece_is_warned_about(tmp_path):
    """From five files up it has one, and the table counts it."""
    few, enough = (
        pamusic("tokenize", folder_of_tunes(tmp_path / f"{num}", num, start=20), "-o", tmp_path / f"of-{num}")
        for num in (2, 5)
    )
    assert {piece["split"] for piece in about(tmp_path / "of-2")["pieces"]} == {"train"}
    assert "warning: there is no validation piece" in few.stderr
    assert "warning" not in enough.stderr
    rows = [line.split()[:2] for line in enough.stderr.replace("│", " ").splitlines()]
    for split in ("train", "validation", "test"):
        pieces = [piece for piece in about(tmp_path / "of-5")["pieces"] if piece["split"] == split]
        assert [split, str(len(pieces))] in rows
        assert pieces or split != "validation"


@pytest.mark.parametrize(
    ("num_free", "official", "num_validation"),
    [
        (6, ("train",), 1),
        (6, ("train", "test"), 1),
        (4, ("test",), 1),
        (3, ("train",), 0),
        (1, ("test",) * 5, 0),  # it is the only piece to train on
        (0, ("train",) * 6, 0),
        (6, ("validation",), 1),
    ],
)
def test_one_of_the_pieces_without_an_official_split_is_for_validation(tmp_path, num_free, official, num_validation):
    folder = maestro_like(tmp_path / "maestro", splits=official)
    for number in range(num_free):
        (folder / f"{number}.mid").write_bytes(tune(FOR_TRAINING[number]))

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus", "--workers", 1)

    pieces = about(tmp_path / "corpus")["pieces"]
    assert [piece["split"] for piece in pieces if "take" in piece["name"]] == list(official)
    assert [piece["split"] for piece in pieces].count("validation") == num_validation
    assert ("warning" in done.stderr) == (num_validation == 0)


FOR_TRAINING = [seed for seed in range(20, 40) if split_by_content(tune(seed)) == "train"]


@pytest.mark.parametrize(
    ("splits", "tunes", "says"),
    [
        (("train",) * 6, (), "the table of splits has none; add a row with the split validation, or files without"),
        (("train",), (20, 21), "add pieces (a folder needs at least 5 different ones)"),
        (("train",), (20, 20, 20, 21, 21), "every candidate has the same notes as another piece; add different"),
    ],
)
def test_a_warning_about_validation_says_what_to_do(tmp_path, splits, tunes, says):
    folder = maestro_like(tmp_path / "maestro", splits=splits)
    for number, seed in enumerate(tunes):
        (folder / f"{number}.mid").write_bytes(tune(FOR_TRAINING[seed - 20]))

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus", "--workers", 1)

    assert f"training cannot tell which weights are best; {says}" in done.stderr


def test_folders_archives_and_files_together_and_a_tokenizer_of_ones_own(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 2)
    archive = zipped(tmp_path / "tunes.zip", {"2.mid": tune(2)})
    (tmp_path / "3.mid").write_bytes(tune(3))
    toml = tmp_path / "mine.toml"
    toml.write_text(open_corpus(made(tmp_path)).tokenizer.vocabulary.toml().replace('"notes"', '"mine"'))

    done = pamusic("tokenize", folder, archive, tmp_path / "3.mid", "-o", tmp_path / "all", "--tokenizer", toml)

    assert done.exit_code == 0, done.output
    assert [piece["name"] for piece in about(tmp_path / "all")["pieces"]] == ["0.mid", "1.mid", "2.mid", "3.mid"]
    assert about(tmp_path / "all")["tokenizer"] == "mine"


def made(folder):
    """A corpus of one piece."""
    (folder / "one.mid").write_bytes(tune(0))
    assert pamusic("tokenize", folder / "one.mid", "-o", folder / "corpus").exit_code == 0
    return folder / "corpus"


def test_what_is_refused_is_told_twenty_times_and_counted_beyond(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    for number in range(25):
        (folder / f"broken-{number:02}.mid").write_bytes(b"not MIDI")

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    told = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert done.exit_code == 0
    assert len(told) == 20
    assert told[0] == (
        "refused: broken-00.mid: is not a MIDI file (it begins with b'not ', not b'MThd'); "
        "use a Standard MIDI File (.mid)"
    )
    assert f"… and 5 more, in {tmp_path / 'corpus' / 'corpus.json'}" in done.stderr
    assert len(about(tmp_path / "corpus")["refused"]) == 25


def drums(num_notes=1):
    strokes = [[(9 * n, note_on(38, channel=9)), (9 * n + 9, note_off(38, 9))] for n in range(num_notes)]
    return midi_file([message for stroke in strokes for message in stroke])


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.mid", b"not MIDI at all", "a.mid: is not a MIDI file"),
        ("a.txt", b"not MIDI at all", "a.txt: is not a MIDI file"),
        ("a.mid", b"", "a.mid: is empty"),
        ("a.mid", tune(0)[:12], "a.mid: is cut off within its header"),
        ("a.mid", midi_file([]), "a.mid: has no notes"),
        ("a.mid", drums(), "a.mid: has only drums"),
        ("a.zip", b"PK\x03\x04 and then nothing", "is not a zip archive, or a broken one"),
    ],
)
def test_a_file_that_cannot_be_taken(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)

    assert says in refusal(pamusic("tokenize", tmp_path / name, "-o", tmp_path / "corpus"), tmp_path)
    assert names(tmp_path) == [name]


def test_nothing_to_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no MIDI file (.mid, .midi, .kar, .rmi, .smf) found" in refusal(
        pamusic("tokenize", tmp_path / "empty"), tmp_path
    )
    assert "no such file or folder" in refusal(pamusic("tokenize", tmp_path / "none"), tmp_path)
    assert "is a device or a pipe" in refusal(pamusic("tokenize", os.devnull), tmp_path)

    archive = zipped(tmp_path / "evil.zip", {"../evil.mid": tune(0)})
    assert "../evil.mid: its path leads outside the archive" in refusal(pamusic("tokenize", archive), tmp_path)


def test_a_broken_archive(tmp_path):
    whole = zipped(tmp_path / "tunes.zip", {f"{number}.mid": tune(number) for number in range(3)}).read_bytes()
    middle = whole.index(tune(1))
    (tmp_path / "tunes.zip").write_bytes(whole[: middle + 100] + b"\0\1\2\3" + whole[middle + 104 :])

    done = pamusic("tokenize", tmp_path / "tunes.zip", "-o", tmp_path / "corpus")
    assert done.exit_code == 0
    assert "refused: 1.mid: cannot be read (Bad CRC-32" in done.stderr
    assert len(about(tmp_path / "corpus")["pieces"]) == 2

    (tmp_path / "tunes.zip").write_bytes(whole[: len(whole) // 2])
    done = pamusic("tokenize", tmp_path / "tunes.zip", "-o", tmp_path / "other")
    assert "is not a zip archive, or a broken one" in refusal(done, tmp_path)


def test_when_all_is_refused_the_reason_is_the_one_most_have(tmp_path):
    folder = tmp_path / "drums"
    folder.mkdir()
    (folder / "0.mid").write_bytes(b"")
    for number in range(1, 4):
        (folder / f"{number}.mid").write_bytes(drums(number))

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    assert refusal(done, tmp_path).endswith(
        "all 4 files were refused; 3 of them by the rule \u201conly drums\u201d, "
        "such as 1.mid: has only drums (1 notes); use a piano file"
    )
    assert names(tmp_path) == ["drums"]


def test_what_was_repaired_is_told_a_line_each_and_counted_at_the_end(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    stuck = [(0, note_on(60)), (0, note_on(64)), (96, note_off(64))]
    (folder / "stuck.mid").write_bytes(midi_file(stuck))
    for number in range(20):
        (folder / f"twice-{number:02}.mid").write_bytes(midi_file([*stuck, (200 + number, note_on(60))])[:-4])

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    told = done.stderr.splitlines()
    in_corpus = {piece["name"]: piece["repairs"] for piece in about(tmp_path / "corpus")["pieces"]}
    assert done.exit_code == 0, done.output
    assert "repaired: stuck.mid: 1 note without an end, ended at the key's next note or the track's end" in told
    assert f"… and 1 more, in {tmp_path / 'corpus' / 'corpus.json'}" in told
    assert told[-2] == ("repaired in 21 of 22 files: notes without an end 21, cut off 20, notes without length 20")
    assert in_corpus["0.mid"] == []
    assert [kind for kind, _, _ in in_corpus["twice-00.mid"]] == [
        "cut off",
        "notes without an end",
        "notes without length",
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere file names are text")
def test_a_files_name_need_not_be_text(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    with open(os.fsencode(folder) + b"/\xe9tude.mid", "wb") as file:
        file.write(tune(1))
    with open(os.fsencode(folder) + b"/\x83s\x83A.mid", "wb") as file:
        file.write(b"broken")

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    assert done.exit_code == 0, done.output
    assert len(open_corpus(tmp_path / "corpus")) == 2
    assert "refused: \\udc83s\\udc83A.mid: is not a MIDI file" in done.stderr


def test_other_tracks_than_the_pianos_are_taken_when_told(tmp_path):
    (tmp_path / "violin.mid").write_bytes(midi_file([(0, program(40)), (0, note_on(60)), (9, note_off(60))]))

    refused = pamusic("tokenize", tmp_path / "violin.mid", "-o", tmp_path / "corpus")
    assert "select them with --tracks all or --tracks 1" in refusal(refused, tmp_path)
    unknown = pamusic("tokenize", tmp_path, "--tracks", "violin")
    assert unknown.exit_code == 2
    assert "--tracks must be piano, all, or numbers from 1 like 1,3, got 'violin'" in unknown.stderr

    done = pamusic("tokenize", tmp_path / "violin.mid", "-o", tmp_path / "corpus", "--tracks", "1")
    assert done.exit_code == 0, done.output
    assert about(tmp_path / "corpus")["tracks"] == [1]


def test_a_corpus_is_replaced_only_when_told(tmp_path):
    corpus = made(tmp_path)
    before = about(corpus)
    folder = folder_of_tunes(tmp_path / "tunes", 2, start=5)

    done = pamusic("tokenize", folder, "-o", corpus)
    assert "is a corpus already; replace it with --overwrite" in refusal(done, tmp_path)
    assert about(corpus) == before

    (tmp_path / "bad.mid").write_bytes(b"bad")
    assert "is not a MIDI" in refusal(pamusic("tokenize", tmp_path / "bad.mid", "-o", corpus, "--overwrite"), tmp_path)
    assert about(corpus) == before

    assert pamusic("tokenize", folder, "-o", corpus, "--overwrite").exit_code == 0
    assert len(about(corpus)["pieces"]) == 2


def test_nothing_else_is_ever_replaced(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    (tmp_path / "file").write_text("precious")
    corpus = made(tmp_path)
    (corpus / "notes.txt").write_text("precious")

    for place, says in (
        (folder, "exists and is not a corpus"),
        (tmp_path / "file", "exists and is not a corpus"),
        (corpus, "has files that do not belong to a corpus (notes.txt)"),
        (tmp_path / "file" / "corpus", "part of its path is a file"),
    ):
        assert says in refusal(pamusic("tokenize", folder, "-o", place, "--overwrite"), tmp_path)
    assert (tmp_path / "file").read_text() == (corpus / "notes.txt").read_text() == "precious"
    assert names(folder) == ["0.mid"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_one_may_not_write_to(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    (tmp_path / "locked").mkdir(mode=0o500)

    assert "permission denied" in refusal(pamusic("tokenize", folder, "-o", tmp_path / "locked" / "corpus"), tmp_path)


def test_a_wrong_tokenizer_is_answered_with_the_right_ones(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus", "--tokenizer", "remi")

    assert "no tokenizer is called 'remi'; use notes, performance" in refusal(done, tmp_path)


def started(*words, **options):
    command = [sys.executable, "-m", "pamusic", *(str(word) for word in words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 3)

    def room_for_a_hundred_bytes():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = started("tokenize", folder, "-o", tmp_path / "corpus", preexec_fn=room_for_a_hundred_bytes)
    out, err = done.communicate()

    assert (done.returncode, out) == (1, "")
    assert err.splitlines() == [
        f"pamusic: error: cannot write {tmp_path / 'corpus'}: "
        "the file would be larger than the disk or your limits allow; write elsewhere"
    ]
    assert names(tmp_path) == ["tunes"]


@pytest.fixture
def at_work(tmp_path):
    """The command amid its work on an archive of 4,000 pieces, with two workers, in place of a corpus; and that."""
    corpus = made(tmp_path)
    piece = tune(0, 300)
    archive = zipped(tmp_path / "many.zip", {f"{number}.mid": piece for number in range(4000)})
    process = started("tokenize", archive, "-o", corpus, "--overwrite", "--workers", 2, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(children(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    yield process, corpus
    process.kill()
    process.communicate()


def children(process):
    try:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at workers in /proc")
@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("interrupt", 130, "pamusic: interrupted"),
        ("terminate", 143, ""),
        ("terminate all", 143, ""),
    ],
)
def test_stopped_early_it_leaves_the_old_corpus_and_nothing_else(tmp_path, at_work, what, code, says):
    process, corpus = at_work
    before, workers = about(corpus), children(process)
    if what == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and to its workers
    elif what == "terminate":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)  # as a system does that goes down

    out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (code, ""), err
    assert len(err.splitlines()) == (1 if says else 0)
    assert err.startswith(says)
    assert names(tmp_path) == ["corpus", "many.zip", "one.mid"]
    assert about(corpus) == before
    assert all_gone(workers)


def all_gone(processes):
    """Whether processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while alive := [process for process in processes if os.path.exists(f"/proc/{process}")]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at workers in /proc")
def test_killed_outright_it_leaves_no_workers_and_is_gone_on_with(tmp_path, at_work):
    process, corpus = at_work
    before, workers = about(corpus), children(process)
    unfinished = tmp_path / ".corpus.unfinished"
    deadline = time.monotonic() + 60
    while not (unfinished / "journal").is_file() or not (unfinished / "journal").stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    process.kill()
    process.communicate()

    assert all_gone(workers)
    assert names(tmp_path) == [".corpus.unfinished", "corpus", "many.zip", "one.mid"]
    assert about(corpus) == before

    done = pamusic("tokenize", tmp_path / "many.zip", "-o", corpus, "--overwrite", "--workers", 2)
    assert done.exit_code == 0, done.stderr
    assert "files had been done before an interruption" in done.stderr
    assert "3,999 pieces have the same notes as another; --drop-duplicates drops them" in done.stderr
    assert len(about(corpus)["pieces"]) == 4000
    assert names(tmp_path) == ["corpus", "many.zip", "one.mid"]


@pytest.mark.parametrize("name", [b"\xff\xfe.mid", b"two\nlines.mid", b"\x1b[31mred.mid", b"%s.mid" % (b"x" * 250)])
def test_odd_names_are_no_trouble(tmp_path, name):
    folder = tmp_path / "odd"
    folder.mkdir()
    path = os.path.join(os.fsencode(folder), name)
    try:
        with open(path, "wb") as file:
            file.write(tune(0))
    except OSError:
        pytest.skip("this file system has no such names")

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    assert done.exit_code == 0, done.stderr
    assert [os.fsencode(piece["name"]) for piece in about(tmp_path / "corpus")["pieces"]] == [name]
    assert os.fsencode(open_corpus(tmp_path / "corpus").pieces[0].name) == name


def test_a_broken_file_of_an_odd_name_is_refused_on_one_line(tmp_path):
    folder = folder_of_tunes(tmp_path / "odd", 1)
    (folder / "two\nlines\x1b[31m.mid").write_bytes(b"broken")

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus")

    assert done.exit_code == 0
    assert "refused: two lines\\x1b[31m.mid: is not a MIDI file" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at workers in /proc")
def test_a_worker_that_is_killed_takes_nothing_with_it(at_work):
    process, corpus = at_work
    os.kill(children(process)[0], signal.SIGKILL)

    _, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert sorted(int(piece["name"].removesuffix(".mid")) for piece in about(corpus)["pieces"]) == list(range(4000))
    assert about(corpus)["refused"] == []


def test_what_is_left_out_or_dropped_is_told(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 1)
    for name in ("notes.txt", "more.TXT", "sound.wav", "LICENSE"):
        (folder / name).write_bytes(b"")
    low = [(0, note_on(20)), (0, note_on(60)), (384, note_off(20)), (384, note_off(60))]
    (folder / "low.mid").write_bytes(midi_file(low, [(0, control(127, channel=1)), (9, control(0, channel=1))]))
    (folder / "twice.mid").write_bytes(tune(7) + tune(7))

    done = pamusic("tokenize", folder, "-o", tmp_path / "corpus", "--tokenizer", "piano")

    assert done.exit_code == 0
    assert (
        "left out 4 files of other kinds (.txt 2, without an ending 1, .wav 1): LICENSE, more.TXT, notes.txt and 1 more"
        in done.stderr
    )
    assert (
        "repaired: low.mid: 1 note outside pitches 21 to 108 of piano, left out; "
        "2 pedal messages on channel 2, which has no notes: ignored\n" in done.stderr
    )
    assert "repaired: twice.mid: 1 MIDI file after the first, left out\n" in done.stderr
