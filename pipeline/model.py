"""Networks: any image classifier that transformers knows, by hub name or folder, pretrained or from scratch."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, ViTImageProcessorPil
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import pipeline.stem  # noqa: F401 - makes stem_vit known to transformers
from pipeline import params
from pipeline.errors import StageError
from pipeline.manifest import ID2LABEL, LABEL2ID
from pipeline.preprocess import Preprocess
from pipeline.tuning import normalise_head

TRAINED = Path("models/trained")
"""Where training leaves the network."""

HEAD: dict[str, Any] = {"id2label": ID2LABEL, "label2id": LABEL2ID}


def build(settings: params.Model) -> tuple[PreTrainedModel, Any]:
    """Make the network of the settings, with outputs real and fake.

    Returns:
        The model, and the transformers image processor that belongs to it.

    Raises:
        StageError: if the name is neither a folder nor a hub name nor, with init scratch, a model type; or a hub cannot be reached.
    """
    try:
        if settings.init == "pretrained":
            # safetensors alone: a pickled checkpoint runs whatever its maker likes.
            model = AutoModelForImageClassification.from_pretrained(
                settings.name, use_safetensors=True, ignore_mismatched_sizes=True, **HEAD, **settings.config
            )
            return model, AutoImageProcessor.from_pretrained(settings.name)
        if settings.name in CONFIG_MAPPING:
            config = AutoConfig.for_model(settings.name, **HEAD, **settings.config)
        else:
            config = AutoConfig.from_pretrained(settings.name, **HEAD, **settings.config)
        config.architectures = config.architectures or []  # DeiT has two classifiers, and None is no list to choose from
        model = AutoModelForImageClassification.from_config(config)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(
            f"model.name = {settings.name!r} with init {settings.init} gives no image classifier: {reason}. "
            "Give a hub name, a folder with config.json and model.safetensors or, with init scratch, a transformers model type: vit, say."
        ) from None
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    return model, ViTImageProcessorPil(size={"height": side, "width": side})


def load(folder: Path) -> PreTrainedModel:
    """Read a trained model from a folder that `save` wrote, in evaluation mode, with attentions that can be looked at."""
    network = AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager")
    normalise_head(network)
    return network.eval()


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, no pickle) with our preprocess.json beside it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    Preprocess.from_processor(processor).save(folder)
