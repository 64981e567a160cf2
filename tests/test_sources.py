"""An archive is opened with care: what it says of itself need not be true."""

import struct
import tracemalloc
import zipfile

import pytest
from builders import tune, zipped

from pamusic.errors import PamusicError
from pamusic.music.contents import MAX_FILE_BYTES
from pamusic.tokens.sources import Source, find_sources


def packed(path, data, packing):
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("piece.mid", data)
    return Source(str(path), "piece.mid", "piece.mid")


def test_what_a_zip_holds_is_read(tmp_path):
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert packed(tmp_path / f"{packing}.zip", tune(0), packing).read() == tune(0)


def test_a_packing_without_a_bound_on_memory_is_refused(tmp_path):
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(PamusicError, match=r"is packed in a rare way .* zip it anew with deflate"):
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


def test_a_member_that_says_it_is_huge_is_not_unpacked(tmp_path):
    bomb = packed(tmp_path / "bomb.zip", bytes(2 * MAX_FILE_BYTES), zipfile.ZIP_DEFLATED)

    with pytest.raises(PamusicError, match=r"piece\.mid: has 32 MiB, more than any MIDI file we take \(16\)") as caught:
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
    (sources, refused) = find_sources([zipped(tmp_path / "tunes.zip", {name: tune(0)})])

    assert refused == []
    assert [(source.name, source.read()) for source in sources] == [(name, tune(0))]
