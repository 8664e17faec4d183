"""Builds, loads and saves any image classifier that transformers knows, by hub name or folder, pretrained or from scratch."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, ViTImageProcessorPil
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import pipeline.network.stem  # noqa: F401 - makes stem_vit known to transformers
from pipeline.errors import StageError
from pipeline.labels import ID2LABEL, LABEL2ID
from pipeline.preprocess import Preprocess

if TYPE_CHECKING:  # a server loads networks, but no settings
    from pipeline import params

TRAINED = Path("models/trained")
"""Where training leaves the network."""

HEAD: dict[str, Any] = {"id2label": ID2LABEL, "label2id": LABEL2ID}
WHOLE: dict[str, Any] = {"dtype": torch.float32}
"""Whatever type the weights are stored in, which transformers would keep: in 16 bits, small training steps round to nothing."""

log = logging.getLogger(__name__)


def build(settings: "params.Model") -> tuple[PreTrainedModel, Any]:
    """Build the network that the settings describe, with outputs real and fake.

    Returns:
        The model, and the transformers image processor that belongs to it.

    Raises:
        StageError: if the name is neither a folder nor a hub name nor, with init scratch, a model type; if the hub cannot be reached;
            if the weights are damaged; if `config` changes shapes of pretrained weights; if outputs in the order fake, real cannot be
            swapped; or if the pretrained network does not take what its image processor makes.
    """
    try:
        if settings.init == "pretrained":
            before = AutoConfig.from_pretrained(settings.name)
            # safetensors only: a pickled checkpoint can run arbitrary code.
            model, found = AutoModelForImageClassification.from_pretrained(
                settings.name,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **WHOLE,
                **HEAD,
                **_count(before),
                **settings.config,
            )
            _check_shapes(found["mismatched_keys"], before.num_labels, settings)
            if not found["mismatched_keys"] and not any("classifier" in name for name in found["missing_keys"]):
                _order_outputs(model, before.id2label)
            processor = AutoImageProcessor.from_pretrained(settings.name)
            if _side(model.config) != _side(before):  # another image_size was set, for a network that takes any size
                _resize(processor, _side(model.config))
            model = _adapted(model)
            _check_input(model, processor, settings.name)
            return model, processor
        if settings.name in CONFIG_MAPPING:
            config = AutoConfig.for_model(settings.name, **HEAD, **settings.config)
        else:
            config = AutoConfig.from_pretrained(settings.name, **HEAD, **settings.config)
        config.update(_count(config))
        # If a config fits two classifiers, as DeiT's does, transformers iterates over this list and, if it is empty, takes the first.
        config.architectures = config.architectures or []
        model = _adapted(AutoModelForImageClassification.from_config(config, **WHOLE))
    except SafetensorError as error:
        raise StageError(
            f"model.name = {settings.name!r}: its weights cannot be read ({error}). "
            "Fetch the files again; `git lfs pull` does it in a folder that git cloned."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(
            f"model.name = {settings.name!r} with init {settings.init} is not an image classifier: {reason}. "
            "Give a hub name, a folder with config.json and model.safetensors or, with init scratch, a transformers model type such as vit."
        ) from None
    side = _side(config)
    return model, ViTImageProcessorPil(size={"height": side, "width": side})


def _count(config: Any) -> dict[str, int]:
    """Number of outputs, for configs that do not derive it from the names of the outputs, such as PVT's."""
    return {"num_labels": len(ID2LABEL)} if "num_labels" in config.to_dict() else {}


def _check_shapes(mismatched: Any, outputs: int, settings: "params.Model") -> None:
    """Only the head may differ in shape from the pretrained weights: anything else would silently start from random weights.

    The head, whatever its name, has two outputs in place of the `outputs` of the pretrained weights, and otherwise the same shape.
    """
    others = sorted({name for name, was, now in mismatched if (*was[:1], *now) != (outputs, len(ID2LABEL), *was[1:])})
    if others:
        raise StageError(
            f"model.config = {settings.config}: the shapes differ from those in {settings.name}: {', '.join(others[:3])}. "
            "Leave out what changes shapes (image_size, hidden_size ...), or train with model.init=scratch."
        )


