"""Run `pamusic compare`: measure how similar real and generated performances are. Knows options and words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pamusic.cli.midi_input import print_left_out
from pamusic.cli.output import picture
from pamusic.cli.terminal import MAX_LISTED, log, progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from pamusic.evaluation.comparison import StatisticSet


def compare(
    real: Annotated[
        Path, Argument(help="Use these real performances: a folder, zip or MIDI file.", show_default=False)
    ],
    generated: Annotated[Path, Argument(help="Compare these with them.", show_default=False)],
    split: Annotated[str | None, Option(help="Use this MAESTRO split of REAL. (default: all)")] = None,
    seconds: Annotated[float, Option(min=1, max=3600, help="Use this much of each file, from its first note.")] = 60.0,
    tracks: Annotated[str, Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
    workers: Annotated[int | None, Option(min=1, help="Processes. (default: as many as there are cores)")] = None,
    plot: Annotated[Path | None, Option(help="Write a PNG figure of the distances here.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two sets of MIDI files by what a listener would notice.

    For each statistic, the distances between real pieces are held against those between real and generated ones, as
    Yang and Lerch (2020) do: the area under both distributions, from 0 (nothing alike) to 1, and their divergence in
    nats. "At best" is the area for real pieces against others of the same set. The result is the mean area.
    """
    from pamusic.cli.reports.evaluation import print_comparison
    from pamusic.evaluation.comparison import compare_statistics, measure_statistics
    from pamusic.music.midi import parsed_tracks

    taken = parsed_tracks(tracks)

    def measure(path: Path, split: str | None = None) -> StatisticSet:
        bars: list[tqdm] = []  # created at the first file, since workers are best forked earlier

        def show(done: int, of: int) -> None:
            bars.extend([] if bars else [progress(total=of, what=path.name, unit="file")])
            bars[0].update(done - bars[0].n)

        found = measure_statistics(
            [path], split=split, seconds=seconds, tracks=taken, num_workers=workers, progress=show
        )
        for bar in bars:
            bar.close()
        print_left_out(found.left_out)
        for refusal in found.refused[:MAX_LISTED]:
            log(f"{refusal.name}: {refusal.reason}; left out")
        if len(found.refused) > MAX_LISTED:
            log(f"{len(found.refused):,} files of {path} are left out in total")
        return found

    with picture(plot) as drawn:  # opened first, so that errors come before the work
        sets = measure(real, split), measure(generated)
        about = {
            "real": str(real), "generated": str(generated),
            "num_real": sets[0].num_pieces, "num_generated": sets[1].num_pieces,
            "seconds": seconds, "num_shorter": [each.num_short for each in sets],
        }  # fmt: skip
        rows = compare_statistics(*sets)
        print_comparison(rows, about, sets, as_json=as_json)
        if drawn is not None:
            from pamusic.evaluation.plots import comparison_picture

            drawn.write_bytes(comparison_picture(rows))
