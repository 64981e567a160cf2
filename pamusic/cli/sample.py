"""`pamusic sample`: goes on from a prime, or begins from nothing. Knows options and words."""

from __future__ import annotations

import secrets
import time
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Exit, Option

from pamusic.cli.drawing import collected
from pamusic.cli.output import outputs
from pamusic.cli.terminal import say
from pamusic.errors import UsageError

DEFAULT_LENGTH = 4096  # about 100 seconds of music
Long = partial(Option, rich_help_panel="How long")
Draw = partial(Option, rich_help_panel="How a token is drawn")
Model = partial(Option, rich_help_panel="Who composes")


def sample(
    prime: Annotated[Path | None, Option(help="MIDI to go on from; - is stdin. (default: nothing)")] = None,
    tracks: Annotated[str, Option(help="Of the prime: piano; all (but drums); or numbers, like 1,3.")] = "piano",
    out: Annotated[Path | None, Option("--out", "-o", help="- is stdout. (default: sample.mid or a free name)")] = None,
    seed: Annotated[int | None, Option(min=0, max=2**63 - 1, help="Same seed, same music. (default: new)")] = None,
    num: Annotated[int, Option(min=1, help="So many pieces at once, with this seed and the next ones.")] = 1,
    continuation_only: Annotated[bool, Option("--continuation-only", help="Leave the prime out of the file.")] = False,
    length: Annotated[int | None, Long(help="New tokens. (default: 4096, or as --seconds need)")] = None,
    seconds: Annotated[float | None, Long(help="Seconds of new music.")] = None,
    minutes: Annotated[float | None, Long(help="Minutes of it.")] = None,
    end: Annotated[bool, Long("--end", help="End it near that length, at 1.25 times it at the latest.")] = False,
    may_end: Annotated[bool, Long("--may-end", help="Let the piece end by itself before that.")] = False,
    temperature: Annotated[float, Draw(help="Low is predictable, high is bold; 0: always the likeliest.")] = 1.0,
    top_p: Annotated[float, Draw(help="From the likeliest that reach this probability; 1: all.")] = 0.97,
    top_k: Annotated[int, Draw(help="From this many of the likeliest; 0: all.")] = 0,
    min_p: Annotated[float, Draw(help="From those with this share of the likeliest one's probability.")] = 0.0,
    typical_p: Annotated[float, Draw(help="From those about as likely as expected, up to this; 1: all.")] = 1.0,
    temperature_time: Annotated[float, Draw(help="On top, for how long to wait; not for whether.")] = 1.0,
    temperature_pitch: Annotated[float, Draw(help="On top, for which key to strike.")] = 1.0,
    temperature_velocity: Annotated[float, Draw(help="On top, for how loud.")] = 1.0,
    checkpoint: Annotated[str | None, Model(help="Name or folder. (default: newest run, else what ships)")] = None,
    context_length: Annotated[int | None, Model(min=1, help="Tokens it sees. (default: as trained)")] = None,
    num_latents: Annotated[int | None, Model(min=1, help="Positions worked on. (default: as trained)")] = None,
    refill: Annotated[str, Model(help="When all are in use: half, last-128, all, slide, or how many.")] = "half",
    device: Annotated[str, Model(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Compose piano music into a MIDI file. Interrupted, it keeps what was composed so far."""
    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.cli.reading import read_telling
    from pamusic.composition import compose_many, continuation, continued
    from pamusic.generation.config import SamplingConfig
    from pamusic.generation.ending import Ending
    from pamusic.music.midi import midi_bytes, parsed_tracks
    from pamusic.training.machine import choose_machine

    ending = Ending() if end else None
    classes = (temperature_time, temperature_pitch, temperature_velocity)
    seconds = seconds if minutes is None else 60 * minutes
    length = DEFAULT_LENGTH if length is None and seconds is None else length
    seed = secrets.randbelow(2**31) if seed is None else seed
    with outputs(out, Path("sample.mid"), num, source=prime, kind="music") as files:
        opening = None if prime is None else read_telling(prime, parsed_tracks(tracks))
        who = load_checkpoint(find_checkpoint(checkpoint), choose_machine(device, "fp32", compile=False).device)
        try:
            drawn = compose_many(
                who, opening, seed=seed, num=num, length=length, seconds=seconds, may_end=may_end, ending=ending,
                sampling=SamplingConfig(
                    temperature=temperature, class_temperatures=classes,
                    top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
                ),
                num_latents=num_latents, context_length=context_length, refill=refill,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None
        say(f"{who.title}, seed {seed}")
        began = time.perf_counter()
        pieces, interrupted = collected(drawn, num, length)
        took = time.perf_counter() - began
        put_together = continuation if continuation_only else continued
        for file, ids in zip(files, pieces, strict=True):
            file.write(midi_bytes(put_together(who.tokenizer, ids, prime=opening, seconds=None if end else seconds)))
    ids = [id for piece in pieces for id in piece]
    passed = who.tokenizer.vocabulary.seconds_of_id[ids].sum()
    say(f"{len(ids):,} tokens, {passed:.1f} seconds of music, in {took:.1f} seconds:")
    say(f"{len(ids) / took:.0f} tokens/s, {passed / took:.1f} times real time{'; interrupted' if interrupted else ''}")
    if interrupted:
        raise Exit(130)
