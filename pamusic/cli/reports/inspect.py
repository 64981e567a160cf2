"""Describe files for `pamusic inspect`: as plain dictionaries, which are its JSON, and as tables of these.

Knows words and the shapes of tables; measures nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pamusic.cli.midi_input import left_out_words
from pamusic.cli.terminal import MAX_LISTED, one_line, progress
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from rich.table import Table

    from pamusic.checkpoint import Checkpoint
    from pamusic.corpus.corpus import Corpus
    from pamusic.corpus.sources import Refusal, Source
    from pamusic.music.midi import Tracks
    from pamusic.tokens.roundtrip import Errors, Pedal, RoundTrip
    from pamusic.tokens.tokenizer import Tokenizer


def about_midi(data: bytes, name: str, tokenizers: list[Tokenizer], tracks: Tracks) -> dict[str, Any]:
    """Describe one MIDI file, and what each tokenizer keeps of it."""
    from pamusic.music.describe import describe_file, describe_performance
    from pamusic.music.midi import chosen_parts, read_and_mend, read_contents
    from pamusic.tokens.roundtrip import round_trip

    performance, repairs = read_and_mend(data, name, tracks=tracks)
    contents = read_contents(data, name)
    return {
        "what": "MIDI file",
        "name": name,
        "file": asdict(describe_file(contents, chosen_parts(contents, tracks, name))),
        "repairs": [repair.words for repair in repairs],
        "playing": asdict(describe_performance(performance)),
        "round_trips": [_trip(round_trip(performance, tokenizer)) for tokenizer in tokenizers],
    }


def about_many(
    path: str, sources: list[Source], refused: list[Refusal], tokenizers: list[Tokenizer], tracks: Tracks
) -> dict[str, Any]:
    """Describe many MIDI files: their totals, and the refused files."""
    from pamusic.corpus.build import why_nothing
    from pamusic.music.midi import read_and_mend
    from pamusic.tokens.roundtrip import round_trip

    trips: list[RoundTrip] = []
    refused, num_notes, seconds, pitches, splits = list(refused), 0, 0.0, [127, 0], Counter[str]()
    num_repaired, repaired = 0, Counter[str]()
    for source in progress(sources, what="measuring", unit="file"):
        try:
            performance, repairs = read_and_mend(source.read(), source.name, tracks=tracks)
            measured = [round_trip(performance, tokenizer) for tokenizer in tokenizers]
        except PamusicError as error:
            refused.append(_refusal(source.name, error))
            continue
        trips = [one + other for one, other in zip(trips, measured, strict=True)] if trips else measured
        splits[source.split or "none of its own"] += 1
        num_repaired += bool(repairs)
        repaired.update({repair.kind: repair.count for repair in repairs})
        num_notes, seconds = num_notes + len(performance), seconds + performance.duration
        pitch = performance.notes["pitch"]
        pitches = [min(pitches[0], int(pitch.min())), max(pitches[1], int(pitch.max()))]
    if not splits:
        raise PamusicError(why_nothing(refused))
    return {
        "what": "MIDI files",
        "name": path,
        "num_files": splits.total(),
        "splits": dict(splits),
        "num_notes": num_notes,
        "seconds": round(seconds, 3),
        "pitches": pitches,
        "num_repaired": num_repaired,
        "repairs": dict(repaired.most_common()),
        "refused": [[each.name, each.reason] for each in refused],
        "round_trips": [_trip(trip) for trip in trips],
    }


def _refusal(name: str, error: PamusicError) -> Refusal:
    from pamusic.corpus.sources import Refusal

    return Refusal(name, str(error).removeprefix(f"{name}: "), error.rule)


def about_corpus(corpus: Corpus) -> dict[str, Any]:
    """Describe a corpus by splits, lengths and kinds of events."""
    from pamusic.corpus.sources import SPLITS

    by_length = sorted(corpus.pieces, key=lambda piece: piece.num_tokens)
    splits = {}
    for split in SPLITS:
        pieces = [piece for piece in corpus.pieces if piece.split == split]
        splits[split] = {
            "num_pieces": len(pieces),
            "num_notes": sum(piece.num_notes for piece in pieces),
            "seconds": round(sum(piece.seconds for piece in pieces), 3),
            "num_tokens": sum(piece.num_tokens for piece in pieces),
        }
    contents = Counter(piece.content for piece in corpus.pieces if piece.content)
    return {
        "what": "corpus",
        "name": str(corpus.path),
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        "fingerprint": corpus.fingerprint,
        "num_tokens": len(corpus.ids),
        "splits": splits,
        "kinds": {kind: count for kind, count in corpus.count_of_kinds().items() if count},
        "num_with_the_notes_of_another": sum(count - 1 for count in contents.values()),
        "shortest": {"name": by_length[0].name, "num_tokens": by_length[0].num_tokens} if by_length else None,
        "median_tokens": by_length[len(by_length) // 2].num_tokens if by_length else None,
        "longest": {"name": by_length[-1].name, "num_tokens": by_length[-1].num_tokens} if by_length else None,
    }


def about_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe a checkpoint and its origin, with all entries of its `config.json`."""
    first = ("num_parameters", "model", "tokenizer", "tokenizer_fingerprint")
    ordered = {name: checkpoint.metadata[name] for name in first} | checkpoint.metadata
    return {"what": "checkpoint", "name": checkpoint.title, **ordered}


