"""Create a model's optimisers, and average its weights. Knows parameters; knows no batches, no files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pamusic.errors import UsageError
from pamusic.training.config import TrainingConfig
from pamusic.training.fsdp import put
from pamusic.training.muon import Muon

# Matrices that are tables or vectors, which AdamW trains.
OUTER = ("embedding.", "ledger.", "recall.", "fields.chosen.", "fields.offsets.", "conv.", "head.")


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return Muon (Jordan et al. 2024) for the matrices of the blocks and AdamW for all other parameters.

    Each parameter group stores its peak learning rate as `peak_lr`.
    """
    inner, outer = split_parameters(model)
    rate, optimizers = config.lr * config.adamw_lr_ratio, list[torch.optim.Optimizer]()
    if inner:
        optimizers.append(Muon(inner, lr=config.lr, weight_decay=config.weight_decay))
    if outer:
        fused = outer[0].device.type == "cuda"
        optimizers.append(torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=fused))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def freeze_all_but(model: nn.Module, only: str) -> None:
    """Freeze all parameters except those of one part of the model; train all if the name is empty.

    Raises:
        UsageError: The model has no such part.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not only or name.startswith(f"{only}."))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        parts = ", ".join(name for name, part in model.named_children() if any(True for _ in part.parameters()))
        raise UsageError(f"unknown part {only!r} of the model; use one of {parts}")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trained parameters into matrices of the blocks, and all others: tables, recall, head and norms."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    inner = {n: p for n, p in named.items() if p.dim() == 2 and not n.startswith(OUTER)}
    return list(inner.values()), [parameter for name, parameter in named.items() if name not in inner]


class Average:
    """An exponential moving average of a model's weights (EMA; Polyak and Juditsky 1992), in float32.

    After `t` updates, the newest weights enter with weight `1 - min(decay, (1 + t) / (10 + t))`, so that the average
    quickly forgets the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = list(model.parameters())
        self._names = [name for name, _ in model.named_parameters()]
        self._averaged = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update number `step`, from 1, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, [parameter.detach() for parameter in self._live], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights within the block, and then restore its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return dict(zip(self._names, self._averaged, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load averaged weights by parameter name."""
        for name, averaged in zip(self._names, self._averaged, strict=True):
            put(state[name], averaged)

    @torch.no_grad()
    def _swap(self) -> None:
        for live, averaged in zip(self._live, self._averaged, strict=True):
            kept = live.detach().clone()
            live.copy_(averaged)
            averaged.copy_(kept)
