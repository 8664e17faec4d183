"""The shortcut audit: can the classes be told apart without looking at a face? If so, a detector will learn that instead."""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from pipeline.manifest import LABEL2ID
from pipeline.metrics import Figure, judge

FOLDS = 5
MOST_IMAGES = 20_000
"""A sample of this size settles the AUC to within a point."""


def metadata(path: str) -> dict[str, float]:
    """What a file tells besides its picture: sums of the JPEG quantisation tables, subsampling, and the mean of each colour."""
    with Image.open(path) as image:
        tables = getattr(image, "quantization", None) or {}
        layers = getattr(image, "layer", None) or [(0, 0, 0)]
        image.draft("RGB", (32, 32))
        red, green, blue = np.asarray(image.convert("RGB").resize((1, 1), Image.Resampling.BOX))[0, 0]
    return {
        "quantisation_luma": float(sum(tables.get(0, [0]))),
        "quantisation_chroma": float(sum(tables.get(1, [0]))),
        "subsampling": float(layers[0][1] * 10 + layers[0][2]),
        "mean_red": float(red),
        "mean_green": float(green),
        "mean_blue": float(blue),
    }


def audit(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Cross-validated AUC of a model that sees metadata only, grouped by `group`.

    Args:
        table: rows of the manifest; the files must be readable.

    Returns:
        auc: a Figure; columns: the metadata that alone tell the classes apart best, with the AUC of each (0.5 says nothing).
    """
    if len(table) > MOST_IMAGES:
        table = table.sample(MOST_IMAGES, random_state=seed)
    with ProcessPoolExecutor() as pool:
        features = pd.DataFrame(list(pool.map(metadata, table["path"], chunksize=64)))
    features = features.assign(
        width=table["width"].to_numpy(),
        height=table["height"].to_numpy(),
        bytes_per_pixel=(table["bytes"] / table["width"] / table["height"]).to_numpy(),
        format=pd.factorize(table["format"], sort=True)[0],
    )
    labels = table["label"].map(LABEL2ID).to_numpy()
    groups = table["group"].to_numpy()
    folds = min(FOLDS, table["group"].nunique())
    model = HistGradientBoostingClassifier(max_iter=60, random_state=seed)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, features, labels, groups=groups, cv=splitter, method="predict_proba")[:, 1]
    auc: Figure = judge(labels, scores, groups, 0.5, draws=300, seed=seed)["auc"]
    alone = {column: roc_auc_score(labels, features[column]) for column in features}
    ranked = sorted(alone, key=lambda column: -abs(alone[column] - 0.5))
    return {"auc": auc, "columns": [{"name": column, "auc": round(float(alone[column]), 4)} for column in ranked]}
