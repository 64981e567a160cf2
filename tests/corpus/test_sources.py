"""An archive is opened with care: what it says of itself need not be true."""

import gzip
import io
import os
import struct
import time
import tracemalloc
import zipfile

import pytest
from builders import MAESTRO_HEADER, folder_of_tunes, maestro_like, tune, zipped

from pamusic.cli.midi_input import streamed
from pamusic.corpus.sources import Source, find_sources
from pamusic.errors import PamusicError
from pamusic.music.foreign import unpacked
from pamusic.music.midi import file_bytes, read_midi
from pamusic.music.midi_contents import MAX_FILE_BYTES


def packed(path, data, packing):
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("piece.mid", data)
    return Source(str(path), "piece.mid", "piece.mid")


def test_what_a_zip_holds_is_read(tmp_path):
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert packed(tmp_path / f"{packing}.zip", tune(0), packing).read() == tune(0)


def test_a_packing_without_a_bound_on_memory_is_refused(tmp_path):
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(PamusicError, match=r"is packed in a rare way .* zip it again with deflate"):
            packed(tmp_path / f"{packing}.zip", tune(0), packing).read()


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_more_memory_than_a_file(tmp_path):
    bomb = packed(tmp_path / "bomb.zip", bytes(8 * MAX_FILE_BYTES), zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    for record, field in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(record) + field, 1000)
    (tmp_path / "bomb.zip").write_bytes(data)

    tracemalloc.start()
    with pytest.raises(PamusicError, match=r"piece\.mid: cannot be read \(Bad CRC-32"):
        bomb.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 3 * MAX_FILE_BYTES


def test_a_huge_member_is_unpacked_no_further_than_a_file_may_go(tmp_path):
    bomb = packed(tmp_path / "bomb.zip", bytes(2 * MAX_FILE_BYTES), zipfile.ZIP_DEFLATED)

    with pytest.raises(PamusicError, match=r"piece\.mid: is larger than 16 MiB, the limit") as caught:
        bomb.read()

    assert caught.value.rule == "too large"


def test_hidden_files_are_nobodys_pieces(tmp_path):
    """Such as what macOS puts beside a file on foreign disks, and ours while they are written."""
    folder = tmp_path / "tunes"
    for name in ("a.mid", "._a.mid", ".pamusic-0.mid", ".hidden/b.mid"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tune(0))
    packed = zipped(tmp_path / "tunes.zip", {name: tune(0) for name in ("a.mid", "._a.mid")})

    for path in (folder, packed):
        assert [source.name for source in find_sources([path])[0]] == ["a.mid"]


@pytest.mark.parametrize("name", ["étude.mid", "ピアノ.mid", "a b\n.mid"])
def test_names_are_of_any_script(tmp_path, name):
    (sources, refused, _) = find_sources([zipped(tmp_path / "tunes.zip", {name: tune(0)})])

    assert refused == []
    assert [(source.name, source.read()) for source in sources] == [(name, tune(0))]


