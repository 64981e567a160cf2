"""Find the files of several primes, and name their continuations. Knows paths and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pamusic.cli.midi_input import print_left_out
from pamusic.cli.output import check_kind
from pamusic.errors import PamusicError, UsageError

MIDI_SUFFIXES = (".mid", ".midi")


def prime_path(word: str) -> Path:
    """Return the path of a `--prime` argument.

    Raises:
        UsageError: it is empty, as for an unset shell variable; an empty path would mean the current folder.
    """
    if not word:
        raise UsageError("--prime is empty; pass a MIDI file, a folder, or - for standard input")
    return Path(word)


def is_many(primes: Sequence[Path]) -> bool:
    """Return whether there are several primes: more than one path, or a folder."""
    return len(primes) > 1 or any(prime.is_dir() for prime in primes)


def found_primes(named: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the given files and those in given folders, each once, and the reasons why a folder has none.

    This does not check whether the files can be read.
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
    """Return a function from a prime's path to the preferred name of its continuation.

    In a folder, continuations have the names of their primes. A name such as `take.mid` becomes `take-PRIME.mid`.

    Args:
        out: Path from the user: a folder (an existing one, or a name without a suffix), a file name, or None.
        default: File name without `out`.

    Raises:
        PamusicError: `out` is neither a folder nor the name of a MIDI file.
    """
    if out is not None and out.exists() and not (out.is_dir() or out.is_file()):
        raise PamusicError(f"{out}: can take only one file; pass a folder or a MIDI file with --out")
    if out is not None and (out.is_dir() or not (out.exists() or out.suffix)):
        return lambda prime: out / f"{_stem(prime)}.mid"
    check_kind(out, "MIDI", MIDI_SUFFIXES)
    name = out or default
    return lambda prime: name.with_stem(f"{name.stem}-{_stem(prime)}")


def _stem(path: Path) -> str:
    """Return a file name without its endings: `a` for both `a.mid` and `a.mid.gz`."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
