"""Turn a request into pieces: load, draw, rank, write MIDI. The command line and the Python API both use this.

Knows requests, checkpoints, primes and records; knows no terminal and no output paths. It reports progress through
callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pamusic.checkpoint import LATEST, Checkpoint, find_checkpoint, load_checkpoint, shipped_checkpoints
from pamusic.compose.best_of import BestOf, rank_pieces
from pamusic.compose.provenance import Provenance, differences, provenance, sha256
from pamusic.compose.request import SampleRequest
from pamusic.compose.token_stream import StreamConfig, gap_seconds, stream
from pamusic.device import choose_machine, cost_of
from pamusic.errors import PamusicError, UsageError
from pamusic.inference.native_kernel import CompiledKernel, kernel_for
from pamusic.inference.precision import resolve_precision
from pamusic.music.midi import parsed_tracks
from pamusic.music.midi_contents import Repair
from pamusic.music.performance import Performance
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.guard import GuardConfig, Intervention, Snapshot
from pamusic.tokens.continuation import PrimeSource, streaming, write_midi
from pamusic.tokens.prime import describe_unsupported_notes
from pamusic.tokens.streaming_decoder import EventDecoder
from pamusic.tokens.vocabulary import Position

Log = Callable[[str], None]


def _ignore(*_: object) -> None:
    """Ignore a report."""


@dataclass(frozen=True, eq=False)
class Prime:
    """A prime, or the absence of one.

    Attributes:
        performance: Performance of the prime, or None.
        data: Bytes of its file, or None.
        repairs: Repairs that reading made in it.
        path: Path of its file for a record, or None.
    """

    performance: Performance | None = None
    data: bytes | None = None
    repairs: tuple[Repair, ...] = ()
    path: Path | None = None


@dataclass(frozen=True)
class GenerationResult:
    """The result of drawing.

    Attributes:
        pieces: Ids, or positions, of each piece, including those that a guard had not yielded yet.
        num_drawn: Number of draws for each piece, including ids that a guard took back; in a batch, of the longest
            piece.
        num_alarms: Number of interventions of the guard in each piece.
        interruption: Exception that stopped the drawing early, or None.
    """

    pieces: list[list[Position]]
    num_drawn: list[int]
    num_alarms: list[int]
    interruption: BaseException | None = None


@dataclass(eq=False)
class Collector:
    """A collector of drawn ids, and monitor of guards. After an interruption, it has everything drawn so far.

    Attributes:
        num_pieces: Number of pieces.
        size_of: Function that returns the progress of an id, or a position: 1, or its seconds.
        on_intervention_of: Called with the number of a piece and an intervention of its guard.
        on_progress: Called with the change of the progress, which is negative when a guard takes ids back.
        begins_at: Progress of a piece before its first id: 0, or below it where the first id passes a gap as well.
    """

    num_pieces: int
    size_of: Callable[[Position], float] = lambda position: 1
    on_intervention_of: Callable[[int, Intervention], None] = _ignore
    on_progress: Callable[[float], object] = _ignore
    begins_at: float = 0.0
    _snapshots: dict[int, Snapshot] = field(default_factory=dict)  # the last of each guarded piece
    _sizes: dict[int, list[float]] = field(default_factory=dict)  # progress of each guarded piece, up to each id

    def on_intervention(self, piece: int, intervention: Intervention) -> None:
        """Report an intervention of the guard."""
        self.on_intervention_of(piece, intervention)

    def on_snapshot(self, piece: int, snapshot: Snapshot) -> None:
        """Store the snapshot of a guarded piece, and report the progress."""
        self._snapshots[piece] = snapshot
        sizes = self._sizes.setdefault(piece, [0])
        before = sizes[-1]
        del sizes[max(1, snapshot.num_ids) :]  # remove ids that were taken back; the last id is new
        for id in snapshot.ids[len(sizes) - 1 : snapshot.num_ids]:
            sizes.append(sizes[-1] + self.size_of(id))
        self.on_progress(sizes[-1] - before)

    def collect(self, drawn: Iterable[Sequence[Position | None]]) -> GenerationResult:
        """Collect everything drawn until the end or an interruption.

        Args:
            drawn: Result of `token_stream.stream`, with this collector as its monitor.

        Raises:
            KeyboardInterrupt, SystemExit: The work was interrupted before the first id.
        """
        steps: list[Sequence[Position | None]] = []  # complete steps, so an interrupted batch has equal lengths
        interruption: BaseException | None = None
        if self.begins_at:
            self.on_progress(self.begins_at * self.num_pieces)
        try:
            for step in drawn:
                steps.append(step)
                if not self._snapshots:
                    self.on_progress(sum(self.size_of(each) for each in step if each is not None))
        except (KeyboardInterrupt, SystemExit) as stop:
            interruption = stop
        if self._snapshots:
            snapshots = [self._snapshots.get(piece, Snapshot(0, 0, [], 0)) for piece in range(self.num_pieces)]
            result = GenerationResult(
                [[*each.row] for each in snapshots],
                [each.num_drawn for each in snapshots],
                [each.num_alarms for each in snapshots],
                interruption,
            )
        else:
            pieces = [[each for step in steps if (each := step[piece]) is not None] for piece in range(self.num_pieces)]
            result = GenerationResult(pieces, [len(steps)] * self.num_pieces, [0] * self.num_pieces, interruption)
        if interruption is not None and not any(result.pieces):
            raise interruption
        return result


class Composer:
    """The executor of one request, for any number of primes. It loads the checkpoint once, on first use.

    Attributes:
        request: Completed request.
        tracks: Parts of a prime's file to read.
        rows: Indices of the drawn pieces to keep if there is no ranking.
        replayed: Record of a file to reproduce, without the other pieces of its batch, or None.
    """

    def __init__(
        self,
        request: SampleRequest,
        *,
        checkpoint: Checkpoint | None = None,
        replayed: Provenance | None = None,
        is_live: bool = False,
        log: Log = _ignore,
    ) -> None:
        """Check the request; read nothing.

        Args:
            request: Completed request (`SampleRequest.completed`).
            checkpoint: Checkpoint to use; by default the one that the request names.
            replayed: Record of a file to reproduce.
            is_live: True if a port plays the music while it is generated.
            log: Called with messages for people.

        Raises:
            UsageError: An option has an invalid value.
        """
        assert request.seed is not None
        assert request.guard is not None
        self.request, self.replayed = request, replayed
        self.rows = [*range(request.num_kept)] if replayed is None else [replayed.row]
        self._given, self._is_live, self._log = checkpoint, is_live, log
        self.tracks = parsed_tracks(request.tracks)
        self._config = StreamConfig(
            seed=request.seed,
            num_pieces=request.num_drawn,
            prime_range=request.prime_range,
            sampling=request.sampling,
            stop=request.stop,
            guard=GuardConfig() if request.guard else None,
            returns=request.returns_config,
            max_draws=replayed.stopped_after if replayed else None,
        )

    @cached_property
    def path(self) -> Path:
        """Folder of the checkpoint."""
        return find_checkpoint(self.request.checkpoint) if self._given is None else self._given.path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Checkpoint, loaded on first use."""
        if self._given is not None:
            return self._given
        return load_checkpoint(self.path, choose_machine(self.request.device, "fp32", compile=False).device)

    @cached_property
    def resolved(self) -> SampleRequest:
        """The request, with the temperatures that the checkpoint suggests where they were left open."""
        return self.request.suggested(self.checkpoint.metadata)

    @cached_property
    def kernel(self) -> CompiledKernel | None:
        """Kernel that computes steps in int8, or None."""
        if not self.request.compile:
            return None
        return kernel_for(self.checkpoint.model, self.request.precision, self._log)

    @cached_property
    def precision(self) -> str:
        """Resolved precision, never `auto`."""
        model = self.checkpoint.model
        return resolve_precision(
            self.request.precision, model.head.weight.device, self.kernel is not None, model.config.architecture
        )

    def load(self) -> None:
        """Load the checkpoint and the kernel.

        Raises:
            PamusicError: The checkpoint cannot be loaded on this device.
            UsageError: This device does not support the precision.
        """
        _ = self.checkpoint, self.resolved, self.kernel, self.precision

    @property
    def has_fields(self) -> bool:
        """True if the checkpoint has several ids a position."""
        return bool(self.checkpoint.tokenizer.vocabulary.shape)

    @property
    def has_lengths(self) -> bool:
        """True if a position is a whole note, with its length."""
        return self.checkpoint.tokenizer.vocabulary.has("length")

    @property
    def precision_cost(self) -> str | None:
        """One line on the cost of the precision on this machine; None if it has no cost."""
        device = self.checkpoint.model.head.weight.device
        return cost_of(self.request.precision, device, self.kernel is not None)

    def check_prime(self, prime: Prime) -> None:
        """Raise an error if a prime is not the prime of the file to reproduce.

        Raises:
            PamusicError: It is another prime.
        """
        if self.replayed and prime.data is not None and sha256(prime.data) != self.replayed.prime_sha256:
            raise PamusicError(
                f"{prime.path}: is not the prime that the file was made from; pass that one with --prime"
            )

    def collector(self, prime: Prime) -> Collector:
        """Return a collector for the pieces; progress is in tokens if a length is given, else in seconds of music."""
        collector = Collector(self.request.num_drawn)
        if self.request.length is None:
            tokenizer = self.checkpoint.tokenizer
            collector.begins_at = -gap_seconds(tokenizer, prime.performance, self.request.prime_range)
            seconds_of_id = tokenizer.vocabulary.seconds_of_id.tolist()
            collector.size_of = lambda id: sum(seconds_of_id[each] for each in (id if isinstance(id, list) else [id]))
        return collector

    def stream(self, prime: Prime, monitor: Collector) -> Iterator[Sequence[Position | None]]:
        """Return an iterator over the new ids of all pieces, like `token_stream.stream`, with its errors."""
        self._refuse_for_vocabulary()
        inference = replace(self.request.inference, precision=self.precision)
        config = replace(self._config, sampling=self.resolved.sampling, inference=inference)
        return stream(self.checkpoint, prime.performance, config, kernel=self.kernel, monitor=monitor)

    def decoder(self, prime: Prime) -> EventDecoder:
        """Return a decoder that turns the ids of one piece into events while they are drawn."""
        return streaming(
            self.checkpoint.tokenizer,
            prime=prime.performance,
            prime_range=self.request.prime_range,
            seconds=self.request.max_seconds,
        )

    def unsupported_notes(self, prime: Prime) -> str:
        """Return one line on notes of the prime that the tokenizer lacks; empty if there are none."""
        if prime.performance is None:
            return ""
        return describe_unsupported_notes(self.checkpoint.tokenizer, prime.performance, self.request.prime_range)

    @property
    def is_ranking(self) -> bool:
        """True if the pieces are ranked; a reproduced piece was already chosen."""
        return bool(self.request.best_of) and self.replayed is None

    def best_of(self, result: GenerationResult, prime: Prime) -> BestOf | None:
        """Return the pieces from best to worst; None if all pieces are kept."""
        if not self.is_ranking:
            return None
        return rank_pieces(self.checkpoint, result.pieces, self.request, prime.performance)

    def records(self, result: GenerationResult, prime: Prime, *, is_cut: bool) -> Callable[[int], Provenance]:
        """Return a function that returns the record of a piece by its index.

        Args:
            result: Result of drawing.
            prime: Prime of the pieces.
            is_cut: True if drawing was interrupted.
        """
        options = self.resolved.to_record() | self._names(prime)
        options |= {"precision": self.precision, "compile": bool(self.kernel)}
        if self.has_fields:  # a note ends by its length, so this has no effect
            options |= {"let_go": 0.0}
        if not self.has_lengths or (self.replayed and "returns" not in self.replayed.options):
            del options["returns"]  # it has no effect, or the file is older than this option
        record = provenance(options, self.checkpoint, prime.data)
        replayed = self.replayed
        record = replace(record, stopped_after=replayed.stopped_after if replayed else None)
        if replayed and (other := differences(replayed, record)):
            self._log(f"the music may differ: {'; '.join(other)}")

        def of_piece(row: int) -> Provenance:
            of_row = replace(record, row=row, alarms=result.num_alarms[row])
            return replace(of_row, stopped_after=result.num_drawn[row]) if is_cut else of_row

        return of_piece

    def midi(self, ids: Sequence[Position], prime: Prime, record: Provenance) -> tuple[bytes, bool]:
        """Return the MIDI file of one piece, and whether it keeps the messages of the prime's file unchanged."""
        source = None if prime.data is None else PrimeSource(prime.data, prime.repairs, self.tracks)
        return write_midi(
            self.checkpoint.tokenizer,
            ids,
            prime=prime.performance,
            source=source,
            prime_range=self.request.prime_range,
            seconds=self.request.max_seconds,
            placement=self.request.placement,
            text=record.text(),
        )

    def num_seconds(self, result: GenerationResult, prime: Prime) -> float:
        """Return the seconds of new music in all pieces."""
        tokenizer, most = self.checkpoint.tokenizer, self.request.max_seconds
        gap = gap_seconds(tokenizer, prime.performance, self.request.prime_range)
        seconds_of_id = tokenizer.vocabulary.seconds_of_id
        lengths = (float(seconds_of_id[np.array(piece, np.int64)].sum()) - gap for piece in result.pieces if piece)
        return sum(length if most is None else min(length, most) for length in lengths)

    def _names(self, prime: Prime) -> dict[str, object]:
        """Return the names of checkpoint and prime for the record: as given, but with `latest` resolved."""
        if self.replayed:
            return {name: self.replayed.options.get(name) for name in ("prime", "checkpoint")}
        given = self.request.checkpoint
        if given in (None, LATEST):
            given = self.path.name if self.path in shipped_checkpoints() else str(self.path)
        return {"prime": prime.path, "checkpoint": given}

    def _refuse_for_vocabulary(self) -> None:
        """Refuse options that this checkpoint's vocabulary gives no meaning.

        Raises:
            UsageError: One of them was given.
        """
        request = self.request
        has_bias = request.release_bias not in (0, SamplingConfig.release_bias)
        asked = {
            "--release-bias": has_bias and self.has_fields,
            "--temperature-length": request.temperature_length != 1 and not self.has_lengths,
            "--returns planned": request.returns == "planned" and not self.has_lengths,
        }
        if refused := [name for name, is_asked in asked.items() if is_asked]:
            raise UsageError(
                f"{', '.join(refused)} {'has' if len(refused) == 1 else 'have'} no effect with {self.checkpoint.title},"
                f" which reads {self.checkpoint.tokenizer.name}; leave it out"
            )
