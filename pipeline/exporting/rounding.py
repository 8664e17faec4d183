"""What bfloat16 makes of a network's answers, on any processor."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Bfloat16(TorchDispatchMode):
    """While it is open, every operation's result is rounded to bfloat16, as a GPU does that adds up in 32 bits and stores in 16.

    A processor without bfloat16 needs twenty times as long for real bfloat16, and the same for this as for 32 bits. Weights have to be
    rounded before, see `rounded`.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        result = func(*args, **(kwargs or {}))
        # A view shows values that were rounded when they were made.
        return result if func.is_view else tree_map_only(torch.Tensor, _round, result)


def rounded(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its weights rounded to bfloat16, in place; they are still stored in 32 bits."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            _round(tensor)
    return network


def _round(tensor: torch.Tensor) -> torch.Tensor:
    # In place, as an operation that changes its argument has to.
    return tensor.copy_(tensor.bfloat16()) if tensor.dtype == torch.float32 else tensor
