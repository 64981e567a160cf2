"""Shard weights over the ranks, so that each holds a part of them (PyTorch's FSDP2, `fully_shard`).

Knows modules and trees of tensors; knows no run. On disk everything is unsharded, so a run can be resumed with or
without sharding. The cross-attention belongs to the root module, because its keys and values are computed outside its
own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pamusic.model.sequence_model import SequenceModel
from pamusic.training.distributed import ProcessGroup


def shard(model: SequenceModel, ranks: ProcessGroup, device: torch.device) -> None:
    """Shard a model's parameters over all ranks, in place; each layer is gathered when it computes."""
    mesh = init_device_mesh(device.type, (ranks.size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    # By default the root stays gathered after a forward pass, and would not see weights that were swapped in.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def gather(tree: Any) -> Any:
    """Return a tree of dicts, lists and tensors with every tensor gathered. All ranks must call this."""
    if isinstance(tree, dict):
        return {name: gather(branch) for name, branch in tree.items()}
    if isinstance(tree, list):
        return [gather(branch) for branch in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def apply_to_whole(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Apply a function to the gathered tensor, and shard the result like the tensor. All ranks must call this."""
    if not isinstance(tensor, DTensor):
        return function(tensor)
    result = function(tensor.full_tensor())  # equal on all ranks, so each keeps its own part
    return distribute_tensor(result, tensor.device_mesh, tensor.placements, src_data_rank=None)


def put(whole: Tensor, into: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    with torch.no_grad():
        into.copy_(_spread_as(into, whole))


def spread_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard the state that `load_state_dict` left whole: each tensor with its parameter's shape, like the parameter."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _spread_as(parameter, value)


def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole weights into parameters that may be sharded.

    Raises:
        KeyError, RuntimeError: The weights belong to another model.
    """
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise KeyError(f"weights of {sorted(parameters.keys() ^ weights.keys())[:3]}")
    for name, parameter in parameters.items():
        put(weights[name], parameter)


def _spread_as(like: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
