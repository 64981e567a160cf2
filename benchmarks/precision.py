"""Measure the likelihood that weights of fewer bits cost.

    python benchmarks/precision.py [CHECKPOINT] [--corpus corpus]

Excerpts from the middle of pieces of the validation split are predicted token by token, as the sampler reads, in each
precision. Prints a table in Markdown and writes it to `benchmarks/results/`: nats per token, the difference from
fp32, and its standard error, from the differences of single tokens. A default may cost 0.002 nats at most.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from pamusic.checkpoint import check_corpus, find_checkpoint, load_checkpoint
from pamusic.compose.benchmark import machine
from pamusic.corpus.corpus import open_corpus
from pamusic.evaluation.cache_drift import costs_of, select_excerpts
from pamusic.inference.native_kernel import kernel_for
from pamusic.inference.precision import resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession

# Weights, and whether a kernel computes steps, with the layers' caches in bytes too.
PRECISIONS = {"fp32": False, "bf16": False, "int8": False, "int8, compiled": True}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description="What weights of fewer bits cost in likelihood.")
    parser.add_argument("checkpoint", nargs="?", default="small", help="name or folder")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--pieces", type=int, default=8, help="number of pieces, spread over the validation split")
    parser.add_argument("--tokens", type=int, default=2560, help="of each: whole cycles of refill are fair")
    words = parser.parse_args()
    checkpoint, corpus = load_checkpoint(find_checkpoint(words.checkpoint)), open_corpus(words.corpus)
    check_corpus(checkpoint, corpus)
    stretches = select_excerpts(corpus, "validation", words.pieces, words.tokens)
    nats, seconds = {}, {}
    for precision, is_compiled in PRECISIONS.items():
        kernel = kernel_for(checkpoint.model, "int8") if is_compiled else None
        assert kernel is not None or not is_compiled, "there is no C++ compiler"
        costs, begun = [], time.process_time()
        for tokens, first in stretches:
            inference = InferenceConfig(precision=precision.split(",")[0])
            session = InferenceSession(checkpoint.model, inference, kernel)
            costs.append(costs_of(session, tokens, first))
            print(f"{precision}: {sum(map(len, costs)):,} tokens, {np.concatenate(costs).mean():.4f}", file=sys.stderr)
        nats[precision], seconds[precision] = np.concatenate(costs), time.process_time() - begun
    rows = []
    for precision, costs in nats.items():
        more = costs - nats["fp32"]
        error, speed = more.std() / len(more) ** 0.5, len(costs) / seconds[precision]
        rows.append(f"| {precision} | {costs.mean():.4f} | {more.mean():+.5f} | {error:.5f} | {speed:.0f} |")
    num_tokens = len(nats["fp32"])
    text = "\n".join(
        [
            f"# What weights of fewer bits cost: {checkpoint.path.name}",
            "",
            f"`python {shlex.join(sys.argv)}`, {datetime.date.today()}, {machine()}. {num_tokens:,} tokens from the"
            f" middle of {len(stretches)} pieces of the validation split, one by one, refill half; here auto is"
            f" {resolve_precision('auto', 'cpu', has_kernel=True)}.",
            "",
            "| precision | nats per token | more than fp32 | standard error | tokens a second of CPU time |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    name = f"precision-{datetime.date.today()}-{checkpoint.path.name}.md"
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