@pytest.mark.skipif(os.name == "nt", reason="POSIX links and pipes")
def test_what_cannot_be_read_in_a_folder_is_refused_with_a_reason(tmp_path, monkeypatch):
    folder = folder_of_tunes(tmp_path / "tunes", 2)
    (tmp_path / "elsewhere").mkdir()
    for name, target in (
        ("linked", "../elsewhere"),
        ("gone.mid", "nowhere"),
        ("gone.txt", "nowhere"),
        ("a.mid", "a.mid"),
    ):
        (folder / name).symlink_to(target)
    (folder / ".hidden.mid").symlink_to("nowhere")
    (folder / "copy.mid").symlink_to("0.mid")
    os.mkfifo(folder / "pipe.mid")
    (folder / "locked" / "inner").mkdir(parents=True)
    scandir = os.scandir

    def scan(path):
        if str(path).rstrip("/").endswith("inner"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)

    found = find_sources([folder])

    assert [source.name for source in found.sources] == ["copy.mid", "1.mid"]  # a file once, by its last name
    assert {refusal.name: refusal.reason for refusal in found.refused} == {
        "a.mid": "is a link that cannot be followed (Too many levels of symbolic links); fix or remove it",
        "gone.mid": "is a broken link, or a link to a special file; fix or remove it",
        "linked": "is a link to a folder, which is not followed; pass that folder",
        "locked/inner/": "cannot be opened (Permission denied); check its permissions",
        "pipe.mid": "is a device or a pipe; put a file in its place",
    }
    assert found.left_out == ["gone.txt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_one_is_taken_and_one_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for number, name in enumerate(["a.mid", "a.mid", "b/c.mid", "b\\c.mid", "n.txt", "n.txt"]):
            archive.writestr(name, tune(number))

    found = find_sources([tmp_path / "twice.zip"])

    assert [(source.name, source.read()) for source in found.sources] == [("a.mid", tune(1)), ("b/c.mid", tune(2))]
    assert [(each.name, each.reason) for each in found.refused] == [
        (name, "the archive has several files of this name; rename them") for name in ("a.mid", "b/c.mid")
    ]
    assert sorted(found.left_out) == ["n.txt", "n.txt"]


@pytest.mark.parametrize("place", ["folder", "archive"])
def test_a_table_that_is_large_or_broken_does_not_stop_a_folder(tmp_path, monkeypatch, place):
    monkeypatch.setattr("pamusic.corpus.sources.MAX_TABLE_BYTES", 20 * 2**20)
    files = {
        "a.mid": tune(0),
        "b.csv": b"1,2,3\n" * (3 * 2**20),
        "c.csv": b"\x1f\x8b\x08 no gzip",
        "d.csv": b"1,2,3\n" * (4 * 2**20),
        "maestro.csv": (MAESTRO_HEADER + f"C,{100_000 * 'T'},test,2004,a.mid,a.wav,5\n" * 180).encode(),
    }
    path = tmp_path / "all"
    if place == "archive":
        path = zipped(tmp_path / "all.zip", files)
    else:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)

    found = find_sources([path])

    assert [(source.name, source.split) for source in found.sources] == [("a.mid", "test")]
    assert found.left_out == ["b.csv", "c.csv"]
    assert [(each.name, each.reason) for each in found.refused] == [
        ("d.csv", "is larger than 20 MiB, the limit for tables; if it is MAESTRO's, download it again")
    ]


def bytes_of_zip(tmp_path, members):
    path = zipped(tmp_path / "made.zip", members)
    data = path.read_bytes()
    path.unlink()
    return data


def of_all_kinds(tmp_path):
    """Files by name: those that can be read in whatever wrapping, and others."""
    data = tune(0)
    wrapped = b"RMIDdata" + struct.pack("<I", len(data)) + data
    music = {
        "a.mid": data,
        "b.MIDI": data,
        "c.kar": data,
        "d.rmi": b"RIFF" + struct.pack("<I", len(wrapped)) + wrapped,
        "e.smf": data,
        "f.mid.gz": gzip.compress(data),
        "g/h.KAR.GZ": gzip.compress(data),
        "i.zip": bytes_of_zip(
            tmp_path, {"j.kar": data, "k/l.mid": data, "m.txt": b"", "n.mscz": b"", "../o.mid": data}
        ),
    }
    return music, {"p.wav": b"", "q/r.musicxml": b"", "s.csv": b"a,b\n1,2\n", "t.gz": b"", "u": b""}


TAKEN = ["a.mid", "b.MIDI", "c.kar", "d.rmi", "e.smf", "f.mid.gz", "g/h.KAR.GZ", "i.zip/j.kar", "i.zip/k/l.mid"]
LEFT_OUT = ["i.zip/m.txt", "i.zip/n.mscz", "p.wav", "q/r.musicxml", "s.csv", "t.gz", "u"]


@pytest.mark.parametrize("place", ["folder", "archive"])
def test_every_ending_that_can_be_read_is_taken_and_the_rest_is_named(tmp_path, place):
    music, others = of_all_kinds(tmp_path)
    path = tmp_path / "all"
    if place == "archive":
        path = zipped(tmp_path / "all.zip", music | others)
    else:
        for name, data in (music | others).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)

    found = find_sources([path])

    assert [source.name for source in found.sources] == TAKEN
    assert sorted(found.left_out) == LEFT_OUT
    assert [refusal.name for refusal in found.refused] == ["i.zip/../o.mid"]
    assert all(read_midi(source.read()).equals(read_midi(tune(0))) for source in found.sources)
    assert len({source.where for source in found.sources}) == len(TAKEN)


