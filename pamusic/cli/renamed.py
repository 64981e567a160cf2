"""Map old names of options, accepted for one version, to their new names. Knows words only.

The help does not list them. Records in files keep the old names (`compose/request.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

_OVERWRITE = {"--force": "--overwrite"}
RENAMED: dict[str, dict[str, str]] = {
    "sample": {
        "--prime-from": "--prime-start",
        "--prime-to": "--prime-end",
        "--num": "--num-samples",
        "--let-go": "--release-bias",
        "--may-end": "--allow-end",
        "--end": "--end-near-length",
        "--one-track": "--same-track",
        "--ahead": "--buffer-seconds",
    },
    "train": {
        "--from": "--init-from",
        "--only": "--train-only",
        "--recompute": "--activation-checkpointing",
        "--no-recompute": "--no-activation-checkpointing",
        "--shard": "--fsdp",
        "--no-shard": "--no-fsdp",
        **_OVERWRITE,
    },
    "doctor": {"--recompute": "--activation-checkpointing"},
    "tokenize": _OVERWRITE,
    "average": _OVERWRITE,
    "evaluate": {"--keys": "--num-keys", "--block": "--stride", "--pieces": "--max-pieces"},
    "benchmark": {"--num": "--num-samples"},
}


def with_new_names(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the new names of renamed options; the first is the command's name."""
    if not words or words[0] not in RENAMED:
        return list(words)
    names, renamed = RENAMED[words[0]], [words[0]]
    for place, word in enumerate(words[1:], start=1):
        if word == "--":
            return [*renamed, *words[place:]]
        name, is_joined, value = word.partition("=")
        renamed.append(names.get(name, name) + is_joined + value)
    return renamed
