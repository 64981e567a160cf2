"""`pamusic sample`: goes on from a prime, or begins from nothing. Knows options and words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Context, Option

from pamusic.cli.asking import check_call, refuse_words
from pamusic.cli.live import LIST, list_ports
from pamusic.cli.output import MAX_CONTEXT, MAX_SAMPLES
from pamusic.cli.primes import prime_path
from pamusic.cli.sampling_run import sample_files
from pamusic.compose.request import SampleRequest
from pamusic.compose.request import SampleRequest as Default

DEFAULT_AHEAD = 4.0  # the caches' refills take part of a second on a CPU
Many = partial(Option, min=1, max=MAX_SAMPLES)
Long = partial(Option, rich_help_panel="How long")
Draw = partial(Option, rich_help_panel="How a token is drawn")
Model = partial(Option, rich_help_panel="Who composes")
Prime = partial(Option, rich_help_panel="The prime")
Live = partial(Option, rich_help_panel="PerformanceFeatures while it is made")
NOT_RECORDED = ("words", "prime", "out", "port", "ahead")  # what is not of the request


def sample(
    words: Context,
    prime: Annotated[
        list[Path] | None,
        Option(
            parser=prime_path,
            metavar="PATH",
            help="MIDI to continue, or a folder; repeatable; - is stdin. (default: none)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="A file, - for stdout, or a folder for many primes. (default: sample.mid)"),
    ] = None,
    seed: Annotated[int | None, Option(min=0, max=2**63 - 1, help="Same seed, same music. (default: new)")] = None,
    num: Annotated[int, Many(help="So many pieces at once, with this seed and the next ones.")] = Default.num_samples,
    best_of: Annotated[int | None, Many(help="Of so many, which it ranks, only the best are kept.")] = None,
    keep: Annotated[int | None, Option(min=1, help="How many of them. (default: 1)")] = None,
    length: Annotated[int | None, Long(min=1, help="New tokens at most. (default: as --seconds need)")] = None,
    seconds: Annotated[float | None, Long(help="Seconds of new music. (default: 60)")] = None,
    minutes: Annotated[float | None, Long(help="Minutes of new music.")] = None,
    end: Annotated[bool, Long("--end", help="End it near that length, at 1.25 times it at the latest.")] = False,
    may_end: Annotated[bool, Long("--may-end", help="Let the piece end by itself before that.")] = False,
    tracks: Annotated[str, Prime(help="piano; all (but drums); or numbers, like 1,3.")] = Default.tracks,
    prime_from: Annotated[float | None, Prime(help="Second from which on it is read. (default: 0)")] = None,
    prime_to: Annotated[float | None, Prime(help="Second at which it is cut; what sounds there rings on.")] = None,
    one_track: Annotated[bool, Prime("--one-track", help="Go on in its track and channel, not a new one.")] = False,
    continuation_only: Annotated[bool, Prime("--continuation-only", help="Leave it out of the file.")] = False,
    port: Annotated[str | None, Live(help="A MIDI port, or part of its name; list: tells them; new: one more.")] = None,
    ahead: Annotated[float | None, Live(min=0.1, max=3600, help="Seconds made before heard. (default: 4)")] = None,
    temperature: Annotated[
        float, Draw(help="Low: predictable; high: bold; 0: always the likeliest.")
    ] = Default.temperature,
    top_p: Annotated[float, Draw(help="From the likeliest that reach this probability; 1: all.")] = Default.top_p,
    top_k: Annotated[int, Draw(help="From this many of the likeliest; 0: all.")] = Default.top_k,
    min_p: Annotated[float, Draw(help="From those with this share of the likeliest's probability.")] = Default.min_p,
    typical_p: Annotated[float, Draw(help="From those as likely as expected, up to this; 1: all.")] = Default.typical_p,
    temperature_time: Annotated[float, Draw(help="On top, for how long to wait.")] = Default.temperature_time,
    temperature_pitch: Annotated[float, Draw(help="On top, for which key to strike.")] = Default.temperature_pitch,
    temperature_velocity: Annotated[float, Draw(help="On top, for how loud.")] = Default.temperature_velocity,
    let_go: Annotated[
        float, Draw(help="Old notes end likelier, by so many nats or more; 0: no.")
    ] = Default.release_bias,
    guard: Annotated[
        bool | None,
        Draw("--guard/--no-guard", help="Take back loops and silences, let go of stuck keys. (default: for one piece)"),
    ] = None,
    checkpoint: Annotated[str | None, Model(help="Name, folder, or latest: the newest run. (default: small)")] = None,
    context_length: Annotated[
        int | None, Model(min=1, max=MAX_CONTEXT, help="Tokens seen. (default: as trained)")
    ] = None,
    num_latents: Annotated[int | None, Model(min=1, help="Positions worked on. (default: as trained)")] = None,
    refill: Annotated[str, Model(help="When all are used: half, last-128, all, slide, or how many.")] = Default.refill,
    precision: Annotated[str, Model(help="Of the weights: fp32, bf16, int8, or the fastest here.")] = Default.precision,
    compile: Annotated[bool, Model("--compile/--no-compile", help="Faster, with a C++ compiler.")] = Default.compile,
    device: Annotated[str, Model(help="auto, cpu, cuda, cuda:1, mps.")] = Default.device,
) -> None:
    """Compose piano music into a MIDI file. Interrupted, it keeps what was composed so far.

    The prime stays as it is in its file: ticks, touch, pedals, tempi, other tracks, all up to the cut. A port hears
    what is new alone. Each of several primes gets a file of its own.
    """
    options = {name: value for name, value in locals().items() if name not in NOT_RECORDED}
    if port == LIST:
        list_ports()
        return
    refuse_words(words.args)
    request = SampleRequest.from_record(options)
    check_call(request, prime or [], out=out, port=port, ahead=ahead)
    request = request.completed(is_live=port is not None)
    sample_files(out, Path("sample.mid"), prime or [], request, port=port, ahead=ahead or DEFAULT_AHEAD)