def test_the_table_of_an_archive_within_a_folder_gives_its_splits(tmp_path):
    folder = maestro_like(tmp_path / "maestro")
    names = ("maestro-v3.0.0.csv", *(f"2004/take-{number}.midi" for number in range(3)))
    (tmp_path / "all").mkdir()
    zipped(tmp_path / "all" / "m.zip", {name: (folder / name).read_bytes() for name in names})

    found = find_sources([tmp_path / "all"])

    assert [(source.name, source.split) for source in found.sources] == [
        ("m.zip/2004/take-0.midi", "train"),
        ("m.zip/2004/take-1.midi", "validation"),
        ("m.zip/2004/take-2.midi", "test"),
    ]
    assert found.left_out == []


def test_a_broken_archive_among_others_is_refused_and_the_others_are_taken(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 no archive")
    (tmp_path / "a.mid").write_bytes(tune(0))

    for found in (
        find_sources([tmp_path]),
        find_sources([zipped(tmp_path / "z.zip", {"a.mid": tune(0), "broken.zip": b"PK\3\4 no archive"})]),
    ):
        assert [source.name for source in found.sources][:1] == ["a.mid"]
        assert found.refused[0].name == "broken.zip"
        assert found.refused[0].reason.startswith("is a broken zip archive")


def test_what_gzip_packs_is_bounded_and_whole(tmp_path):
    for data, says in (
        (gzip.compress(bytes(MAX_FILE_BYTES + 1)), r"a\.mid\.gz: is larger than 16 MiB, the limit"),
        (gzip.compress(gzip.compress(tune(0))), r"a\.mid\.gz: is not a MIDI file but packed by gzip more than once"),
        (gzip.compress(tune(0))[:-30], r"a\.mid\.gz: is a broken gzip file \(it is cut off\); download it again"),
        (gzip.compress(tune(0))[:10] + b"\xff\xff\xff\xff", r"a\.mid\.gz: is a broken gzip file"),
    ):
        (tmp_path / "a.mid.gz").write_bytes(data)
        with pytest.raises(PamusicError, match=says):
            Source(None, str(tmp_path / "a.mid.gz"), "a.mid.gz").read()

    (tmp_path / "a.mid.gz").write_bytes(gzip.compress(tune(0)[:50]) + gzip.compress(tune(0)[50:]))
    assert Source(None, str(tmp_path / "a.mid.gz"), "a.mid.gz").read() == tune(0)


def test_many_small_members_of_a_gzip_file_take_time_in_proportion():
    """Were the rest copied for each, eight times as many would take 64 times as long."""
    member = gzip.compress(b"")

    def seconds(num_members):
        began = time.process_time()
        assert unpacked(member * num_members + gzip.compress(tune(0)), "a.mid.gz") == tune(0)
        return time.process_time() - began

    assert seconds(160_000) < 24 * seconds(20_000)


@pytest.mark.parametrize("read", ["path", "standard input", "source", "bytes"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(gzip.compress(tune(0))), "is not a MIDI file but packed by gzip more than once; unpack it"),
        (gzip.compress(bytes(40 * 2**20)), "is larger than 16 MiB, the limit"),
        (bytes(MAX_FILE_BYTES + 1), "is larger than 16 MiB, the limit"),
    ],
    ids=["twice packed", "packed zeros", "zeros"],
)
def test_a_packed_file_is_under_the_same_rules_wherever_it_is_read(tmp_path, monkeypatch, read, data, says):
    path = tmp_path / "a.mid.gz"
    path.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    ways = {
        "path": lambda: file_bytes(path),
        "standard input": streamed,
        "source": Source(None, str(path), path.name).read,
        "bytes": lambda: read_midi(data),
    }

    with pytest.raises(PamusicError, match=says):
        ways[read]()


def test_an_archive_two_levels_deep_is_named_and_left_out(tmp_path):
    inner = bytes_of_zip(tmp_path, {"c.mid": tune(0)})
    middle = bytes_of_zip(tmp_path, {"b.mid": tune(1), "inner.zip": inner})

    found = find_sources([zipped(tmp_path / "outer.zip", {"a.mid": tune(2), "middle.zip": middle})])

    assert [source.name for source in found.sources] == ["a.mid", "middle.zip/b.mid"]
    assert found.left_out == ["middle.zip/inner.zip"]


@pytest.mark.parametrize("name", ["score.mxl", "score.mid"])
def test_an_archive_that_is_a_score_is_told_as_one(tmp_path, name):
    (source,) = find_sources([zipped(tmp_path / name, {"META-INF/container.xml": b"", "score.xml": b""})]).sources

    with pytest.raises(PamusicError, match=r"is not a MIDI file but compressed MusicXML \(\.mxl\), a score; export it"):
        read_midi(source.read(), source.name)
