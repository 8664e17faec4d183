"""Training on a part of each picture's patches: half of the work, and a vision transformer that does not rest on one spot."""

import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

WHOLE_ATTENTION = ("deit", "dinov2", "dinov2_with_registers", "stem_vit", "vit")
"""Model types whose layers look at all patches alike, whatever their number."""
log = logging.getLogger(__name__)


def leave_out(network: PreTrainedModel, share: float) -> None:
    """While the network trains, each batch goes on behind the embeddings with a random part of its patches.

    PatchDropout (Liu et al., WACV 2023). Position and class tokens are kept, and all pictures of a batch lose the same patches: what
    differs in a pair stays the forgery. Networks of another build train on all patches, and the log says so.

    Args:
        network: changed in place.
        share: of the patches, 0 up to but not including 1.
    """
    if not share:
        return
    if network.config.model_type not in WHOLE_ATTENTION:
        log.info("train.patch_dropout does nothing for %s: its layers need all patches", network.config.model_type)
        return

    def thin(module: nn.Module, _: Any, tokens: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return tokens
        patches = math.isqrt(tokens.shape[1]) ** 2
        first = tokens.shape[1] - patches
        kept = torch.randperm(patches)[: max(1, round(patches * (1 - share)))].sort().values + first
        return tokens[:, torch.cat([torch.arange(first), kept]).to(tokens.device)]

    embeddings = network.base_model.embeddings
    assert isinstance(embeddings, nn.Module)
    embeddings.register_forward_hook(thin)
