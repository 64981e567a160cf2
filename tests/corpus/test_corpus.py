"""A corpus is a folder that is there entirely or not at all, and says what it was made with."""

import hashlib
import json
import os
import signal
import sys

import numpy as np
import pytest
from builders import about, folder_of_tunes, maestro_like, tune, zipped

from pamusic.corpus.build import tokenize
from pamusic.corpus.corpus import open_corpus
from pamusic.corpus.sources import find_sources, split_by_content
from pamusic.corpus.writer import writing_corpus
from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = load_tokenizer("performance")


def made(folder, *sources, **options):
    tokenize(list(sources), folder, TOKENIZER, num_workers=1, **options)
    return open_corpus(folder)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_holds_the_ids_of_each_piece(tmp_path):
    corpus = made(tmp_path / "corpus", folder_of_tunes(tmp_path / "tunes", 3))

    assert [piece.name for piece in corpus.pieces] == ["0.mid", "1.mid", "2.mid"]
    for index in range(3):
        assert corpus.piece(index).tolist() == TOKENIZER.encode(read_midi(tune(index))).tolist()
    assert sum(len(corpus.piece(index)) for index in range(3)) == len(corpus.ids)
    assert sorted(contents(tmp_path / "corpus")) == ["corpus.json", "tokenizer.toml", "tokens.bin"]


def test_maestros_table_decides_the_splits(tmp_path):
    folder = maestro_like(tmp_path / "maestro-v3.0.0", splits=("test", "train", "validation", "train"))
    archive = zipped(
        tmp_path / "maestro.zip",
        {
            f"maestro-v3.0.0/{file.relative_to(folder).as_posix()}": file.read_bytes()
            for file in folder.rglob("*.*")
            if file.is_file()
        },
    )
    for source, root in ((folder, ""), (archive, "maestro-v3.0.0/")):
        sources, refused, _ = find_sources([source])

        assert refused == []
        assert [(each.name, each.split) for each in sources] == [
            (f"{root}2004/take-0.midi", "test"),
            (f"{root}2004/take-1.midi", "train"),
            (f"{root}2004/take-2.midi", "validation"),
            (f"{root}2004/take-3.midi", "train"),
        ]
    assert made(tmp_path / "a", folder).fingerprint == made(tmp_path / "b", archive).fingerprint


def test_what_the_table_names_and_is_not_there_is_refused(tmp_path):
    folder = maestro_like(tmp_path / "maestro")
    (folder / "2004" / "take-1.midi").unlink()
    with (folder / "maestro-v3.0.0.csv").open("a") as table:
        table.write("Composer,Title,train,2004,../../evil.mid,x.wav,5\nComposer,Title,train,2004,/evil.mid,x.wav,5\n")

    sources, refused, _ = find_sources([folder])

    assert [source.name for source in sources] == ["2004/take-0.midi", "2004/take-2.midi"]
    assert [(refusal.name, refusal.reason.partition(", but ")[2]) for refusal in refused] == [
        ("2004/take-1.midi", "it is not there"),
        ("../../evil.mid", "its path leads outside the folder"),
        ("/evil.mid", "its path leads outside the folder"),
    ]


def test_a_table_with_splits_of_its_own_is_refused(tmp_path):
    folder = maestro_like(tmp_path / "maestro", splits=("train", "dev"))

    with pytest.raises(PamusicError, match=r"row 2 puts '2004/take-1.midi' into split 'dev'; use one of train, val"):
        find_sources([folder])


def test_files_that_no_table_names_are_split_by_what_is_in_them(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 8)
    before = {piece.sha256: piece.split for piece in made(tmp_path / "a", folder).pieces}
    for file in list(folder.iterdir()):
        file.rename(folder / f"renamed-{9 - int(file.stem)}.midi")

    after = {piece.sha256: piece.split for piece in made(tmp_path / "b", folder).pieces}

    assert before == after
    splits = [split_by_content(bytes([low, high])) for low in range(64) for high in range(64)]
    shares = [splits.count(split) / 4096 for split in ("train", "validation", "test")]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.02)


def splits_of(corpus):
    return {piece.sha256: piece.split for piece in corpus.pieces}


