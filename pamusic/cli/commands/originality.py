"""Run `pamusic originality`: find music that also occurs in a corpus. Knows options and words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.terminal import log, progress, progress_callback
from pamusic.errors import UsageError


def originality(
    files: Annotated[
        list[Path] | None,
        Argument(help="Check these MIDI files or folders; - is stdin; none with --reference.", show_default=False),
    ] = None,
    corpus: Annotated[Path, Option(help="Search this corpus folder.")] = Path("corpus"),
    tracks: Annotated[str, Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
    reference: Annotated[bool, Option("--reference", help="Measure held-out real pieces instead.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the longest stretch of music that stands in a corpus' training split too, in any key and at any tempo.

    Real pieces have such stretches as well: the output says how long they are in held-out pieces.
    """
    from pamusic.cli.midi_input import read_all
    from pamusic.cli.reports.originality import print_matches
    from pamusic.corpus.corpus import open_corpus
    from pamusic.evaluation import originality as looking
    from pamusic.music.midi import parsed_tracks

    if not files and not reference:
        raise UsageError("there is nothing to check; pass a MIDI file or a folder, or only --reference")
    taken, opened = parsed_tracks(tracks), open_corpus(corpus)
    heard = [  # read everything first, so that errors come before the index is made
        (name, performance.duration, looking.line(opened.tokenizer, performance))
        for name, performance in read_all(files or [], taken)
    ]
    bar = progress(what="index", unit="piece")
    index = looking.kept_index(opened, progress=progress_callback(bar), tell=log)
    found = [(name, lasts, len(it), looking.longest_match(index, opened, it)) for name, lasts, it in heard]
    lengths = {looking.nearest_reference_seconds(lasts) for _, lasts, _ in heard}
    references = {}
    for length in sorted(lengths | set(looking.REFERENCE_SECONDS if reference else ())):
        bar.reset()
        bar.set_description(f"{length} s of real pieces")
        references[length] = looking.kept_reference(index, opened, length, progress=progress_callback(bar))
    bar.close()
    print_matches(found, references, about={"corpus": str(corpus), "fingerprint": opened.fingerprint}, as_json=as_json)
