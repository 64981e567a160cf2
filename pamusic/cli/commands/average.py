"""Run `pamusic average`: average the weights of checkpoints. Knows options and words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.terminal import load_torch, log, result
from pamusic.errors import PamusicError, UsageError


def average(
    checkpoints: Annotated[list[str], Argument(help="Average these: names, or folders of checkpoints or runs.")],
    out: Annotated[Path, Option("--out", "-o", help="Write the checkpoint to this folder.")] = Path("average"),
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the checkpoint in the output folder.")] = False,
) -> None:
    """Average the weights of checkpoints that share their initial weights (a model soup)."""
    load_torch()
    from pamusic.checkpoint import PARTS, find_checkpoint, load_checkpoint, save_checkpoint
    from pamusic.training.averaging import average_checkpoints

    if len(checkpoints) < 2:
        raise UsageError(f"a mean needs two or more checkpoints, got only {checkpoints[0]}; pass another")
    if out.exists():
        if not (out / "config.json").is_file():
            raise PamusicError(f"{out}: exists and is not a checkpoint; use another folder with --out")
        if others := sorted({each.name for each in out.iterdir()} - PARTS):
            raise PamusicError(
                f"{out}: has files that do not belong to a checkpoint ({', '.join(others[:3])}); move them away, or use"
                " another folder with --out"
            )
        if not overwrite:
            raise PamusicError(f"{out}: is a checkpoint already; replace it with --overwrite, or use another --out")
    mean = average_checkpoints([load_checkpoint(find_checkpoint(name)) for name in checkpoints])
    save_checkpoint(out, mean.model, mean.tokenizer, metadata=mean.metadata)
    log(f"the mean of {', '.join(checkpoints)}; to measure it, run pamusic evaluate {out}")
    result(out)
