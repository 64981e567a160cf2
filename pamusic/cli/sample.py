"""`pamusic sample`: goes on from a prime, or begins from nothing."""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated as A
from typing import Any

import typer

from pamusic.cli.terminal import progress, result, result_bytes, say
from pamusic.errors import PamusicError

STREAM = Path("-")
DEFAULT_LENGTH = 4096  # about 100 seconds of MAESTRO's music
DRAW, MODEL = "How each token is drawn", "The model"


def _is(help: str, *names: str, panel: str | None = None, shown: bool | str = False, min: int | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=shown, min=min)


def sample(
    prime: A[Path | None, _is("A MIDI file to go on from; - is standard input. By default from nothing.")] = None,
    length: A[int | None, _is("Tokens of new music.", shown=f"{DEFAULT_LENGTH} without --seconds", min=1)] = None,
    seconds: A[float | None, _is("Seconds of new music.")] = None,
    out: A[
        Path | None, _is("The MIDI file; - is standard output. By default sample.mid or sample-2.mid, …", "--out", "-o")
    ] = None,
    seed: A[int | None, _is("The same seed gives the same music.", shown="a new one, which is told", min=0)] = None,
    may_end: A[bool, _is("Let the piece end by itself before that.", "--may-end")] = False,
    continuation_only: A[bool, _is("Leave the prime out of the output.", "--continuation-only")] = False,
    temperature: A[float, _is("Below 1 more predictable, above 1 bolder.", panel=DRAW, shown=True)] = 1.0,
    top_p: A[
        float, _is("Only the likeliest tokens that reach this probability; 1: all.", panel=DRAW, shown=True)
    ] = 0.97,
    top_k: A[int, _is("Only this many of the likeliest tokens; 0: all.", panel=DRAW, shown=True)] = 0,
    min_p: A[
        float, _is("Only tokens with this share of the likeliest one's probability.", panel=DRAW, shown=True)
    ] = 0.0,
    checkpoint: A[
        str | None,
        _is(
            "Its name, or a folder: a checkpoint's or a run's.",
            panel=MODEL,
            shown="the newest finished run, else what ships",
        ),
    ] = None,
    context_length: A[int | None, _is("Tokens it sees.", panel=MODEL, shown="as trained", min=1)] = None,
    num_latents: A[int | None, _is("Positions it works on at a time.", panel=MODEL, shown="as trained", min=1)] = None,
    device: A[str, _is("auto, cpu, cuda, cuda:1, mps.", panel=MODEL, shown=True)] = "auto",
) -> None:
    """Composes piano music and writes it to a MIDI file."""
    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.composition import compose, continuation, continued
    from pamusic.files import free_name, written_atomically
    from pamusic.generation.config import SamplingConfig
    from pamusic.music.midi import midi_bytes, read_midi
    from pamusic.training.machine import choose_machine

    out = out or free_name("sample.mid")
    _check_output(out, prime)
    try:
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        opening = prime and read_midi(sys.stdin.buffer.read() if prime == STREAM else prime)
        where = choose_machine(device, "fp32", compile=False).device
        composer = load_checkpoint(find_checkpoint(checkpoint), where)
        seed = secrets.randbelow(2**31) if seed is None else seed
        length = DEFAULT_LENGTH if length is None and seconds is None else length
        drawn = compose(
            composer, opening, seed=seed, length=length, seconds=seconds, may_end=may_end,
            sampling=sampling, num_latents=num_latents, context_length=context_length,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    say(f"{composer.path}, seed {seed}")

    ids, interrupted, began = [], False, time.perf_counter()
    seconds_of_id = composer.tokenizer.vocabulary.seconds_of_id
    # Opened first: a place one cannot write to is told at once.
    with nullcontext() if out == STREAM else written_atomically(out) as temporary:
        try:
            with progress(total=length or seconds, unit="token" if length else "s") as bar:
                for id in drawn:
                    ids.append(id)
                    bar.update(1 if length else seconds_of_id[id])
        except KeyboardInterrupt:
            if not ids:
                raise
            interrupted = True
        took = time.perf_counter() - began
        music = continuation(composer.tokenizer, ids, prime=opening, seconds=seconds)
        whole = music if opening is None or continuation_only else continued(composer.tokenizer, opening, music)
        if temporary is None:
            result_bytes(midi_bytes(whole))
        else:
            temporary.write_bytes(midi_bytes(whole))
    if temporary is not None:
        result(out)
    lasts = seconds_of_id[ids].sum()
    say(
        f"{len(ids):,} tokens, {lasts:.1f} s of music, in {took:.1f} s: {len(ids) / took:.0f} tokens/s, {lasts / took:.1f} x real time"
    )
    if interrupted:
        say("pamusic: interrupted; what was composed so far is kept")
        raise typer.Exit(130)


def _check_output(out: Path, prime: Path | None) -> None:
    if out == STREAM and sys.stdout.isatty():
        raise PamusicError("standard output is a terminal, which shows no music; name a file with --out")
    if prime not in (None, STREAM) and out.exists() and prime.exists() and os.path.samefile(out, prime):
        raise PamusicError(f"{out}: is the prime itself; name another file with --out")
