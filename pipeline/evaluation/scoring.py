"""The model under evaluation: a network with its preprocessing, calibration and thresholds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.images import OWN, Picture, read
from pipeline.labels import LABEL2ID
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.package import Calibration, Package, Thresholds
from pipeline.preprocess import Preprocess
from pipeline.runtime import Runtime, runtime

BATCH = 16
"""Batch size at which the activations of a small vision transformer fit into a CPU's cache."""


@dataclass(frozen=True)
class Subject:
    """The model under evaluation. The network is in evaluation mode; calibration and thresholds are fixed beforehand."""

    network: PreTrainedModel
    runtime: Runtime
    preprocess: Preprocess
    calibration: Calibration
    thresholds: Thresholds

    @classmethod
    def from_package(cls, package: Package) -> Self:
        """The model of a package."""
        network, preprocess = model.load(package.path / "model"), Preprocess.load(package.path)
        running = runtime(WithEmbedding(network).eval(), preprocess.size)
        return cls(network, running, preprocess, package.meta, package.meta.thresholds)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) -> calibrated probabilities of fake, float (n,)."""
        return self.calibration.probability(score(self.runtime, self.preprocess, images))


def score(running: Runtime, preprocess: Preprocess, images: np.ndarray, title: str | None = None) -> np.ndarray:
    """Difference of the logits, fake minus real, float (n,). See `run`."""
    logits, _ = run(running, preprocess, images, title)
    return logits[:, 1] - logits[:, 0]


def run(running: Runtime, preprocess: Preprocess, images: np.ndarray, title: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Run all images through a network in batches.

    Args:
        running: the network.
        preprocess: the network's.
        images: uint8 (n, size, size, 3).
        title: title of the progress bar; None shows no bar.

    Returns:
        Logits float32 (n, 2) and embeddings float32 (n, d).
    """
    starts = tqdm(range(0, len(images), BATCH), desc=title, unit="batch", disable=title is None)
    found = [running(preprocess.normalise(images[start : start + BATCH])) for start in starts]
    logits, embeddings = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return logits, embeddings


def labels(table: pd.DataFrame) -> np.ndarray:
    """int (n,), 1 for fake."""
    return table["label"].map(LABEL2ID).to_numpy()


def pictures(table: pd.DataFrame) -> list[Picture]:
    """The decoded images of a few rows."""
    return [read(Path(path), OWN) for path in table["path"]]


def sample(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` rows, drawn at random, half of each class if it has as many; the table itself if it has no more rows."""
    if len(table) <= most:
        return table
    classes = [rows for _, rows in table.groupby("label")]
    drawn = [rows.sample(min(len(rows), max(most // 2, most - len(table) + len(rows))), random_state=seed) for rows in classes]
    return pd.concat(drawn).sort_index()