def _trip(trip: RoundTrip) -> dict[str, Any]:
    notes = trip.meaning.num_before
    lost = trip.meaning.lost + trip.grid.lost
    return {
        "tokenizer": trip.tokenizer,
        "num_tokens": trip.num_tokens,
        "tokens_per_note": round(trip.num_tokens / max(notes, 1), 3),
        "tokens_per_second": round(trip.num_tokens / trip.seconds, 2) if trip.seconds else 0.0,
        "num_notes": notes,
        "num_lost": lost.total(),
        "lost": dict(lost),
        "num_doubled": trip.meaning.num_doubled + trip.grid.num_doubled,
        "num_clipped": {"notes_or_pedals": trip.num_clipped[0], "rests": trip.num_clipped[1]},
        "num_added": trip.meaning.num_added + trip.grid.num_added,
        "onset_ms": _errors(trip.grid.onset_ms),
        "offset_ms": _errors(trip.grid.offset_ms),
        "velocity": _errors(trip.grid.velocity),
        "sustain_folded": trip.folded,
        "changed_by_meaning": {
            "offsets": round(trip.meaning.offset_ms.share_of_some, 4),
            "offset_ms": _errors(trip.meaning.offset_ms),
        },
        "pedals": {name: _pedal(pedal, trip.folded and name == "sustain") for name, pedal in trip.pedals.items()},
    }


def _errors(errors: Errors) -> dict[str, float]:
    return {
        "median": round(errors.within(0.5), 2),
        "99%": round(errors.within(0.99), 2),
        "maximum": round(errors.maximum, 2),
    }


def _pedal(pedal: Pedal, folded: bool) -> dict[str, Any]:
    if not pedal.kept:
        return {"fate": "folded into the notes' lengths" if folded else "left out", "num_presses": pedal.num_presses}
    return {
        "fate": "kept",
        "num_presses": pedal.num_presses,
        "num_lost": pedal.num_lost,
        "num_added": pedal.num_added,
        "share_of_time_apart": round(pedal.seconds_apart / pedal.seconds, 5),
        "mean_value_error": round(pedal.value_seconds / pedal.seconds, 3),
        "press_ms": _errors(pedal.press_ms),
        "release_ms": _errors(pedal.release_ms),
    }


