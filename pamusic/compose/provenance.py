"""What made a piece of music, written into its file, so that the file can be made again.

Knows checkpoints, versions and hashes; knows no options by name, and no terminal. The record stands as one text (meta
message 1) at tick 0 of the first track: the word pamusic and JSON, in ASCII. Paths stand in it as they were given; what
tells a prime and a checkpoint for sure is their hash. A prime that has such a text of its own keeps it, before ours.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pamusic import __version__
from pamusic.errors import PamusicError
from pamusic.music.splicing import texts, without_texts

if TYPE_CHECKING:
    from pamusic.checkpoint import Checkpoint

FORMAT = 1
SIGN = "pamusic "
CODE = ("inference", "model", "music", "sampling", "tokens")  # the packages that music depends on
MODULES = ("compose/token_stream.py", "device.py")  # and the modules beside them


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a file.

    Attributes:
        options: of `pamusic sample`, by name, each as it was in force: the seed that was drawn, the checkpoint that
            was chosen; but not where the result went.
        weights_sha256: of the checkpoint's `model.safetensors`.
        tokenizer, tokenizer_fingerprint: the checkpoint's.
        prime_sha256: of the prime's file; None where there was no prime.
        row: its place among the pieces that were composed at once.
        alarms: how often the guard took it back.
        stopped_after: how many ids had been drawn for it when it was interrupted, those included that the guard took
            back, or for the longest of pieces that were drawn as one batch; None if it never was.
        made_on: what else the numbers may depend on, by name: versions, threads, device.
    """

    options: dict[str, object]
    weights_sha256: str
    tokenizer: str
    tokenizer_fingerprint: str
    prime_sha256: str | None
    made_on: dict[str, object]
    row: int = 0
    alarms: int = 0
    stopped_after: int | None = None

    def text(self) -> str:
        """Return the record as it stands in a file."""
        return SIGN + json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"), default=str)


def provenance(options: dict[str, object], checkpoint: Checkpoint, prime: bytes | None) -> Provenance:
    """Return the record of what is about to be made."""
    import torch  # here, for who reads a record needs none

    tokenizer = checkpoint.tokenizer
    return Provenance(
        options=options,
        weights_sha256=sha256((checkpoint.path / "model.safetensors").read_bytes()),
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        prime_sha256=None if prime is None else sha256(prime),
        made_on={
            "pamusic": __version__,
            "code": _code(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(checkpoint.model.head.weight.device),
            "machine": platform.machine(),
        },
    )


def read_provenance(data: bytes, name: str) -> Provenance:
    """Return the record in a file, the last where there are several.

    Raises:
        PamusicError: there is none, or none that we know how to read.
    """
    ours = [text for text in texts(data) if text.startswith(SIGN)]
    if not ours:
        raise PamusicError(f"{name}: does not say how it was made; only what pamusic sample wrote does, unchanged")
    try:
        fields = json.loads(ours[-1].removeprefix(SIGN))
        if fields.pop("format") != FORMAT:
            raise PamusicError(f"{name}: was made by another pamusic, and its record has another form; update pamusic")
        record = Provenance(**fields)
        counts = (record.row, record.alarms, record.stopped_after or 0)
        whole = (
            all(type(count) is int and count >= 0 for count in counts)
            and isinstance(record.weights_sha256, str)
            and isinstance(record.options, dict)
            and isinstance(record.made_on, dict)
        )
        return record if whole else _broken(name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _broken(name)


def check_weights(record: Provenance, path: Path) -> None:
    """Refuse a checkpoint that is not the one of a record.

    Raises:
        PamusicError: it is another, or has no weights.
    """
    try:
        found = sha256((path / "model.safetensors").read_bytes())
    except OSError:
        raise PamusicError(f"{path}: has no model.safetensors that can be read; restore the folder") from None
    if found != record.weights_sha256:
        raise PamusicError(
            f"{path}: has other weights ({found[:12]}…) than the file was made with ({record.weights_sha256[:12]}…); "
            "say with --checkpoint where those are"
        )


def differences(before: Provenance, now: Provenance) -> list[str]:
    """Return what the numbers may depend on and is not as it was, in words."""
    found = [
        f"{name} {now.made_on.get(name)}, then {before.made_on.get(name, 'unknown')}"
        for name in {**now.made_on, **before.made_on}
        if now.made_on.get(name) != before.made_on.get(name)
    ]
    if before.options.get("compile") and not now.options.get("compile"):
        found.append("no C++ compiler that works, then one")
    return found


def has_music_of(data: bytes, other: bytes) -> bool:
    """Return whether two files have the same messages, but for the records of how they were made."""
    return without_texts(data, SIGN) == without_texts(other, SIGN)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _code() -> str:
    """Short for the source of what composes: between two versions it changes, too."""
    here, digest = Path(__file__).parents[1], hashlib.sha256()
    paths = [*(here / name for name in MODULES), *(path for name in CODE for path in (here / name).iterdir())]
    for path in sorted(path for path in paths if path.suffix in (".py", ".cpp")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


def _broken(name: str) -> Provenance:
    raise PamusicError(f"{name}: says how it was made in a way that cannot be read; the record was changed")
