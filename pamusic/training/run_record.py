"""Write and read `run.json`: all that the result of a run depends on.

Knows the names in that file; knows no training. Its values stay dicts here, as they are on disk: an older version may
have written them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import pamusic
from pamusic.checkpoint import RUNS
from pamusic.corpus.corpus import Corpus
from pamusic.device import Machine
from pamusic.errors import PamusicError
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.run_dir import FORMAT, RECORD, path_from


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `run.json` says.

    Attributes:
        run: the folder.
        training, model, machine, corpus: as they were written.
        started_from: the checkpoint whose weights the run began with, in words; None for random ones.
    """

    run: Path
    training: Mapping[str, Any]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    corpus: Mapping[str, Any]
    started_from: str | None

    @property
    def corpus_path(self) -> Path:
        """Where the corpus is: at its path as it was given, else where it is as seen from the run's folder."""
        given = Path(self.corpus["path"])
        beside = self.run / self.corpus.get("path_from_run", given)
        return beside if not given.exists() and beside.exists() else given


def read_record(run: Path) -> RunRecord:
    """Return what a run's `run.json` says.

    Raises:
        PamusicError: there is none, or it is broken or of another format.
    """
    if not (run / RECORD).is_file():
        runs = ", ".join(str(path.parent) for path in sorted(RUNS.glob(f"*/{RECORD}")))
        raise PamusicError(f"{run}: no run there to resume; there is {runs or 'none'}")
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise PamusicError(
                f"{run}: is a run of format {record['format']}, we read {FORMAT}; start anew: pamusic train"
            )
        parts = {name: record[name] for name in ("training", "model", "corpus", "machine")}
        return RunRecord(run=run, started_from=record.get("started_from"), **parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PamusicError(f"{run}: {RECORD} is broken ({error}); start anew: pamusic train") from None


def make_record(
    run: Path,
    *,
    corpus: Corpus,
    model: ModelConfig,
    num_parameters: int,
    training: TrainingConfig,
    machine: Machine,
    started_from: str | None,
) -> dict[str, Any]:
    """Return what goes into `run.json`, and into the configuration of each checkpoint of the run."""
    return {
        "format": FORMAT,
        "training": asdict(training),
        "model": asdict(model),
        "num_parameters": num_parameters,
        "started_from": started_from,
        "corpus": {
            "path": str(corpus.path),
            "path_from_run": path_from(run, corpus.path),
            "fingerprint": corpus.fingerprint,
            "tokenizer": corpus.tokenizer.name,
        },
        "machine": machine.about(),
        "versions": {"pamusic": pamusic.__version__, "torch": torch.__version__},
    }
