"""Print the results of `pamusic originality`: lines, a table, the result. Knows words."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pamusic.cli.terminal import log, result, table

if TYPE_CHECKING:
    from pamusic.evaluation.originality import Match, Reference

Found = tuple[str, float, int, "Match | None"]  # name, seconds and notes of a piece, and its longest match


def print_matches(
    found: list[Found], references: dict[int, Reference | None], *, about: dict[str, Any], as_json: bool
) -> None:
    """Print the matches; the result is a line for each piece with its number of notes and name, or JSON."""
    from pamusic.evaluation.originality import nearest_reference_seconds

    compared = [references[nearest_reference_seconds(seconds)] for _, seconds, _, _ in found]
    tables = [reference.numbers() for reference in references.values() if reference is not None]
    if as_json:
        files = [_numbers(each, reference) for each, reference in zip(found, compared, strict=True)]
        result(json.dumps({**about, "files": files, "references": tables}))
        return
    for each, reference in zip(found, compared, strict=True):
        _say(each, reference)
    table([_row(each) for each in tables], "Longest stretches of held-out real pieces: median / 90% / maximum")
    if not tables:
        log("no held-out piece is long enough for a comparison")
    for name, _, _, match in found:
        result(f"{match.notes if match else 0} {name}")


def _say(found: Found, reference: Reference | None) -> None:
    name, _, _, match = found
    if match is None:
        log(f"{name}: no nine consecutive notes occur in the training split")
        return
    besides = [
        f"{number} {what}"
        for number, what in ((match.repeating, "repeating figures of them"), (match.differing, "others"))
        if number
    ]
    key = f", {abs(match.transposed)} semitones {'lower' if match.transposed > 0 else 'higher'}"
    log(
        f"{name}: {match.notes} notes from {_time(match.start)} to {_time(match.end)}"
        + (f" (besides {' and '.join(besides)})" if besides else "")
        + f" occur in {match.piece} from {_time(match.piece_start)} to {_time(match.piece_end)}"
        + (key if match.transposed else "")
        + f"; here they are {match.tempo:.2f} times as fast"
    )
    if reference is not None:
        of, num = len(reference.notes), reference.num_at_least(match.notes)
        as_many = f"{num} of {of}" if num else f"none of {of}"
        log(f"a match this long is in {as_many} excerpts of {reference.excerpt_seconds} seconds from {reference.split}")


def _row(numbers: dict[str, Any]) -> dict[str, Any]:
    notes, seconds = (" / ".join(f"{each:g}" for each in numbers[what].values()) for what in ("notes", "seconds"))
    held_out = f"{numbers['excerpts']} excerpts of {numbers['excerpt_seconds']} s from {numbers['split']}"
    return {"held out": held_out, "notes": notes, "seconds": seconds}


def _numbers(found: Found, reference: Reference | None) -> dict[str, Any]:
    name, seconds, notes, match = found
    compared = None
    if reference is not None:
        compared = {
            "split": reference.split, "excerpt_seconds": reference.excerpt_seconds, "excerpts": len(reference.notes),
            "with_as_many": reference.num_at_least(match.notes if match else 0),
        }  # fmt: skip
    longest = None if match is None else {**asdict(match), "seconds": round(match.seconds, 3)}
    return {"file": name, "seconds": round(seconds, 3), "notes": notes, "longest": longest, "reference": compared}


def _time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
