"""The model under judgement: a network with its preprocessing, temperature and thresholds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.calibration import probability
from pipeline.images import Picture, read
from pipeline.manifest import LABEL2ID
from pipeline.package import Thresholds
from pipeline.preprocess import Preprocess

BATCH = 64


@dataclass(frozen=True)
class Subject:
    """What is judged. The network is in evaluation mode; temperature and thresholds were chosen before and are not touched."""

    network: PreTrainedModel
    preprocess: Preprocess
    temperature: float
    thresholds: Thresholds

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) -> calibrated probabilities of fake, float (n,)."""
        return probability(score(self.network, self.preprocess, images), self.temperature)


def score(network: PreTrainedModel, preprocess: Preprocess, images: np.ndarray, title: str | None = None) -> np.ndarray:
    """Difference of the logits, fake minus real.

    Args:
        network: in evaluation mode; it runs on a GPU where there is one, and is left on the CPU.
        preprocess: of the network.
        images: uint8 (n, size, size, 3).
        title: of a progress bar; without it there is none.

    Returns:
        float (n,).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(network, device)
    found = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), BATCH), desc=title, unit="batch", disable=title is None):
            values = torch.from_numpy(preprocess.normalise(images[start : start + BATCH])).to(device)
            logits = network(pixel_values=values).logits.float().cpu().numpy()
            found.append(logits[:, 1] - logits[:, 0])
    torch.nn.Module.to(network, "cpu")
    return np.concatenate(found)


def labels(table: pd.DataFrame) -> np.ndarray:
    """int (n,), 1 for fake."""
    return table["label"].map(LABEL2ID).to_numpy()


def pictures(table: pd.DataFrame) -> list[Picture]:
    """The decoded images of a few rows."""
    return [read(Path(path)) for path in table["path"]]


def sample(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most this many rows, drawn at random; the table itself where it has no more."""
    return table if len(table) <= most else table.sample(most, random_state=seed)
