"""Save and load checkpoints: folders with a model, its configuration, and the exact tokenizer of its training.

Knows models and tokenizers, and joins the two; knows no training, no sampling. A checkpoint has `model.safetensors`
(bfloat16 or float32), `config.json` (the model's shape, how it was trained, fingerprints), `tokenizer.toml`, and a
card, `README.md`. Bundled checkpoints are found by name, all others by path.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pamusic.corpus.corpus import Corpus
from pamusic.errors import PamusicError
from pamusic.files import folder_written_atomically, recovered
from pamusic.model.architectures import build_model
from pamusic.model.config import ModelConfig
from pamusic.model.sequence_model import SequenceModel
from pamusic.resources import DEFAULT_CHECKPOINT, checkpoints_folder
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer, shipped_tokenizers
from pamusic.tokens.vocabulary import load_vocabulary

FORMAT = 1
PARTS = {"model.safetensors", "config.json", "tokenizer.toml", "README.md"}  # file names; the card is optional
RUNS = Path("runs")
LATEST = "latest"  # used as a name: the newest run that stopped in order
BEST, LAST = "best", "last"  # the two checkpoints of a run


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that is ready for use.

    Attributes:
        path: Folder of the checkpoint.
        model: Network, in float32 and evaluation mode.
        tokenizer: Tokenizer of its ids.
        metadata: Training metadata, as passed to `save_checkpoint`.
    """

    path: Path
    model: SequenceModel
    tokenizer: Tokenizer
    metadata: dict[str, Any]

    @property
    def title(self) -> str:
        """Name for people: the name of a bundled checkpoint, or the path of any other."""
        ships = self.path.resolve().parent == checkpoints_folder().resolve()
        return f"{self.path.name}, which ships with pamusic" if ships else str(self.path)


