"""An interrupted work is gone on with; what is not whole is never taken for a corpus."""

import json
import subprocess
import sys

import numpy as np
import pytest
from builders import about, folder_of_tunes, maestro_like, tune

from pamusic.corpus.build import tokenize
from pamusic.corpus.corpus import open_corpus
from pamusic.corpus.writer import num_unfinished, writing_corpus
from pamusic.errors import PamusicError
from pamusic.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("performance")


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def tunes_and_trouble(folder):
    """Nine files in a row: tunes, a broken one, and one that has the notes of the first."""
    folder_of_tunes(folder, 9)
    (folder / "2.mid").write_bytes(b"broken")
    (folder / "7.mid").write_bytes(tune(0))
    return folder


def interrupted(sources, out, *, after, **options):
    """Tokenizes until `after` files are done, as if Ctrl-C was pressed then."""

    def press(done, of):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize([sources], out, TOKENIZER, num_workers=1, progress=press, **{"keep_after": 0.0, **options})


@pytest.mark.parametrize("options", [{}, {"drop_duplicates": True}])
@pytest.mark.parametrize("after", [1, 3, 8, 9])
def test_gone_on_with_it_becomes_what_it_would_have_been(tmp_path, after, options):
    folder = tunes_and_trouble(tmp_path / "tunes")
    whole = tokenize([folder], tmp_path / "whole", TOKENIZER, num_workers=1, **options)

    interrupted(folder, tmp_path / "corpus", after=after, **options)
    assert not (tmp_path / "corpus").exists()
    assert num_unfinished(tmp_path / "corpus") == after
    again = tokenize([folder], tmp_path / "corpus", TOKENIZER, num_workers=2, **options)

    assert contents(tmp_path / "corpus") == contents(tmp_path / "whole")
    assert again.num_resumed == after
    assert (again.splits, again.refused, again.duplicates) == (whole.splits, whole.refused, whole.duplicates)
    assert names(tmp_path) == ["corpus", "tunes", "whole"]


def test_twice_interrupted_is_as_good(tmp_path):
    folder = tunes_and_trouble(tmp_path / "tunes")
    tokenize([folder], tmp_path / "whole", TOKENIZER, num_workers=1)

    interrupted(folder, tmp_path / "corpus", after=3)
    interrupted(folder, tmp_path / "corpus", after=6)

    assert tokenize([folder], tmp_path / "corpus", TOKENIZER).num_resumed == 6
    assert contents(tmp_path / "corpus") == contents(tmp_path / "whole")


def test_files_that_are_done_are_not_read_again(tmp_path):
    folder = tunes_and_trouble(tmp_path / "tunes")
    interrupted(folder, tmp_path / "corpus", after=5)
    asked = []

    tokenize(
        [folder], tmp_path / "corpus", TOKENIZER, num_workers=1, progress=lambda done, of: asked.append((done, of))
    )

    assert asked == [(6, 9), (7, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize("what", ["a file changed", "a file came", "another tokenizer", "another option"])
def test_another_work_begins_anew(tmp_path, what):
    folder = tunes_and_trouble(tmp_path / "tunes")
    interrupted(folder, tmp_path / "corpus", after=5)
    tokenizer, options = TOKENIZER, {}
    if what == "a file changed":
        (folder / "0.mid").write_bytes(tune(30))
    elif what == "a file came":
        (folder / "10.mid").write_bytes(tune(10))
    elif what == "another tokenizer":
        (tmp_path / "fine.toml").write_text(TOKENIZER.vocabulary.toml().replace("step_ms = 10", "step_ms = 8"))
        tokenizer = load_tokenizer(str(tmp_path / "fine.toml"))
    else:
        options = {"drop_duplicates": True}

    assert tokenize([folder], tmp_path / "corpus", tokenizer, num_workers=1, **options).num_resumed == 0
    tokenize([folder], tmp_path / "whole", tokenizer, num_workers=1, **options)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["line cut", "line garbled", "ids cut", "ids changed", "journal gone"])
def test_what_a_power_cut_spoiled_is_done_again(tmp_path, damage):
    folder = tunes_and_trouble(tmp_path / "tunes")
    tokenize([folder], tmp_path / "whole", TOKENIZER, num_workers=1)
    interrupted(folder, tmp_path / "corpus", after=6)
    journal, ids = (tmp_path / ".corpus.unfinished" / name for name in ("journal", "tokens.bin"))
    if damage == "line cut":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "line garbled":
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:4], b"\0" * len(lines[4]) + b"\n", *lines[5:]]))
    elif damage == "ids cut":
        ids.write_bytes(ids.read_bytes()[:-9])
    elif damage == "ids changed":
        ids.write_bytes(bytes(2) + ids.read_bytes()[2:])
    else:
        journal.unlink()

    resumed = tokenize([folder], tmp_path / "corpus", TOKENIZER, num_workers=1).num_resumed

    assert resumed == {"line cut": 5, "line garbled": 3, "ids cut": 5, "ids changed": 0, "journal gone": 0}[damage]
    assert contents(tmp_path / "corpus") == contents(tmp_path / "whole")


