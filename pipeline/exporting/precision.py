"""Measures what reduced precision (bfloat16, 8-bit integers) costs; it is used only where that is next to nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from pipeline.evaluation.metrics import figures
from pipeline.evaluation.scoring import BATCH, labels, sample, score
from pipeline.exporting.convert import to_int8
from pipeline.exporting.rounding import Bfloat16, round_weights
from pipeline.network import model
from pipeline.package import GRAPH, INT8, Calibration
from pipeline.params import Params
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime
from pipeline.training.dataset import pixels

SCORES = Path("reports/scores.parquet")
IMAGES = 1000
"""Images of the test part to score again: with 500, the ECE varies by .008 between samples. Also the number of images of the validation
part that decide which operations stay in 32 bits."""
CALIBRATION_IMAGES = 300
"""Images of the training part on which NNCF calibrates the activation ranges."""
MOST_AUC_DROP, MOST_ECE_RISE = 0.002, 0.005
"""A precision that costs more than this is not used."""


def reduced_precision(
    package: Path, preprocess: Preprocess, parts: dict[str, pd.DataFrame], calibration: dict[str, Any], params: Params
) -> dict[str, Any]:
    """Measure what bfloat16 and, on CPUs, 8-bit integers cost compared with the scores of the evaluation.

    Args:
        package: folder with the network and its graph; the 8-bit graph is written there if it is allowed.
        preprocess: the network's.
        parts: the manifest's rows of train and val; what 8 bits cost on val decides which operations stay in 32 bits.
        calibration: models/calibration.json.
        params: the settings.

    Returns:
        bf16 and int8, each as from `cost`; int8 is None if `export.int8` is off.
    """
    scores = pd.read_parquet(SCORES)
    rows = sample(scores[scores["part"] == "test"], IMAGES, params.evaluate.seed)
    images, judged = pixels(rows, preprocess), (Calibration.model_validate(calibration), calibration["thresholds"]["f1"])
    found: dict[str, Any] = {"bf16": cost(rows, bfloat16(model.load(package / "model"), preprocess, images), *judged)}
    found["int8"] = None
    if params.export.int8:
        seen, val = (sample(parts[part], most, params.evaluate.seed) for part, most in (("train", CALIBRATION_IMAGES), ("val", IMAGES)))
        to_int8(package / GRAPH, package / INT8, preprocess, pixels(seen, preprocess), pixels(val, preprocess), labels(val))
        found["int8"] = int8 = cost(rows, score(OpenVinoRuntime(package / INT8), preprocess, images), *judged)
        if not int8["allowed"]:
            for part in (".xml", ".bin"):
                (package / INT8).with_suffix(part).unlink()
    return found


def cost(rows: pd.DataFrame, scores: np.ndarray, calibration: Calibration, threshold: float) -> dict[str, Any]:
    """Compare scores in reduced precision with the 32-bit scores of the same images.

    Args:
        rows: of reports/scores.parquet, with label and the 32-bit score.
        scores: float (n,), differences of the logits in reduced precision.
        calibration: the package's.
        threshold: the package's; at or above it an image counts as fake.

    Returns:
        n, auc_drop, ece_rise, flips (share of the images that cross the threshold), and `allowed`: whether auc_drop and ece_rise are
        within MOST_AUC_DROP and MOST_ECE_RISE.
    """
    before, after = (calibration.probability(found) for found in (rows["score"].to_numpy(), scores))
    full, less = figures(labels(rows), before, threshold), figures(labels(rows), after, threshold)
    drop, rise = (round(float(change), 6) for change in (full["auc"][0] - less["auc"][0], less["ece"][0] - full["ece"][0]))
    flips = round(float(((before >= threshold) != (after >= threshold)).mean()), 6)
    return {"n": len(rows), "auc_drop": drop, "ece_rise": rise, "flips": flips, "allowed": drop <= MOST_AUC_DROP and rise <= MOST_ECE_RISE}


def bfloat16(network: PreTrainedModel, preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """Scores float (n,) in bfloat16 of images uint8 (n, size, size, 3). Rounds the network's weights in place."""
    round_weights(network)
    with torch.no_grad(), Bfloat16():
        values = (torch.from_numpy(preprocess.normalise(images[start : start + BATCH])) for start in range(0, len(images), BATCH))
        logits = torch.cat([network(pixel_values=batch.bfloat16().float()).logits for batch in values]).numpy()
    return np.asarray(logits[:, 1] - logits[:, 0])
