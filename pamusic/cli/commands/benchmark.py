"""Run `pamusic benchmark`: measure how fast a checkpoint composes. Knows options and words."""

from __future__ import annotations

import json
from typing import Annotated, Any

from typer import Argument, Option

from pamusic.cli.terminal import load_torch, log, progress, result, table
from pamusic.compose.request import MAX_CONTEXT, MAX_SAMPLES
from pamusic.resources import DEFAULT_CHECKPOINT

AROUND = (0.25, 1, 4)  # default contexts, as multiples of the checkpoint's


def benchmark(
    checkpoint: Annotated[
        str | None, Argument(help=f"Measure this checkpoint. (default: {DEFAULT_CHECKPOINT})")
    ] = None,
    context_length: Annotated[
        list[int] | None,
        Option(
            min=2, max=MAX_CONTEXT, help="Read N tokens of context; repeatable. (default: 1/4, 1 and 4 times its own)"
        ),
    ] = None,
    num_samples: Annotated[
        list[int] | None,
        Option(min=1, max=MAX_SAMPLES, help="Generate N pieces at once; repeatable. (default: 1, 4, 16)"),
    ] = None,
    tokens: Annotated[
        int | None, Option(min=1, help="Generate N tokens of each. (default: from refill to refill)")
    ] = None,
    precision: Annotated[str, Option(help="Hold weights in: auto, fp32, bf16, int8.")] = "auto",
    compile: Annotated[bool, Option("--compile/--no-compile", help="Use a compiled C++ kernel.")] = True,
    device: Annotated[str, Option(help="Compute on: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure sampling speed, and compare it with the memory bandwidth limit."""
    from dataclasses import asdict

    load_torch()
    import torch

    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.compose.benchmark import machine, read_bandwidth, speed
    from pamusic.device import choose_machine, cost_of
    from pamusic.inference.native_kernel import kernel_for
    from pamusic.inference.precision import resolve_precision

    where = choose_machine(device, "fp32", compile=False).device
    resolve_precision(precision, where)
    loaded = load_checkpoint(find_checkpoint(checkpoint), where)
    kernel = kernel_for(loaded.model, precision, log) if compile else None
    precision = resolve_precision(precision, where, kernel is not None, loaded.model.config.architecture)
    if cost := cost_of(precision, where, kernel is not None):
        log(cost)
    config = loaded.model.config
    contexts = context_length or [max(2, int(config.context_length * times)) for times in AROUND]
    bandwidth = read_bandwidth(where)
    found = []
    about: dict[str, Any] = {
        "checkpoint": str(loaded.path), "num_parameters": loaded.model.num_parameters(), "precision": precision,
        "num_latents": config.num_latents, "machine": machine(), "device": str(where),
        "threads": torch.get_num_threads(), "gb_per_second": round(bandwidth / 1e9, 1),
    }  # fmt: skip
    log(f"{loaded.title}, {precision}; {about['machine']}, {about['threads']} threads, {bandwidth / 1e9:.1f} GB/s")
    for context, rows in progress([(c, n) for c in contexts for n in num_samples or (1, 4, 16)], what="benchmark"):
        how: dict[str, Any] = {"bandwidth": bandwidth, "tokens": tokens, "precision": precision, "kernel": kernel}
        found.append(speed(loaded, context_length=context, num=rows, **how))
    if as_json:
        result(json.dumps({**about, "speeds": [asdict(each) for each in found]}))
        return
    table(
        [
            {
                "context": each.context_length, "pieces": each.num,
                "first token, s": round(each.first_token_seconds, 2), "tokens/s": round(each.tokens_per_second),
                "notes/s": round(each.notes_per_second), "x real time": round(each.times_real_time, 1),
                "MiB held": round(each.memory_mib),
            }
            for each in found
        ],
        "All pieces together",
    )  # fmt: skip
    table(
        [
            {
                "context": each.context_length, "pieces": each.num, "MiB read a token": round(each.mib_per_token, 1),
                "limit, tokens/s": round(each.limit), "reached": f"{each.share_of_limit:.0%}",
                "tokens a CPU second": "too few to tell" if each.tokens_per_cpu_second is None
                else f"{each.tokens_per_cpu_second:,.0f}",
            }
            for each in found
        ],
        f"The limit: weights and caches read at {bandwidth / 1e9:.1f} GB/s",
    )  # fmt: skip
    for each in found:
        result(f"{each.context_length} {each.num} {each.tokens_per_second:.1f}")
