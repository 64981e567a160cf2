"""Measure the speed of sampling over a long piece: `python benchmarks/sampling.py [CHECKPOINT | --size small]`.

It measures like `pamusic benchmark` (`pamusic/compose/benchmark.py`) and draws like `pamusic sample`. First comes one
long piece from its start, timed in windows of 1,024 tokens, which are whole cycles of refills for all sizes. Then come
the first token after a long prime, many pieces at once (at the start and with a full context), and short and long
contexts. `--long` draws 100,000 tokens in one piece. Prints a table in Markdown and writes it to `benchmarks/results/`.
A size alone has random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

import torch

from pamusic import __version__
from pamusic.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from pamusic.compose.benchmark import Speed, Stretch, along, machine, read_bandwidth, speed
from pamusic.inference import session as reader
from pamusic.inference.native_kernel import CompiledKernel, kernel_for
from pamusic.inference.precision import PRECISIONS, resolve_precision
from pamusic.model.config import PRESETS, LedgerConfig, preset
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.tokens.grammar import ledger_ranges
from pamusic.tokens.tokenizer import load_tokenizer

WINDOW = 1024  # tokens, around each of the places measured
AT = (2_000, 8_000, 16_000)
LONG_AT = (10_000, 50_000, 100_000 - WINDOW // 2)
PRIME_LENGTH = 8_000
MUSIC_TOKENS_A_SECOND = 40  # MAESTRO in 388 performance events: 23 million tokens in 159 hours
MANY = (1, 4, 16)  # pieces
BEGINNING = 256  # tokens of a piece, before those that are timed
CONTEXTS = (2_048, 32_768)
RESULTS = Path(__file__).parent / "results"


def random_checkpoint(size: str) -> Checkpoint:
    """Return a model of a size with random weights, and its tokenizer."""
    tokenizer = load_tokenizer("performance")
    torch.manual_seed(0)
    pad_id, ledger = tokenizer.vocabulary.id("pad"), LedgerConfig(**ledger_ranges(tokenizer.vocabulary))
    model = PerceiverAR(preset(size, vocab_size=len(tokenizer.vocabulary), pad_id=pad_id, ledger=ledger)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.05)
    return Checkpoint(Path(size), model, tokenizer, {})


def stretches(who: Checkpoint, places: tuple[int, ...], precision: str, kernel: CompiledKernel | None) -> list[str]:
    """Return a table of windows of one long piece, and the cost of the last against the first."""
    found: list[Stretch] = []
    for each in along(who, places, WINDOW, precision, kernel):
        print(f"token {each.place:,}: {each.ms:.2f} ms, CPU {each.cpu_ms:.2f} ms", file=sys.stderr)
        found.append(each)
    rows = [
        f"| {each.place:,} | {each.ms:.2f} | {each.cpu_ms:.2f} | {1000 / each.ms:.0f} |"
        f" {1000 / each.ms / MUSIC_TOKENS_A_SECOND:.1f} | {each.memory_mib:.0f} |"
        for each in found
    ]
    first, last = found[0], found[-1]
    return [
        "| at token | ms a token | CPU ms a token | tokens/s | times real time (40 tokens/s) | memory, MiB |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Token {last.place:,} costs {last.ms / first.ms:.2f} times token {first.place:,}, of CPU time"
        f" {last.cpu_ms / first.cpu_ms:.2f} times.",
        "",
    ]


def speeds(found: list[Speed]) -> list[str]:
    """Return a table of contexts and numbers of pieces."""
    columns = {
        "context": lambda each: f"{each.context_length:,}",
        "of it full": lambda each: f"{each.prime_length:,}",
        "pieces at once": lambda each: str(each.num),
        "first token, s": lambda each: f"{each.first_token_seconds:.2f}",
        "tokens/s of all": lambda each: f"{each.tokens_per_second:.0f}",
        "tokens a second of CPU time": lambda each: f"{each.tokens_per_cpu_second:.0f}",
        "notes/s": lambda each: f"{each.notes_per_second:.0f}",
        "memory, MiB": lambda each: f"{each.memory_mib:.0f}",
        "MiB read a token": lambda each: f"{each.mib_per_token:.1f}",
        "limit, tokens/s": lambda each: f"{each.limit:.0f}",
        "reached": lambda each: f"{each.share_of_limit:.0%}",
    }
    lines = [list(columns), ["---"] * len(columns), *([cell(each) for cell in columns.values()] for each in found)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def report(name: str, who: Checkpoint, precision: str, long: bool, kernel: CompiledKernel | None) -> str:
    config, device = who.model.config, who.model.head.weight.device
    bandwidth = read_bandwidth(device)
    lines = [
        f"# Sampling from {name}",
        "",
        f"`python {shlex.join(sys.argv)}`, {datetime.date.today()}, {machine()}, {device}, "
        f"{torch.get_num_threads()} threads, pamusic {__version__}.",
        f"{who.model.num_parameters() / 1e6:.1f} M parameters, width {config.d_model}, {config.num_layers} layers, "
        f"{config.num_latents:,} latents, {config.context_length:,} context, weights in {precision}, "
        f"{'steps compiled, ' if kernel else ''}memory read at {bandwidth / 1e9:.1f} GB/s.",
        "",
    ]
    if long:
        begun = time.perf_counter()
        lines += stretches(who, LONG_AT, precision, kernel)
        return "\n".join([*lines, f"All of them took {(time.perf_counter() - begun) / 60:.1f} minutes.", ""])

    def measured(context: int, num: int, full: int | None = None) -> Speed:
        print(f"context {context:,}, {num} pieces", file=sys.stderr)
        return speed(
            who, context_length=context, prime_length=full, num=num, bandwidth=bandwidth, precision=precision,
            kernel=kernel,
        )  # fmt: skip

    lines += stretches(who, AT, precision, kernel)
    first = min(measured_first(who, precision, kernel) for _ in range(3))
    lines += [f"First token after a prime of {PRIME_LENGTH:,}: {first * 1000:.0f} ms.", ""]
    own = config.context_length
    lines += speeds([measured(own, num, full) for full in (BEGINNING, own) for num in MANY])
    short, far = (measured(context, 1) for context in CONTEXTS)
    lines += [
        *speeds([short, far]),
        f"A token costs {short.tokens_per_second / far.tokens_per_second:.2f} times as much with a context of"
        f" {CONTEXTS[1]:,} as with one of {CONTEXTS[0]:,}, of CPU time"
        f" {short.tokens_per_cpu_second / far.tokens_per_cpu_second:.2f} times.",
        "",
    ]
    return "\n".join(lines)


def measured_first(who: Checkpoint, precision: str, kernel: CompiledKernel | None) -> float:
    """Seconds to the first token after a prime."""
    return speed(
        who, context_length=PRIME_LENGTH, num=1, bandwidth=1.0, tokens=1, precision=precision, kernel=kernel
    ).first_token_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast tokens are drawn, and whether that stays so.")
    parser.add_argument("checkpoint", nargs="?", help="name or folder; by default what `pamusic sample` takes")
    parser.add_argument("--size", choices=PRESETS, help="random weights of this size instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the weights")
    parser.add_argument("--long", action="store_true", help="100,000 tokens in one go, and nothing else")
    parser.add_argument("--one-thread-up-to", type=int, help="width times rows: to find out when more threads pay")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="as where there is no C++ compiler")
    words = parser.parse_args()
    if words.one_thread_up_to is not None:
        reader.ONE_THREAD_UP_TO = words.one_thread_up_to
    if words.size:
        name, who = f"random weights, size {words.size}", random_checkpoint(words.size)
    else:
        who = load_checkpoint(find_checkpoint(words.checkpoint))
        name = who.path.name
    who.model.to(words.device)
    kernel = kernel_for(who.model, words.precision) if words.compile else None
    precision = resolve_precision(words.precision, words.device, kernel is not None)
    text = report(name, who, precision, words.long, kernel)
    RESULTS.mkdir(exist_ok=True)
    stem = f"sampling-{datetime.date.today()}-{words.size or name}-{precision}"
    stem += f"{'-long' if words.long else ''}{'' if words.device == 'cpu' else '-gpu'}"
    stem += "" if words.compile else "-no-compile"
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
