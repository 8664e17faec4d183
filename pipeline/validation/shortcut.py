"""The shortcut audit: can the classes be told apart without looking at a face? If so, a detector will learn that instead."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from pipeline.evaluation.metrics import Figure, judge
from pipeline.labels import LABEL2ID, LABELS
from pipeline.params_data import Ingest

CATEGORIES = ("format", "quantisation", "subsampling")
COLOURS, FRAMING = ("red", "green", "blue"), "face_share"
"""Columns whose differences re-encoding does not remove. The second is known if a face detector is set."""

NUMBERS = ("jpeg_quality", "width", "height", "metadata_bytes", *COLOURS, FRAMING)

SEED = 0
FOLDS = 5
MOST_IMAGES = 10_000
"""A sample of this size gives the AUC to within 0.01."""
MANY_GROUPS = 1000
"""From here on random folds are as well stratified as those of StratifiedGroupKFold, whose run time grows with the groups."""
MOST_CATEGORIES = 200
"""Scikit-learn's trees take 255 categories; rarer ones count as missing."""
SPEAKS = 0.55
"""AUC from which on a column is reported as giving the class away."""

Folds = list[tuple[np.ndarray, np.ndarray]]
"""For each fold, the positions to fit on and those to score."""


def features(table: pd.DataFrame) -> pd.DataFrame:
    """How each file is stored, its mean colour and how large it shows the face, from the manifest.

    Returns:
        Floats, with categories as codes; -1 or NaN where something is missing.
    """
    found = table[list(NUMBERS)].apply(pd.to_numeric).astype("float64")
    found["bytes_per_pixel"] = table["bytes"] / (table["width"] * table["height"])
    for name in CATEGORIES:
        common = sorted(table[name].value_counts().index[:MOST_CATEGORIES])
        found[name] = pd.Categorical(table[name], categories=common).codes.astype("float64")
    return found


def audit(table: pd.DataFrame) -> dict[str, Any]:
    """Cross-validated AUC, with folds by `group`, of gradient boosting that sees no pixel of a face.

    Args:
        table: rows of the manifest.

    Returns:
        auc: a Figure, null if it could not be estimated; unjudged: the reason, or None; columns: each column with the AUC of a model
        that sees it alone, also cross-validated, best first (0.5 is chance).
    """
    table = table.loc[table["label"].isin(LABELS), ["label", "group", "bytes", *NUMBERS, *CATEGORIES]]
    if len(table) > MOST_IMAGES:
        table = table.sample(MOST_IMAGES, random_state=SEED)
    labels, groups = table["label"].map(LABEL2ID).to_numpy(), table["group"].to_numpy()
    folds = group_folds(labels, groups, SEED)
    if isinstance(folds, str):
        return {"auc": Figure(value=None, low=None, high=None), "columns": [], "unjudged": folds}
    found = features(table)
    with threadpool_limits(1, user_api="openmp"):  # next to other work, threads waiting for each other take minutes, not seconds
        return _judged(found, labels, groups, folds)


def group_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> Folds | str:
    """Folds that split no group; or the reason why there are none.

    Args:
        labels: int (n,), 1 for fake.
        groups: (n,).
    """
    fewest = min(len(set(groups[labels == label])) for label in LABEL2ID.values())
    if fewest < 2:
        return f"each class needs images of at least 2 groups, and one has {fewest}"
    kind = StratifiedGroupKFold if fewest < MANY_GROUPS else GroupKFold
    splitter = kind(min(FOLDS, fewest), shuffle=True, random_state=seed)
    folds = list(splitter.split(labels, labels, groups))
    if any(len(set(labels[train])) < len(LABELS) for train, _ in folds):
        return "a few groups hold nearly all images of a class: too few groups to cross-validate"
    return folds


def _judged(found: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, folds: Folds) -> dict[str, Any]:
    scores = _scores(found, labels, folds, rounds=60)
    auc: Figure = judge(labels, scores, groups, 0.5, draws=300, seed=SEED)["auc"]
    alone = {name: float(roc_auc_score(labels, _scores(found[[name]], labels, folds, rounds=10))) for name in found}
    ranked = sorted(alone, key=lambda name: -alone[name])
    return {"auc": auc, "unjudged": None, "columns": [{"name": name, "auc": round(alone[name], 4)} for name in ranked]}


def message(shortcut: dict[str, Any], table: pd.DataFrame, ingest: Ingest) -> str:
    """What the audit found and what to do about it, for a result of `audit` that has an AUC."""
    auc = shortcut["auc"]
    named = [column for column in shortcut["columns"] if column["auc"] >= SPEAKS][:4] or shortcut["columns"][:1]
    columns = ", ".join(f"{column['name']} (alone {column['auc']:.2f})" for column in named)
    text = (
        f"Metadata alone tells real from fake with AUC {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}), "
        f"mainly through {columns}: "
        "a detector trained on this would learn the files, not the faces."
    )
    if any(column["name"] not in (*COLOURS, FRAMING) for column in named):
        text += f" {_remedy(table, ingest)}"
    if any(column["name"] in COLOURS for column in named):
        text += " Re-encoding leaves mean colour as it is: use reals and fakes that were taken alike, or forge the fakes (data.forge)."
    if any(column["name"] == FRAMING for column in named):
        text += " Faces are shown larger in one class: cut all out alike (python -m pipeline.settings photos), or forge fakes (data.forge)."
    return text


def proposal(table: pd.DataFrame) -> dict[str, int]:
    """Values for `ingest.normalise` that make both classes look alike.

    The longer side is one that nine tenths of either class reach; the JPEG quality is no better than the median of either.
    """
    both = table[table["label"].isin(LABELS)]
    longer = both[["width", "height"]].max(axis=1).groupby(both["label"]).quantile(0.1).min()
    quality = both["jpeg_quality"].astype("float64").groupby(both["label"]).median().min()
    return {
        "size": int(np.clip(longer // 8 * 8, 32, 2048)),
        "jpeg_quality": int(np.clip(np.nan_to_num(quality, nan=90), 30, 90)),
    }


def _remedy(table: pd.DataFrame, ingest: Ingest) -> str:
    wanted = proposal(table)
    values = f"{{size: {wanted['size']}, jpeg_quality: {wanted['jpeg_quality']}}}"
    if ingest.normalise is None:
        return f"Set `ingest.normalise: {values}` in params.yaml, which re-encodes both classes alike, and run again."
    return f"ingest.normalise is set already: try {values}, or use pictures whose files were made alike."


def varying(found: pd.DataFrame) -> pd.DataFrame:
    """The columns with more than one value: the others say nothing."""
    return found.loc[:, found.nunique(dropna=False) > 1]


def gradient_boosting(found: pd.DataFrame, images: int, rounds: int, seed: int) -> HistGradientBoostingClassifier:
    """Unfitted gradient boosting for these columns and this many images."""
    return HistGradientBoostingClassifier(
        max_iter=rounds,
        categorical_features=[name for name in CATEGORIES if name in found],
        min_samples_leaf=int(np.clip(images // 20, 2, 20)),
        random_state=seed,
    )


def _scores(found: pd.DataFrame, labels: np.ndarray, folds: Folds, rounds: int) -> np.ndarray:
    """Cross-validated probabilities of fake."""
    telling = varying(found)
    if telling.empty:
        return np.full(len(labels), 0.5)
    model = gradient_boosting(telling, len(labels), rounds, SEED)
    return cross_val_predict(model, telling, labels, cv=folds, method="predict_proba")[:, 1]