def test_small_work_leaves_nothing_behind(tmp_path):
    interrupted(tunes_and_trouble(tmp_path / "tunes"), tmp_path / "corpus", after=6, keep_after=5.0)

    assert names(tmp_path) == ["tunes"]


def test_the_old_corpus_stays_until_the_new_one_is_whole(tmp_path):
    folder = tunes_and_trouble(tmp_path / "tunes")
    tokenize([folder / "0.mid"], tmp_path / "corpus", TOKENIZER)
    before = contents(tmp_path / "corpus")

    interrupted(folder, tmp_path / "corpus", after=6, force=True)
    assert contents(tmp_path / "corpus") == before

    with pytest.raises(PamusicError, match="is a corpus already"):
        tokenize([folder], tmp_path / "corpus", TOKENIZER)
    tokenize([folder], tmp_path / "corpus", TOKENIZER, force=True)
    assert len(open_corpus(tmp_path / "corpus")) == 8


def test_what_is_unfinished_is_no_corpus(tmp_path):
    interrupted(tunes_and_trouble(tmp_path / "tunes"), tmp_path / "corpus", after=6)

    with pytest.raises(PamusicError, match="no corpus there"):
        open_corpus(tmp_path / ".corpus.unfinished")


def test_two_at_one_place_do_not_disturb_each_other(tmp_path):
    pytest.importorskip("fcntl")
    place = tmp_path / ".corpus.unfinished"
    place.mkdir()
    held = "f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", "import fcntl, sys; " + held, str(place / "journal")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(PamusicError, match="another program is writing it"):
            tokenize([folder_of_tunes(tmp_path / "tunes", 2)], tmp_path / "corpus", TOKENIZER)
        assert names(place) == ["journal", "tokens.bin"]
        other.communicate(b"\n")

    tokenize([tmp_path / "tunes"], tmp_path / "corpus", TOKENIZER)
    assert names(tmp_path) == ["corpus", "tunes"]


def test_the_same_notes_under_two_names_are_told_and_dropped_when_asked(tmp_path):
    folder = maestro_like(tmp_path / "maestro", splits=("train", "validation", "train"))
    (folder / "2004" / "take-1.midi").write_bytes(tune(0))
    (folder / "2004" / "take-2.midi").write_bytes(tune(0))

    (across, within) = tokenize([folder], tmp_path / "all", TOKENIZER).duplicates

    assert (across.name, across.split, across.of, across.of_split) == (
        "2004/take-1.midi",
        "validation",
        "2004/take-0.midi",
        "train",
    )
    assert (across.crosses_splits, within.crosses_splits) == (True, False)
    assert about(tmp_path / "all")["duplicates"] == [
        ["2004/take-1.midi", "2004/take-0.midi"],
        ["2004/take-2.midi", "2004/take-0.midi"],
    ]

    dropping = tokenize([folder], tmp_path / "once", TOKENIZER, drop_duplicates=True)
    assert [piece.name for piece in open_corpus(tmp_path / "once").pieces] == ["2004/take-0.midi"]
    assert [(each.name, each.reason) for each in dropping.refused] == [
        ("2004/take-1.midi", "has the same notes as 2004/take-0.midi"),
        ("2004/take-2.midi", "has the same notes as 2004/take-0.midi"),
    ]


def test_a_corpus_without_hashes_of_its_pieces_is_still_read(tmp_path):
    tokenize([folder_of_tunes(tmp_path / "tunes", 2)], tmp_path / "corpus", TOKENIZER)
    table = about(tmp_path / "corpus")
    fingerprint = open_corpus(tmp_path / "corpus").fingerprint
    for piece in table["pieces"]:
        del piece["content"]
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(table))

    assert open_corpus(tmp_path / "corpus").fingerprint == fingerprint


def test_without_a_name_for_the_work_nothing_is_ever_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing_corpus(tmp_path / "corpus", TOKENIZER, keep_after=0.0) as writer:
        writer.add(np.arange(9), name="x", split="train", num_notes=1, seconds=1.0, sha256="")
        raise KeyboardInterrupt

    assert names(tmp_path) == []
