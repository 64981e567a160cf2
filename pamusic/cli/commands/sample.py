"""Run `pamusic sample`: continue a prime, or compose from nothing. Knows options and words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Context, Option

from pamusic.cli.asking import check_call, refuse_words, request_of
from pamusic.cli.live import LIST, list_ports
from pamusic.cli.primes import prime_path
from pamusic.cli.sampling_run import sample_files
from pamusic.compose.request import MAX_CONTEXT, MAX_SAMPLES
from pamusic.compose.request import SampleRequest as Default
from pamusic.resources import DEFAULT_CHECKPOINT

DEFAULT_BUFFER_SECONDS = 4.0  # refilling the caches takes part of a second on a CPU
Many = partial(Option, min=1, max=MAX_SAMPLES)
Long = partial(Option, rich_help_panel="Length")
Prime = partial(Option, rich_help_panel="Prime")
Live = partial(Option, rich_help_panel="Live playback")
Draw = partial(Option, rich_help_panel="Sampling")
Model = partial(Option, rich_help_panel="Model and speed")
NOT_REQUESTED = ("words", "prime", "out", "config", "set_", "port", "buffer_seconds")  # not settings of a request


def sample(
    words: Context,
    prime: Annotated[
        list[Path] | None,
        Option(parser=prime_path, metavar="PATH", help="Continue this MIDI file or folder; repeatable; - is stdin."),
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="A file, -, or a folder. (default: sample.mid)")] = None,
    config: Annotated[Path | None, Option(help="Read any option from this TOML file; options win.")] = None,
    set_: Annotated[list[str] | None, Option("--set", metavar="NAME=VALUE", help="Set any option; repeatable.")] = None,
    seed: Annotated[int | None, Option(min=0, max=2**63 - 1, help="Same seed, same music. (default: new)")] = None,
    num_samples: Annotated[int, Many(help="Generate N pieces, with this and the next seeds.")] = Default.num_samples,
    best_of: Annotated[int | None, Many(help="Generate N pieces, rank them, keep the best.")] = None,
    keep: Annotated[int | None, Option(min=1, help="Keep the N best of --best-of. (default: 1)")] = None,
    length: Annotated[int | None, Long(min=1, help="Stop after N new tokens or positions. (default: none)")] = None,
    seconds: Annotated[float | None, Long(help="Stop after this much new music. (default: 60)")] = None,
    minutes: Annotated[float | None, Long(help="The same in minutes.")] = None,
    end_near_length: Annotated[
        bool, Long("--end-near-length", help="End the piece near that length, by 1.25 times it.")
    ] = False,
    allow_end: Annotated[bool, Long("--allow-end", help="Let the model end the piece before that length.")] = False,
    tracks: Annotated[str, Prime(help="Read these tracks: piano, all (no drums), or numbers.")] = Default.tracks,
    prime_start: Annotated[float | None, Prime(help="Read the prime from this second. (default: 0)")] = None,
    prime_end: Annotated[float | None, Prime(help="Cut the prime at this second; open notes continue.")] = None,
    same_track: Annotated[bool, Prime("--same-track", help="Write to the prime's track, not a new one.")] = False,
    continuation_only: Annotated[bool, Prime("--continuation-only", help="Leave the prime out of the file.")] = False,
    port: Annotated[str | None, Live(help="Play on this MIDI port; list: print ports; new: open one.")] = None,
    buffer_seconds: Annotated[
        float | None, Live(min=0.1, max=3600, help="Compose this far ahead of playback. (default: 4)")
    ] = None,
    temperature: Annotated[float, Draw(help="Low: predictable; high: bold; 0: most likely.")] = Default.temperature,
    top_p: Annotated[float, Draw(help="Nucleus sampling: keep this probability mass; 1: all.")] = Default.top_p,
    top_k: Annotated[int, Draw(help="Keep the K most likely tokens; 0: all.")] = Default.top_k,
    min_p: Annotated[float, Draw(help="Drop tokens below this share of the most likely one.")] = Default.min_p,
    typical_p: Annotated[float, Draw(help="Locally typical sampling: keep this mass; 1: all.")] = Default.typical_p,
    temperature_time: Annotated[float | None, Draw(help="Temperature of time shifts. (default: the model's)")] = None,
    temperature_pitch: Annotated[float | None, Draw(help="Temperature of pitches. (default: the model's)")] = None,
    temperature_velocity: Annotated[float, Draw(help="Temperature of velocities.")] = Default.temperature_velocity,
    temperature_length: Annotated[float, Draw(help="Temperature of note lengths.")] = Default.temperature_length,
    release_bias: Annotated[float, Draw(help="Add these nats to ending long notes; 0: none.")] = Default.release_bias,
    returns: Annotated[str, Draw(help="Repeat as real music does: auto, planned or none.")] = Default.returns,
    guard: Annotated[
        bool | None,
        Draw("--guard/--no-guard", help="Undo loops and silences, end stuck notes. (default: for one piece)"),
    ] = None,
    checkpoint: Annotated[
        str | None, Model(help=f"Use this model: a name, a folder, or latest. (default: {DEFAULT_CHECKPOINT})")
    ] = None,
    context_length: Annotated[
        int | None, Model(min=1, max=MAX_CONTEXT, help="Read this many tokens of context. (default: as trained)")
    ] = None,
    num_latents: Annotated[int | None, Model(min=1, help="Use this many latents. (default: as trained)")] = None,
    refill: Annotated[str, Model(help="Recompute half, last-128, all, slide or N latents.")] = Default.refill,
    precision: Annotated[str, Model(help="Hold weights in fp32, bf16, int8, or the fastest.")] = Default.precision,
    compile: Annotated[bool, Model("--compile/--no-compile", help="Use a compiled C++ kernel.")] = Default.compile,
    device: Annotated[str, Model(help="Compute on: auto, cpu, cuda, cuda:1, mps.")] = Default.device,
) -> None:
    """Compose piano music into a MIDI file. Interrupted, keep what was composed so far.

    The prime keeps its messages up to the cut: ticks, velocities, pedals, tempi, other tracks. A port plays only the
    new music. Each of several primes gets its own file.
    """
    options = {name: value for name, value in locals().items() if name not in NOT_REQUESTED}
    if port == LIST:
        list_ports()
        return
    refuse_words(words.args)
    request = request_of(words, options, config, set_ or [])
    check_call(request, prime or [], out=out, port=port, buffer_seconds=buffer_seconds)
    request = request.completed(is_live=port is not None)
    ahead = buffer_seconds or DEFAULT_BUFFER_SECONDS
    sample_files(out, Path("sample.mid"), prime or [], request, port=port, buffer_seconds=ahead)
