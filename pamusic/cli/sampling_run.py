"""Options of `pamusic sample` -> MIDI files, for the first time or again. Knows words and the order of the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from typer import Exit

from pamusic.cli.drawing import Drawn, Hearing, collected
from pamusic.cli.interrupting import INTERRUPTED
from pamusic.cli.live import live
from pamusic.cli.midi_input import read_with_bytes
from pamusic.cli.output import Output, check_kind, outputs
from pamusic.cli.primes import MIDI_SUFFIXES, found_primes, is_many, place_of
from pamusic.cli.reports.best_of import chosen
from pamusic.cli.terminal import load_torch, say
from pamusic.errors import PamusicError, UsageError

if TYPE_CHECKING:
    from pamusic.checkpoint import Checkpoint
    from pamusic.compose.provenance import Provenance
    from pamusic.inference.native_kernel import CompiledKernel
    from pamusic.music.midi_contents import Repair
    from pamusic.music.performance import Performance


def compose_files(
    out: Path | None,
    default: Path,
    primes: list[Path],
    options: dict[str, Any],
    *,
    port: str | None = None,
    ahead: float = 0.0,
) -> None:
    """Compose from nothing, from one prime, or from each of several; every file records how it was made.

    Several primes are continued one after the other, with the same seed. Those that fail are listed at the end.

    Args:
        out: a file, or None; for several primes also a folder.
        default: the file that is written without `out`, or the first free name after it.
        primes: MIDI files and folders of them.
        options: of `pamusic sample`, by name.
        port: a MIDI port that plays the new music while it is composed, or None.
        ahead: seconds that are composed before the port plays them.

    Raises:
        PamusicError: nothing can be composed, or not from every prime; or the port was not found, or was lost.
        typer.Exit: it was interrupted; what was composed is written.
    """
    composer = Composer(options, port=port, ahead=ahead)
    if not is_many(primes):
        check_kind(out, "MIDI", MIDI_SUFFIXES)
        composer.compose(primes[0] if primes else None, out, default)
        return
    place = place_of(out, default)
    found, failed = found_primes(primes)
    num = len(found) + len(failed)
    if failed and num == 1:
        raise PamusicError(failed[0])
    if found:
        composer.announce()
    try:
        for number, prime in enumerate(found, start=1):
            say(f"{prime} ({number} of {len(found)})")
            try:
                composer.compose(prime, None, place(prime))
            except PrimeError as error:
                failed.append(str(error))
    finally:
        for reason in failed:
            say(f"failed: {reason}")
    if failed:
        rest = "the others are written" if len(failed) < num else "nothing is written"
        raise PamusicError(f"{len(failed)} of {num} primes failed, as listed above; {rest}")


class PrimeError(PamusicError):
    """A prime cannot be continued; another prime may be."""


@dataclass(frozen=True, eq=False)
class Prime:
    """A prime that was read, or none.

    Attributes:
        performance: what was played, or None.
        data: the bytes of its file, or None.
        repairs: what was mended in it.
        path: of its file, or None.
    """

    performance: Performance | None = None
    data: bytes | None = None
    repairs: tuple[Repair, ...] = ()
    path: Path | None = None


class Composer:
    """A checkpoint, loaded once, that composes by the options of one command for any number of primes."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        again: Provenance | None = None,
        port: str | None = None,
        ahead: float = 0.0,
    ) -> None:
        """Check the options; read nothing.

        Args:
            options: of `pamusic sample`, by name.
            again: the record of a file that is to be made again, without the others of its batch.
            port, ahead: as for `compose_files`.

        Raises:
            UsageError: an option has a wrong value, or two contradict each other.
        """
        load_torch()
        from pamusic.music.midi import parsed_tracks
        from pamusic.sampling.config import SamplingConfig
        from pamusic.sampling.ending import Ending
        from pamusic.tokens.prime import Cut

        self._options, self._again, self._live = options, again, (port, ahead)
        self._o = o = SimpleNamespace(**options)
        self._tracks, self._cut = parsed_tracks(o.tracks), Cut(o.prime_from or 0.0, o.prime_to)
        self._num = o.best_of or o.num
        self._rows: list[int] = [*range(o.keep or 1 if o.best_of else self._num)] if again is None else [again.row]
        self._ending = Ending() if o.end else None
        self._stop_at = o.seconds
        if self._ending is not None and o.seconds is not None:
            self._stop_at = o.seconds * self._ending.deadline
        self._is_announced = False
        try:
            self._sampling = SamplingConfig(
                temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p, typical_p=o.typical_p,
                class_temperatures=(o.temperature_time, o.temperature_pitch, o.temperature_velocity),
                let_go=o.let_go,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None

    def announce(self) -> None:
        """Load the checkpoint, unless it is loaded, and say once which one it is."""
        from pamusic.device import cost_of

        who = self._checkpoint
        if not self._is_announced:
            told = cost_of(self._o.precision, who.model.head.weight.device, self._kernel is not None)
            say(f"{who.title}, seed {self._o.seed}")
            if told:
                say(told)
        self._is_announced = True

    def compose(self, prime: Path | None, out: Path | None, default: Path) -> bytes:
        """Compose the pieces that follow one prime; return the bytes of the last file.

        Args:
            prime: a MIDI file, `-` for standard input, or None.
            out, default: as for `compose_files`; several pieces get numbers or free names.

        Raises:
            PrimeError: the prime cannot be continued.
            PamusicError, typer.Exit: as for `compose_files`.
        """
        from pamusic.tokens.continuation import streaming

        o, again = self._o, self._again
        sources = [path for path in (prime, default if again else None) if path is not None]
        with outputs(out, default, len(self._rows), sources=sources, kind="music") as files, live(*self._live) as ears:
            opening, hearing = self._read(prime), Hearing(o.seed)
            steps = self._steps(opening, hearing)
            self.announce()
            who = self._checkpoint
            self._tell_unheard(opening)
            began = time.perf_counter()
            decoder = streaming(who.tokenizer, prime=opening.performance, cut=self._cut, seconds=self._stop_at)
            got = collected(
                ears.heard(steps, decoder), self._num, hearing, length=o.length, seconds=self._stop_at,
                seconds_of_id=who.tokenizer.vocabulary.seconds_of_id.tolist(),
            )  # fmt: skip
            was_lost = ears.quiet()
            took = time.perf_counter() - began
            got, rows = self._chosen(got, opening)
            if got.interrupted:  # a guard draws the pieces in turns, so the last ones may have nothing yet
                rows = _begun(rows, got, files)
            midi = self._write(files, rows, got, prime, opening, is_cut=bool(got.interrupted or was_lost))
        self._report(got, took)
        ears.told("; what was made so far is in the file")
        if got.interrupted:
            raise Exit(got.interrupted)
        return midi

    @cached_property
    def _path(self) -> Path:
        from pamusic.checkpoint import find_checkpoint

        return find_checkpoint(self._o.checkpoint)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        from pamusic.checkpoint import load_checkpoint
        from pamusic.device import choose_machine

        return load_checkpoint(self._path, choose_machine(self._o.device, "fp32", compile=False).device)

    @cached_property
    def _kernel(self) -> CompiledKernel | None:
        from pamusic.inference.native_kernel import kernel_for

        if not self._o.compile or self._has_fields:
            return None
        return kernel_for(self._checkpoint.model, self._o.precision, say)

    @cached_property
    def _precision(self) -> str:
        from pamusic.inference.precision import resolved

        if self._has_fields:
            return "fp32"
        return resolved(self._o.precision, self._checkpoint.model.head.weight.device, self._kernel is not None)

    def _read(self, path: Path | None) -> Prime:
        from pamusic.compose.provenance import sha256

        if path is None:
            return Prime()
        with _about_a_prime(path):
            prime = Prime(*read_with_bytes(path, self._tracks), path)
            if self._again and prime.data is not None and sha256(prime.data) != self._again.prime_sha256:
                raise PamusicError(f"{path}: is not the prime that the file was made from; say where that is: --prime")
        return prime

    def _steps(self, prime: Prime, hearing: Hearing) -> Iterator[list[Any]]:
        """The new ids, as `composition.compose_many` draws them, or positions, as `compose_positions` does."""
        from pamusic.compose.token_stream import compose_many, compose_positions
        from pamusic.sampling.guard import Guard

        o, who = self._o, self._checkpoint
        try:
            if self._has_fields:
                self._refuse_what_events_have(prime)
                return compose_positions(
                    who, seed=o.seed, num=self._num, length=o.length, seconds=o.seconds, may_end=o.may_end,
                    sampling=self._sampling, stop_after=self._again.stopped_after if self._again else None,
                )  # fmt: skip
            kernel, precision = self._kernel, self._precision
            with _about_a_prime(prime.path):
                return compose_many(
                    who, prime.performance, cut=self._cut, seed=o.seed, num=self._num, length=o.length,
                    seconds=o.seconds, may_end=o.may_end, ending=self._ending, sampling=self._sampling,
                    num_latents=o.num_latents, context_length=o.context_length, refill=o.refill,
                    precision=precision, kernel=kernel, guard=Guard() if o.guard else None,
                    alarmed=hearing.alarmed, keeping=hearing.keeping,
                    stop_after=self._again.stopped_after if self._again else None,
                )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def _has_fields(self) -> bool:
        """Whether the checkpoint has several ids a position, which are drawn plainly."""
        return bool(self._checkpoint.tokenizer.vocabulary.shape)

    def _refuse_what_events_have(self, prime: Prime) -> None:
        """Refuse what is not done yet where a position has several ids.

        Raises:
            UsageError: it was asked for.
        """
        from pamusic.sampling.config import SamplingConfig
        from pamusic.tokens.vocabulary import CLASSES

        o = self._o
        asked = {
            "--prime": prime.performance is not None,
            "--port": self._live[0] is not None,
            "--end": o.end,
            "--context-length": o.context_length is not None,
            "--num-latents": o.num_latents is not None,
            "--refill": o.refill != "half",
            "--precision": o.precision not in ("auto", "fp32"),
            "--let-go": o.let_go not in (0, SamplingConfig.let_go),
        }
        for name, temperature in zip(CLASSES, self._sampling.class_temperatures, strict=True):
            asked[f"--temperature-{name}"] = temperature != 1
        if refused := [name for name, is_asked in asked.items() if is_asked]:
            raise UsageError(
                f"{self._checkpoint.title} has {len(self._checkpoint.tokenizer.vocabulary.fields)} ids a position, and"
                f" such a checkpoint is sampled from nothing, in fp32, as trained; leave out {', '.join(refused)}"
            )

    def _tell_unheard(self, prime: Prime) -> None:
        from pamusic.tokens.prime import unheard

        opening, tokenizer = prime.performance, self._checkpoint.tokenizer
        if opening is not None and (told := unheard(tokenizer, opening, self._cut)):
            say(told)

    def _chosen(self, got: Drawn, prime: Prime) -> tuple[Drawn, list[int]]:
        """The places of the pieces that are kept; an interruption keeps the first ones."""
        o, rows = self._o, self._rows
        if not o.best_of or self._again is not None:
            return got, rows
        try:
            return got, chosen(
                self._checkpoint, got.pieces, len(rows), prime=prime.performance, cut=self._cut,
                seconds=self._stop_at, seed=o.seed, num_latents=o.num_latents, context_length=o.context_length,
            )  # fmt: skip
        except KeyboardInterrupt:
            say("interrupted before they were compared; the first are kept")
            return replace(got, interrupted=INTERRUPTED), rows

    def _write(
        self, files: list[Output], rows: list[int], got: Drawn, path: Path | None, prime: Prime, *, is_cut: bool
    ) -> bytes:
        from pamusic.compose.provenance import differences, provenance
        from pamusic.tokens.continuation import as_midi

        o, again, opening = self._o, self._again, prime.performance
        options = {**self._options, **self._names(path), "precision": self._precision, "compile": bool(self._kernel)}
        if self._has_fields:  # these have no effect there
            options |= {"guard": False, "let_go": 0.0}
        record = provenance(options, self._checkpoint, prime.data)
        record = replace(record, stopped_after=again.stopped_after if again else None)
        if again and (other := differences(again, record)):
            say(f"the music may differ: {'; '.join(other)}")
        midi, is_kept = b"", True
        for file, row in zip(files, rows, strict=False):
            of_row = replace(record, row=row, alarms=got.num_alarms[row])
            if is_cut:
                of_row = replace(of_row, stopped_after=got.num_drawn[row])
            midi, is_kept = as_midi(
                self._checkpoint.tokenizer, got.pieces[row], prime=opening, data=prime.data, repairs=prime.repairs,
                tracks=self._tracks, cut=self._cut, seconds=self._stop_at, one_track=o.one_track,
                alone=o.continuation_only, text=of_row.text(),
            )  # fmt: skip
            file.write(midi)
        if opening is not None and not is_kept and not o.continuation_only:
            say("the prime's file is not plain, so its notes and pedals are written anew, to the millisecond")
        return midi

    def _names(self, prime: Path | None) -> dict[str, Any]:
        """How the record names checkpoint and prime: as the user did, but never by a word that changes its meaning."""
        from pamusic.checkpoint import LATEST, shipped_checkpoints

        if self._again:
            return {name: self._again.options.get(name) for name in ("checkpoint", "prime")}
        given = self._o.checkpoint
        if given in (None, LATEST):
            given = self._path.name if self._path in shipped_checkpoints() else str(self._path)
        return {"checkpoint": given, "prime": prime}

    def _report(self, got: Drawn, took: float) -> None:
        num_tokens = sum(map(len, got.pieces))
        seconds_of_id = self._checkpoint.tokenizer.vocabulary.seconds_of_id
        passed = sum(min(seconds_of_id[piece].sum(), self._stop_at or inf) for piece in got.pieces)
        say(f"{num_tokens:,} tokens, {passed:.1f} seconds of music, in {took:.1f} seconds:")
        fast = f"{num_tokens / took:.0f} tokens/s, {passed / took:.1f} times real time"
        say(f"{fast}; interrupted" if got.interrupted else fast)


def _begun(rows: list[int], got: Drawn, files: list[Output]) -> list[int]:
    """Those pieces that have music; there will be no files for the others.

    Raises:
        KeyboardInterrupt: none has.
    """
    rows = [row for row in rows if got.pieces[row]]
    for file in files[len(rows) :]:
        file.drop()
    if len(rows) < len(files):
        say(f"of {len(files)} pieces {len(rows)} had begun")
    if not rows:
        raise KeyboardInterrupt
    return rows


@contextmanager
def _about_a_prime(path: Path | None) -> Iterator[None]:
    """Mark errors as those of one prime, and name it in them; except wrong usage."""
    try:
        yield
    except UsageError:
        raise
    except PamusicError as error:
        is_named = path is None or str(error).startswith((str(path), "standard input"))
        raise PrimeError(str(error) if is_named else f"{path}: {error}", rule=error.rule) from None
