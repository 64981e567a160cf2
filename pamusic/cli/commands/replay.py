"""`pamusic replay`: makes a file of `pamusic sample` again, from what it says of how it was made."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from typer import Argument, Option

from pamusic.cli.commands.sample import APART, BEFORE, RECORDED, sample
from pamusic.cli.output import MOST_AT_ONCE, STREAM, check_kind
from pamusic.cli.primes import MIDI_SUFFIXES
from pamusic.cli.sampling_run import Composer
from pamusic.cli.terminal import say
from pamusic.errors import PamusicError, UsageError

MOST_THREADS = 1024  # of those a record may name: no machine has more, and to ask for too many ends the process


def replay(
    file: Annotated[Path, Argument(help="A MIDI file that pamusic sample wrote.", show_default=False)],
    out: Annotated[
        Path | None, Option("--out", "-o", help="- is stdout. (default: beside FILE, under a free name)")
    ] = None,
    prime: Annotated[Path | None, Option(help="Where its prime is now; - is stdin. (default: where it was)")] = None,
    checkpoint: Annotated[str | None, Option(help="Where its checkpoint is now. (default: where it was)")] = None,
) -> None:
    """Make a file again, byte for byte where machine and versions are the same; what differs is told."""
    import torch

    from pamusic.checkpoint import find_checkpoint
    from pamusic.compose.provenance import check_weights, has_music_of, read_provenance
    from pamusic.music.midi import file_bytes

    before = file_bytes(file)
    record = read_provenance(before, str(file))
    asked = inspect.signature(sample).parameters
    known = {name: each.default for name, each in asked.items() if name not in APART}
    if unknown := sorted(record.options.keys() - known.keys()):
        raise PamusicError(f"{file}: was made with options that we do not know ({', '.join(unknown)}); update pamusic")
    hints = {**get_type_hints(sample), **RECORDED}
    for name, value in record.options.items():
        if not _fits(value, hints[name]):
            raise PamusicError(f"{file}: its record was changed ({name} is {value!r}); take the original")
    options = {**known, **BEFORE, **record.options}
    has_row = record.row < (options["best_of"] or options["num"]) <= MOST_AT_ONCE
    has_end = options["length"] is not None or options["seconds"] is not None
    if not (has_row and has_end and options["seed"] is not None and 0 <= options["seed"] < 2**63):
        raise PamusicError(f"{file}: its record was changed (no seed, no end or no such piece); take the original")
    if prime is not None and options["prime"] is None:
        raise UsageError(f"{file} was begun from nothing; leave --prime out")
    options["checkpoint"] = checkpoint or options["checkpoint"]
    if options["prime"] is not None:
        options["prime"] = prime or Path(options["prime"])
        if prime is None and not (options["prime"] != STREAM and options["prime"].is_file()):
            raise PamusicError(f"{file}: was made from {options['prime']}, which is not there; say where: --prime")
    check_weights(record, find_checkpoint(options["checkpoint"]))
    if isinstance(threads := record.made_on.get("threads"), int) and 0 < threads <= MOST_THREADS:
        torch.set_num_threads(threads)
    check_kind(out, "MIDI", MIDI_SUFFIXES)
    again = Composer(options, again=record).compose(options["prime"], out, file)
    if again == before:
        say("the same, byte for byte")
    elif has_music_of(again, before):
        say(f"the same music as {file}, and another record of how it was made")
    else:
        say(f"not the same music as {file}")


def _fits(value: object, hint: Any) -> bool:
    """Whether an option of this type can have this value, as it stands in a file."""
    if isinstance(value, bool):
        return hint is bool or bool in get_args(hint)  # and not int, of which it is one
    like = [value, *([0.0] if isinstance(value, int) else [Path()] if isinstance(value, str) else [])]
    return any(isinstance(each, hint) for each in like)
