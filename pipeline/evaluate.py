"""Stage evaluate: judges the trained model. Thresholds and calibration come from the validation part; the test part is scored once."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import precision_recall_curve, roc_curve
from sklearn.model_selection import GroupShuffleSplit
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline import manifest, model, report
from pipeline.calibration import CALIBRATION, choose_thresholds, fit_temperature, probability
from pipeline.dataset import pixels
from pipeline.images import read
from pipeline.manifest import LABEL2ID, NO_GENERATOR, UNSEEN
from pipeline.metrics import BINS, confusion, figures, judge
from pipeline.model import TRAINED
from pipeline.package import Thresholds
from pipeline.params import Evaluate, Params
from pipeline.preprocess import Preprocess
from pipeline.robustness import DEGRADATIONS, attacks

REPORT = Path("reports/evaluation.json")
PAGE = Path("reports/evaluation.html")
SCORES = Path("reports/scores.parquet")
PLOTS = Path("reports/plots")
SMALL_SLICE = 30
log = logging.getLogger(__name__)


def run(params: Params) -> dict[str, Any]:
    """Write models/calibration.json, reports/evaluation.json and .html, reports/scores.parquet and the data of the plots."""
    settings = params.evaluate
    network, preprocess = model.load(TRAINED), Preprocess.load(TRAINED)
    parts = {name: part for name, part in manifest.read_parts().items() if name != "train"}
    scored = {name: part.assign(part=name, score=_scores(network, preprocess, part)) for name, part in parts.items()}

    temperature, thresholds = calibrate(scored["val"], settings)
    CALIBRATION.parent.mkdir(parents=True, exist_ok=True)
    CALIBRATION.write_text(json.dumps({"temperature": temperature, "thresholds": thresholds.model_dump()}, indent=2) + "\n")
    for part in scored.values():
        part["probability_fake"] = probability(part["score"].to_numpy(), temperature)

    test = scored["test"]
    labels, probabilities = _labels(test), test["probability_fake"].to_numpy()
    result: dict[str, Any] = {
        "n": len(test),
        "groups": int(test["group"].nunique()),
        "threshold": thresholds.f1,
        "thresholds": thresholds.model_dump(),
        "temperature": temperature,
        "test": _judge(test, thresholds.f1, settings),
        "confusion_matrix": confusion(labels, probabilities, thresholds.f1),
        "selective": _selective(labels, probabilities, thresholds),
        "slices": slices(test, thresholds.f1, settings),
    }
    if UNSEEN in scored:
        result |= _unseen(scored[UNSEEN], thresholds.f1, settings)
    result["robustness"] = _robustness(network, preprocess, test, temperature, thresholds.f1, settings)
    if settings.attack_images:
        result["attacks"] = _attacks(network, preprocess, test, temperature, thresholds.f1, settings)

    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(result, indent=2) + "\n")
    columns = ["image_id", "path", "part", "label", "generator", "group", "score", "probability_fake"]
    pd.concat(scored.values(), ignore_index=True)[columns].to_parquet(SCORES, index=False)
    curves = _write_curves(labels, probabilities, thresholds.f1)
    PAGE.write_text(report.page(result, test, curves, network, preprocess))
    return result


def calibrate(val: pd.DataFrame, settings: Evaluate) -> tuple[float, Thresholds]:
    """Temperature from one half of the validation groups, thresholds from the other.

    Args:
        val: rows of the validation part with their `score`.
    """
    halves = GroupShuffleSplit(1, test_size=0.5, random_state=settings.seed)
    fit, choose = next(halves.split(val, groups=val["group"]))
    labels, scores = _labels(val), val["score"].to_numpy()
    if len(set(labels[fit])) < 2 or len(set(labels[choose])) < 2:  # too few groups to halve
        fit = choose = np.arange(len(val))
    temperature = fit_temperature(scores[fit], labels[fit])
    probabilities = probability(scores[choose], temperature)
    return temperature, choose_thresholds(labels[choose], probabilities, settings.max_fpr, settings.max_fnr)


def slices(table: pd.DataFrame, threshold: float, settings: Evaluate) -> list[dict[str, Any]]:
    """Figures of parts of the test set: each generator against all reals, each format, source and attribute by itself.

    Slices under 30 images are marked `small`: their figures say little.
    """
    found = []
    for column in ["generator", "format", "source", *manifest.attributes(table.drop(columns=["part", "score", "probability_fake"]))]:
        values = sorted(set(table[column].dropna()) - {NO_GENERATOR})
        if column != "generator" and (len(values) < 2 or len(values) > 20):
            continue
        for value in values:
            rows = table[(table[column] == value) | ((column == "generator") & (table["label"] == "real"))]
            n = int((table[column] == value).sum())
            judged = {
                name: figure for name, figure in _judge(rows, threshold, settings).items() if name in ("f1", "recall", "fpr", "auc", "ece")
            }
            found.append({"column": column, "value": str(value), "n": n, "small": n < SMALL_SLICE, **judged})
    return found


def _scores(network: PreTrainedModel, preprocess: Preprocess, table: pd.DataFrame) -> np.ndarray:
    images = pixels(table, preprocess)
    return _score_pixels(network, preprocess, images, "score")


def _score_pixels(network: PreTrainedModel, preprocess: Preprocess, images: np.ndarray, title: str | None = None) -> np.ndarray:
    """Difference of the logits, float (n,)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(network, device)
    found = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), 64), desc=title, unit="batch", disable=title is None):
            values = torch.from_numpy(preprocess.normalise(images[start : start + 64])).to(device)
            logits = network(pixel_values=values).logits.float().cpu().numpy()
            found.append(logits[:, 1] - logits[:, 0])
    torch.nn.Module.to(network, "cpu")
    return np.concatenate(found)


