"""A folder on disk <-> a model, its configuration, and the very tokenizer it was trained with.

Knows models and tokenizers, and marries the two; knows no training, no sampling. A checkpoint has `model.safetensors`
(bfloat16 or float32), `config.json` (the model's shape, how it was trained, fingerprints), `tokenizer.toml`, and a
card, `README.md`. What ships is addressed by name, what is mine by path.
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
from pamusic.model.config import ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.resources import checkpoints_folder
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import load_vocabulary

FORMAT = 1
PARTS = {"model.safetensors", "config.json", "tokenizer.toml", "README.md"}  # files; there need be no card
RUNS = Path("runs")
DEFAULT = "small"  # the checkpoint that is taken where none is named
LATEST = "latest"  # in place of a name: the newest run that stopped in order
BEST, LAST = "best", "last"  # the two checkpoints of a run


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that can be used.

    Attributes:
        path: its folder.
        model: in float32, in evaluation mode.
        tokenizer: what its ids mean.
        metadata: how it came to be: whatever was given to `save_checkpoint`.
    """

    path: Path
    model: PerceiverAR
    tokenizer: Tokenizer
    metadata: dict[str, Any]

    @property
    def title(self) -> str:
        """How a person knows it: the name of one that ships, the path of any other."""
        ships = self.path.resolve().parent == checkpoints_folder().resolve()
        return f"{self.path.name}, which ships with pamusic" if ships else str(self.path)


def save_checkpoint(
    path: Path,
    model: PerceiverAR,
    tokenizer: Tokenizer,
    *,
    metadata: dict[str, Any],
    card: str = "",
    dtype: torch.dtype = torch.float32,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint's folder, whole or not at all.

    Args:
        path: the folder; one that is there is replaced.
        model: whose configuration, and whose weights unless others are given.
        tokenizer: the one it was trained with.
        metadata: how it came to be; anything that JSON can hold. What describes the model itself is written anew.
        card: the text of its `README.md`.
        dtype: of the weights on disk.
        weights: to be written in place of the model's, by the same names.

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
    """Read a checkpoint; weights become float32 on the device.

    Raises:
        PamusicError: it is missing, broken, or its parts do not belong together.
    """
    recovered(path)
    about = _config(path)
    tokenizer = Tokenizer(load_vocabulary(path / "tokenizer.toml"))
    if tokenizer.fingerprint != about.get("tokenizer_fingerprint"):
        raise PamusicError(f"{path}: tokenizer.toml is not the one its model was trained with; restore the folder")
    try:
        model = PerceiverAR(ModelConfig.from_json(about["model"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PamusicError(
            f"{path}: config.json does not describe a model that this version of pamusic knows ({error}); restore the"
            " folder, or take the version that wrote it"
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
        name: the name of a checkpoint that ships; or `LATEST`, the newest run in `runs` that stopped in order; or the
            path of a checkpoint's folder or of a run's folder (its best, else its last). A name comes before a folder
            of the same name; `./NAME` is the folder. None means `DEFAULT`.
        runs: the folder of the runs.

    Raises:
        PamusicError: there is none; the error lists those there are.
    """
    name = DEFAULT if name is None else name
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
            f"{name}: is neither a checkpoint (no config.json in it) nor a run (no {BEST}/ or {LAST}/); give one"
        )
    names = [path.name for path in shipped_checkpoints()] + [str(run) for run in _runs(runs)]
    raise PamusicError(f"no checkpoint is called {name!r}; there is {', '.join(names) or 'none'}; or give a folder")


def check_corpus(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Refuse a corpus that the checkpoint cannot read.

    Raises:
        PamusicError: it was made with another tokenizer.
    """
    if corpus.tokenizer.fingerprint != checkpoint.tokenizer.fingerprint:
        raise PamusicError(
            f"{corpus.path} was tokenized with {corpus.tokenizer.name} ({corpus.tokenizer.fingerprint}), but"
            f" {checkpoint.path} reads {checkpoint.tokenizer.name} ({checkpoint.tokenizer.fingerprint}); make it anew:"
            f" pamusic tokenize --tokenizer {checkpoint.path / 'tokenizer.toml'} …"
        )


def check_events(checkpoint: Checkpoint, what: str) -> None:
    """Refuse a checkpoint of several ids a position where `what` is done for one of events, one id a position.

    Raises:
        PamusicError: it has several.
    """
    num_fields = len(checkpoint.tokenizer.vocabulary.fields)
    if num_fields > 1:
        raise PamusicError(
            f"{checkpoint.title} has {num_fields} ids a position; {what} is for checkpoints of one, such as {DEFAULT}"
        )


def shipped_checkpoints() -> list[Path]:
    """Return the folders of the checkpoints that ship, by name."""
    return sorted(path.parent for path in checkpoints_folder().glob("*/config.json"))


def _newest(runs: Path) -> Path:
    """Return the run that stopped in order last."""
    finished = [run for run in _runs(runs) if (run / "finished").is_file()]
    if not finished:
        raise PamusicError(
            f"{LATEST!r} is the newest run in {runs}/ that stopped in order, and there is none; train one with"
            " pamusic train, or give the folder of a run"
        )
    return max(finished, key=lambda run: (run / "finished").stat().st_mtime)


def _runs(runs: Path) -> list[Path]:
    return sorted(path for path in runs.glob("*") if _of_run(path).is_dir()) if runs.is_dir() else []


def _of_run(run: Path) -> Path:
    best = recovered(run / BEST) if run.is_dir() else run / BEST
    return best if (best / "config.json").is_file() else run / LAST


def _config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise PamusicError(f"{path}: no such checkpoint folder")
    try:
        about = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: has no config.json; it is not a checkpoint, or only part of one") from None
    except (OSError, ValueError) as error:
        raise PamusicError(f"{path}: config.json is broken ({error}); restore the folder") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise PamusicError(f"{path}: is a checkpoint of format {found}, we read {FORMAT}; update pamusic")
    return about
