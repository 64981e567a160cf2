"""Files are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from pamusic.errors import PamusicError
from pamusic.files import free_folder, free_name, recovered, written_anew, written_atomically


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_file_appears_whole_when_the_block_ends(tmp_path):
    with written_atomically(tmp_path / "deep" / "er" / "take.mid") as temporary:
        temporary.write_bytes(b"MThd")
        assert names(temporary.parent) == [temporary.name]
        assert temporary.suffix == ".mid"

    assert (tmp_path / "deep" / "er" / "take.mid").read_bytes() == b"MThd"
    assert names(tmp_path / "deep" / "er") == ["take.mid"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_block_leaves_everything_as_it_was(tmp_path, failure):
    (tmp_path / "take.mid").write_bytes(b"before")

    with pytest.raises(failure), written_atomically(tmp_path / "take.mid") as temporary:
        temporary.write_bytes(b"half")
        raise failure
    with pytest.raises(failure), written_atomically(tmp_path / "new" / "folder" / "take.mid"):
        raise failure

    assert names(tmp_path) == ["take.mid"]
    assert (tmp_path / "take.mid").read_bytes() == b"before"


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(PamusicError, match=r"take\.mid: the disk is full; free some space") as caught:
        with written_atomically(tmp_path / "take.mid"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_file_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(PamusicError, match=r"it is a folder"), written_atomically(tmp_path):
        pass
    for path in (tmp_path / "file" / "take.mid", tmp_path / "file" / "deeper" / "take.mid"):
        with pytest.raises(PamusicError, match="part of its path is a file"), written_atomically(path):
            pass


def test_names_no_file_can_have_are_refused(tmp_path):
    with pytest.raises(PamusicError, match="too long"), written_atomically(tmp_path / ("x" * 300)) as temporary:
        temporary.write_text("")
    with pytest.raises(PamusicError, match="zero character"), written_atomically(tmp_path / "a\0b"):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write_to_is_one_line(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(PamusicError, match="permission denied"), written_atomically(tmp_path / "take.mid"):
        pass


def test_an_error_about_another_file_is_not_ours_to_explain(tmp_path):
    with pytest.raises(FileNotFoundError), written_atomically(tmp_path / "take.mid"):
        (tmp_path / "missing.mid").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
def test_modes_and_links_are_kept(tmp_path):
    (tmp_path / "real.mid").write_text("before")
    (tmp_path / "real.mid").chmod(0o640)
    (tmp_path / "link.mid").symlink_to("real.mid")

    with written_atomically(tmp_path / "link.mid") as temporary:
        temporary.write_text("after")

    assert (tmp_path / "link.mid").is_symlink()
    assert (tmp_path / "real.mid").read_text() == "after"
    assert stat.S_IMODE((tmp_path / "real.mid").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_device_is_written_not_replaced():
    with written_atomically(os.devnull) as lent:
        lent.write_bytes(b"gone")

    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_free_name_is_numbered_from_two(tmp_path):
    assert free_name(tmp_path / "take.wav") == tmp_path / "take.wav"

    (tmp_path / "take.wav").touch()
    assert free_name(tmp_path / "take.wav") == tmp_path / "take-2.wav"

    (tmp_path / "take-2.wav").touch()
    assert free_name(tmp_path / "take.wav") == tmp_path / "take-3.wav"


def test_where_we_are_and_the_root_are_folders_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(recovered(Path(name))) for name in (".", "/", "..")] == [".", "/", ".."]


def test_what_a_killed_program_left_aside_is_found_through_a_link(tmp_path):
    (tmp_path / "elsewhere" / ".corpus.old").mkdir(parents=True)
    (tmp_path / "corpus").symlink_to(tmp_path / "elsewhere" / "corpus")
    assert recovered(tmp_path / "corpus").is_dir()
    assert names(tmp_path / "elsewhere") == ["corpus"]


def test_two_that_write_at_once_under_a_free_name_both_keep_their_work(tmp_path):
    with written_anew(tmp_path / "take.mid") as one, written_anew(tmp_path / "take.mid") as two:
        one.file.write_bytes(b"one")
        two.file.write_bytes(b"two")

    assert (one.name.name, two.name.name) == ("take-2.mid", "take.mid")
    assert (one.name.read_bytes(), two.name.read_bytes()) == (b"one", b"two")
    assert names(tmp_path) == ["take-2.mid", "take.mid"]


def test_a_failed_block_takes_no_name(tmp_path):
    with pytest.raises(ValueError), written_anew(tmp_path / "take.mid"):
        raise ValueError
    assert names(tmp_path) == []


def test_a_free_folder_is_there_before_anybody_else_can_take_its_name(tmp_path):
    assert [free_folder(tmp_path / "runs" / "small").name for _ in range(3)] == ["small", "small-2", "small-3"]

    (tmp_path / "file").write_text("")
    with pytest.raises(PamusicError, match="part of its path is a file"):
        free_folder(tmp_path / "file" / "small")
