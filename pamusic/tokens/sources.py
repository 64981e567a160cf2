"""Where pieces come from: folders, zip archives and single files, MAESTRO among them.

Knows file names, zip members and MAESTRO's table; opens no MIDI. What it finds is a list of `Source`, in an order that
does not depend on the file system.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pamusic.errors import PamusicError
from pamusic.music.contents import MAX_FILE_BYTES, check_size

SPLITS = ("train", "validation", "test")
MIDI_ENDINGS = (".mid", ".midi")
MAESTRO_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
VALIDATION_SHARE = TEST_SHARE = 0.1  # of a folder without official splits: MAESTRO's own are 0.11 and 0.14
MIN_PIECES_TO_VALIDATE = 5  # from so many pieces on, one is for validation whatever their contents say
TAKEN_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound on memory

# All that zipfile raises over broken archives.
BROKEN = (
    *(OSError, EOFError, RuntimeError, KeyError, ValueError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One MIDI file, in a folder or in an archive.

    Attributes:
        container: the archive, or None.
        path: the file's path, within the archive if there is one.
        name: what it is called in the corpus: relative to what the user named.
        split: the official one, or None where the content decides.
    """

    container: str | None
    path: str
    name: str
    split: str | None = None

    @property
    def where(self) -> str:
        """Its path from where the user is, through the archive if there is one: no other file has the same."""
        return self.path if self.container is None else f"{self.container}/{self.path}"

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            PamusicError: it cannot be read.
        """
        try:
            if self.container is None:
                check_size(Path(self.path).stat().st_size, self.name)
                return Path(self.path).read_bytes()
            archive = _open_archive(self.container)
            member = archive.getinfo(self.path)
            check_size(member.file_size, self.name)
            if member.compress_type not in TAKEN_PACKINGS:
                raise PamusicError(
                    f"{self.name}: is packed in a rare way (method {member.compress_type}); "
                    "zip it anew with deflate, the usual one",
                    rule="rare packing",
                )
            with archive.open(member) as file:
                return file.read(MAX_FILE_BYTES)  # whatever size it is said to have
        except BROKEN as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
            raise PamusicError(
                f"{self.name}: cannot be read ({why}); fetch it anew, or check its rights", rule="cannot be read"
            ) from None


@dataclass(frozen=True)
class Refusal:
    """A file that did not become a piece, and why.

    Attributes:
        rule: what refused it, in words that are the same for each file it refuses; the reason by default.
    """

    name: str
    reason: str
    rule: str = ""


def find_sources(paths: list[Path]) -> tuple[list[Source], list[Refusal]]:
    """All MIDI files under folders and in archives, and those named outright.

    A folder or archive with MAESTRO's table in it gives the files of the table, with their official splits; files that
    the table names and that are missing are refused, and so are archive members whose path leads outside.

    Raises:
        PamusicError: a path does not exist, or there is no MIDI file at all.
    """
    sources: list[Source] = []
    refused: list[Refusal] = []
    for path in paths:
        if path.is_dir():
            found, not_found = _in_folder(path)
        elif not path.exists():
            raise PamusicError(f"{path}: no such file or folder; check the path")
        elif not path.is_file():
            raise PamusicError(f"{path}: is a device or a pipe; name a folder, a zip or MIDI files")
        elif zipfile.is_zipfile(path):
            found, not_found = _in_archive(path)
        elif path.suffix.lower() == ".zip":
            raise PamusicError(f"{path}: is not a zip archive, or a broken one; fetch it anew")
        else:
            found, not_found = [Source(None, str(path), path.name)], []
        sources += found
        refused += not_found
    if not sources:
        what = ", ".join(str(path) for path in paths)
        why = f"; {refused[0].name}: {refused[0].reason}" if refused else ""
        raise PamusicError(
            f"{what}: no MIDI file (.mid, .midi) in it{why}; name a folder, a zip or files that have some"
        )
    return _each_once(sources), refused


def _each_once(sources: list[Source]) -> list[Source]:
    """Without files named twice, under whatever names; links are followed."""
    real: dict[str, str] = {}  # of folders and archives: looked up once, for they may hold a hundred thousand files
    once: dict[tuple[str, str], Source] = {}
    for each in sources:
        if each.container is None and os.path.islink(each.path):
            at, member = os.path.split(os.path.realpath(each.path))
        elif each.container is None:
            at, member = os.path.split(each.path)
        else:
            at, member = each.container, each.path
        if at not in real:
            real[at] = os.path.realpath(at)
        once[real[at], member] = each
    return list(once.values())


def split_by_content(data: bytes) -> str:
    """Return the split of a file that has no official one: the same for the same bytes, whatever its name.

    Of few files none may fall into validation; `nearest_to_validation` then says which one is moved there.
    """
    position = _position(hashlib.sha256(data).hexdigest())
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def nearest_to_validation(hashes: Sequence[str], splits: Sequence[str]) -> int:
    """Return the index of the file that is moved to validation where none is there by its content.

    It is the file of the training split whose hash is nearest to those of validation, so it depends on no name and no
    order. Without training files it is the nearest of the others.

    Args:
        hashes: SHA-256 of each file, as hexadecimal digits.
        splits: of each file, by `split_by_content`.
    """

    def distance(index: int) -> tuple[bool, float]:
        position = _position(hashes[index])
        return splits[index] != "train", max(position - TEST_SHARE - VALIDATION_SHARE, TEST_SHARE - position)

    return min(range(len(hashes)), key=distance)


def _position(sha256: str) -> float:
    """A number from 0 to 1 that is as good as random, and depends on the content alone."""
    return int(sha256[:16], 16) / 2**64


def _in_folder(folder: Path) -> tuple[list[Source], list[Refusal]]:
    beginning = "" if str(folder) == os.curdir else os.path.join(folder, "")
    files = list(_files_under(beginning))
    listed: list[Source] = []
    refused: list[Refusal] = []
    for file in files:
        if file.lower().endswith(".csv"):
            table = folder / file
            name_of_table = table.relative_to(folder).as_posix()
            for file_name, split in _maestro_rows(Source(None, str(table), name_of_table)):
                path = table.parent / file_name
                name = os.path.normpath(table.parent.relative_to(folder) / file_name).replace(os.sep, "/")
                if _leads_outside(PurePosixPath(name)):
                    refused.append(Refusal(name, f"{table.name} names it, but its path leads outside the folder"))
                elif path.is_file():
                    listed.append(Source(None, str(path), name, split))
                else:
                    refused.append(Refusal(name, f"{table.name} names it, but it is not there"))
    taken = {source.path for source in listed}
    for file in files:
        if file.lower().endswith(MIDI_ENDINGS) and beginning + file not in taken:
            listed.append(Source(None, beginning + file, file.replace(os.sep, "/")))
    return listed, refused


def _files_under(beginning: str, folder: str = "") -> Iterator[str]:
    """Files of the endings we look at, relative to where we begin, in the order of names at each level; none hidden."""
    try:
        with os.scandir(beginning + folder or os.curdir) as found:
            entries = sorted((each for each in found if each.name[0] != "."), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_under(beginning, folder + entry.name + os.sep)
        elif os.path.splitext(entry.name)[1].lower() in (*MIDI_ENDINGS, ".csv") and entry.is_file():
            yield folder + entry.name


def _in_archive(path: Path) -> tuple[list[Source], list[Refusal]]:
    archive = _open_archive(str(path))
    listed: list[Source] = []
    refused: list[Refusal] = []
    members = {}
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        member = PurePosixPath(info.filename.replace("\\", "/"))
        if (
            info.filename.endswith("/")
            or member.suffix.lower() not in (*MIDI_ENDINGS, ".csv")
            or "__MACOSX" in member.parts
            or member.name.startswith(".")
        ):
            continue
        if _leads_outside(member):
            refused.append(Refusal(info.filename, "its path leads outside the archive"))
        else:
            members[str(member)] = info.filename
    for name, table in members.items():
        if name.lower().endswith(".csv"):
            for file_name, split in _maestro_rows(Source(str(path), table, name)):
                listed_name = str(PurePosixPath(name).parent / file_name)
                if listed_name in members:
                    listed.append(Source(str(path), members[listed_name], listed_name, split))
                else:
                    refused.append(Refusal(listed_name, f"{PurePosixPath(name).name} names it, but it is not there"))
    taken = {source.name for source in listed}
    others = [name for name in members if name.lower().endswith(MIDI_ENDINGS) and name not in taken]
    return listed + [Source(str(path), members[name], name) for name in others], refused


def _leads_outside(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])


def _open_archive(path: str) -> zipfile.ZipFile:
    return _opened(path, os.stat(path).st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: str, changed: int, process: int) -> zipfile.ZipFile:
    """An archive, opened once in each process: a descriptor that two share would have one place to read at."""
    try:
        return zipfile.ZipFile(path)
    except BROKEN as error:
        raise PamusicError(f"{path}: is a broken zip archive ({error}); fetch it anew") from None


def _maestro_rows(table: Source) -> list[tuple[str, str]]:
    """(file name, split) of each row; none where the table is not MAESTRO's.

    Raises:
        PamusicError: the table cannot be read, or has a split that there is not.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(table.read().decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error):
        return []
    if not rows or not set(MAESTRO_COLUMNS) <= set(rows[0]):
        return []
    for number, row in enumerate(rows, start=1):
        if row["split"] not in SPLITS or not row["midi_filename"]:
            raise PamusicError(
                f"{table.name}: row {number} puts {row['midi_filename']!r} into split {row['split']!r}; "
                f"the splits are {', '.join(SPLITS)}"
            )
    return [(row["midi_filename"], row["split"]) for row in rows]
