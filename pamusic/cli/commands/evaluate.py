"""Run `pamusic evaluate`: measure how well a checkpoint predicts a corpus. Knows options and words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from pamusic.cli.output import picture
from pamusic.cli.reports.evaluation import Split, check_drift, check_keys, print_drift, print_scores
from pamusic.cli.terminal import load_torch, log, progress, progress_callback
from pamusic.compose.request import MAX_CONTEXT
from pamusic.errors import UsageError

Compute = partial(Option, rich_help_panel="Compute")
Shown = partial(Option, rich_help_panel="Output")


def evaluate(
    checkpoint: Annotated[str, Argument(help="Evaluate this checkpoint: a name, or a folder of one or of a run.")],
    corpus: Annotated[Path, Argument(help="Score this corpus folder.")] = Path("corpus"),
    split: Annotated[Split, Option(help="Score this split.")] = Split.test,
    max_pieces: Annotated[int | None, Option(min=1, help="Score N pieces, spread evenly. (default: all)")] = None,
    stride: Annotated[int | None, Compute(min=1, help="Score N tokens at a time. (default: latents / 2)")] = None,
    num_latents: Annotated[int | None, Compute(min=1, help="Use this many latents.")] = None,
    num_keys: Annotated[int, Compute(min=1, max=12, help="Average predictions over N transpositions.")] = 1,
    context_length: Annotated[
        int | None, Compute(min=2, max=MAX_CONTEXT, help="Read this many tokens of context.")
    ] = None,
    device: Annotated[str, Compute(help="Compute on: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, Compute(help="Compute in: auto, bf16, fp32.")] = "auto",
    sweep: Annotated[bool, Shown("--sweep", help="Score other contexts and latents, too.")] = False,
    plot: Annotated[Path | None, Shown(help="Write a PNG figure here.")] = None,
    cache_drift: Annotated[bool, Shown("--cache-drift", help="Measure only the cost of each sample --refill.")] = False,
    drift_tokens: Annotated[
        int | None, Shown(min=1, help="Use N tokens of each piece. (default: latents; 2 pieces)")
    ] = None,
    as_json: Annotated[bool, Shown("--json", help="Print JSON.")] = False,
) -> None:
    """Score every token of a split once, given all tokens before it up to the context length."""
    load_torch()
    from pamusic.checkpoint import check_corpus, find_checkpoint, load_checkpoint
    from pamusic.corpus.corpus import open_corpus
    from pamusic.device import choose_machine, cost_of
    from pamusic.evaluation import likelihood
    from pamusic.evaluation import sweep as sweeps
    from pamusic.evaluation.plots import likelihood_picture

    check_drift(cache_drift, drift_tokens, unheeded=sweep or plot or stride or num_keys > 1 or precision == "bf16")
    check_keys(num_keys, sweep)
    machine = choose_machine(device, precision, compile=False)
    loaded = load_checkpoint(find_checkpoint(checkpoint), machine.device)
    opened = open_corpus(corpus)
    check_corpus(loaded, opened)
    config = loaded.model.config.resized(context_length=context_length, num_latents=num_latents)
    if stride is not None and stride > config.num_latents:
        raise UsageError(f"--stride must be at most the latents ({config.num_latents}), got {stride}")
    precision = "bf16" if machine.precision == "bf16" and not cache_drift else "fp32"  # cache drift runs in fp32
    shape = f"context {config.context_length:,}, {config.num_latents:,} latents, {precision}"
    if told := cost_of(precision, machine.device):
        log(told)
    if opened.split(split):
        log(f"{loaded.path} on {split} of {corpus}: {shape}")
    about: dict[str, Any] = {
        "checkpoint": str(loaded.path), "corpus": opened.fingerprint, "split": str(split), "precision": precision,
        "context_length": config.context_length, "num_latents": config.num_latents, "num_keys": num_keys,
    }  # fmt: skip
    if cache_drift:
        print_drift(loaded.model, opened, about, max_pieces or 2, drift_tokens, as_json=as_json)
        return
    model = loaded.model.bfloat16() if precision == "bf16" else loaded.model.float()
    about["block"] = stride or max(1, config.num_latents // 2)
    with picture(plot) as drawn:  # opened first, since scoring takes long
        bar = progress(what=split, unit="token")
        move = progress_callback(bar)

        def tell(so_far: likelihood.Likelihood, done: int, of: int, way: int = 0, ways: int = 1) -> None:
            bar.set_postfix_str(f"{so_far.nats_per_token:.4f} nats per token" if so_far.num_tokens else "")
            move(of * way + done, of * ways)

        total = likelihood.evaluate(
            model, opened, split, block=stride, num_latents=num_latents, context_length=context_length,
            num_pieces=max_pieces, num_keys=num_keys, progress=tell,
        )  # fmt: skip
        points = []
        if sweep:
            ways = sweeps.contexts_and_latents(model)
            points = sweeps.sweep(
                model, opened, split, ways, num_pieces=max_pieces,
                progress=lambda way, so_far, done, of: tell(so_far, done, of, way, len(ways)),
            )  # fmt: skip
        bar.close()
        print_scores(total, points, about, as_json=as_json)
        if drawn is not None:
            drawn.write_bytes(likelihood_picture(total, points, model.config.num_latents))
