"""Print the contents of a new corpus, and what was left out. Knows summaries and words; reads no corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pamusic.cli.midi_input import print_left_out
from pamusic.cli.terminal import MAX_LISTED, console, log

if TYPE_CHECKING:
    from pamusic.corpus.build import SplitCount, Summary

MAX_SHORTENED = 3  # lines of files that are intact but have lengths beyond the last bin, as 202 files of MAESTRO


def print_corpus(summary: Summary, out: Path) -> None:
    """Print totals by split, then repairs, refusals, duplicates and resumed files."""
    from rich.table import Table

    table = Table()
    for column in ("split", "files", "notes", "hours", "tokens", "tokens a note"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, count in summary.splits.items():
        table.add_row(split, *_columns(count))
    table.add_section()
    table.add_row("in all", *_columns(summary.in_all))
    console().print(table)

    if not summary.splits["train"].num_files:
        log("there is nothing to train on: with few files, the split by content may leave it empty; add files")
    elif not summary.splits["validation"].num_files:
        log(
            f"warning: there is no validation piece, so training cannot tell which weights are best; {_remedy(summary)}"
        )
    if summary.num_resumed:
        log(f"{summary.num_resumed:,} files had been done before an interruption")
    print_left_out(summary.left_out)
    _print_some([f"repaired: {name}: {words}" for name, words in summary.repaired], out)
    _print_some([f"shortened: {name}: {words}" for name, words in summary.shortened], out, MAX_SHORTENED)
    _print_some([f"refused: {each.name}: {each.reason}" for each in summary.refused], out)
    crossing = [each for each in summary.duplicates if each.crosses_splits]
    if summary.duplicates:
        across = f", {len(crossing):,} of them in another split" if crossing else ""
        log(f"{len(summary.duplicates):,} pieces have the same notes as another{across}; --drop-duplicates drops them")
    rest = [each for each in summary.duplicates if not each.crosses_splits]
    _print_some([f"same notes: {e.name} ({e.split}) and {e.of} ({e.of_split})" for e in crossing + rest], out)
    if summary.num_repairs:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in summary.num_repairs.most_common())
        num_files = len(summary.repaired) + len(summary.shortened)
        done = "repaired or shortened" if summary.shortened else "repaired"
        log(f"{done} in {num_files:,} of {summary.in_all.num_files:,} files: {counts}")


def _remedy(summary: Summary) -> str:
    """Return how to get a validation piece; this depends on why there is none."""
    from pamusic.corpus.sources import MIN_PIECES_TO_VALIDATE

    num_pieces = summary.in_all.num_files
    if summary.num_official == num_pieces:
        return "the table of splits has none; add a row with the split validation, or files without a row"
    if num_pieces < MIN_PIECES_TO_VALIDATE:
        return f"add pieces (a folder needs at least {MIN_PIECES_TO_VALIDATE} different ones)"
    return "every candidate has the same notes as another piece; add different pieces"


def _print_some(lines: list[str], out: Path, limit: int = MAX_LISTED) -> None:
    for line in lines[:limit]:
        log(line)
    if len(lines) > limit:
        log(f"… and {len(lines) - limit} more, in {out / 'corpus.json'}")


def _columns(count: SplitCount) -> list[str]:
    ratio = f"{count.num_tokens / count.num_notes:.2f}" if count.num_notes else "–"
    return [
        f"{count.num_files:,}",
        f"{count.num_notes:,}",
        f"{count.seconds / 3600:.2f}",
        f"{count.num_tokens:,}",
        ratio,
    ]