def _check_input(model: PreTrainedModel, processor: Any, name: str) -> None:
    """Raise StageError if the model, in evaluation mode, does not take the input that its processor's settings describe."""
    try:
        side = Preprocess.from_processor(processor).size
        with torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, side, side))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StageError(
            f"model.name = {name!r}: its preprocessor_config.json does not fit its network, which takes RGB squares: {reason}. "
            "Correct `size` (or `crop_size`), `image_mean` and `image_std` there."
        ) from None


def _order_outputs(model: PreTrainedModel, names: Mapping[int, str]) -> None:
    """Put the outputs of a pretrained two-output head in the order real, fake, in place; if it has other outputs, reset it.

    Args:
        model: as loaded.
        names: names of the head's outputs before they were renamed.

    Raises:
        StageError: if they are fake, real and the model has no `classifier` in which to swap them.
    """
    labels = [names[index].lower() for index in sorted(names)]
    if labels == list(LABEL2ID):
        return
    weights = {name: value for name, value in model.state_dict().items() if "classifier" in name}
    if labels == list(reversed(LABEL2ID)):
        turned = {name: value.flip(0) for name, value in weights.items() if value.shape[:1] == (len(labels),)}
        if not turned:
            raise StageError(f"{type(model).__name__} has no `classifier` whose outputs, {', '.join(labels)}, could be swapped")
    else:
        log.info("the outputs of the head are called %s, not real and fake: the head is reset", ", ".join(labels))
        fresh = AutoModelForImageClassification.from_config(model.config, **WHOLE).state_dict()
        turned = {name: fresh[name] for name in weights}
    model.load_state_dict(turned, strict=False)


def load(folder: Path) -> PreTrainedModel:
    """Read a trained model from a folder that `save` wrote, in evaluation mode, with attention weights that can be inspected."""
    return _adapted(AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager", **WHOLE)).eval()


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, no pickle) with our preprocess.json beside it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    Preprocess.from_processor(processor).save(folder)


def head(model: PreTrainedModel) -> nn.Module:
    """The layer or layers that map features to logits. Raises StageError if the model has no `classifier`."""
    found = getattr(model, "classifier", None)
    if not isinstance(found, nn.Module):
        raise StageError(f"{type(model).__name__} has no `classifier`; only train.tune: full works")
    return found


class NormalisedLinear(nn.Linear):
    """A linear layer on L2-normalised features: only their direction counts."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float (..., in_features) -> (..., out_features)."""
        return super().forward(functional.normalize(features, dim=-1))


def normalise_features(model: PreTrainedModel) -> None:
    """Make the head take L2-normalised features, in place; recorded in the config, so that `load` does it again.

    Raises:
        StageError: if the head is not one linear layer.
    """
    linear = head(model)
    if not isinstance(linear, nn.Linear):
        raise StageError(f"train.tune: layernorm needs a head of one linear layer; that of {type(model).__name__} is {linear}")
    normalised = NormalisedLinear(linear.in_features, linear.out_features, linear.bias is not None)
    normalised.load_state_dict(linear.state_dict())
    model.set_submodule("classifier", normalised)
    model.config.normalised_features = True


def _adapted(model: PreTrainedModel) -> PreTrainedModel:
    """Apply, in place, what transformers does not build by itself."""
    if model.config.model_type == "efficientnet":
        # It pools over a window of a thousand pixels or more, cut to the feature map, which OpenVINO cannot convert.
        kind = nn.AdaptiveAvgPool2d if model.config.pooling_type == "mean" else nn.AdaptiveMaxPool2d
        model.set_submodule("efficientnet.pooler", kind(1))
    if getattr(model.config, "normalised_features", False):
        normalise_features(model)
    return model


def _resize(processor: Any, side: int) -> None:
    """Make a processor output squares of another side, in place."""
    for name in ("size", "crop_size"):
        if before := getattr(processor, name, None):
            setattr(processor, name, dict.fromkeys(dict(before), side))


def _side(config: Any) -> int:
    """Side of the input in pixels; 224 if the config has none, as for networks that take any size."""
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None) or 224
    return side if isinstance(side, int) else side[0]
