"""Where pieces come from: folders, zip archives and single files, MAESTRO among them.

Knows file names, zip members and MAESTRO's table; opens no MIDI. What it finds is a list of `Source`, in an order that
does not depend on the file system, and the names of all files that it leaves out.
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
MIDI_ENDINGS = (".mid", ".midi", ".kar", ".rmi", ".smf")  # each of them also as .mid.gz and so on
IS_MIDI = re.compile(rf"({'|'.join(map(re.escape, MIDI_ENDINGS))})(\.gz)?$", re.IGNORECASE)
MAX_TABLE_BYTES = 64 * 2**20  # of a table in a folder; MAESTRO's has 0.3
MAX_NESTED_BYTES = 256 * 2**20  # of an archive in an archive, which is unpacked into memory
MAESTRO_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
VALIDATION_SHARE = TEST_SHARE = 0.1  # of a folder without official splits: MAESTRO's own are 0.11 and 0.14
MIN_PIECES_TO_VALIDATE = 5  # with this many pieces or more, one is for validation
LINK_TO_FOLDER = "is a link to a folder, which is not followed; name that folder"
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
        nested: the path of an archive within `container`, in which `path` lies; empty where there is none.
    """

    container: str | None
    path: str
    name: str
    split: str | None = None
    nested: str = ""

    @property
    def where(self) -> str:
        """Its path from where the user is, through the archive if there is one: no other file has the same."""
        return "/".join(part for part in (self.container, self.nested, self.path) if part)

    def read(self) -> bytes:
        """Return the bytes of a MIDI file; if gzip has packed it, the unpacked bytes.

        Raises:
            PamusicError: it cannot be read, or is larger than any MIDI file of music.
        """
        with self._opened() as file:
            return read_file(file, self.name)

    def read_table(self) -> bytes:
        """Return the bytes of a table, as they are.

        Raises:
            PamusicError: it cannot be read, or is larger than any table of pieces.
        """
        with self._opened() as file:
            table = file.read(MAX_TABLE_BYTES + 1)
        if len(table) > MAX_TABLE_BYTES:
            raise PamusicError(
                f"{self.name}: has more than {MAX_TABLE_BYTES / 2**20:.0f} MiB, the most of any table we read; "
                "if it is MAESTRO's, fetch it anew",
                rule="too large",
            )
        return table

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the file; whatever is wrong with it or its archive is raised as a `PamusicError`."""
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
                    "zip it anew with deflate, the usual one",
                    rule="rare packing",
                )
            with archive.open(info) as member:
                yield cast("BinaryIO", member)
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


class Found(NamedTuple):
    """What is found under some paths.

    Attributes:
        sources: the MIDI files.
        refused: files that should be pieces and cannot be.
        left_out: names of the files of all other kinds.
    """

    sources: list[Source]
    refused: list[Refusal]
    left_out: list[str]


@dataclass
class _Finds:
    """What is found so far in a folder or an archive; see `Found`."""

    sources: list[Source] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def take_in(self, name: str, inner: _Finds) -> None:
        """Add what is in an archive called `name`."""
        self.sources += [replace(each, name=f"{name}/{each.name}") for each in inner.sources]
        self.refused += [replace(each, name=f"{name}/{each.name}") for each in inner.refused]
        self.left_out += [f"{name}/{each}" for each in inner.left_out]


def find_sources(paths: list[Path]) -> Found:
    """Find all MIDI files under folders, in archives and in archives within these, and those named outright.

    A folder or archive with MAESTRO's table in it gives the files of the table, with their official splits; files that
    the table names and that are missing are refused. So are links to folders, which are not followed, what cannot be
    opened, and archive members whose path leads outside or whose name another member has. Hidden files are ignored.

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
            raise PamusicError(f"{path}: is a device or a pipe; name a folder, a zip or MIDI files")
        elif zipfile.is_zipfile(path):
            inner = _in_archive(str(path))
            if not inner.sources and path.suffix.lower() != ".zip":  # a score, say: its reader tells what it is
                inner = _Finds([Source(None, str(path), path.name)])
        elif path.suffix.lower() == ".zip":
            raise PamusicError(f"{path}: is not a zip archive, or a broken one; fetch it anew")
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
            f"{what}: no MIDI file ({', '.join(MIDI_ENDINGS)}) in it{others}{why}; "
            "name a folder, a zip or files that have some"
        )
    return Found(_each_once(found.sources), found.refused, found.left_out)


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
            at, member = each.container, f"{each.nested}/{each.path}"
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
    """Return a number from 0 to 1 that is as good as random, and depends on the content alone."""
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
    """Yield files relative to where we begin, in the order of names at each level; none hidden.

    Args:
        beginning: where we begin; empty, or with a separator at its end.
        found: gets what cannot be read.
        folder: where we are, relative to that; likewise.
    """
    try:
        with os.scandir(beginning + folder or os.curdir) as scanned:
            entries = sorted((each for each in scanned if each.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        name = folder.replace(os.sep, "/") or "./"
        reason = f"cannot be opened ({error.strerror or error}); check its rights"
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
    """Why what is found in a folder, and is no folder, cannot be read as a file; nothing where it can."""
    try:
        if entry.is_file():
            return ""
        if entry.is_symlink():
            return LINK_TO_FOLDER if entry.is_dir() else "is a link to what is not there or no file; mend or remove it"
    except OSError as error:
        return f"is a link that cannot be followed ({error.strerror}); mend or remove it"
    return "is a device or a pipe; put a file in its place"


def _is_wanted(name: str) -> bool:
    """Return whether a file of this name is opened: a MIDI file, an archive or a table."""
    return bool(IS_MIDI.search(name)) or name.lower().endswith((".csv", ".zip"))


def _in_archive(path: str, nested: str = "") -> _Finds:
    """Return what is in an archive, or in an archive within it; what lies a level deeper is left out."""
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
    """Return an archive, opened once in each process: a descriptor that two share would have one place to read at."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise PamusicError(f"{path}: is a broken zip archive ({error}); fetch it anew") from None
    if not nested:
        return archive
    name = f"{path}/{nested}"
    try:
        with archive:
            member = archive.getinfo(nested)
            if member.file_size > MAX_NESTED_BYTES or member.compress_type not in TAKEN_PACKINGS:
                raise PamusicError(
                    f"{name}: is an archive within an archive, too large ({member.file_size / 2**20:.0f} MiB, at most "
                    f"{MAX_NESTED_BYTES / 2**20:.0f}) or packed in a rare way; unpack it first",
                    rule="archive within an archive",
                )
            with archive.open(member) as file:
                return zipfile.ZipFile(io.BytesIO(file.read(MAX_NESTED_BYTES)))
    except BROKEN as error:
        raise PamusicError(f"{name}: is a broken zip archive ({error}); fetch it anew") from None


def _rows_or_refusal(table: Source, found: _Finds) -> list[tuple[str, str]] | None:
    """What `_maestro_rows` returns; None where the table cannot be read, which is then refused among what is found.

    Raises:
        PamusicError: it has a split that there is not.
    """
    try:
        data = table.read_table()
    except PamusicError as error:
        found.refused.append(Refusal(table.name, str(error).removeprefix(f"{table.name}: "), error.rule))
        return None
    return _maestro_rows(data, table.name)


def _maestro_rows(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return (file name, split) of each row; none where the table is not MAESTRO's.

    Args:
        data: the table.
        name: how to call it in an error.

    Raises:
        PamusicError: it has a split that there is not.
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
                f"the splits are {', '.join(SPLITS)}"
            )
    return [(row["midi_filename"], row["split"]) for row in rows]
