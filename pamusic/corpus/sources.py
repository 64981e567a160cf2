"""Find the sources of pieces: folders, zip archives and single files, including MAESTRO.

Knows file names, zip members and MAESTRO's table; opens no MIDI. The result is a list of `Source`, in an order that
does not depend on the file system, and the names of all files that are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from pamusic.errors import PamusicError
from pamusic.music.foreign import read_file

SPLITS = ("train", "validation", "test")
MIDI_ENDINGS = (".mid", ".midi", ".kar", ".rmi", ".smf")  # each also with .gz, such as .mid.gz
IS_MIDI = re.compile(rf"({'|'.join(map(re.escape, MIDI_ENDINGS))})(\.gz)?$", re.IGNORECASE)
MAX_TABLE_BYTES = 64 * 2**20  # limit for a table in a folder; MAESTRO's has 0.3 MiB
MAX_NESTED_BYTES = 256 * 2**20  # limit for an archive within an archive, which is unpacked into memory
MAESTRO_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
VALIDATION_SHARE = TEST_SHARE = 0.1  # for a folder without official splits; MAESTRO's own are 0.11 and 0.14
MIN_PIECES_TO_VALIDATE = 5  # from this number of pieces on, one is for validation
LINK_TO_FOLDER = "is a link to a folder, which is not followed; pass that folder"
TAKEN_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods can unpack to any size in memory

# All exceptions that zipfile raises for broken archives.
BROKEN = (
    *(OSError, EOFError, RuntimeError, KeyError, ValueError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One MIDI file, in a folder or in an archive.

    Attributes:
        container: Path of the archive, or None.
        path: Path of the file, within the archive if there is one.
        name: Name in the corpus, relative to the path that the user gave.
        split: Official split; None if the content decides.
        nested: Path of an archive within `container` that holds `path`; empty if there is none.
    """

    container: str | None
    path: str
    name: str
    split: str | None = None
    nested: str = ""

    @property
    def where(self) -> str:
        """Path from the working directory, through the archive if there is one; unique for each file."""
        return "/".join(part for part in (self.container, self.nested, self.path) if part)

    def read(self) -> bytes:
        """Return the bytes of a MIDI file, unpacked if gzip has packed them.

        Raises:
            PamusicError: the file cannot be read, or is larger than any MIDI file of music.
        """
        with self._opened() as file:
            return read_file(file, self.name)

    def read_table(self) -> bytes:
        """Return the bytes of a table.

        Raises:
            PamusicError: the table cannot be read, or is larger than any table of pieces.
        """
        with self._opened() as file:
            table = file.read(MAX_TABLE_BYTES + 1)
        if len(table) > MAX_TABLE_BYTES:
            raise PamusicError(
                f"{self.name}: is larger than {MAX_TABLE_BYTES / 2**20:.0f} MiB, the limit for tables; "
                "if it is MAESTRO's, download it again",
                rule="too large",
            )
        return table

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the file; raise a `PamusicError` for any problem with it or its archive."""
        try:
            if self.container is None:
                with open(self.path, "rb") as file:
                    yield file
                return
            archive = _open_archive(self.container, self.nested)
            info = archive.getinfo(self.path)
            if info.compress_type not in TAKEN_PACKINGS:
                raise PamusicError(
                    f"{self.name}: is packed in a rare way (method {info.compress_type}); "
                    "zip it again with deflate, the usual method",
                    rule="rare packing",
                )
            with archive.open(info) as member:
                yield cast("BinaryIO", member)
        except BROKEN as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
            raise PamusicError(
                f"{self.name}: cannot be read ({why}); download it again, or check its permissions",
                rule="cannot be read",
            ) from None


@dataclass(frozen=True)
class Refusal:
    """A file that did not become a piece, and the reason.

    Attributes:
        rule: Rule that refused the file, in words that are equal for all such files; the reason by default.
    """

    name: str
    reason: str
    rule: str = ""


class Found(NamedTuple):
    """Files found under some paths.

    Attributes:
        sources: MIDI files.
        refused: Files that should be pieces but cannot be.
        left_out: Names of all other files.
    """

    sources: list[Source]
    refused: list[Refusal]
    left_out: list[str]


@dataclass
class _Finds:
    """Files found so far in a folder or an archive; see `Found`."""

    sources: list[Source] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def take_in(self, name: str, inner: _Finds) -> None:
        """Add the contents of an archive called `name`."""
        self.sources += [replace(each, name=f"{name}/{each.name}") for each in inner.sources]
        self.refused += [replace(each, name=f"{name}/{each.name}") for each in inner.refused]
        self.left_out += [f"{name}/{each}" for each in inner.left_out]


def find_sources(paths: list[Path]) -> Found:
    """Find all MIDI files: in folders, in archives, in archives within these, and given by path.

    A folder or archive with MAESTRO's table gives the files of the table, with their official splits. Missing
    files of the table, links to folders (they are not followed) and files that cannot be opened are refused. So are
    archive members with a path that leads outside or with the name of another member. Hidden files are ignored.

    Raises:
        PamusicError: a path does not exist, or there is no MIDI file at all.
    """
    found = _Finds()
    for path in paths:
        if path.is_dir():
            inner = _in_folder(path)
        elif not path.exists():
            raise PamusicError(f"{path}: no such file or folder; check the path")
        elif not path.is_file():
            raise PamusicError(f"{path}: is a device or a pipe; pass a folder, a zip or MIDI files")
        elif zipfile.is_zipfile(path):
            inner = _in_archive(str(path))
            if not inner.sources and path.suffix.lower() != ".zip":  # for example a score; its reader explains that
                inner = _Finds([Source(None, str(path), path.name)])
        elif path.suffix.lower() == ".zip":
            raise PamusicError(f"{path}: is not a zip archive, or a broken one; download it again")
        else:
            inner = _Finds([Source(None, str(path), path.name)])
        found.sources += inner.sources
        found.refused += inner.refused
        found.left_out += inner.left_out
    if not found.sources:
        what = ", ".join(str(path) for path in paths)
        why = f"; {found.refused[0].name}: {found.refused[0].reason}" if found.refused else ""
        others = f", but {len(found.left_out):,} of other kinds, such as {found.left_out[0]}" if found.left_out else ""
        raise PamusicError(
            f"{what}: no MIDI file ({', '.join(MIDI_ENDINGS)}) found{others}{why}; "
            "pass a folder, a zip or files that have some"
        )
    return Found(_each_once(found.sources), found.refused, found.left_out)


def _each_once(sources: list[Source]) -> list[Source]:
    """Return the sources without files that were given twice, under whatever names; links are followed."""
    real: dict[str, str] = {}  # by folder or archive, resolved once: each may hold a hundred thousand files
    once: dict[tuple[str, str], Source] = {}
    for each in sources:
        if each.container is None and os.path.islink(each.path):
            at, member = os.path.split(os.path.realpath(each.path))
        elif each.container is None:
            at, member = os.path.split(each.path)
        else:
            at, member = each.container, f"{each.nested}/{each.path}"
        if at not in real:
            real[at] = os.path.realpath(at)
        once[real[at], member] = each
    return list(once.values())


def split_by_content(data: bytes) -> str:
    """Return the split of a file without an official one; it depends only on the bytes, not on the name.

    With few files, validation may stay empty; `nearest_to_validation` then selects the file to move there.
    """
    position = _position(hashlib.sha256(data).hexdigest())
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def nearest_to_validation(hashes: Sequence[str], splits: Sequence[str]) -> int:
    """Return the index of the file to move to an empty validation split.

    It is the training file with the hash nearest to the range of validation, so it does not depend on names or order.
    Without training files it is the nearest of the others.

    Args:
        hashes: SHA-256 of each file, as hexadecimal digits.
        splits: Split of each file, by `split_by_content`.
    """

    def distance(index: int) -> tuple[bool, float]:
        position = _position(hashes[index])
        return splits[index] != "train", max(position - TEST_SHARE - VALIDATION_SHARE, TEST_SHARE - position)

    return min(range(len(hashes)), key=distance)


def _position(sha256: str) -> float:
    """Return a pseudo-random number from 0 to 1 that depends only on the content."""
    return int(sha256[:16], 16) / 2**64


def _in_folder(folder: Path) -> _Finds:
    beginning = "" if str(folder) == os.curdir else os.path.join(folder, "")
    found = _Finds()
    files = list(_files_under(beginning, found))
    tables = set()
    for file in files:
        if file.lower().endswith(".csv"):
            table = folder / file
            name_of_table = table.relative_to(folder).as_posix()
            rows = _rows_or_refusal(Source(None, str(table), name_of_table), found)
            if rows is None:
                tables.add(file)
            for file_name, split in rows or ():
                tables.add(file)
                path = table.parent / file_name
                name = os.path.normpath(table.parent.relative_to(folder) / file_name).replace(os.sep, "/")
                if _leads_outside(PurePosixPath(name)):
                    reason = f"{table.name} names it, but its path leads outside the folder"
                    found.refused.append(Refusal(name, reason))
                elif path.is_file():
                    found.sources.append(Source(None, str(path), name, split))
                else:
                    found.refused.append(Refusal(name, f"{table.name} names it, but it is not there"))
    taken = {source.path for source in found.sources}
    for file in files:
        name = file.replace(os.sep, "/")
        if beginning + file in taken or file in tables:
            continue
        if IS_MIDI.search(file):
            found.sources.append(Source(None, beginning + file, name))
        elif file.lower().endswith(".zip"):
            try:
                found.take_in(name, _in_archive(beginning + file))
            except PamusicError as error:
                found.refused.append(Refusal(name, str(error).removeprefix(f"{beginning + file}: "), error.rule))
        else:
            found.left_out.append(name)
    return found


def _files_under(beginning: str, found: _Finds, folder: str = "") -> Iterator[str]:
    """Yield the files below a folder, sorted by name at each level, without hidden ones; paths are relative to the top.

    Args:
        beginning: Path of the top folder; empty, or with a separator at its end.
        found: Object that collects what cannot be read.
        folder: Current folder relative to the top; also empty or with a separator at its end.
    """
    try:
        with os.scandir(beginning + folder or os.curdir) as scanned:
            entries = sorted((each for each in scanned if each.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        name = folder.replace(os.sep, "/") or "./"
        reason = f"cannot be opened ({error.strerror or error}); check its permissions"
        found.refused.append(Refusal(name, reason, "cannot be opened"))
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_under(beginning, found, folder + entry.name + os.sep)
        elif why := _why_no_file(entry):
            name = (folder + entry.name).replace(os.sep, "/")
            if _is_wanted(name) or why == LINK_TO_FOLDER:
                found.refused.append(Refusal(name, why))
            else:
                found.left_out.append(name)
        else:
            yield folder + entry.name


def _why_no_file(entry: os.DirEntry[str]) -> str:
    """Return why a folder entry that is not a folder cannot be read as a file; empty if it can."""
    try:
        if entry.is_file():
            return ""
        if entry.is_symlink():
            return (
                LINK_TO_FOLDER if entry.is_dir() else "is a broken link, or a link to a special file; fix or remove it"
            )
    except OSError as error:
        return f"is a link that cannot be followed ({error.strerror}); fix or remove it"
    return "is a device or a pipe; put a file in its place"


def _is_wanted(name: str) -> bool:
    """Return whether a file with this name is opened: a MIDI file, an archive or a table."""
    return bool(IS_MIDI.search(name)) or name.lower().endswith((".csv", ".zip"))


def _in_archive(path: str, nested: str = "") -> _Finds:
    """Find the files of an archive, or of an archive within it; archives one level deeper are left out."""
    found = _Finds()
    members: dict[str, str] = {}
    for info in sorted(_open_archive(path, nested).infolist(), key=lambda info: info.filename):
        member = PurePosixPath(info.filename.replace("\\", "/"))
        if info.filename[-1:] in ("", "/") or "__MACOSX" in member.parts or member.name.startswith("."):
            continue
        is_outside = _leads_outside(member)
        if is_outside and _is_wanted(member.name):
            found.refused.append(Refusal(info.filename, "its path leads outside the archive"))
        elif is_outside:
            found.left_out.append(info.filename)
        elif str(member) not in members:
            members[str(member)] = info.filename
        elif _is_wanted(member.name):
            found.refused.append(Refusal(str(member), "the archive has several files of this name; rename them"))
        else:
            found.left_out.append(str(member))
    tables = set()
    for name, table in members.items():
        if name.lower().endswith(".csv"):
            rows = _rows_or_refusal(Source(path, table, name, nested=nested), found)
            if rows is None:
                tables.add(name)
            for file_name, split in rows or ():
                tables.add(name)
                listed_name = str(PurePosixPath(name).parent / file_name)
                if listed_name in members:
                    found.sources.append(Source(path, members[listed_name], listed_name, split, nested))
                else:
                    reason = f"{PurePosixPath(name).name} names it, but it is not there"
                    found.refused.append(Refusal(listed_name, reason))
    taken = {source.name for source in found.sources} | tables
    for name, member_path in members.items():
        if name in taken:
            continue
        if IS_MIDI.search(name):
            found.sources.append(Source(path, member_path, name, nested=nested))
        elif name.lower().endswith(".zip") and not nested:
            try:
                found.take_in(name, _in_archive(path, member_path))
            except PamusicError as error:
                found.refused.append(Refusal(name, str(error).removeprefix(f"{path}/{member_path}: "), error.rule))
        else:
            found.left_out.append(name)
    return found


def _leads_outside(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])


def _open_archive(path: str, nested: str = "") -> zipfile.ZipFile:
    return _opened(path, nested, os.stat(path).st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: str, nested: str, changed: int, process: int) -> zipfile.ZipFile:
    """Open an archive once per process: two processes that share a descriptor would share its read position."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise PamusicError(f"{path}: is a broken zip archive ({error}); download it again") from None
    if not nested:
        return archive
    name = f"{path}/{nested}"
    try:
        with archive:
            member = archive.getinfo(nested)
            if member.file_size > MAX_NESTED_BYTES or member.compress_type not in TAKEN_PACKINGS:
                raise PamusicError(
                    f"{name}: is a nested archive, too large ({member.file_size / 2**20:.0f} MiB, at most "
                    f"{MAX_NESTED_BYTES / 2**20:.0f}) or packed in a rare way; unpack it first",
                    rule="archive within an archive",
                )
            with archive.open(member) as file:
                return zipfile.ZipFile(io.BytesIO(file.read(MAX_NESTED_BYTES)))
    except BROKEN as error:
        raise PamusicError(f"{name}: is a broken zip archive ({error}); download it again") from None


def _rows_or_refusal(table: Source, found: _Finds) -> list[tuple[str, str]] | None:
    """Return the rows of `_maestro_rows`; None if the table cannot be read, which is then added to the refusals.

    Raises:
        PamusicError: the table has an unknown split.
    """
    try:
        data = table.read_table()
    except PamusicError as error:
        found.refused.append(Refusal(table.name, str(error).removeprefix(f"{table.name}: "), error.rule))
        return None
    return _maestro_rows(data, table.name)


def _maestro_rows(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return (file name, split) of each row; an empty list if the table is not MAESTRO's.

    Args:
        data: Bytes of the table.
        name: Name of the table in errors.

    Raises:
        PamusicError: the table has an unknown split.
    """
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        if not set(MAESTRO_COLUMNS) <= set(table.fieldnames or ()):
            return []
        rows = list(table)
    except (UnicodeDecodeError, csv.Error):
        return []
    for number, row in enumerate(rows, start=1):
        if row["split"] not in SPLITS or not row["midi_filename"]:
            raise PamusicError(
                f"{name}: row {number} puts {row['midi_filename']!r} into split {row['split']!r}; "
                f"use one of {', '.join(SPLITS)}"
            )
    return [(row["midi_filename"], row["split"]) for row in rows]
