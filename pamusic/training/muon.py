"""Optimise matrices with Muon: momentum with orthogonalised updates. Knows matrices; knows no model.

Source: K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (the quintic Newton-Schulz iteration and its
coefficients). For a parameter `W [out, in]`, its gradient `G`, momentum `m`, learning rate `r` and weight decay `d`:

    B <- m B + (1 - m) G
    W <- (1 - r d) W - r sqrt(max(1, out / in)) orthogonalize((1 - m) G + m B)

`torch.optim.Muon` computes the same, and its saved states load here. The only difference is the precision of the
iteration: float32 on devices without fast bfloat16, where PyTorch uses bfloat16 too. On a CPU without bf16 units,
PyTorch's Muon takes about 20 s per step of `small`, and this one 0.2 s.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pamusic.device import has_fast_bf16
from pamusic.training.fsdp import apply_to_whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest slope at 0 that keeps singular values near 1 (Jordan et al.)
ITERATIONS = 5
EPSILON = 1e-7  # smallest divisor of a gradient


class Muon(torch.optim.Optimizer):
    """The Muon optimiser, for matrices only; of its settings, only the learning rate may change during training."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """Create an optimiser with zero momentum.

        Raises:
            ValueError: A parameter is not a matrix.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon needs matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        direction = apply_to_whole(orthogonalize, gradient.lerp(average, momentum))
        rows, columns = parameter.shape
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(direction, alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return `U S V^T` for a matrix `U D V^T`, with singular values `S` between about 0.7 and 1.2.

    Returns:
        A tensor of the same shape, in bfloat16 on devices that multiply it fast, else in float32.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if has_fast_bf16(matrix.device) else torch.float32, copy=True)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x.div_(x.norm().clamp(min=EPSILON))
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
