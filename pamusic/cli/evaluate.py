"""`pamusic evaluate`: checkpoint and corpus -> how well the one predicts the other. Knows options and words."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pamusic.cli.terminal import console, progress, result, say


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's name, or the folder of one or of a run.")],
    corpus: Annotated[Path, typer.Argument(help="The corpus' folder.")] = Path("corpus"),
    split: Annotated[Split, typer.Option(help="What to score.")] = Split.test,
    block: Annotated[int | None, typer.Option(min=1, help="Tokens scored at a time (default: latents / 2).")] = None,
    num_latents: Annotated[int | None, typer.Option(min=1, help="Use so many latents.")] = None,
    context_length: Annotated[int | None, typer.Option(min=2, help="Use so much context.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score every token of a split once, with all that precedes it up to the context."""
    import torch

    from pamusic.checkpoint import check_corpus, find_checkpoint, load_checkpoint
    from pamusic.errors import PamusicError, UsageError
    from pamusic.evaluation.likelihood import Likelihood
    from pamusic.evaluation.likelihood import evaluate as score_split
    from pamusic.tokens.corpus import open_corpus
    from pamusic.training.machine import choose_machine

    machine = choose_machine(device, precision, compile=False)
    loaded = load_checkpoint(find_checkpoint(checkpoint), machine.device)
    opened = open_corpus(corpus)
    check_corpus(loaded, opened)
    if not opened.split(split):
        raise PamusicError(f"{corpus}: has no {split} pieces to score; name another split or corpus")
    try:
        config = loaded.model.config.resized(context_length=context_length, num_latents=num_latents)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if block is not None and block > config.num_latents:
        raise UsageError(f"a block is at most the latents ({config.num_latents}), not {block}")
    precision = "bf16" if machine.precision == "bf16" else "fp32"
    shape = f"context {config.context_length:,}, {config.num_latents:,} latents, {precision}"
    say(f"{loaded.path} on {split} of {corpus}: {shape}")
    bar = progress(what=split, unit="token")

    def tell(so_far: Likelihood, done: int, of: int) -> None:
        bar.total = of
        bar.set_postfix_str(f"{so_far.nats_per_token:.4f} nats per token")
        bar.update(done - bar.n)

    model = loaded.model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    total = score_split(
        model, opened, split, block=block, num_latents=num_latents, context_length=context_length, progress=tell
    )
    bar.close()
    numbers = {
        "nats_per_token": round(total.nats_per_token, 4),
        "bits_per_note": round(total.bits_per_note, 3),
        "bits_per_second": round(total.bits_per_second, 2),
        "accuracy": round(total.accuracy, 4),
        "num_tokens": total.num_tokens,
        "num_pieces": total.num_pieces,
    }
    if as_json:
        about = {
            "checkpoint": str(loaded.path), "corpus": opened.fingerprint, "split": split,
            "precision": precision, "context_length": config.context_length,
            "num_latents": config.num_latents, "block": block or max(1, config.num_latents // 2),
        }  # fmt: skip
        result(json.dumps({**about, **numbers}))
        return
    from rich.table import Table

    table = Table("split", *(name.replace("_", " ") for name in numbers))
    table.add_row(split, *(f"{number:,}" for number in numbers.values()))
    console().print(table)
    result(f"{total.nats_per_token:.4f}")
