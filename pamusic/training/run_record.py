"""Write and read `run.json`: all that the result of a run depends on.

Knows the names in that file; knows no training. Its values stay dicts, as on disk, because an older version may have
written them.
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
    """The content of `run.json`.

    Attributes:
        run: Folder of the run.
        training, model, machine, corpus: Entries as written.
        started_from: Description of the checkpoint that the run began with; None for random weights.
    """

    run: Path
    training: Mapping[str, Any]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    corpus: Mapping[str, Any]
    started_from: str | None

    @property
    def corpus_path(self) -> Path:
        """Path of the corpus: the recorded path, or, if that is gone, the path relative to the run's folder."""
        given = Path(self.corpus["path"])
        beside = self.run / self.corpus.get("path_from_run", given)
        return beside if not given.exists() and beside.exists() else given


def read_record(run: Path) -> RunRecord:
    """Return the content of a run's `run.json`.

    Raises:
        PamusicError: The file is missing or broken, or has another format.
    """
    if not (run / RECORD).is_file():
        runs = ", ".join(str(path.parent) for path in sorted(RUNS.glob(f"*/{RECORD}")))
        raise PamusicError(f"{run}: no run to resume; available runs: {runs or 'none'}")
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise PamusicError(
                f"{run}: the run must have format {FORMAT}, got {record['format']}; start a new run: pamusic train"
            )
        parts = {name: record[name] for name in ("training", "model", "corpus", "machine")}
        return RunRecord(run=run, started_from=record.get("started_from"), **parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PamusicError(f"{run}: {RECORD} is broken ({error}); start a new run: pamusic train") from None


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
    """Return the content of `run.json`, which also goes into the configuration of each checkpoint of the run."""
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
