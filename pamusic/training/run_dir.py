"""Manage the folder of a run: claim it, lock it, and write its files atomically.

Knows the names of files and which rank writes them; knows no batch and no step of training. The folder has `run.json`
(all that the result depends on), `metrics.csv`, `best/` and `last/` (usable checkpoints), `state.pt` (for resuming),
and `finished` after an orderly stop.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from pamusic.checkpoint import BEST, LAST, RUNS
from pamusic.errors import PamusicError
from pamusic.files import ERRNO_ADVICE, free_folder, locked, written_atomically
from pamusic.training.distributed import ProcessGroup
from pamusic.training.metrics import Metrics

FORMAT = 1
RECORD = "run.json"
STATE = "state.pt"
LOCK = "lock"  # an empty file, locked by the process that trains in the folder


class RunFolder:
    """The folder of a run. All ranks may call its methods; only the first one writes.

    Attributes:
        path: Path of the folder.
        metrics: Table of the run, used only by the first rank.
    """

    def __init__(self, path: Path, ranks: ProcessGroup) -> None:
        self.path, self._ranks = path, ranks
        self.metrics = Metrics(path)

    @property
    def has_state(self) -> bool:
        """True if there is a state to resume from."""
        return (self.path / STATE).is_file()

    @contextmanager
    def begun(self, step: int, record: dict[str, Any]) -> Iterator[None]:
        """Lock the folder and begin its files; remove it if the run fails before its first checkpoint.

        Args:
            step: Step to continue from. Later rows of the table are removed, because they will be computed again.
            record: Content of `run.json`.

        Raises:
            PamusicError: The folder cannot be written, or another process trains in it.
        """
        if not self._ranks.first:
            yield
            return
        with self._claimed() as lock:
            try:
                self._begin(step)
                self.write_record(record)
                yield
            except BaseException:
                lock.close()  # Windows cannot remove an open file
                self.discard()
                raise

    def discard(self) -> None:
        """Remove the folder, unless it has a checkpoint or a state."""
        if self._ranks.first and not any((self.path / name).exists() for name in (BEST, LAST, STATE)):
            shutil.rmtree(self.path, ignore_errors=True)

    def _claimed(self) -> IO[bytes]:
        """Create the folder and return its locked file; while it is open, no other process can train here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("ab")
        except OSError as error:
            raise self._not_writable(error) from None
        if not locked(lock):
            lock.close()
            raise PamusicError(
                f"{self.path}: another process still trains in it; wait until it has stopped, or use another --out"
            )
        return lock

    def _begin(self, step: int) -> None:
        try:
            (self.path / "finished").unlink(missing_ok=True)
            self.metrics.begin(step)
        except OSError as error:
            raise self._not_writable(error) from None

    def _not_writable(self, error: OSError) -> PamusicError:
        return PamusicError(f"{self.path}: cannot be written ({error.strerror}); choose another folder with --out")

    def write_record(self, record: dict[str, Any]) -> None:
        """Write `run.json`."""
        if self._ranks.first:
            with written_atomically(self.path / RECORD) as file:
                file.write_text(json.dumps(record, indent=2) + "\n")

    def write_state(self, state: dict[str, Any]) -> None:
        """Write the state for `read_state`, with the number of its format."""
        if self._ranks.first:
            with written_atomically(self.path / STATE) as path, path.open("wb") as file:
                torch.save(
                    {"format": FORMAT, **state}, file
                )  # given a path, torch would turn a full disk into a RuntimeError

    def finish(self) -> None:
        """Mark that the run has come to an orderly stop."""
        if self._ranks.first:
            with written_atomically(self.path / "finished") as file:
                file.write_text(datetime.now(UTC).isoformat(timespec="seconds") + "\n")


def path_from(run: Path, path: Path) -> str:
    """Return a path relative to a run's folder; the path itself if it is on another Windows drive."""
    try:
        return os.path.relpath(path, run)
    except ValueError:
        return str(path)


def refuse_occupied(out: Path, *, overwrite: bool) -> None:
    """Raise an error if a new run would destroy something in `out`.

    Args:
        out: Folder for a new run.
        overwrite: True if the new run may replace an existing one.

    Raises:
        PamusicError: The folder has another run, or something else.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / RECORD).is_file()):
        raise PamusicError(f"{out}: exists and is not a run; choose another folder with --out")
    if any(out.iterdir()) and not overwrite:
        raise PamusicError(
            f"{out}: there is a run already; continue it with --resume {out}, replace it with --overwrite, or use"
            " another --out"
        )


def claim_folder(out: Path | None, name: str, *, clear: bool, ranks: ProcessGroup) -> RunFolder:
    """Return the folder of a run; the first rank creates or clears it if needed.

    Args:
        out: Path of the folder, or None for a free name under `runs/`.
        name: Beginning of that name.
        clear: Remove the contents of `out`.
        ranks: Processes; only the first one changes anything on disk.

    Raises:
        PamusicError: The folder cannot be written.
    """
    if out is None:
        return RunFolder(free_folder(RUNS / name) if ranks.first else RUNS / name, ranks)
    if clear and ranks.first:
        _clear(out)
    return RunFolder(out, ranks)


def _clear(out: Path) -> None:
    """Create a folder, or remove its contents. The folder itself stays: it may be a link or the working directory.

    Raises:
        PamusicError: The folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for each in out.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
    except OSError as error:
        raise PamusicError(f"cannot write {out}: {ERRNO_ADVICE.get(error.errno or 0, error.strerror)}") from None


def is_training(run: Path) -> bool:
    """Return whether another process trains in a run's folder now, as far as file locks show."""
    try:
        with (run / LOCK).open("r+b") as lock:
            return not locked(lock)
    except OSError:
        return False


@contextmanager
def read_state(run: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the state of a run, with its tensors on a device; an error in the block counts as a broken state.

    Raises:
        PamusicError: There is no state, it is broken, or the block raises an error.
    """
    path = run / STATE
    try:
        yield torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise PamusicError(f"{run}: has no state to resume from (no {path.name} in it)") from None
    except (
        *(OSError, RuntimeError, LookupError, ValueError, EOFError, TypeError, AttributeError),
        pickle.UnpicklingError,
    ) as error:
        why = " ".join(str(error).split())[:120] or "it is empty"
        raise PamusicError(f"{path}: cannot load the state ({why}); start a new run: pamusic train") from None


def read_step(run: Path) -> int:
    """Return the step of a run's last state.

    Raises:
        PamusicError: The state cannot be read.
    """
    try:
        return int(torch.load(run / STATE, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception as error:  # torch.load raises many kinds of error
        raise PamusicError(f"{run}: its state cannot be read ({' '.join(str(error).split())[:100]})") from None
