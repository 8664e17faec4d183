"""Training the head alone: with a frozen backbone and no augmentation, its input features are computed only once."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from pipeline.fingerprint import fingerprint
from pipeline.network import model
from pipeline.params_train import Augment, Train
from pipeline.preprocess import Preprocess
from pipeline.staging import CACHE, make_once
from pipeline.training.dataset import Pairs, Singles, cache_key

BATCH = 64


def are_fixed(recipe: Train, augment: Augment) -> bool:
    """Whether every epoch shows the head the same features."""
    return recipe.tune == "head" and augment.off and not recipe.forge and not recipe.adversarial


class Head(nn.Module):
    """The head of a network, sharing its weights, as a model that takes features instead of images."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = model.head(network)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """float (n, d) -> logits (n, 2)."""
        return ImageClassifierOutput(logits=self.classifier(pixel_values))


class FeaturePairs(Pairs):
    """Like Pairs, with features in place of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Features as pixel_values, float32 (2, d), and labels int64 (2,)."""
        pair = self.images[list(self.choose(index, self.draw(index)))]
        return {"pixel_values": torch.from_numpy(pair), "labels": torch.tensor([0, 1])}


class FeatureSingles(Singles):
    """Like Singles, with features in place of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Features as pixel_values, float32 (1, d), and labels int64 (1,)."""
        return {"pixel_values": torch.from_numpy(self.images[[index]]), "labels": torch.tensor([self.labels[index]])}


def features(network: PreTrainedModel, table: pd.DataFrame, images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Input of the network's head for each image, float32 (n, d), read-only; cached in var/cache.

    Args:
        table: rows of the images; with the preprocessing and the backbone they name the cache file.
        images: uint8 (n, size, size, 3), in the table's order.
    """
    digest = hashlib.sha256((network.config.to_json_string() + fingerprint(preprocess, "network")).encode())
    for name, weight in network.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(weight.cpu().numpy().tobytes())
    path = CACHE / f"{cache_key(table, preprocess)}-{digest.hexdigest()[:24]}.features.npy"

    def compute(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, _computed(network, images, preprocess))

    make_once(path, compute)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _computed(network: PreTrainedModel, images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(network, device)
    network.eval()
    found: list[np.ndarray] = []
    hook = model.head(network).register_forward_pre_hook(lambda _, given: found.append(given[0].float().cpu().numpy()))
    try:
        with torch.inference_mode():
            for start in tqdm(range(0, len(images), BATCH), desc="features", unit="batch"):
                network(pixel_values=torch.from_numpy(preprocess.normalise(images[start : start + BATCH])).to(device))
    finally:
        hook.remove()
    return np.concatenate(found)
