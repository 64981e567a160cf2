"""A run's folder: what the result depends on, what resuming needs, what can be used; each file whole or not at all.

Knows the names of files and who of several ranks writes them; knows no batch and no step of training. It has `run.json`
(all that the result depends on), `metrics.csv`, `best/` and `last/` (checkpoints that can be used), `state.pt` (what
`resume` needs), and `finished` once the run has come to an orderly stop.
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

from pamusic.checkpoint import BEST, LAST
from pamusic.errors import PamusicError
from pamusic.files import locked, written_atomically
from pamusic.training.distributed import ProcessGroup
from pamusic.training.metrics import Metrics

FORMAT = 1
STATE = "state.pt"
LOCK = "lock"  # nothing is in it: whoever trains in the folder holds it


class RunFolder:
    """Where a run is kept. Of several ranks all may ask for the same; the first one writes.

    Attributes:
        path: the folder.
        metrics: its table, for the first rank alone.
    """

    def __init__(self, path: Path, ranks: ProcessGroup) -> None:
        self.path, self._ranks = path, ranks
        self.metrics = Metrics(path)

    @property
    def has_state(self) -> bool:
        """Whether there is something to resume from."""
        return (self.path / STATE).is_file()

    @contextmanager
    def begun(self, step: int, about: dict[str, Any]) -> Iterator[None]:
        """The folder, for this run alone; taken away again if the run fails before it has anything to show.

        Args:
            step: from which the run goes on: what the table has of later ones is about to be computed again.
            about: all that the result depends on.

        Raises:
            PamusicError: it cannot be written, or another process trains in it.
        """
        if not self._ranks.first:
            yield
            return
        with self._claimed() as lock:
            try:
                self._begin(step)
                self.write_about(about)
                yield
            except BaseException:
                lock.close()  # Windows does not take away what is open
                self.discard()
                raise

    def discard(self) -> None:
        """Take the folder away, unless it has something to show."""
        if self._ranks.first and not any((self.path / name).exists() for name in (BEST, LAST, STATE)):
            shutil.rmtree(self.path, ignore_errors=True)

    def _claimed(self) -> IO[bytes]:
        """An open file of the folder's; as long as it is open, no other process begins here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("ab")
        except OSError as error:
            raise self._not_writable(error) from None
        if not locked(lock):
            lock.close()
            raise PamusicError(
                f"{self.path}: another process still trains in it; wait until it has stopped, or name another --out"
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

    def write_about(self, about: dict[str, Any]) -> None:
        """Writes down all that the result depends on."""
        if self._ranks.first:
            with written_atomically(self.path / "run.json") as file:
                file.write_text(json.dumps(about, indent=2) + "\n")

    def write_state(self, state: dict[str, Any]) -> None:
        """Writes what `read_state` gives back, and the format it is in."""
        if self._ranks.first:
            with written_atomically(self.path / STATE) as path, path.open("wb") as file:
                torch.save(
                    {"format": FORMAT, **state}, file
                )  # to a path, a full disk would be a RuntimeError of torch's

    def finish(self) -> None:
        """Says that the run has come to an orderly stop."""
        if self._ranks.first:
            with written_atomically(self.path / "finished") as file:
                file.write_text(datetime.now(UTC).isoformat(timespec="seconds") + "\n")

    def way_to(self, path: Path) -> str:
        """How one gets from the folder to a path; from one of Windows' drives to another, only by the path itself."""
        try:
            return os.path.relpath(path, self.path)
        except ValueError:
            return str(path)


def trained_in(run: Path) -> bool:
    """Whether another process trains in a run's folder now, as far as the system tells."""
    try:
        with (run / LOCK).open("r+b") as lock:
            return not locked(lock)
    except OSError:
        return False


@contextmanager
def read_state(run: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """Lends the state of a run, with its tensors on a device; whoever cannot take it up need not say so.

    Raises:
        PamusicError: there is none, it is broken, or the block finds that it does not fit.
    """
    path = run / STATE
    try:
        yield torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise PamusicError(f"{run}: has no state to resume from (no {path.name} in it)") from None
    except (
        *(OSError, RuntimeError, KeyError, ValueError, EOFError, TypeError, AttributeError),
        pickle.UnpicklingError,
    ) as error:
        why = " ".join(str(error).split())[:120] or "it is empty"
        raise PamusicError(f"{path}: cannot be resumed from ({why}); start anew: pamusic train") from None
