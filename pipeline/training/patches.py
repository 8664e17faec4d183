"""Training on a random part of each image's patches: half of them take half the work, and a ViT cannot rely on one spot."""

import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

WHOLE_ATTENTION = ("deit", "dinov2", "dinov2_with_registers", "stem_vit", "vit")
"""Model types with global attention, which work with any number of patches."""
log = logging.getLogger(__name__)


def drop_patches(network: PreTrainedModel, share: float) -> None:
    """In training mode, drop a random part of the patches of each batch after the embeddings.

    PatchDropout (Liu et al., WACV 2023). Patches keep their positions, class tokens stay, and all images of a batch lose the same
    patches, so that the images of a pair still differ only in the forgery. Other architectures train on all patches; the log says so.

    Args:
        network: changed in place.
        share: share of the patches to drop, from 0 up to but not including 1.
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
