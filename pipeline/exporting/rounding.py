"""Emulates bfloat16 on any processor, to see what it does to a network's answers."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Bfloat16(TorchDispatchMode):
    """Inside this context, every operation's result is rounded to bfloat16, as on a GPU that accumulates in 32 bits and stores in 16.

    On a processor without bfloat16, real bfloat16 takes twenty times as long as 32 bits; this takes no longer. Weights must be rounded
    beforehand, see `round_weights`.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        result = func(*args, **(kwargs or {}))
        # A view's values were rounded when they were computed.
        return result if func.is_view else tree_map_only(torch.Tensor, _round, result)


def round_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Round the network's weights to bfloat16 in place; they are still stored in 32 bits. Returns the network."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            _round(tensor)
    return network


def _round(tensor: torch.Tensor) -> torch.Tensor:
    # In place: an operation that changes its argument must return that very tensor.
    return tensor.copy_(tensor.bfloat16()) if tensor.dtype == torch.float32 else tensor