def test_from_five_files_up_a_folder_has_a_validation_piece(tmp_path):
    """One of those that would be trained on moves, the same whatever the names; nothing else changes."""
    for start in range(0, 200, 10):
        files = {str(number): tune(start + number) for number in range(5)}
        before = {hashlib.sha256(data).hexdigest(): split_by_content(data) for data in files.values()}
        archives = [
            zipped(tmp_path / f"{start}-{way}.zip", {f"{name}.mid": data for name, data in each.items()})
            for way, each in enumerate((files, {str(9 - int(name)): data for name, data in files.items()}))
        ]
        one, two = (splits_of(made(tmp_path / archive.stem, archive)) for archive in archives)

        assert one == two
        assert "validation" in one.values()
        changed = [before[each] for each in one if one[each] != before[each]]
        assert changed == ([] if "validation" in before.values() else ["train"])
        fewer = zipped(tmp_path / f"{start}-4.zip", {f"{name}.mid": files[name] for name in "0123"})
        assert splits_of(made(tmp_path / f"{start}-4", fewer)).items() <= before.items()


def test_what_is_moved_to_validation_is_no_copy_of_what_is_trained_on(tmp_path):
    copies = zipped(tmp_path / "copies.zip", {f"{number}.mid": tune(0) for number in range(6)})
    assert {piece.split for piece in made(tmp_path / "a", copies).pieces} == {split_by_content(tune(0))}

    for start in range(10):
        members = {f"{number}.mid": tune(start + number // 2) for number in range(7)}
        pieces = made(tmp_path / f"b{start}", zipped(tmp_path / f"{start}.zip", members)).pieces
        apart = {piece.content for piece in pieces if piece.split == "train"}
        assert not apart & {piece.content for piece in pieces if piece.split == "validation"}


def test_official_splits_stay_as_they_are(tmp_path):
    corpus = made(tmp_path / "corpus", maestro_like(tmp_path / "maestro", splits=("train",) * 6))

    assert {piece.split for piece in corpus.pieces} == {"train"}


def test_archives_tell_other_programs_files_and_wrong_paths_apart(tmp_path):
    archive = zipped(
        tmp_path / "tunes.zip",
        {
            "deep\\er/good.MID": tune(0),
            "../evil.mid": tune(1),
            "/absolute.mid": tune(2),
            "C:/drive.mid": tune(3),
            "__MACOSX/._good.mid": b"resource fork",
            "readme.txt": b"",
            "": b"a member without a name",
        },
    )
    sources, refused, _ = find_sources([archive])

    assert [source.name for source in sources] == ["deep/er/good.MID"]
    assert sources[0].read() == tune(0)
    assert sorted(refusal.name for refusal in refused) == ["../evil.mid", "/absolute.mid", "C:/drive.mid"]
    assert {refusal.reason for refusal in refused} == {"its path leads outside the archive"}


def test_a_file_named_twice_is_one_piece(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 2)

    sources, _, _ = find_sources([folder, folder / "0.mid", tmp_path / "tunes" / ".." / "tunes"])

    assert len(sources) == 2


class Deadly(Tokenizer):
    """A tokenizer whose process dies of pieces of 13 notes."""

    def to_grid(self, performance, **options):
        if len(performance) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().to_grid(performance, **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_file_that_kills_its_worker_is_refused_and_the_others_go_on(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 40)
    (folder / "07-deadly.mid").write_bytes(tune(0, 13))
    (folder / "39-deadly.mid").write_bytes(tune(1, 13))

    summary = tokenize([folder], tmp_path / "corpus", Deadly(TOKENIZER.vocabulary), num_workers=2)

    assert [refusal.name for refusal in summary.refused] == ["07-deadly.mid", "39-deadly.mid"]
    assert {refusal.rule for refusal in summary.refused} == {"killed the process that read it (out of memory?)"}
    assert summary.in_all.num_files == 40


def test_one_worker_or_two_make_the_same_bytes(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 20)
    (folder / "07-broken.mid").write_bytes(b"MThd")
    for num_workers in (1, 2):
        tokenize([folder], tmp_path / str(num_workers), TOKENIZER, num_workers=num_workers)

    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert about(tmp_path / "1")["refused"] == [
        ["07-broken.mid", "is cut off within its header (4 bytes of 14); download it again"]
    ]


def test_the_fingerprint_is_of_pieces_and_tokenizer_not_of_names(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 2)
    first = made(tmp_path / "a", folder)
    (folder / "0.mid").rename(folder / "00.mid")
    assert made(tmp_path / "b", folder).fingerprint == first.fingerprint

    (folder / "2.mid").write_bytes(tune(2))
    assert made(tmp_path / "c", folder).fingerprint != first.fingerprint

    (tmp_path / "fine.toml").write_text(TOKENIZER.vocabulary.toml().replace("step_ms = 10", "step_ms = 8"))
    (folder / "2.mid").unlink()
    tokenize([folder], tmp_path / "d", load_tokenizer(str(tmp_path / "fine.toml")), num_workers=1)
    assert open_corpus(tmp_path / "d").fingerprint != first.fingerprint


def broken(corpus, what):
    """Does some damage to a corpus."""
    table = about(corpus)
    if what == "tokens truncated":
        (corpus / "tokens.bin").write_bytes((corpus / "tokens.bin").read_bytes()[:-2])
    elif what == "tokens gone":
        (corpus / "tokens.bin").unlink()
    elif what == "tokenizer changed":
        text = (corpus / "tokenizer.toml").read_text()
        (corpus / "tokenizer.toml").write_text(text.replace("step_ms = 10", "step_ms = 20"))
    elif what == "tokenizer gone":
        (corpus / "tokenizer.toml").unlink()
    elif what == "table gone":
        (corpus / "corpus.json").unlink()
    elif what == "table truncated":
        (corpus / "corpus.json").write_text((corpus / "corpus.json").read_text()[:-20])
    else:
        if what == "other format":
            table["format"] = 99
        elif what == "other split":
            table["pieces"][0]["split"] = "dev"
        elif what == "pieces overlap":
            table["pieces"][1]["start"] -= 1
        elif what == "piece unknown":
            table["pieces"][1]["mood"] = "sad"
        elif what == "piece missing":
            del table["pieces"][1]
        elif what == "a list":
            table = [1, 2]
        (corpus / "corpus.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("tokens truncated", "tokens.bin must have"),
        ("tokens gone", "bytes, got 0; make it again"),
        ("tokenizer changed", "tokenizer.toml was changed after the corpus was made"),
        ("tokenizer gone", "no such tokenizer file"),
        ("table gone", "no corpus there; make one with pamusic tokenize"),
        ("table truncated", "corpus.json is broken"),
        ("other format", "corpus format must be 1, got 99"),
        ("other split", "must be one of train, validation, test, got 'dev'"),
        ("pieces overlap", "corpus.json is broken"),
        ("piece unknown", "corpus.json is broken"),
        ("piece missing", "corpus.json is broken"),
        ("a list", "corpus.json is broken"),
    ],
)
def test_a_damaged_corpus_is_refused_in_one_line(tmp_path, what, says):
    made(tmp_path / "corpus", folder_of_tunes(tmp_path / "tunes", 2))
    broken(tmp_path / "corpus", what)

    with pytest.raises(PamusicError) as caught:
        open_corpus(tmp_path / "corpus")

    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_what_fails_half_way_leaves_the_old_corpus_and_nothing_else(tmp_path, failure):
    made(tmp_path / "corpus", folder_of_tunes(tmp_path / "tunes", 2))
    before = contents(tmp_path / "corpus")

    with pytest.raises((KeyboardInterrupt, MemoryError, PamusicError)):
        with writing_corpus(tmp_path / "corpus", TOKENIZER, force=True) as writer:
            writer.add(np.arange(9), name="x", split="train", num_notes=1, seconds=1.0, sha256="")
            raise failure

    assert contents(tmp_path / "corpus") == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["corpus", "tunes"]


def test_a_corpus_left_aside_by_a_kill_between_two_renames_is_found_again(tmp_path):
    folder = folder_of_tunes(tmp_path / "tunes", 2)
    made(tmp_path / "corpus", folder)
    (tmp_path / "corpus").rename(tmp_path / ".corpus.old")

    with pytest.raises(PamusicError, match="is a corpus already"):
        made(tmp_path / "corpus", folder)
    assert len(open_corpus(tmp_path / "corpus")) == 2