def tables(about: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables to print, readable without colour and in 80 columns."""
    yield from {
        "MIDI file": _midi_tables,
        "MIDI files": _many_tables,
        "corpus": _corpus_tables,
        "checkpoint": _checkpoint_tables,
    }[about["what"]](about)


def _midi_tables(about: dict[str, Any]) -> Iterator[Table]:
    file, playing = about["file"], about["playing"]
    rows = [
        ("format", f"{file['format']}, {_resolution(file)}"),
        ("tempo", _tempo(file)),
        ("duration", f"{_duration(playing['seconds'])} ({playing['seconds']:.1f} s)"),
        ("notes", f"{playing['num_notes']:,}, {playing['notes_per_second']:.1f} a second"),
        ("pitches", _range(playing["pitches"], pitch=True)),
        ("velocities", _range(playing["velocities"])),
        ("keys down at once", f"{playing['keys']:.1f} on average, {playing['most_keys']} at most"),
    ]
    rows += [("repaired", words) for words in about["repairs"]]
    rows += [("made by", file["made_by"])] if file["made_by"] else []
    yield _grid(None, rows)
    yield _grid(
        ["", "track", "channel", "program", "notes", "taken"],
        [
            [track["number"], track["name"] or "–", track["channel"], _instrument(track), f"{track['num_notes']:,}",
             "yes" if track["taken"] else "no"]
            for track in file["tracks"]
        ],
    )  # fmt: skip
    if playing["pedals"]:
        yield _grid(
            ["pedal", "messages", "values", "up (0)", "1–63", "64–126", "down (127)"],
            [
                [name, f"{use['num_messages']:,}", use["num_values"],
                 *(f"{use[zone]:.1%}" for zone in ("up", "shallow", "deep", "down"))]
                for name, use in playing["pedals"].items()
            ],
        )  # fmt: skip
    yield _trips_table(about["round_trips"])


def _many_tables(about: dict[str, Any]) -> Iterator[Table]:
    splits = ", ".join(f"{count:,} {name}" for name, count in about["splits"].items())
    rows = [
        ("files", f"{about['num_files']:,}; splits: {splits}"),
        ("refused", f"{len(about['refused']):,}"),
        ("duration", f"{about['seconds'] / 3600:.2f} hours"),
        ("notes", f"{about['num_notes']:,}"),
        ("pitches", _range(about["pitches"], pitch=True)),
    ]
    if about["left_out"]:
        rows.insert(2, ("left out", left_out_words(about["left_out"])))
    if about["num_repaired"]:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in about["repairs"].items())
        rows.insert(1, ("repaired", f"{about['num_repaired']:,}: {counts}"))
    yield _grid(None, rows)
    yield _trips_table(about["round_trips"])
    if about["refused"]:
        more = len(about["refused"]) - MAX_LISTED
        told = about["refused"][:MAX_LISTED] + ([["…", f"and {more:,} more; --json has them"]] if more > 0 else [])
        yield _grid(["refused", "why"], told)


def _corpus_tables(about: dict[str, Any]) -> Iterator[Table]:
    rows = [
        ("tokenizer", f"{about['tokenizer']} ({about['tokenizer_fingerprint']})"),
        ("fingerprint", about["fingerprint"]),
        ("tokens", f"{about['num_tokens']:,}"),
    ]
    for end in ("shortest", "longest"):
        if about[end]:
            rows.append((end, f"{about[end]['num_tokens']:,} tokens: {about[end]['name']}"))
    if about["median_tokens"]:
        rows.insert(-1, ("median", f"{about['median_tokens']:,} tokens"))
    rows.append(("notes of another piece", f"{about['num_with_the_notes_of_another']:,} pieces"))
    yield _grid(None, rows)
    yield _grid(
        ["split", "pieces", "notes", "hours", "tokens"],
        [
            [name, f"{s['num_pieces']:,}", f"{s['num_notes']:,}", f"{s['seconds'] / 3600:.2f}", f"{s['num_tokens']:,}"]
            for name, s in about["splits"].items()
        ],
    )
    yield _grid(
        ["kind of event", "tokens", "share"],
        [[kind, f"{count:,}", f"{count / about['num_tokens']:.1%}"] for kind, count in about["kinds"].items()],
    )


def _checkpoint_tables(about: dict[str, Any]) -> Iterator[Table]:
    yield _grid(None, [[name, value] for name, value in _flat(about) if name not in ("what", "name")])


MANY_NUMBERS = 12  # longer lists are shown by their first and last number


def _flat(about: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values of nested dictionaries, with dotted names such as `model.…`."""
    for name, value in about.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and len(value) > MANY_NUMBERS:
            yield prefix + name, f"{len(value)} values, from {value[0]} to {value[-1]}"
        else:
            yield prefix + name, f"{value:,}" if type(value) is int else str(value)


def _trips_table(trips: list[dict[str, Any]]) -> Table:
    rows: list[list[str]] = [["tokens", *(f"{trip['num_tokens']:,}" for trip in trips)]]
    rows.append(["a note, a second", *(f"{t['tokens_per_note']:.2f}, {t['tokens_per_second']:.1f}" for t in trips)])
    rows.append(["notes kept", *(f"{t['num_notes'] - t['num_lost']:,} of {t['num_notes']:,}" for t in trips)])
    for reason in sorted({reason for trip in trips for reason in trip["lost"]}):
        rows.append([f"  lost: {reason}", *(f"{trip['lost'].get(reason, 0):,}" for trip in trips)])
    if any(trip["num_doubled"] for trip in trips):
        rows.append(["  doubled at one onset", *(f"{trip['num_doubled']:,}" for trip in trips)])
    for clipped in ("notes_or_pedals", "rests"):
        if any(trip["num_clipped"][clipped] for trip in trips):
            cells = (f"{trip['num_clipped'][clipped]:,}" for trip in trips)
            rows.append([f"{clipped.replace('_', ' ')} cut short", *cells])
    if any(trip["num_added"] for trip in trips):
        rows.append(["notes added", *(f"{trip['num_added']:,}" for trip in trips)])
    for name, unit in (("onset", "ms"), ("offset", "ms"), ("velocity", "")):
        what = [trip[f"{name}_{unit}" if unit else name] for trip in trips]
        rows.append([f"{name} error{', ' + unit if unit else ''}", *(_three(each) for each in what)])
    for pedal in ("sustain", "sostenuto", "soft"):
        rows += _pedal_rows(pedal, [trip["pedals"].get(pedal) for trip in trips])
        changed = [trip["changed_by_meaning"] if trip["sustain_folded"] else None for trip in trips]
        if pedal == "sustain" and any(each and each["offsets"] for each in changed):
            rows.append(["  notes changed by it", *(f"{each['offsets']:.1%}" if each else "–" for each in changed)])
            rows.append(["  by, ms", *(_three(each["offset_ms"]) if each else "–" for each in changed)])
    table = _grid(["there and back", *(trip["tokenizer"] for trip in trips)], rows)
    table.caption = "errors: median / 99 % / maximum"
    return table


def _pedal_rows(name: str, pedals: list[dict[str, Any] | None]) -> list[list[str]]:
    if not any(pedals):
        return []
    rows = [[name, *(pedal["fate"] if pedal else "–" for pedal in pedals)]]
    if any(pedal and pedal["fate"] == "kept" for pedal in pedals):
        cells: dict[str, Callable[[dict[str, Any]], str]] = {
            "presses kept": lambda p: f"{p['num_presses'] - p['num_lost']:,} of {p['num_presses']:,}",
            "presses added": lambda p: f"{p['num_added']:,}",
            "press error, ms": lambda p: _three(p["press_ms"]),
            "release error, ms": lambda p: _three(p["release_ms"]),
            "down on one side": lambda p: f"{p['share_of_time_apart']:.2%} of the time",
            "value error, mean": lambda p: f"{p['mean_value_error']:.1f} of 127",
        }
        for label, cell in cells.items():
            rows.append([f"  {label}", *(cell(p) if p and p["fate"] == "kept" else "–" for p in pedals)])
    return rows


def _three(errors: dict[str, float]) -> str:
    return " / ".join(f"{size:g}" if size < 100 else f"{size:,.0f}" for size in errors.values())


def _grid(head: list[str] | None, rows: Sequence[Sequence[Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=head is not None)
    for place in range(len(head or rows[0])):
        table.add_column(escape(head[place]) if head else "", overflow="fold")
    for row in rows:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    return table


def _range(ends: list[int] | tuple[int, int], *, pitch: bool = False) -> str:
    named = [f"{_note_name(end)} ({end})" if pitch else str(end) for end in ends]
    return " to ".join(named)


def _note_name(pitch: int) -> str:
    return f"{('C', 'C♯', 'D', 'E♭', 'E', 'F', 'F♯', 'G', 'A♭', 'A', 'B♭', 'B')[pitch % 12]}{pitch // 12 - 1}"


def _instrument(track: dict[str, Any]) -> str:
    from pretty_midi.constants import INSTRUMENT_MAP

    return f"{track['program']}, {INSTRUMENT_MAP[track['program']]}" if not track["is_drum"] else "drums"


def _resolution(file: dict[str, Any]) -> str:
    if file["ticks_per_second"] is not None:
        return f"{file['ticks_per_second']:,g} ticks a second (SMPTE)"
    return f"{file['ticks_per_quarter']} ticks a quarter"


def _tempo(file: dict[str, Any]) -> str:
    if file["slowest_bpm"] is None:
        return "none, it counts seconds"
    slowest, fastest = (f"{file[which]:.1f}" for which in ("slowest_bpm", "fastest_bpm"))
    range_of_it = slowest if slowest == fastest else f"{slowest} to {fastest}"
    return f"{range_of_it} quarters a minute, set {_times(file['num_tempi'])}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")
