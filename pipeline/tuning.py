"""Which weights of a network move: all, its head, its last blocks, its norms, or a low-rank addition to its attention."""

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.errors import StageError
from pipeline.params import Train

NORMALISED_HEAD = "normalised_head"
"""Entry of a network's config: its head sees features of length 1."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj", "qkv", "projection_query", "projection_value")
"""What transformers calls the projections that LoRA is laid on (Hu et al., ICLR 2022, section 7.1)."""


def prepare(network: PreTrainedModel, recipe: Train, resume: Path | None = None) -> Any:
    """Let only the recipe's weights move.

    Args:
        network: as pipeline.model.build makes it.
        recipe: `tune` says what moves.
        resume: a checkpoint of an earlier, equal call, whose weights are taken.

    Returns:
        The network to train: `network` itself, another of its kind, or with `lora` a PeftModel around it.

    Raises:
        StageError: if the network has no part of the kind that shall move.
    """
    if recipe.tune == "lora":
        return _with_lora(network, recipe, resume)
    if resume:
        # Trainer's own loading misses weights that were renamed since the checkpoint's format; from_pretrained converts them.
        network = type(network).from_pretrained(resume)
    if recipe.tune == "full":
        return network
    if recipe.tune == "layernorm":
        setattr(network.config, NORMALISED_HEAD, True)
        normalise_head(network)
    moving = {id(weight) for part in _moving(network, recipe) for weight in part.parameters()}
    for weight in network.parameters():
        weight.requires_grad_(id(weight) in moving)
    return network


def finish(network: PreTrainedModel, recipe: Train, best: Path) -> PreTrainedModel:
    """The trained network as transformers knows it: weights of the folder `best`, a low-rank addition merged into those it was added to."""
    if recipe.tune == "lora":
        return _with_lora(network, recipe, best).merge_and_unload()
    return type(network).from_pretrained(best)


def normalise_head(network: PreTrainedModel) -> None:
    """Give the head features of length 1 where the network's config asks for it (GenD: Yermakov et al., 2025).

    A hook and not a layer, so that the weights keep the names that from_pretrained looks for.
    """
    if getattr(network.config, NORMALISED_HEAD, False):
        _head(network).register_forward_pre_hook(lambda _, inputs: (functional.normalize(inputs[0], dim=-1), *inputs[1:]))


def _moving(network: PreTrainedModel, recipe: Train) -> list[nn.Module]:
    head = _head(network)
    if recipe.tune == "head":
        return [head]
    if recipe.tune == "layernorm":
        return [head, *(part for part in network.modules() if isinstance(part, NORMS))]
    blocks = [part for part in network.modules() if isinstance(part, GradientCheckpointingLayer)]  # what transformers takes for a block
    if len(blocks) < recipe.last_blocks:
        raise StageError(f"train.last_blocks is {recipe.last_blocks}; {type(network).__name__} has {len(blocks)} blocks")
    after = [part for part in network.base_model.children() if isinstance(part, NORMS)]
    return [head, *blocks[-recipe.last_blocks :], *after]


def _head(network: PreTrainedModel) -> nn.Module:
    """The layer that ends in the classes."""
    labels = network.config.num_labels
    linear = [part for part in network.modules() if isinstance(part, nn.Linear) and part.out_features == labels]
    if not linear:
        raise StageError(f"{type(network).__name__} has no linear head of {labels} outputs; use train.tune: full")
    return linear[-1]


def _with_lora(network: PreTrainedModel, recipe: Train, folder: Path | None) -> Any:
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError:
        raise StageError("train.tune is lora, and PEFT is not installed: pip install 'unmask[lora]'") from None
    if folder:
        return PeftModel.from_pretrained(network, folder, is_trainable=True)
    names = {name.rpartition(".")[2] for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted(names & set(QUERY_AND_VALUE))
    if not targets:
        raise StageError(
            f"train.tune is lora, and {type(network).__name__} has no attention projections that it knows; use full or layernorm"
        )
    head = next(name for name, part in network.named_modules() if part is _head(network))
    settings = LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=targets, modules_to_save=[head])
    return get_peft_model(network, settings)