def _judge(table: pd.DataFrame, threshold: float, settings: Evaluate) -> dict[str, Any]:
    probabilities = table["probability_fake"].to_numpy()
    return dict(judge(_labels(table), probabilities, table["group"].to_numpy(), threshold, settings.bootstrap, settings.seed))


def _unseen(table: pd.DataFrame, threshold: float, settings: Evaluate) -> dict[str, Any]:
    each = {}
    for generator in sorted(set(table["generator"]) - {NO_GENERATOR}):
        each[generator] = _judge(table[table["generator"].isin([NO_GENERATOR, generator])], threshold, settings)
    aucs = {generator: figures_["auc"]["value"] for generator, figures_ in each.items()}
    return {
        "unseen": _judge(table, threshold, settings),
        "unseen_generators": each,
        "unseen_mean_auc": float(np.mean(list(aucs.values()))),
        "unseen_worst": min(aucs, key=lambda generator: aucs[generator]),
    }


def _selective(labels: np.ndarray, probabilities: np.ndarray, thresholds: Thresholds) -> dict[str, float | None]:
    """Share of images that get a verdict other than `uncertain`, and the share of those that is wrong."""
    covered = (probabilities >= thresholds.fake_above) | (probabilities < thresholds.real_below)
    wrong = (probabilities >= thresholds.fake_above) != (labels == 1)
    return {"coverage": float(covered.mean()), "error": float(wrong[covered].mean()) if covered.any() else None}


def _robustness(
    network: PreTrainedModel, preprocess: Preprocess, test: pd.DataFrame, temperature: float, threshold: float, settings: Evaluate
) -> dict[str, Any]:
    sample = test.sample(min(settings.robustness_images, len(test)), random_state=settings.seed)
    labels = _labels(sample)
    pictures = [read(Path(path)).rgb for path in sample["path"]]
    clean = figures(labels, sample["probability_fake"].to_numpy(), threshold)
    before = sample["probability_fake"].to_numpy() >= threshold
    result: dict[str, Any] = {"n": len(sample), "clean": _short(clean)}
    for name, change in tqdm(DEGRADATIONS.items(), desc="robustness", unit="degradation"):
        changed = np.stack([preprocess.pixels(change(picture)) for picture in pictures])
        probabilities = probability(_score_pixels(network, preprocess, changed), temperature)
        found = figures(labels, probabilities, threshold)
        result[name] = _short(found) | {
            "drop": round(float(clean["auc"][0] - found["auc"][0]), 5),
            "flip_rate": round(float((before != (probabilities >= threshold)).mean()), 5),
        }
    return result


def _short(found: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: round(float(found[name][0]), 5) for name in ("auc", "balanced_accuracy")}


def _attacks(
    network: PreTrainedModel, preprocess: Preprocess, test: pd.DataFrame, temperature: float, threshold: float, settings: Evaluate
) -> dict[str, Any]:
    sample = test.sample(min(settings.attack_images, len(test)), random_state=settings.seed)
    images, labels = pixels(sample, preprocess), _labels(sample)
    score = float(np.log(threshold / (1 - threshold)) * temperature)
    result: dict[str, Any] = {"n": len(sample)}
    for name, eps, accuracy in tqdm(attacks(network, preprocess, images, labels, score), desc="attacks", total=8, unit="attack"):
        result.setdefault(name, {})[f"eps{eps}"] = round(accuracy, 5)
    return result


def _write_curves(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, pd.DataFrame]:
    """The data of the plots, also as CSV for `dvc plots`."""
    fpr, tpr, _ = roc_curve(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    grouped = pd.DataFrame({"bin": bins, "predicted": probabilities, "observed": labels}).groupby("bin")
    called = pd.Series(probabilities >= threshold).map({True: "fake", False: "real"})
    curves = {
        "roc": pd.DataFrame({"fpr": fpr, "tpr": tpr}),
        "pr": pd.DataFrame({"recall": recall, "precision": precision}),
        "calibration": grouped.mean().assign(n=grouped.size()).reset_index(drop=True),
        "confusion": pd.DataFrame({"actual": pd.Series(labels).map(manifest.ID2LABEL), "predicted": called}),
    }
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, curve in curves.items():
        curve.to_csv(PLOTS / f"{name}.csv", index=False)
    return curves


def _labels(table: pd.DataFrame) -> np.ndarray:
    return table["label"].map(LABEL2ID).to_numpy()


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
