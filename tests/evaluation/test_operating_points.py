"""The figures at each threshold, the calibration beside none, and the data of the plots."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import auc, log_loss, roc_auc_score

from pipeline.evaluate import examine
from pipeline.evaluation.curves import curves
from pipeline.evaluation.scoring import Subject, labels
from pipeline.package import Calibration
from pipeline.params import Params
from tests.evaluation.use import judged


def test_the_plots_show_what_was_said_beside_what_was_so():
    truth, probabilities = np.array([1, 1, 1, 0, 0]), np.array([0.97, 0.95, 0.05, 0.9, 0.2])
    drawn = curves(truth, probabilities, 0.5)
    assert drawn["calibration"].to_dict("list") == {"predicted": [0.05, 0.2, 0.9, 0.96], "observed": [1, 0, 0, 1], "n": [1, 1, 1, 2]}
    pairs = drawn["confusion"].value_counts().to_dict()
    assert pairs == {("fake", "fake"): 2, ("fake", "real"): 1, ("real", "fake"): 1, ("real", "real"): 1}  # actual, predicted
    assert auc(drawn["roc"]["fpr"], drawn["roc"]["tpr"]) == pytest.approx(roc_auc_score(truth, probabilities))
    assert drawn["pr"].iloc[[0, -1]].to_dict("list") == {"recall": [1, 0], "precision": [0.6, 1]}


def test_each_threshold_is_judged_and_the_calibration_held_against_none(subject: Subject, params: Params, faces: Path, here: Path):
    table = judged(faces)
    scores = np.random.default_rng(3).normal(2.0 * labels(table) - 1, 3)
    calibration = Calibration(temperature=4, bias=-1)
    table = table.assign(score=scores, probability_fake=calibration.probability(scores))
    thresholds = subject.thresholds.model_copy(update={"f1": 0.4, "fpr5": 0.5, "fpr1": 0.6})
    few = params.evaluate.model_copy(update={"attack_images": 0, "explain_images": 0, "robustness_images": 2})
    found = examine(replace(subject, calibration=calibration, thresholds=thresholds), table, None, few)
    fake = labels(table) == 1
    for name, point in found["operating_points"].items():
        called = table["probability_fake"].to_numpy() >= getattr(thresholds, name)
        expected = {"recall": called[fake].mean(), "fpr": called[~fake].mean()}
        assert {figure: point[figure]["value"] for figure in expected} == pytest.approx(expected, abs=1e-5)
    for part, seen in ((found["calibration"], table["probability_fake"]), (found["calibration"]["before"], expit(scores))):
        assert part["nll"]["value"] == pytest.approx(log_loss(labels(table), seen), abs=1e-5)