def save_checkpoint(
    path: Path,
    model: SequenceModel,
    tokenizer: Tokenizer,
    *,
    metadata: dict[str, Any],
    card: str = "",
    dtype: torch.dtype = torch.float32,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the folder of a checkpoint, completely or not at all.

    Args:
        path: Folder; an existing one is replaced.
        model: Network with its configuration, and with the weights unless `weights` is given.
        tokenizer: Tokenizer that the model was trained with.
        metadata: Training metadata that JSON can hold. Entries that describe the model itself are overwritten.
        card: Text of its `README.md`.
        dtype: Type of the weights on disk.
        weights: Weights to write instead of the model's, under the same names.

    Raises:
        PamusicError: the folder cannot be written.
    """
    assert model.config.vocab_size == len(tokenizer.vocabulary)
    config = {
        **metadata,
        "format": FORMAT,
        "model": asdict(model.config),
        "num_parameters": model.num_parameters(),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    weights = weights or model.state_dict()
    with folder_written_atomically(path) as folder:
        on_disk = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights.items()}
        (folder / "model.safetensors").write_bytes(save(on_disk, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.toml").write_text(tokenizer.vocabulary.toml(), encoding="utf-8")
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint; weights become float32 on the device.

    Raises:
        PamusicError: it is missing or broken, or its parts do not match.
    """
    recovered(path)
    about = _config(path)
    tokenizer = Tokenizer(load_vocabulary(path / "tokenizer.toml"))
    if tokenizer.fingerprint != about.get("tokenizer_fingerprint"):
        raise PamusicError(f"{path}: tokenizer.toml is not the one that its model was trained with; restore the folder")
    try:
        model = build_model(ModelConfig.from_json(about["model"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PamusicError(
            f"{path}: config.json does not describe a model that this version of pamusic knows ({error}); restore the"
            " folder, or use the version that wrote it"
        ) from None
    if model.config.vocab_size != len(tokenizer.vocabulary):
        raise PamusicError(
            f"{path}: its model has {model.config.vocab_size} ids and its tokenizer {len(tokenizer.vocabulary)};"
            " restore the folder"
        )
    try:
        weights = load_file(path / "model.safetensors")
        model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except FileNotFoundError:
        raise PamusicError(f"{path}: has no model.safetensors; restore the folder") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise PamusicError(
            f"{path}: model.safetensors is broken or incomplete ({reason}); restore the folder"
        ) from None
    return Checkpoint(path, model.to(device).eval(), tokenizer, about)


def find_checkpoint(name: str | None = None, *, runs: Path = RUNS) -> Path:
    """Return the folder of a checkpoint.

    Args:
        name: Name of a bundled checkpoint; or `LATEST`, the newest run in `runs` that stopped in order; or the path of
            the folder of a checkpoint or of a run (its best checkpoint, else its last). A bundled name has priority
            over a folder of the same name; `./NAME` is the folder. None means the default.
        runs: Folder of the runs.

    Raises:
        PamusicError: there is no such checkpoint; the error lists the existing ones.
    """
    name = DEFAULT_CHECKPOINT if name is None else name
    if shipped := [path for path in shipped_checkpoints() if path.name == name]:
        return shipped[0]
    if name == LATEST:
        return _of_run(_newest(runs))
    path = Path(name)
    if (recovered(path) / "config.json").is_file():
        return path
    if _of_run(path).is_dir():
        return _of_run(path)
    if Path(name).is_dir():
        raise PamusicError(
            f"{name}: is neither a checkpoint (no config.json) nor a run (no {BEST}/ or {LAST}/); use another folder"
        )
    names = [path.name for path in shipped_checkpoints()] + [str(run) for run in _runs(runs)]
    raise PamusicError(f"no checkpoint is called {name!r}; use one of {', '.join(names) or 'none'}, or a folder")


def check_corpus(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Raise an error for a corpus that the checkpoint cannot read.

    Raises:
        PamusicError: the corpus has another tokenizer.
    """
    if corpus.tokenizer.fingerprint != checkpoint.tokenizer.fingerprint:
        own = checkpoint.tokenizer
        is_shipped = own.name in shipped_tokenizers() and load_tokenizer(own.name).fingerprint == own.fingerprint
        raise PamusicError(
            f"{corpus.path} was tokenized with {corpus.tokenizer.name} ({corpus.tokenizer.fingerprint}), but"
            f" {checkpoint.path} reads {own.name} ({own.fingerprint}); make it again with"
            f" pamusic tokenize --tokenizer {own.name if is_shipped else checkpoint.path / 'tokenizer.toml'} …"
        )


def shipped_checkpoints() -> list[Path]:
    """Return the folders of the bundled checkpoints, by name."""
    return sorted(path.parent for path in checkpoints_folder().glob("*/config.json"))


def _newest(runs: Path) -> Path:
    """Return the run that most recently stopped in order."""
    finished = [run for run in _runs(runs) if (run / "finished").is_file()]
    if not finished:
        raise PamusicError(
            f"{LATEST!r} is the newest run in {runs}/ that stopped in order, but there is none; train one with"
            " pamusic train, or pass the folder of a run"
        )
    return max(finished, key=lambda run: (run / "finished").stat().st_mtime)


def _runs(runs: Path) -> list[Path]:
    return sorted(path for path in runs.glob("*") if _of_run(path).is_dir()) if runs.is_dir() else []


def _of_run(run: Path) -> Path:
    best = recovered(run / BEST) if run.is_dir() else run / BEST
    return best if (best / "config.json").is_file() else run / LAST


def _config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise PamusicError(f"{path}: no such checkpoint folder; check the path")
    try:
        about = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: has no config.json; it is not a checkpoint, or only part of one") from None
    except (OSError, ValueError) as error:
        raise PamusicError(f"{path}: config.json is broken ({error}); restore the folder") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise PamusicError(f"{path}: checkpoint format must be {FORMAT}, got {found}; update pamusic")
    return about
