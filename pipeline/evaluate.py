"""Stage evaluate: judges the trained model. Thresholds and calibration come from the validation part; the test part is scored once.

`python -m pipeline.evaluate --package DIR --data FOLDER --out DIR` judges any package on any labelled folder instead.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from pipeline import manifest
from pipeline.evaluation import curves, golden, report
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.calibration import CALIBRATION, choose_thresholds, fit
from pipeline.evaluation.faithfulness import faithfulness
from pipeline.evaluation.metrics import Figure, confusion, figure_text, group_weights, judge, judge_weighted
from pipeline.evaluation.robustness import attacked, degraded
from pipeline.evaluation.scoring import Subject, labels, score
from pipeline.evaluation.slices import slices
from pipeline.manifest import NO_GENERATOR, UNSEEN
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.network.model import TRAINED
from pipeline.package import Calibration, Thresholds
from pipeline.params import Evaluate, Params
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.training.dataset import pixels

REPORT = Path("reports/evaluation.json")
PAGE = Path("reports/evaluation.html")
SCORES = Path("reports/scores.parquet")
PLOTS = Path("reports/plots")
POINTS = ("f1", "fpr1", "fpr5")
"""Operating points: thresholds that the package holds."""
FEW = 10
"""With fewer groups, bootstrap intervals are unreliable."""
UNEVEN = 2
"""Ratio of the odds of a fake in two data sets from which on probabilities calibrated on one are off on the other."""


def run(params: Params) -> dict[str, Any]:
    """Write models/calibration.json, reports/evaluation.json and .html, reports/scores.parquet and the data of the plots."""
    network, preprocess = model.load(TRAINED), Preprocess.load(TRAINED)
    running = runtime(WithEmbedding(network).eval(), preprocess.size)
    parts = manifest.read_parts()
    train = parts.pop("train")
    scored = {
        name: part.assign(part=name, score=score(running, preprocess, pixels(part, preprocess), f"score {name}"))
        for name, part in parts.items()
    }
    calibration, thresholds = calibrate(scored["val"], params.evaluate)
    CALIBRATION.parent.mkdir(parents=True, exist_ok=True)
    CALIBRATION.write_text(json.dumps({**calibration.model_dump(), "thresholds": thresholds.model_dump()}, indent=2) + "\n")
    for part in scored.values():
        part["probability_fake"] = calibration.probability(part["score"].to_numpy())

    subject, test = Subject(network, running, preprocess, calibration, thresholds), scored["test"]
    result = examine(subject, test, scored.get(UNSEEN), params.evaluate)
    result |= baselines(subject, train, test, params)
    result["golden"] = golden.flips(subject, golden.previous())
    result["warnings"] = warnings(result, params.validate_.shortcut.warn)

    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(result, indent=2) + "\n")
    columns = ["image_id", "path", "part", "label", "generator", "group", "score", "probability_fake"]
    pd.concat(scored.values(), ignore_index=True)[columns].to_parquet(SCORES, index=False)
    drawn = curves.curves(labels(test), test["probability_fake"].to_numpy(), thresholds.f1)
    curves.write(drawn, PLOTS)
    PAGE.write_text(report.page(result, test, drawn, subject, report.TRAINING))
    return result


def examine(subject: Subject, test: pd.DataFrame, unseen: pd.DataFrame | None, settings: Evaluate) -> dict[str, Any]:
    """All figures except the baselines and the previous model's golden examples.

    Args:
        subject: the model under judgement.
        test, unseen: rows of the manifest with `score` and `probability_fake`.
        settings: how much to draw, degrade, attack and explain.
    """
    thresholds, truth, probabilities = subject.thresholds, labels(test), test["probability_fake"].to_numpy()
    weights = group_weights(test["group"].to_numpy(), settings.bootstrap, settings.seed)
    points = {name: judge_weighted(truth, probabilities, getattr(thresholds, name), weights) for name in POINTS}
    raw = judge_weighted(truth, Calibration(temperature=1).probability(test["score"].to_numpy()), 0.5, weights)
    result: dict[str, Any] = {
        "n": len(test),
        "groups": int(test["group"].nunique()),
        "threshold": thresholds.f1,
        "thresholds": thresholds.model_dump(),
        "temperature": subject.calibration.temperature,
        "bias": subject.calibration.bias,
        "fake_share": subject.calibration.fake_share,
        "test": points["f1"],
        "operating_points": {
            name: {"threshold": getattr(thresholds, name), **{figure: point[figure] for figure in ("recall", "fpr", "precision", "f1")}}
            for name, point in points.items()
        },
        "confusion_matrix": confusion(truth, probabilities, thresholds.f1),
        "calibration": {name: points["f1"][name] for name in ("ece", "brier", "nll")}
        | {"before": {name: raw[name] for name in ("ece", "brier", "nll")}},
        "selective": curves.selective(truth, probabilities, thresholds, weights),
        "slices": slices(test, thresholds.f1, settings),
    }
    if unseen is not None:
        result |= _unseen(unseen, thresholds.f1, settings)
    result["robustness"] = degraded(subject, test, settings)
    if settings.attack_images:
        result["attacks"] = attacked(subject, test, settings)
    if settings.explain_images:
        result["explanation"] = faithfulness(subject, test, settings)
    return result


def calibrate(val: pd.DataFrame, settings: Evaluate) -> tuple[Calibration, Thresholds]:
    """Calibration from one half of the validation groups, thresholds from the other; both from all groups if a half would lack a class.

    Args:
        val: rows of the validation part with their `score`.
    """
    truth, scores = labels(val), val["score"].to_numpy()
    seen = choose = np.arange(len(val))
    if val["group"].nunique() > 1:
        halves = GroupShuffleSplit(1, test_size=0.5, random_state=settings.seed)
        first, second = next(halves.split(val, groups=val["group"]))
        if len(set(truth[first])) == len(set(truth[second])) == 2:  # otherwise there are too few groups to halve
            seen, choose = first, second
    calibration = fit(scores[seen], truth[seen])
    probabilities = calibration.probability(scores[choose])
    return calibration, choose_thresholds(truth[choose], probabilities, settings.max_fpr, settings.max_fnr)


def warnings(result: dict[str, Any], most: float) -> list[str]:
    """Caveats that readers of the figures need to know first.

    Args:
        result: with `groups` and, if present, `confusion_matrix`, `calibration`, `baselines`, `vs_baseline` and `golden`.
        most: AUC of the metadata baseline above which the model may have learnt the same shortcut.
    """
    found = []
    if result["groups"] < FEW:
        found.append(f"There are only {result['groups']} groups: intervals from so few are too narrow, or missing.")
    counts = result.get("confusion_matrix", {"tp": 0, "fn": 0, "fp": 0, "tn": 0})
    fakes, reals = counts["tp"] + counts["fn"], counts["fp"] + counts["tn"]
    share = result.get("fake_share", 0.5)
    odds = fakes * (1 - share) / (reals * share) if fakes and reals and 0 < share < 1 else 1
    if not 1 / UNEVEN <= odds <= UNEVEN:
        found.append(
            f"{fakes / (fakes + reals):.0%} of the images are fakes, and the probabilities are calibrated for {share:.0%}: "
            f"they are too {'high' if odds < 1 else 'low'} for data like this, with an ECE of {figure_text(result['calibration']['ece'])}."
        )
    metadata = result["baselines"]["metadata"]["auc"] if "baselines" in result else None
    if metadata and metadata["value"] is not None and metadata["value"] > most:
        found.append(
            "How the files are stored, their mean colour and how large they show the face tell real from fake with "
            f"AUC {figure_text(metadata)}, without any detail of a face: the detector may have learnt that instead, and its figures "
            "hold for files of this kind only."
        )
    gap = result["vs_baseline"]["auc"] if "vs_baseline" in result else None
    if gap and gap["low"] is not None and gap["low"] <= 0:
        found.append(
            f"The detector is not shown to be better than the baseline {result['vs_baseline']['name']}: "
            f"its AUC differs by {figure_text(gap)}."
        )
    if broken := result.get("golden", {}).get("broken"):
        found.append(f"{broken} golden examples that the previous model got right are now wrong; they are listed below.")
    return found


def judge_rows(rows: pd.DataFrame, threshold: float, settings: Evaluate) -> dict[str, Figure]:
    """All figures of manifest rows with `probability_fake`, at a threshold."""
    groups = rows["group"].to_numpy()
    return judge(labels(rows), rows["probability_fake"].to_numpy(), groups, threshold, settings.bootstrap, settings.seed)


def _unseen(table: pd.DataFrame, threshold: float, settings: Evaluate) -> dict[str, Any]:
    generators = sorted(set(table["generator"]) - {NO_GENERATOR})
    each = {name: judge_rows(table[table["generator"].isin([NO_GENERATOR, name])], threshold, settings) for name in generators}
    aucs = {generator: float(found["auc"]["value"] or 0.0) for generator, found in each.items()}
    worst = min(aucs, key=lambda generator: aucs[generator])
    return {
        "unseen": judge_rows(table, threshold, settings),
        "unseen_generators": each,
        "unseen_mean_auc": float(np.mean(list(aucs.values()))),
        "unseen_worst": worst,
        "unseen_worst_auc": aucs[worst],
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from pipeline.evaluation.judge_package import main

        main()
    else:
        from pipeline.cli import stage

        stage(run)
