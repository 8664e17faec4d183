"""Three cheap baselines, evaluated on the same test images as the detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.evaluation.metrics import group_weights, judge_difference, judge_weighted
from pipeline.evaluation.pixel_statistics import pixel_statistics
from pipeline.evaluation.scoring import Subject, labels, run, sample
from pipeline.images import OWN, read
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.params import Evaluate, Params
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.training.dataset import pixels
from pipeline.validation import shortcut

JUDGED = ("auc", "ap", "balanced_accuracy", "brier")


def baselines(subject: Subject, train: pd.DataFrame, test: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Fit the baselines on the training part and evaluate them on the test part, with up to `baseline_images` images of each.

    Args:
        subject: the model under evaluation.
        train: rows of the training part.
        test: rows of the test part with `probability_fake`.

    Returns:
        baselines: `metadata` (gradient boosting on validation.shortcut.features), `statistics` (the same on colour, noise and
        frequencies of the pixels), `linear_probe` (logistic regression on embeddings of the network before training), and `detector` on the
        same images, because average precision and Brier score depend on the share of fakes. Each has its metrics and `of`, its input.
        Also the number of images: `n_train`, `n_test`.
        vs_baseline: `name` of the best baseline, and `auc`, the AUC of the detector minus the baseline's, with its interval from a
        bootstrap that evaluates both on the same draws.
    """
    settings = params.evaluate
    train, test = (sample(part, settings.baseline_images, settings.seed) for part in (train, test))
    both = pd.concat([train, test], ignore_index=True)
    embeddings, origin = _embeddings(subject, (train, test), params)
    fold = (np.arange(len(train)), np.arange(len(train), len(both)))
    scores = {name: found[len(train) :] for name, found in _scores(both, embeddings, [fold], settings.seed).items()}
    weights = group_weights(test["group"].to_numpy(), settings.bootstrap, settings.seed)
    found = _judged(scores, test, weights, origin, subject.thresholds.f1)
    truth, ours = labels(test), test["probability_fake"].to_numpy()
    best = max(scores, key=lambda name: found[name]["auc"]["value"] or 0.0)
    return {
        "baselines": {"n_train": len(train), "n_test": len(test), **found},
        "vs_baseline": {"name": best, "auc": judge_difference(truth, (ours, 0.5), (scores[best], 0.5), weights)["auc"]},
    }


def cross_validated(subject: Subject, table: pd.DataFrame, settings: Evaluate) -> dict[str, Any] | str:
    """The same baselines without a training part: each image is scored by models that were fitted on other groups of the table.

    They were fitted on images of this very table, which the detector may never have seen: there is no `vs_baseline`.

    Returns:
        `baselines`, as above; or the reason why there are none.
    """
    table = sample(table, settings.baseline_images, settings.seed).reset_index(drop=True)
    truth, groups = labels(table), table["group"].to_numpy()
    folds = shortcut.group_folds(truth, groups, settings.seed)
    if isinstance(folds, str):
        return folds
    embeddings = run(subject.runtime, subject.preprocess, pixels(table, subject.preprocess))[1]
    scores = _scores(table, embeddings, folds, settings.seed)
    weights = group_weights(groups, settings.bootstrap, settings.seed)
    found = _judged(scores, table, weights, "package's own network", subject.thresholds.f1)
    return {"baselines": {"n_train": len(table), "n_test": len(table), **found}}


def _scores(table: pd.DataFrame, embeddings: np.ndarray, folds: shortcut.Folds, seed: int) -> dict[str, np.ndarray]:
    """Each model's probabilities of fake, float (n,); 0 for images that no fold scores."""
    truth, metadata = labels(table), shortcut.features(table)
    scores = {name: np.zeros(len(table)) for name in ("metadata", "statistics", "linear_probe")}
    with threadpool_limits(1, user_api="openmp"):
        statistics = _statistics(table)
        for fit, rest in tqdm(folds, desc="baselines", unit="fold"):
            scores["metadata"][rest] = _boosted(metadata, truth, fit, rest, seed)
            scores["statistics"][rest] = _boosted(statistics, truth, fit, rest, seed)
            scores["linear_probe"][rest] = _probed(embeddings, truth, fit, rest)
    return scores


def _judged(scores: dict[str, np.ndarray], table: pd.DataFrame, weights: np.ndarray, origin: str, threshold: float) -> dict[str, Any]:
    seen = {
        "metadata": "how the file is stored, mean colour, size of the face",
        "statistics": "colour, noise and frequencies of the pixels",
    }
    seen |= {"linear_probe": f"embeddings of the {origin}", "detector": "the picture"}
    found = {}
    for name, probabilities in (scores | {"detector": table["probability_fake"].to_numpy()}).items():
        judged = judge_weighted(labels(table), probabilities, threshold if name == "detector" else 0.5, weights)
        found[name] = {"of": seen[name], **{figure: judged[figure] for figure in JUDGED}}
    return found


def _boosted(features: pd.DataFrame, truth: np.ndarray, fit: np.ndarray, rest: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities of fake for the positions `rest`, from a model fitted on the positions `fit`."""
    telling = shortcut.varying(features)
    if telling.empty:
        return np.full(len(rest), 0.5)
    fitted = shortcut.gradient_boosting(telling, len(fit), 60, seed).fit(telling.iloc[fit], truth[fit])
    return fitted.predict_proba(telling.iloc[rest])[:, 1]


def _statistics(table: pd.DataFrame) -> pd.DataFrame:
    # No threads: the steps are so short that they would wait for each other.
    rows = [pixel_statistics(read(Path(path), OWN).pixels) for path in tqdm(table["path"], desc="statistics of pixels", unit="image")]
    return pd.DataFrame(np.stack(rows)).rename(columns=str)


def _embeddings(subject: Subject, tables: Sequence[pd.DataFrame], params: Params) -> tuple[np.ndarray, str]:
    """Embeddings, float (n, d), and their origin: the network before training or, if that is no longer available, the trained one."""
    torch.manual_seed(params.evaluate.seed)
    try:
        network, processor = model.build(params.model)
        preprocess, origin = Preprocess.from_processor(processor), f"{params.model.init} network before its training"
    except StageError:
        network, preprocess, origin = subject.network, subject.preprocess, "trained network"
    running = runtime(WithEmbedding(network).eval(), preprocess.size)
    return np.concatenate([run(running, preprocess, pixels(table, preprocess))[1] for table in tables]), origin


def _probed(embeddings: np.ndarray, truth: np.ndarray, fit: np.ndarray, rest: np.ndarray) -> np.ndarray:
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(embeddings[fit], truth[fit])
    return fitted.predict_proba(embeddings[rest])[:, 1]
