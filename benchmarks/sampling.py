"""How fast tokens are drawn, and whether that stays so: `python benchmarks/sampling.py [CHECKPOINT | --size small]`.

Draws from the start token on, without end, and takes means over windows of 1,000 tokens; then reads a long prime anew
and times the first token after it; then draws many pieces at once. Prints a table in Markdown and keeps it in
`benchmarks/results/`. Weights of a size alone are random, which costs as much as trained ones.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from pamusic import __version__
from pamusic.checkpoint import find_checkpoint, load_checkpoint
from pamusic.generation.sampler import generate, generate_rows
from pamusic.model.config import PRESETS, preset
from pamusic.model.perceiver_ar import PerceiverAR

WINDOW = 1000  # tokens, around each of the places measured
AT = (2_000, 8_000, 16_000)
PRIME_LENGTH = 8_000
MUSIC_TOKENS_A_SECOND = 40  # MAESTRO in 388 performance events: 23 million tokens in 159 hours
MANY = (1, 4, 16)  # pieces
RESULTS = Path(__file__).parent / "results"


def random_model(size: str) -> PerceiverAR:
    torch.manual_seed(0)
    model = PerceiverAR(preset(size, vocab_size=391, pad_id=390)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.05)
    return model


def milliseconds_at(model: PerceiverAR, places: tuple[int, ...]) -> dict[int, tuple[float, float, float]]:
    """Place -> mean milliseconds a token over the window around it, by the clock and of CPU time, and MiB of memory.

    The two agree on a quiet machine where one thread is used; where they do not, another program was running.
    """
    measured, begun = {}, {}
    for count, _ in enumerate(generate(model, [0], seed=0, length=max(places) + WINDOW // 2), start=1):
        for place in places:
            if count == place - WINDOW // 2:
                begun[place] = time.perf_counter(), time.process_time()
            elif count == place + WINDOW // 2:
                clock, cpu = begun[place]
                clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                measured[place] = clock / WINDOW * 1000, cpu / WINDOW * 1000, resident_mib()
                print(f"token {place:,}: {measured[place][0]:.2f} ms, CPU {measured[place][1]:.2f} ms", file=sys.stderr)
    return measured


def milliseconds_to_first_token(model: PerceiverAR, prime_length: int) -> float:
    prime = torch.randint(0, 380, (prime_length,), generator=torch.Generator().manual_seed(0)).tolist()
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        next(generate(model, prime, seed=0))
        best = min(best, time.perf_counter() - begun)
    return best * 1000


def tokens_per_second(model: PerceiverAR, num_rows: int) -> tuple[float, float]:
    """Of all rows together, the best of five stretches of 50 steps from the start on: by the clock, and of CPU time."""
    drawn, best = generate_rows(model, [0], seed=0, num_rows=num_rows), (0.0, 0.0)
    for _ in range(5):
        clock, cpu = time.perf_counter(), time.process_time()
        count = sum(num_rows for _ in islice(drawn, 50))
        best = max(best, (count / (time.perf_counter() - clock), count / (time.process_time() - cpu)))
    return best


def resident_mib() -> float:
    """Memory that this process holds now; where the system does not tell, 0."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 / 2**20 if statm.exists() else 0.0


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()


def report(name: str, model: PerceiverAR) -> str:
    config = model.config
    measured = milliseconds_at(model, AT)
    first = milliseconds_to_first_token(model, PRIME_LENGTH)
    many = [(num_rows, *tokens_per_second(model, num_rows)) for num_rows in MANY]
    rows = [
        f"| {place:,} | {ms:.2f} | {cpu:.2f} | {1000 / ms:.0f} | {1000 / ms / MUSIC_TOKENS_A_SECOND:.1f} | {mib:.0f} |"
        for place, (ms, cpu, mib) in measured.items()
    ]
    return "\n".join(
        [
            f"# Sampling from {name}",
            "",
            f"{datetime.date.today()}, {processor()}, {platform.system()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, pamusic {__version__}.",
            f"{model.num_parameters() / 1e6:.1f} M parameters, width {config.d_model}, {config.num_layers} layers, "
            f"{config.num_latents} latents, {config.context_length} context, float32.",
            "",
            "| at token | ms a token | CPU ms a token | tokens/s | times real time (40 tokens/s) | memory, MiB |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"First token after a prime of {PRIME_LENGTH:,}: {first:.0f} ms. "
            f"Token {AT[-1]:,} costs {measured[AT[-1]][0] / measured[AT[0]][0]:.2f} times token {AT[0]:,}.",
            "",
            "| pieces at once | tokens/s of all | tokens a second of CPU time |",
            "|---|---|---|",
            *(f"| {num_rows} | {clock:.0f} | {cpu:.0f} |" for num_rows, clock, cpu in many),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast tokens are drawn, and whether that stays so.")
    parser.add_argument("checkpoint", nargs="?", help="name or folder; by default what `pamusic sample` takes")
    parser.add_argument("--size", choices=PRESETS, help="random weights of this size instead")
    words = parser.parse_args()
    if words.size:
        name, model = f"random weights, size {words.size}", random_model(words.size)
    else:
        checkpoint = load_checkpoint(find_checkpoint(words.checkpoint))
        name, model = checkpoint.path.name, checkpoint.model
    text = report(name, model)
    RESULTS.mkdir(exist_ok=True)
    stem = words.size or name
    (RESULTS / f"sampling-{datetime.date.today()}-{stem}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
