"""How files are written: whole or not at all, and never over one that was not named.

Knows paths and what may go wrong with them; knows nothing of what is in the files.
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

# What can go wrong with a file through no fault of ours, and what to do about it.
ERRNO_ADVICE = {
    errno.ENOSPC: "the disk is full; make room or write elsewhere",
    errno.EDQUOT: "your disk quota is used up; make room or write elsewhere",
    errno.EFBIG: "the file would be larger than the disk or your limits allow; write elsewhere",
    errno.EIO: "the disk failed; write elsewhere",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; write elsewhere",
    errno.ENOTDIR: "part of its path is a file, not a folder; choose another path",
    errno.EEXIST: "part of its path is a file, not a folder; choose another path",
    errno.ENOENT: "its folder does not exist and cannot be made; choose another path",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; choose another path",
}
# These can only come from writing, whichever file they name.
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

TEMPORARY = ".pamusic-"  # how a file in the making is called; a kill may leave one behind


@dataclass
class Draft:
    """A file in the making.

    Attributes:
        file: where to write to.
        name: what it is called once it is whole; until then, what it is meant to be.
    """

    file: Path
    name: Path


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path to write to; when the block ends well, that file becomes `path`, at once and whole.

        with written_atomically("out.mid") as temporary:
            temporary.write_bytes(data)

    The temporary file lies in the same folder and has the same suffix. If the block raises, it is removed, and so are
    the parent folders made for it; what stood at `path` before is untouched. A link is followed, not replaced. A
    device or a pipe (`/dev/null`) cannot be replaced either: it is lent itself and written directly.

    Raises:
        PamusicError: the disk is full or read-only, permission is denied, or the path cannot be that of a file.
    """
    with _written(Path(path), os.replace) as temporary:
        yield temporary


@contextmanager
def written_anew(path: str | Path) -> Iterator[Draft]:
    """Lend a temporary path; when the block ends well, that file gets the name `path`, or the first free one after it.

    The name is taken at the end, in one step with finding it free: whoever else writes there meanwhile loses nothing.

    Raises:
        PamusicError: as for `written_atomically`.
    """
    path = Path(path)
    draft = Draft(path, free_name(path))

    def put(temporary: Path, target: Path) -> None:
        while True:
            try:
                return os.link(temporary, target)  # it takes no name that is taken, and then it is whole at once
            except FileExistsError:
                draft.name = free_name(path)
                target = target.with_name(draft.name.name)
            except OSError:  # a disk that has no links
                with open(target, "xb"):
                    return os.replace(temporary, target)

    with _written(draft.name, put) as draft.file:
        yield draft


@contextmanager
def _written(path: Path, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    """`written_atomically`, with the step that gives the temporary file its name."""
    if "\0" in str(path):
        raise PamusicError(f"cannot write {str(path)!r}: its name holds a zero character; choose another name")
    target = Path(os.path.realpath(path))
    if os.path.exists(path) and not target.exists():  # /dev/stdout, or /dev/fd/63 of a shell: a pipe has no real path
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
        # Made with 0o666, so that the umask decides, as it does for any other file (tempfile would say 0o600).
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
    """The path itself where nothing stands there yet, else the first free one of `take-2.wav`, `take-3.wav`, …"""
    path = Path(path)
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def free_folder(path: str | Path) -> Path:
    """Make an empty folder of this name, or of the first free one after it, and return which.

    Raises:
        PamusicError: it cannot be made.
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
    """Make a folder with its parents; returns those that were missing, outermost first."""
    missing = [each for each in [folder, *folder.parents] if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a power cut after the renaming finds them there."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_written_atomically(
    path: str | Path, *, unfinished: Path | None = None, worth_keeping: Callable[[], bool] = lambda: False
) -> Iterator[Path]:
    """Lend a temporary folder; when the block ends well, it becomes `path`, in place of a folder there.

    If the block raises, the temporary folder is removed and `path` is as it was. Between two renames `path` is away
    for an instant; a program killed just then leaves the old folder beside it as `.NAME.old`, and the next call, or
    `recovered`, puts it back.

    Args:
        path: where it shall stand.
        unfinished: the temporary folder, which may hold earlier work; an empty one of a name of its own by default.
        worth_keeping: asked when the block raises; where it says yes, the temporary folder stays for a later call.

    Raises:
        PamusicError: the disk is full or read-only, permission is denied, or the path cannot be that of a folder.
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
    """The path itself, after putting back what `folder_written_atomically`, killed between its renames, left aside."""
    target = Path(os.path.realpath(path))  # which gives `.` its name, and follows links as the writing did
    if target.name and not target.exists():
        old = target.with_name(f".{target.name}.old")
        if old.is_dir():
            os.replace(old, target)
    return path


def locked(file: IO[bytes]) -> bool:
    """Claims an open file for this process, until it is closed; False where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be taken away anyhow
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # a disk that has no locks is no reason to stop
    return True
