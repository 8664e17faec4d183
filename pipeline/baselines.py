"""What can be had without the detector: three cheap models, judged on the same test images as the model under judgement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline import model, shortcut
from pipeline.dataset import pixels
from pipeline.errors import StageError
from pipeline.explain import WithEmbedding
from pipeline.images import read
from pipeline.metrics import group_weights, judge_difference, judge_drawn
from pipeline.params import Params
from pipeline.pixel_statistics import pixel_statistics
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.scoring import Subject, labels, run, sample

JUDGED = ("auc", "ap", "balanced_accuracy", "brier")


def baselines(subject: Subject, train: pd.DataFrame, test: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Fit the baselines on the training part and judge them on the test part; `baseline_images` of each are used.

    Args:
        subject: the model under judgement.
        train: rows of the training part.
        test: rows of the test part with `probability_fake`.

    Returns:
        baselines: `metadata` (gradient boosting on how the files are stored), `statistics` (on colour, noise and frequencies of the
        pixels), `linear_probe` (logistic regression on embeddings of the network as it was before training), each with figures and
        `of`, what it sees; and the number of images.
        vs_baseline: `name` of the best baseline, and of the AUC the difference model - baseline with its interval, by a bootstrap in
        which both are judged on the same draws.
    """
    settings = params.evaluate
    train, test = (sample(part, settings.baseline_images, settings.seed) for part in (train, test))
    both = pd.concat([train, test], ignore_index=True)
    truth = labels(train)
    metadata = shortcut.features(both)
    categories = [name for name in shortcut.CATEGORIES if metadata[name].nunique() > 1]
    with threadpool_limits(1, user_api="openmp"), tqdm(total=3, desc="baselines", unit="model") as progress:
        scores = {"metadata": _boosted(metadata, truth, settings.seed, categories)}
        progress.update()
        scores["statistics"] = _boosted(_statistics(both), truth, settings.seed)
        progress.update()
        embeddings, origin = _embeddings(subject, (train, test), params)
        scores["linear_probe"] = _probed(embeddings, truth)
        progress.update()
    seen = {"metadata": "how the file is stored, mean colour", "statistics": "colour, noise and frequencies of the pixels"}
    seen["linear_probe"] = f"embeddings of the {origin}"

    truth, ours = labels(test), test["probability_fake"].to_numpy()
    weights = group_weights(test["group"].to_numpy(), settings.bootstrap, settings.seed)
    found: dict[str, Any] = {"n_train": len(train), "n_test": len(test)}
    for name, probabilities in scores.items():
        judged = judge_drawn(truth, probabilities, 0.5, weights)
        found[name] = {"of": seen[name], **{figure: judged[figure] for figure in JUDGED}}
    best = max(scores, key=lambda name: found[name]["auc"]["value"] or 0.0)
    return {
        "baselines": found,
        "vs_baseline": {"name": best, "auc": judge_difference(truth, (ours, 0.5), (scores[best], 0.5), weights)["auc"]},
    }


def _boosted(features: pd.DataFrame, truth: np.ndarray, seed: int, categories: list[str] | None = None) -> np.ndarray:
    """Probabilities of fake for the rows after the first len(truth), on which the model is fitted."""
    telling = features.loc[:, features.nunique(dropna=False) > 1]
    if telling.empty:
        return np.full(len(features) - len(truth), 0.5)
    fitted = HistGradientBoostingClassifier(
        max_iter=60,
        categorical_features=categories or None,
        min_samples_leaf=int(np.clip(len(truth) // 20, 2, 20)),
        random_state=seed,
    ).fit(telling.iloc[: len(truth)], truth)
    return fitted.predict_proba(telling.iloc[len(truth) :])[:, 1]


def _statistics(table: pd.DataFrame) -> pd.DataFrame:
    # No threads: the steps are so short that they would wait for each other.
    return pd.DataFrame(np.stack([pixel_statistics(read(Path(path)).pixels) for path in table["path"]])).rename(columns=str)


def _embeddings(subject: Subject, tables: Sequence[pd.DataFrame], params: Params) -> tuple[np.ndarray, str]:
    """float (n, d), and of what: the network before its training or, where that cannot be had any more, after it."""
    torch.manual_seed(params.evaluate.seed)
    try:
        network, processor = model.build(params.model)
        preprocess, origin = Preprocess.from_processor(processor), f"{params.model.init} network before its training"
    except StageError:
        network, preprocess, origin = subject.network, subject.preprocess, "trained network"
    running = runtime(WithEmbedding(network).eval(), preprocess.size)
    return np.concatenate([run(running, preprocess, pixels(table, preprocess))[1] for table in tables]), origin


def _probed(embeddings: np.ndarray, truth: np.ndarray) -> np.ndarray:
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(embeddings[: len(truth)], truth)
    return fitted.predict_proba(embeddings[len(truth) :])[:, 1]
