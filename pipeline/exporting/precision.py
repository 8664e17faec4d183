"""What a network's answers lose in fewer bits than 32, which are used only where that is next to nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from pipeline.evaluation.calibration import probability
from pipeline.evaluation.metrics import figures
from pipeline.evaluation.scoring import BATCH, labels, sample, score
from pipeline.exporting.convert import to_int8
from pipeline.exporting.rounding import Bfloat16, rounded
from pipeline.network import model
from pipeline.package import GRAPH, INT8
from pipeline.params import Params
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime
from pipeline.training.dataset import pixels

SCORES = Path("reports/scores.parquet")
IMAGES = 1000
"""Of the test part, to score again: with 500 the ECE alone moves by .008 from one draw to another. And of the validation part, to tell
which operations stay in 32 bits."""
QUANTISED_ON = 300
"""Images of the training part that show NNCF how large activations get."""
MOST_AUC_DROP, MOST_ECE_RISE = 0.002, 0.005
"""What fewer bits may cost, if they are to be used."""


def fewer_bits(
    package: Path, preprocess: Preprocess, parts: dict[str, pd.DataFrame], calibration: dict[str, Any], params: Params
) -> dict[str, Any]:
    """What bfloat16 and, on CPUs, 8-bit integers cost against the scores of the evaluation.

    Args:
        package: folder with the network and its graph; the graph in 8 bits is written there if it is allowed.
        preprocess: of the network.
        parts: rows of the manifest's train and val; what 8 bits cost on val says which operations stay in 32.
        calibration: temperature and thresholds.
        params: the settings.

    Returns:
        bf16 and int8, see cost; int8 is None where `export.int8` is off.
    """
    scores = pd.read_parquet(SCORES)
    rows = sample(scores[scores["part"] == "test"], IMAGES, params.evaluate.seed)
    images, judged = pixels(rows, preprocess), (calibration["temperature"], calibration["thresholds"]["f1"])
    found: dict[str, Any] = {"bf16": cost(rows, bfloat16(model.load(package / "model"), preprocess, images), *judged)}
    found["int8"] = None
    if params.export.int8:
        seen, val = (sample(parts[part], most, params.evaluate.seed) for part, most in (("train", QUANTISED_ON), ("val", IMAGES)))
        to_int8(package / GRAPH, package / INT8, preprocess, pixels(seen, preprocess), pixels(val, preprocess), labels(val))
        found["int8"] = int8 = cost(rows, score(OpenVinoRuntime(package / INT8), preprocess, images), *judged)
        if not int8["allowed"]:
            for part in (".xml", ".bin"):
                (package / INT8).with_suffix(part).unlink()
    return found


def cost(rows: pd.DataFrame, scores: np.ndarray, temperature: float, threshold: float) -> dict[str, Any]:
    """What other scores of the same images mean for the figures.

    Args:
        rows: of reports/scores.parquet, with label and the 32-bit score.
        scores: float (n,), difference of the logits in fewer bits.
        temperature: of the package.
        threshold: of the package; at or above it an image counts as fake.

    Returns:
        n, auc_drop, ece_rise, flips (share of the images that change sides), and `allowed`, whether the first two are within
        MOST_AUC_DROP and MOST_ECE_RISE.
    """
    before, after = (probability(found, temperature) for found in (rows["score"].to_numpy(), scores))
    full, less = figures(labels(rows), before, threshold), figures(labels(rows), after, threshold)
    drop, rise = (round(float(change), 6) for change in (full["auc"][0] - less["auc"][0], less["ece"][0] - full["ece"][0]))
    flips = round(float(((before >= threshold) != (after >= threshold)).mean()), 6)
    return {"n": len(rows), "auc_drop": drop, "ece_rise": rise, "flips": flips, "allowed": drop <= MOST_AUC_DROP and rise <= MOST_ECE_RISE}


def bfloat16(network: PreTrainedModel, preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """Scores in bfloat16, float (n,), of uint8 (n, size, size, 3). Rounds the network's weights in place."""
    rounded(network)
    with torch.no_grad(), Bfloat16():
        values = (torch.from_numpy(preprocess.normalise(images[start : start + BATCH])) for start in range(0, len(images), BATCH))
        logits = torch.cat([network(pixel_values=batch.bfloat16().float()).logits for batch in values]).numpy()
    return np.asarray(logits[:, 1] - logits[:, 0])
