"""Which weights of a network are trained: all, or only a few, to preserve what a pretrained backbone knows."""

import re
from collections import defaultdict

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import StageError
from pipeline.network import model
from pipeline.params_train import Train

ATTENTION = re.compile(r"(?:^|\.)(?:q_proj|v_proj|query|value|projection_query|projection_value|qkv)$")
"""Names in transformers of the layers that compute queries and values."""


def prepare(network: PreTrainedModel, recipe: Train) -> None:
    """Freeze the weights that are not trained and add new ones if needed, in place.

    `layernorm` trains every norm layer and a head on L2-normalised features, after GenD (Yermakov et al., 2025); `lora` adds low-rank
    adapters (Hu et al., ICLR 2022) with peft. The head is always trained.

    Raises:
        StageError: if the head, the blocks or the layers for LoRA cannot be found in the network, or do not fit the recipe.
    """
    if recipe.tune == "full":
        return
    network.requires_grad_(False)
    if recipe.tune == "last_blocks":
        for weight in _behind(network, recipe.last_blocks):
            weight.requires_grad_(True)
    elif recipe.tune == "layernorm":
        model.normalise_features(network)
        for module in network.modules():
            if is_norm(module):
                module.requires_grad_(True)
    elif recipe.tune == "lora":
        _add_lora(network, recipe)
    model.head(network).requires_grad_(True)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: LayerNorm, BatchNorm, GroupNorm and the like."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def freeze_batch_norms(network: nn.Module) -> None:
    """Put frozen batch norms into evaluation mode: their running statistics are not weights and would still change."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def merge(network: PreTrainedModel) -> None:
    """Merge LoRA adapters into the weights, in place, which leaves a plain transformers network."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())


def _add_lora(network: PreTrainedModel, recipe: Train) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    settings = recipe.lora
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if settings.targets == "auto":
        targets = [name for name in linear if ATTENTION.search(name)]
    else:
        targets = [name for name in linear if name.rpartition(".")[2] in settings.targets]
    if not targets:
        names = sorted({name.rpartition(".")[2] for name in linear} - {""})
        raise StageError(
            f"train.lora.targets = {settings.targets}: {type(network).__name__} has no such layers; its linear layers are called "
            f"{', '.join(names)}. Name some of them in train.lora.targets."
        )
    inject_adapter_in_model(LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=targets), network)


def _behind(network: PreTrainedModel, number: int) -> list[nn.Parameter]:
    """The weights of the last blocks and of everything after them, in order of definition."""
    blocks = _blocks(network)
    if number > len(blocks):
        raise StageError(f"train.last_blocks = {number}: {type(network).__name__} has only {len(blocks)} blocks")
    first = next(blocks[-number].parameters())
    weights = list(network.parameters())
    start = next(index for index, weight in enumerate(weights) if weight is first)
    return weights[start:]


def _blocks(network: PreTrainedModel) -> list[nn.Module]:
    """List elements of one type that holds a third of the weights or more; of several such types, the most numerous: layers, not stages."""
    kinds: dict[type, list[nn.Module]] = defaultdict(list)
    for module in network.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for element in module:
                if any(True for _ in element.children()) and not isinstance(element, nn.ModuleList | nn.Sequential):
                    kinds[type(element)].append(element)
    whole = sum(weight.numel() for weight in network.parameters())
    large = [blocks for blocks in kinds.values() if 3 * sum(w.numel() for block in blocks for w in block.parameters()) >= whole]
    if not large:
        raise StageError(f"train.tune: {type(network).__name__} has no blocks for last_blocks; use full, head, layernorm or lora")
    return max(large, key=len)


def learning_rate(recipe: Train, network: nn.Module) -> float:
    """The learning rate; `auto` is 1100 / parameters, clipped to 1e-5..1e-3: 2e-4 for ViT-tiny, 1.3e-5 for ViT-base.

    It is higher if few weights are trained: 3e-4 for norm layers (GenD) and LoRA, 1e-3 for a head alone.
    """
    if recipe.lr != "auto":
        return recipe.lr
    if recipe.tune in ("layernorm", "lora", "head"):
        return 1e-3 if recipe.tune == "head" else 3e-4
    return float(np.clip(1100 / sum(weight.numel() for weight in network.parameters()), 1e-5, 1e-3))
