"""What a CUDA graph does to a piece of work, without a card."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

LOOKS = {getattr(torch.Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__")}
OF_A_SIZE_THAT_NOBODY_KNOWS = {"nonzero", "masked_select", "_unique2", "_local_scalar_dense"}


class Unseen(TorchFunctionMode):
    """In which no number may be looked at."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in LOOKS, f"{function.__name__} looks at numbers that are not there yet"
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in index)
        return function(*args, **(kwargs or {}))


def operations_of(work, device, changed):
    """Writes down the operations and the memory of one call, and plays them again at each."""
    before = [tensor.clone() for tensor in changed]
    with Unseen():
        played = make_fx(lambda: work())()
    names = {str(node.target).removeprefix("aten.").split(".")[0] for node in played.graph.nodes}
    assert not names & OF_A_SIZE_THAT_NOBODY_KNOWS
    for tensor, was in zip(changed, before, strict=True):
        tensor.copy_(was)
    return played
