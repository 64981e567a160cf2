"""Run a request of `pamusic sample` or `pamusic replay`, and write MIDI files. Knows words and output paths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Exit

from pamusic.cli.interrupting import INTERRUPTED
from pamusic.cli.live import Live, live
from pamusic.cli.midi_input import read_with_bytes
from pamusic.cli.output import Output, check_kind, outputs
from pamusic.cli.primes import MIDI_SUFFIXES, found_primes, is_many, place_of
from pamusic.cli.reports.best_of import print_best_of
from pamusic.cli.terminal import load_torch, log, progress
from pamusic.errors import PamusicError, UsageError

if TYPE_CHECKING:
    from pamusic.compose.job import Composer, GenerationResult, Prime
    from pamusic.compose.provenance import Provenance
    from pamusic.compose.request import SampleRequest
    from pamusic.sampling.guard import Intervention

DETECTIONS = {"repetition": "a loop", "silence": "silence", "held": "a key held"}


def sample_files(
    out: Path | None,
    default: Path,
    primes: list[Path],
    request: SampleRequest,
    *,
    port: str | None = None,
    buffer_seconds: float = 0.0,
) -> None:
    """Compose from nothing, from one prime, or from each of several; every file records how it was made.

    Several primes are continued one after another with the same seed. Failed primes are listed at the end.

    Args:
        out: A file, or None; for several primes also a folder.
        default: File without `out`; if it exists, the next free name is used.
        primes: MIDI files and folders of them.
        request: Completed request; its own `prime` is not used.
        port: MIDI port that plays the new music during generation, or None.
        buffer_seconds: Seconds that generation stays ahead of the port.

    Raises:
        PamusicError: nothing can be composed, or some primes failed, or the port was not found or lost.
        typer.Exit: composing was interrupted; the finished part is written.
    """
    run = SamplingRun(request, port=port, buffer_seconds=buffer_seconds)
    if not is_many(primes):
        check_kind(out, "MIDI", MIDI_SUFFIXES)
        run.sample(primes[0] if primes else None, out, default)
        return
    place = place_of(out, default)
    found, failed = found_primes(primes)
    num = len(found) + len(failed)
    if failed and num == 1:
        raise PamusicError(failed[0])
    if found:
        run.announce()
    try:
        for number, prime in enumerate(found, start=1):
            log(f"{prime} ({number} of {len(found)})")
            try:
                run.sample(prime, None, place(prime))
            except PrimeError as error:
                failed.append(str(error))
    finally:
        for reason in failed:
            log(f"failed: {reason}")
    if failed:
        rest = "the others are written" if len(failed) < num else "nothing is written"
        raise PamusicError(f"{len(failed)} of {num} primes failed, as listed above; {rest}")


class PrimeError(PamusicError):
    """A prime cannot be continued, but other primes may be."""


class SamplingRun:
    """A composer for one command and any number of primes, with progress messages."""

    def __init__(
        self,
        request: SampleRequest,
        *,
        replayed: Provenance | None = None,
        port: str | None = None,
        buffer_seconds: float = 0.0,
    ) -> None:
        """Check the request; read nothing.

        Args:
            request: Completed request.
            replayed: Record of the file to make again, without the other files of its batch.
            port, buffer_seconds: As for `sample_files`.

        Raises:
            UsageError: an option has a wrong value.
        """
        load_torch()
        from pamusic.compose.job import Composer

        self._composer = Composer(request, replayed=replayed, is_live=port is not None, log=log)
        self._live = port, buffer_seconds
        self._is_announced = False

    def announce(self) -> None:
        """Load the checkpoint if needed, and log its title once."""
        composer = self._composer
        title = composer.checkpoint.title
        if not self._is_announced:
            cost = composer.precision_cost
            log(f"{title}, seed {composer.request.seed}")
            if cost:
                log(cost)
        self._is_announced = True

    def sample(self, prime_path: Path | None, out: Path | None, default: Path) -> bytes:
        """Compose the pieces that follow one prime; return the bytes of the last file.

        Args:
            prime_path: A MIDI file, `-` for standard input, or None.
            out, default: As for `sample_files`; several pieces get numbers or free names.

        Raises:
            PrimeError: the prime cannot be continued.
            PamusicError, typer.Exit: As for `sample_files`.
        """
        composer = self._composer
        sources = [path for path in (prime_path, default if composer.replayed else None) if path is not None]
        num = len(composer.rows)
        with outputs(out, default, num, sources=sources, kind="music") as files, live(*self._live) as playback:
            prime = _read(composer, prime_path)
            began, result, was_lost = self._draw(prime, playback)
            took = time.perf_counter() - began
            result, rows = _select(composer, result, prime)
            if result.interruption is not None:  # guarded pieces are drawn one by one: the last may have nothing yet
                rows = _drop_empty(rows, result, files)
            is_cut = result.interruption is not None or was_lost
            midi = _write(composer, files, rows, result, prime, is_cut=is_cut)
        self._report(result, prime, took)
        playback.raise_if_lost("; what was made so far is in the file")
        if result.interruption is not None:
            raise Exit(_exit_status(result.interruption))
        return midi

    def _draw(self, prime: Prime, playback: Live) -> tuple[float, GenerationResult, bool]:
        """Draw the pieces, with a progress bar.

        Returns:
            The start time, the result, and whether the port was lost.
        """
        composer, request = self._composer, self._composer.request
        composer.load()
        with _about_a_prime(prime.path):
            collector = composer.collector(prime)
            collector.on_intervention_of = self._print_intervention
            steps = composer.stream(prime, collector)
        self.announce()
        if unsupported := composer.unsupported_notes(prime):
            log(unsupported)
        began = time.perf_counter()
        decoder = composer.decoder(prime)
        by_seconds = request.length is None
        of_length = "position" if composer.has_fields else "token"
        total, unit = (request.max_seconds, " seconds of music") if by_seconds else (request.length, of_length)
        with progress(total=total and total * request.num_drawn, what="sample", unit=unit, scaled=by_seconds) as bar:
            collector.on_progress = bar.update
            result = collector.collect(playback.tee(steps, decoder))
        return began, result, playback.stop()

    def _print_intervention(self, piece: int, intervention: Intervention) -> None:
        """Log an intervention of the guard."""
        detection, seed = intervention.detection, self._composer.request.seed or 0
        what = f"{DETECTIONS[detection.kind]} from second {detection.since:.1f} to {detection.at:.1f}"
        back = "released" if intervention.back_to >= detection.at else f"back to second {intervention.back_to:.1f}"
        if intervention.gave_up:
            back += ", where the piece ends, because it kept recurring; --temperature may be too low"
        log(f"guard, seed {seed + piece}: {what}; {back}")

    def _report(self, result: GenerationResult, prime: Prime, took: float) -> None:
        num_tokens, passed = sum(map(len, result.pieces)), self._composer.num_seconds(result, prime)
        unit = "positions" if self._composer.has_fields else "tokens"
        log(f"{num_tokens:,} {unit}, {passed:.1f} seconds of music, in {took:.1f} seconds:")
        fast = f"{num_tokens / took:.0f} {unit}/s, {passed / took:.1f} times real time"
        log(fast if result.interruption is None else f"{fast}; interrupted")
        if (num_empty := sum(not piece for piece in result.pieces)) and result.interruption is None:
            log(f"{num_empty} of {len(result.pieces)} pieces have no new note; try another --seed")


def _read(composer: Composer, path: Path | None) -> Prime:
    from pamusic.compose.job import Prime

    if path is None:
        return Prime()
    with _about_a_prime(path):
        performance, data, repairs = read_with_bytes(path, composer.tracks)
        prime = Prime(performance, data, repairs, path)
        composer.check_prime(prime)
    return prime


def _select(composer: Composer, result: GenerationResult, prime: Prime) -> tuple[GenerationResult, list[int]]:
    """Return the result and the rows that are kept; after an interruption these are the first ones."""
    try:
        if composer.is_ranking:
            log(f"comparing {len(result.pieces)} pieces")
        best_of = composer.best_of(result, prime)
    except KeyboardInterrupt as interruption:
        log("interrupted before the comparison; the first pieces are kept")
        return replace(result, interruption=interruption), composer.rows
    if best_of is None:
        return result, composer.rows
    print_best_of(best_of, keep=len(composer.rows), seed=composer.request.seed or 0)
    return result, [each.row for each in best_of.standings[: len(composer.rows)]]


def _write(
    composer: Composer, files: list[Output], rows: list[int], result: GenerationResult, prime: Prime, *, is_cut: bool
) -> bytes:
    """Write the pieces; return the bytes of the last file."""
    record_of = composer.records(result, prime, is_cut=is_cut)
    midi, is_kept = b"", True
    for file, row in zip(files, rows, strict=False):
        midi, is_kept = composer.midi(result.pieces[row], prime, record_of(row))
        file.write(midi)
    if prime.performance is not None and not is_kept and not composer.request.continuation_only:
        log("the prime's file is not plain, so its notes and pedals are rewritten, rounded to milliseconds")
    return midi


def _drop_empty(rows: list[int], result: GenerationResult, files: list[Output]) -> list[int]:
    """Return the pieces that have music, and drop the files of the others.

    Raises:
        KeyboardInterrupt: no piece has music.
    """
    rows = [row for row in rows if result.pieces[row]]
    for file in files[len(rows) :]:
        file.drop()
    if len(rows) < len(files):
        log(f"{len(rows)} of {len(files)} pieces had begun")
    if not rows:
        raise KeyboardInterrupt
    return rows


def _exit_status(interruption: BaseException) -> int:
    """Return the exit status for an interruption."""
    return int(interruption.code or 0) if isinstance(interruption, SystemExit) else INTERRUPTED


@contextmanager
def _about_a_prime(path: Path | None) -> Iterator[None]:
    """Convert errors to `PrimeError`s that name the prime; leave wrong usage as it is."""
    try:
        yield
    except UsageError:
        raise
    except PamusicError as error:
        is_named = path is None or str(error).startswith((str(path), "standard input"))
        raise PrimeError(str(error) if is_named else f"{path}: {error}", rule=error.rule) from None
