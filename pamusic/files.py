"""Write files completely or not at all, and never over a file that was not named.

Knows paths and their possible errors; knows nothing of the contents.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pamusic.errors import PamusicError

# Errors of files that the user can fix, and what to do about them.
ERRNO_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "your disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than the disk or your limits allow; write elsewhere",
    errno.EIO: "the disk failed; write elsewhere",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; write elsewhere",
    errno.ENOTDIR: "part of its path is a file, not a folder; choose another path",
    errno.EEXIST: "part of its path is a file, not a folder; choose another path",
    errno.ENOENT: "its folder does not exist and cannot be created; choose another path",
    errno.EISDIR: "it is a folder; use the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; choose another path",
}
# These errors can only come from writing, whichever file they name.
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

TEMPORARY = ".pamusic-"  # prefix of unfinished files; a kill may leave one behind


@dataclass
class Draft:
    """An unfinished file.

    Attributes:
        file: Path to write to.
        name: Final path of the finished file; until then, the intended path.
    """

    file: Path
    name: Path


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, that file becomes `path`, complete and in one step.

        with written_atomically("out.mid") as temporary:
            temporary.write_bytes(data)

    The temporary file is in the same folder and has the same suffix. If the block raises, it is removed together with
    parent folders created for it, and an existing file at `path` is unchanged. A link is followed, not replaced. A
    device or a pipe (`/dev/null`) cannot be replaced: its own path is yielded and written directly.

    Raises:
        PamusicError: the disk is full or read-only, permission is denied, or the path cannot be a file.
    """
    with _written(Path(path), os.replace) as temporary:
        yield temporary


@contextmanager
def written_anew(path: str | Path) -> Iterator[Draft]:
    """Yield a temporary path; if the block succeeds, the file is renamed to `path`, or to the next free name after it.

    The name is claimed at the end, in the same step that finds it free, so files of other programs are never lost.

    Raises:
        PamusicError: As for `written_atomically`.
    """
    path = Path(path)
    draft = Draft(path, free_name(path))

    def put(temporary: Path, target: Path) -> None:
        while True:
            try:
                return os.link(temporary, target)  # fails if the name is taken; otherwise the file is complete at once
            except FileExistsError:
                draft.name = free_name(path)
                target = target.with_name(draft.name.name)
            except OSError:  # a disk without links
                with open(target, "xb"):
                    return os.replace(temporary, target)

    with _written(draft.name, put) as draft.file:
        yield draft


@contextmanager
def _written(path: Path, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    """Implement `written_atomically`, with `put` as the step that gives the temporary file its name."""
    if "\0" in str(path):
        raise PamusicError(f"cannot write {str(path)!r}: its name has a zero character; choose another name")
    target = Path(os.path.realpath(path))
    if os.path.exists(path) and not target.exists():  # /dev/stdout, or /dev/fd/63 of a shell: pipes have no real path
        target = path
    made: list[Path] = []
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}{target.suffix}") if target.name else target
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if target.exists() and not target.is_file():
            yield target
            return
        made = _make_folder(target.parent)
        # Created with 0o666, so that the umask decides as for any other file (tempfile would use 0o600).
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        put(temporary, target)
        made = []
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)) in {temporary, target, *target.parents}
        if error.errno in DISK_FULL_ERRNOS or (ours and error.errno in ERRNO_ADVICE):
            raise PamusicError(f"cannot write {path}: {ERRNO_ADVICE[error.errno]}") from error
        raise
    finally:
        if temporary != target:
            with suppress(OSError):
                temporary.unlink()
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def free_name(path: str | Path) -> Path:
    """Return the path itself if it is free, else the first free one of `take-2.wav`, `take-3.wav`, …"""
    path = Path(path)
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def free_folder(path: str | Path) -> Path:
    """Create an empty folder with this name, or the first free name after it, and return its path.

    Raises:
        PamusicError: it cannot be created.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                (name := free_name(path)).mkdir()
                return name
    except OSError as error:
        raise PamusicError(f"cannot write {path}: {ERRNO_ADVICE.get(error.errno or 0, error.strerror)}") from None


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder with its parents; return the folders that were missing, outermost first."""
    missing = [each for each in [folder, *folder.parents] if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that they survive a power cut after the renaming."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_written_atomically(
    path: str | Path, *, unfinished: Path | None = None, worth_keeping: Callable[[], bool] = lambda: False
) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, it becomes `path` and replaces an existing folder.

    If the block raises, the temporary folder is removed and `path` is unchanged. Between two renames `path` is missing
    for an instant. A program killed at that moment leaves the old folder next to it as `.NAME.old`, and the next call,
    or `recovered`, restores it.

    Args:
        path: Final path of the folder.
        unfinished: Temporary folder, which may hold earlier work; by default an empty one with a unique name.
        worth_keeping: Function called if the block raises; if it returns True, the temporary folder stays.

    Raises:
        PamusicError: the disk is full or read-only, permission is denied, or the path cannot be a folder.
    """
    path = Path(os.path.realpath(path))
    temporary = unfinished or path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    old = path.with_name(f".{path.name}.old")
    made: list[Path] = []
    kept = False
    try:
        recovered(path)
        made = _make_folder(temporary)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        made = []
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        kept = worth_keeping()
        if isinstance(error, OSError) and error.errno in ERRNO_ADVICE:
            raise PamusicError(f"cannot write {path}: {ERRNO_ADVICE[error.errno]}") from error
        raise
    finally:
        if not kept:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in reversed([folder for folder in made if folder != temporary]):
            with suppress(OSError):
                folder.rmdir()


def recovered(path: Path) -> Path:
    """Return the path, after restoring the old folder if `folder_written_atomically` was killed between its renames."""
    target = Path(os.path.realpath(path))  # gives `.` its name, and follows links as the writing did
    if target.name and not target.exists():
        old = target.with_name(f".{target.name}.old")
        if old.is_dir():
            os.replace(old, target)
    return path


def locked(file: IO[bytes]) -> bool:
    """Lock an open file for this process until it is closed; return False if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be removed anyway
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # a disk without locks is not a reason to stop
    return True
