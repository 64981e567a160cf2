"""Several primes of one command: which files they are, and where each continuation goes. Knows paths and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pamusic.cli.midi_input import print_left_out
from pamusic.cli.output import check_kind
from pamusic.errors import PamusicError, UsageError

MIDI_SUFFIXES = (".mid", ".midi")


def prime_path(word: str) -> Path:
    """Return the path that a word of `--prime` names.

    Raises:
        UsageError: it is empty, as an unset variable of a shell is; as a path that would be the folder we are in.
    """
    if not word:
        raise UsageError("--prime is empty; name a MIDI file, a folder, or - for standard input")
    return Path(word)


def is_many(primes: Sequence[Path]) -> bool:
    """Return whether the primes are several: more than one was named, or a folder."""
    return len(primes) > 1 or any(prime.is_dir() for prime in primes)


def found_primes(named: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the files that were named or that lie in a folder, each once; and why a folder gives none.

    Whether a file can be read is not known yet.
    """
    from pamusic.corpus.sources import find_sources

    found: list[Path] = []
    failed: list[str] = []
    for path in named:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            sources, refused, left_out = find_sources([path])
        except PamusicError as error:
            failed.append(str(error))
            continue
        print_left_out(left_out)
        failed += [f"{refusal.name}: {refusal.reason}" for refusal in refused]
        for source in sources:
            if source.container is None:
                found.append(Path(source.path))
            else:
                failed.append(f"{source.where}: is in an archive; unpack it to continue it")
    return list(dict.fromkeys(found)), failed


def place_of(out: Path | None, default: Path) -> Callable[[Path], Path]:
    """Return a function from a prime's path to the name that its continuation gets, if that is still free.

    A folder takes files that are called as the primes are. A name such as `take.mid` makes `take-PRIME.mid`.

    Args:
        out: what the user asks for: a folder (an existing one, or a name without a suffix), a name, or None.
        default: the name that is taken without `out`.

    Raises:
        PamusicError: `out` is neither a folder nor the name of a MIDI file.
    """
    if out is not None and out.exists() and not (out.is_dir() or out.is_file()):
        raise PamusicError(f"{out}: takes no more than one file; name a folder or a MIDI file with --out")
    if out is not None and (out.is_dir() or not (out.exists() or out.suffix)):
        return lambda prime: out / f"{_stem(prime)}.mid"
    check_kind(out, "MIDI", MIDI_SUFFIXES)
    name = out or default
    return lambda prime: name.with_stem(f"{name.stem}-{_stem(prime)}")


def _stem(path: Path) -> str:
    """Return the name without its endings: of `a.mid` and of `a.mid.gz` it is `a`."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
