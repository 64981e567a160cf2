"""Turn a file's record into words, and into commands that make the file again. Knows options and words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from pamusic.cli.terminal import log
from pamusic.compose.request import DEFAULT_SECONDS, LEGACY_DEFAULTS, RECORD_NAMES, SUGGESTED, SampleRequest
from pamusic.errors import PamusicError
from pamusic.resources import checkpoints_folder

if TYPE_CHECKING:
    from pamusic.compose.provenance import Provenance
    from pamusic.music.performance import Performance
    from pamusic.page.document import Piece

HASH = 12  # digits of a hash that are shown


def piece_of(name: str, data: bytes, performance: Performance) -> Piece:
    """Return a piece of a page with the facts of its file; log and leave out a record that cannot be read."""
    from pamusic.compose.provenance import read_provenance
    from pamusic.music.midi import read_contents
    from pamusic.page.document import Piece

    if not read_contents(data, name).our_text:
        return Piece(name, performance, data)
    try:
        record = read_provenance(data, name)
    except PamusicError as error:
        log(error)
        return Piece(name, performance, data)
    commands = (
        ("It was made by", command(record.options)),
        ("Byte for byte again, where machine and versions are the same", f"pamusic replay {shlex.quote(name)}"),
    )
    return Piece(name, performance, data, new_from(record, data, name), facts(record), commands)


def command(options: Mapping[str, object]) -> str:
    """Return the `pamusic sample` command for the options of a record; options at their defaults are left out."""
    words = ["pamusic", "sample"]
    flags = {record_name: "--" + field.replace("_", "-") for field, record_name in RECORD_NAMES.items()}
    suggested = _suggested(options.get("checkpoint"))
    for name, default in SampleRequest().to_record().items():
        value = options.get(name, LEGACY_DEFAULTS.get(name, default))
        implied = name == "seconds" and value == DEFAULT_SECONDS and options.get("length") is None
        implied = implied or (name == "seconds" and options.get("minutes") is not None)
        # Only int8 weights use a compiled kernel; a record holds what was done, not what was requested.
        implied = implied or (name == "compile" and options.get("precision") != "int8")
        is_one_piece = (options.get("best_of") or options.get("num", 1)) == 1
        implied = implied or (name == "returns" and name not in options)  # a file of events, or an older one
        implied = implied or (name in SUGGESTED and value == suggested.get(name, 1.0))
        implied = implied or (name == "let_go" and value == 0 and "returns" in options)  # of no effect on notes
        implied = implied or (name == "guard" and value == is_one_piece)
        if value is None or value == default or implied:
            continue
        option = flags[name]
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option.removeprefix('--')}")
        else:
            words += [option, f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)]
    return shlex.join(words)


def _suggested(checkpoint: object) -> Mapping[str, object]:
    """Return the temperatures that a checkpoint suggests; none if it is not here, or suggests none."""
    shipped = checkpoints_folder() / str(checkpoint)
    folder = shipped if shipped.is_dir() else Path(str(checkpoint))
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    suggested = about.get("sampling") if isinstance(about, dict) else None
    return suggested if isinstance(suggested, dict) else {}


def facts(record: Provenance) -> tuple[tuple[str, str], ...]:
    """Return the facts of a record, each (label, value)."""
    options, on = record.options, record.made_on
    begun = "nothing"
    if record.prime_sha256 is not None:
        begun = f"{options.get('prime')} (SHA-256 {_short(record.prime_sha256)})"
    composer = f"{options.get('checkpoint')} (weights {_short(record.weights_sha256)})"
    told = {
        "composed by": f"{composer}, {record.tokenizer} events",
        "begun from": begun,
        "seed": _seed(record),
        "taken back": f"{record.alarms} times, by the guard" if options.get("guard") else "",
        "interrupted": "" if record.stopped_after is None else f"after {record.stopped_after} tokens",
        "made on": ", ".join(f"{what} {which}" for what, which in on.items()),
    }
    return tuple((what, how) for what, how in told.items() if how)


def new_from(record: Provenance, data: bytes, name: str) -> float | None:
    """Return the second from which a file's music is new; None if all of it is new, or if it is not known."""
    from pamusic.music.midi import read_contents, tempo_map
    from pamusic.music.splicing import NEW_TRACK

    options = record.options
    if record.prime_sha256 is None or options.get("continuation_only"):
        return None
    cut = options.get("prime_to")
    if isinstance(cut, int | float):
        return float(cut) if isfinite(cut) and cut > 0 else None
    contents = read_contents(data, name)
    new = [] if options.get("one_track") else [part for part in contents.parts if part.name == NEW_TRACK]
    if not new:
        return None
    return float(tempo_map(contents.ticks_per_quarter, contents.tempos)(new[-1].onset).min())


def _seed(record: Provenance) -> str:
    options, first = record.options, record.options.get("seed")
    if not (isinstance(first, int) and isinstance(record.row, int)):
        return str(first)
    keep, best_of, num = (options.get(name) for name in ("keep", "best_of", "num"))
    if best_of is not None:
        among = f", the best of {best_of}" if keep in (None, 1) else f", among the best {keep} of {best_of}"
        return f"{first + record.row}{among} from seed {first} on"
    return str(first + record.row) + (f", of {num} from seed {first} on" if num not in (None, 1) else "")


def _short(sha256: object) -> str:
    return str(sha256)[:HASH]
