"""A request -> finished pieces: load, draw, rank, write MIDI. What the command line and the Python API both do.

Knows requests, checkpoints, primes and records; knows no terminal and no output paths. What a caller wants to hear of
the work comes through functions that it gives.
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
from pamusic.compose.token_stream import StreamConfig, stream
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
from pamusic.tokens.vocabulary import CLASSES, Position

Log = Callable[[str], None]


def _ignore(*_: object) -> None:
    """Take what nobody wants to hear."""


@dataclass(frozen=True, eq=False)
class Prime:
    """A prime that was read, or none.

    Attributes:
        performance: what was played, or None.
        data: the bytes of its file, or None.
        repairs: what was mended in it.
        path: of its file, as a record names it, or None.
    """

    performance: Performance | None = None
    data: bytes | None = None
    repairs: tuple[Repair, ...] = ()
    path: Path | None = None


@dataclass(frozen=True)
class GenerationResult:
    """What was drawn.

    Attributes:
        pieces: the ids of each, or positions; what a guard still held back is among them.
        num_drawn: how many were drawn for each, those that a guard took back included; of a batch, for the longest.
        num_alarms: how many interventions there were in each.
        interruption: what ended it before its end, or None.
    """

    pieces: list[list[Position]]
    num_drawn: list[int]
    num_alarms: list[int]
    interruption: BaseException | None = None


@dataclass(eq=False)
class Collector:
    """Collects what is drawn of some pieces; monitors their guard. Interrupted, it has all that there was.

    Attributes:
        num_pieces: that are drawn.
        size_of: what an id, or a position, adds to the progress: 1, or seconds.
        on_intervention_of: is called with the number of a piece and what its guard did.
        on_progress: is called with how much more there is, or less.
    """

    num_pieces: int
    size_of: Callable[[Position], float] = lambda position: 1
    on_intervention_of: Callable[[int, Intervention], None] = _ignore
    on_progress: Callable[[float], object] = _ignore
    _snapshots: dict[int, Snapshot] = field(default_factory=dict)  # the last of each guarded piece
    _sizes: dict[int, list[float]] = field(default_factory=dict)  # of such a piece, up to each id

    def on_intervention(self, piece: int, intervention: Intervention) -> None:
        """Pass on what the guard did."""
        self.on_intervention_of(piece, intervention)

    def on_snapshot(self, piece: int, snapshot: Snapshot) -> None:
        """Take what there is of a guarded piece."""
        self._snapshots[piece] = snapshot
        sizes = self._sizes.setdefault(piece, [0])
        before = sizes[-1]
        del sizes[max(1, snapshot.num_ids) :]  # what was taken back; the last id is new
        for id in snapshot.ids[len(sizes) - 1 : snapshot.num_ids]:
            sizes.append(sizes[-1] + self.size_of(id))
        self.on_progress(sizes[-1] - before)

    def collect(self, drawn: Iterable[Sequence[Position | None]]) -> GenerationResult:
        """Return what is drawn until the end or an interruption.

        Args:
            drawn: as in `token_stream.stream`, of which this is the monitor.

        Raises:
            KeyboardInterrupt, SystemExit: the work was interrupted, and there is nothing yet.
        """
        steps: list[Sequence[Position | None]] = []  # whole ones, so an interruption leaves all pieces as long
        interruption: BaseException | None = None
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
    """Does what one request asks for, for any number of primes; loads the checkpoint once, when it is needed.

    Attributes:
        request: completed.
        tracks: which parts of a prime's file are read.
        rows: places, among the pieces that are drawn, of those that are kept if nothing ranks them.
        replayed: the record of a file that is to be made again, without the others of its batch, or None.
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
            request: completed (`SampleRequest.completed`).
            checkpoint: composes; by default the one that the request names.
            replayed: the record of a file that is to be made again.
            is_live: whether a port plays the music while it is made.
            log: is called with lines for people.

        Raises:
            UsageError: an option has a wrong value.
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
            max_draws=replayed.stopped_after if replayed else None,
        )

    @cached_property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return find_checkpoint(self.request.checkpoint) if self._given is None else self._given.path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, which is loaded now."""
        if self._given is not None:
            return self._given
        return load_checkpoint(self.path, choose_machine(self.request.device, "fp32", compile=False).device)

    @cached_property
    def kernel(self) -> CompiledKernel | None:
        """What computes steps in int8; None where nothing does."""
        if not self.request.compile or self.has_fields:
            return None
        return kernel_for(self.checkpoint.model, self.request.precision, self._log)

    @cached_property
    def precision(self) -> str:
        """The precision that is computed in, never `auto`."""
        if self.has_fields:
            return "fp32"
        return resolve_precision(
            self.request.precision, self.checkpoint.model.head.weight.device, self.kernel is not None
        )

    def load(self) -> None:
        """Load what is needed to draw: the checkpoint, and what computes its steps.

        Raises:
            PamusicError: it cannot be loaded, or not on this device.
            UsageError: the precision is not for this device.
        """
        _ = self.checkpoint, self.kernel, self.precision

    @property
    def has_fields(self) -> bool:
        """Whether the checkpoint has several ids a position, which are drawn plainly."""
        return bool(self.checkpoint.tokenizer.vocabulary.shape)

    @property
    def precision_cost(self) -> str | None:
        """One line on what the precision costs on this machine; None where it costs nothing."""
        device = self.checkpoint.model.head.weight.device
        return cost_of(self.request.precision, device, self.kernel is not None)

    def check_prime(self, prime: Prime) -> None:
        """Refuse a prime that is not the one of the file that is made again.

        Raises:
            PamusicError: it is another.
        """
        if self.replayed and prime.data is not None and sha256(prime.data) != self.replayed.prime_sha256:
            raise PamusicError(
                f"{prime.path}: is not the prime that the file was made from; say where that is: --prime"
            )

    def collector(self) -> Collector:
        """Return what collects the pieces; it counts tokens where there is a length, otherwise seconds of music."""
        collector = Collector(self.request.num_drawn)
        if self.request.length is None:
            seconds_of_id = self.checkpoint.tokenizer.vocabulary.seconds_of_id.tolist()
            collector.size_of = lambda id: sum(seconds_of_id[each] for each in (id if isinstance(id, list) else [id]))
        return collector

    def stream(self, prime: Prime, monitor: Collector) -> Iterator[Sequence[Position | None]]:
        """Return an iterator over the new ids of all pieces, as `token_stream.stream`, and with its errors."""
        if self.has_fields:
            self._refuse_for_fields(prime)
        config = replace(self._config, inference=replace(self.request.inference, precision=self.precision))
        return stream(self.checkpoint, prime.performance, config, kernel=self.kernel, monitor=monitor)

    def decoder(self, prime: Prime) -> EventDecoder:
        """Return what makes events of one piece's ids while they are drawn."""
        return streaming(
            self.checkpoint.tokenizer,
            prime=prime.performance,
            prime_range=self.request.prime_range,
            seconds=self.request.max_seconds,
        )

    def unsupported_notes(self, prime: Prime) -> str:
        """Return one line on notes of the prime that the model has no keys for; empty where it has all."""
        if prime.performance is None:
            return ""
        return describe_unsupported_notes(self.checkpoint.tokenizer, prime.performance, self.request.prime_range)

    @property
    def is_ranking(self) -> bool:
        """Whether the best of the pieces are kept; a piece that is made again has been chosen already."""
        return bool(self.request.best_of) and self.replayed is None

    def best_of(self, result: GenerationResult, prime: Prime) -> BestOf | None:
        """Return the pieces from best to worst; None where all that was asked for is kept."""
        if not self.is_ranking:
            return None
        return rank_pieces(self.checkpoint, result.pieces, self.request, prime.performance)

    def records(self, result: GenerationResult, prime: Prime, *, is_cut: bool) -> Callable[[int], Provenance]:
        """Return a function that gives the record of a piece by its place among those drawn.

        Args:
            result: what was drawn.
            prime: what the pieces follow.
            is_cut: whether the drawing ended before its end.
        """
        options = self.request.to_record() | self._names(prime)
        options |= {"precision": self.precision, "compile": bool(self.kernel)}
        if self.has_fields:  # these have no effect there
            options |= {"guard": False, "let_go": 0.0}
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
        """Return the MIDI file of one piece, and whether the prime's messages are as they were in its file."""
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

    def num_seconds(self, result: GenerationResult) -> float:
        """Return the seconds of new music in all pieces."""
        seconds_of_id = self.checkpoint.tokenizer.vocabulary.seconds_of_id
        most = self.request.max_seconds
        lengths = (float(seconds_of_id[np.array(piece, np.int64)].sum()) for piece in result.pieces)
        return sum(length if most is None else min(length, most) for length in lengths)

    def _names(self, prime: Prime) -> dict[str, object]:
        """Return how the record names checkpoint and prime: as the user did, but by no word that changes meaning."""
        if self.replayed:
            return {name: self.replayed.options.get(name) for name in ("prime", "checkpoint")}
        given = self.request.checkpoint
        if given in (None, LATEST):
            given = self.path.name if self.path in shipped_checkpoints() else str(self.path)
        return {"prime": prime.path, "checkpoint": given}

    def _refuse_for_fields(self, prime: Prime) -> None:
        """Refuse what is not done yet where a position has several ids.

        Raises:
            UsageError: it was asked for.
        """
        request = self.request
        asked = {
            "--prime": prime.performance is not None,
            "--port": self._is_live,
            "--end-near-length": request.end_near_length,
            "--context-length": request.context_length is not None,
            "--num-latents": request.num_latents is not None,
            "--refill": request.refill != SampleRequest.refill,
            "--precision": request.precision not in ("auto", "fp32"),
            "--release-bias": request.release_bias not in (0, SamplingConfig.release_bias),
        }
        for name, temperature in zip(CLASSES, self._config.sampling.class_temperatures, strict=True):
            asked[f"--temperature-{name}"] = temperature != 1
        if refused := [name for name, is_asked in asked.items() if is_asked]:
            raise UsageError(
                f"{self.checkpoint.title} has {len(self.checkpoint.tokenizer.vocabulary.fields)} ids a position, and"
                f" such a checkpoint is sampled from nothing, in fp32, as trained; leave out {', '.join(refused)}"
            )
