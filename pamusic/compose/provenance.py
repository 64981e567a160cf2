"""Record in a MIDI file how it was made, so that the file can be reproduced.

Knows checkpoints, versions and hashes; knows no options by name, and no terminal. The record is one text (meta message
1) at tick 0 of the first track: the word pamusic and JSON, in ASCII. Paths are recorded as given; hashes identify the
prime and the checkpoint. If the prime has such a record, it is kept, before ours.
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
CODE = ("inference", "model", "music", "sampling", "tokens")  # packages that the music depends on
MODULES = ("compose/token_stream.py", "device.py")  # other modules that the music depends on


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The record of how a file was made.

    Attributes:
        options: Effective options of `pamusic sample`, by name, such as the drawn seed and the chosen checkpoint; but
            not the path of the result.
        weights_sha256: Hash of the checkpoint's `model.safetensors`.
        tokenizer, tokenizer_fingerprint: Tokenizer of the checkpoint.
        prime_sha256: Hash of the prime's file; None without a prime.
        row: Index among the pieces of one command.
        alarms: Number of interventions of the guard.
        stopped_after: Number of ids drawn when an interruption stopped the piece, including ids that the guard took
            back; in a batch, of its longest piece. None without an interruption.
        made_on: Other things that the result may depend on, by name: versions, threads, device.
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
        """Return the record as a text for a file."""
        return SIGN + json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"), default=str)


def provenance(options: dict[str, object], checkpoint: Checkpoint, prime: bytes | None) -> Provenance:
    """Return the record for new pieces."""
    import torch  # here, because reading a record does not need torch

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
    """Return the record in a file, or the last one of several.

    Raises:
        PamusicError: There is no record, or it cannot be read.
    """
    ours = [text for text in texts(data) if text.startswith(SIGN)]
    if not ours:
        raise PamusicError(f"{name}: has no record of how it was made; use an unchanged file of pamusic sample")
    try:
        fields = json.loads(ours[-1].removeprefix(SIGN))
        if fields.pop("format") != FORMAT:
            raise PamusicError(f"{name}: its record has the format of another version of pamusic; update pamusic")
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
    """Raise an error if a checkpoint is not the recorded one.

    Raises:
        PamusicError: The checkpoint has other weights, or none.
    """
    try:
        found = sha256((path / "model.safetensors").read_bytes())
    except OSError:
        raise PamusicError(f"{path}: cannot read model.safetensors; restore the folder") from None
    if found != record.weights_sha256:
        raise PamusicError(
            f"{path}: has other weights ({found[:12]}…) than the file was made with ({record.weights_sha256[:12]}…); "
            "pass the right folder with --checkpoint"
        )


def differences(before: Provenance, now: Provenance) -> list[str]:
    """Describe differences from the record that may change the result."""
    found = [
        f"{name} {now.made_on.get(name)}, then {before.made_on.get(name, 'unknown')}"
        for name in {**now.made_on, **before.made_on}
        if now.made_on.get(name) != before.made_on.get(name)
    ]
    if before.options.get("compile") and not now.options.get("compile"):
        found.append("no C++ compiler that works, then one")
    return found


def has_music_of(data: bytes, other: bytes) -> bool:
    """Return whether two files have the same messages, apart from their records."""
    return without_texts(data, SIGN) == without_texts(other, SIGN)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _code() -> str:
    """Return a short hash of the source code that the music depends on, which can change between versions."""
    here, digest = Path(__file__).parents[1], hashlib.sha256()
    paths = [*(here / name for name in MODULES), *(path for name in CODE for path in (here / name).iterdir())]
    for path in sorted(path for path in paths if path.suffix in (".py", ".cpp")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


def _broken(name: str) -> Provenance:
    raise PamusicError(f"{name}: its record was changed and cannot be read; use the original file")
