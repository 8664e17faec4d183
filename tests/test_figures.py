"""Figures, intervals, calibration and thresholds, checked against scikit-learn and by simulation."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from pipeline.evaluate import calibrate
from pipeline.evaluation import metrics
from pipeline.evaluation.calibration import choose_thresholds, fit
from pipeline.evaluation.curves import selective
from pipeline.evaluation.metrics import Figure, confusion, figure_text, figures, group_weights, judge, judge_weighted, mean
from pipeline.params import load_params
from tests.conftest import ROOT


def simulated(rng: np.random.Generator, n: int, apart: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 2, n)
    return labels, expit(rng.normal((labels - 0.5) * apart, 1)).round(2)  # rounded, to test tied scores too


def test_figures_are_those_of_scikit_learn():
    labels, scores = simulated(np.random.default_rng(0), 400)
    found = {name: float(value[0]) for name, value in figures(labels, scores, 0.6).items()}
    called = scores >= 0.6
    expected = {
        "precision": sklearn_metrics.precision_score(labels, called),
        "recall": sklearn_metrics.recall_score(labels, called),
        "f1": sklearn_metrics.f1_score(labels, called),
        "accuracy": sklearn_metrics.accuracy_score(labels, called),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, called),
        "auc": sklearn_metrics.roc_auc_score(labels, scores),
        "ap": sklearn_metrics.average_precision_score(labels, scores),
        "brier": sklearn_metrics.brier_score_loss(labels, scores),
        "nll": sklearn_metrics.log_loss(labels, scores.clip(1e-7, 1 - 1e-7)),
    }
    alarms, hits, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    equal = np.abs(1 - hits - alarms).argmin()
    bins = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs((scores - labels)[bins == number].sum()) for number in range(15)]
    expected |= {"fpr": called[labels == 0].mean(), "eer": (1 - hits + alarms)[equal] / 2, "ece": sum(gaps) / 400}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    matrix = confusion(labels, scores, 0.6)
    assert [matrix[cell] for cell in ("tn", "fp", "fn", "tp")] == sklearn_metrics.confusion_matrix(labels, called).ravel().tolist()


def test_weights_count_like_repeated_rows():
    rng = np.random.default_rng(1)
    labels, scores = simulated(rng, 60)
    counts = rng.integers(0, 4, 60)
    weighted = figures(labels, scores, 0.5, counts[None].astype(float))
    repeated = figures(np.repeat(labels, counts), np.repeat(scores, counts), 0.5)
    for name in repeated:
        assert weighted[name][0] == pytest.approx(repeated[name][0]), name


def test_the_interval_holds_the_true_figure_as_often_as_it_says():
    rng = np.random.default_rng(2)
    labels, scores = simulated(rng, 200_000)
    truth = float(figures(labels, scores, 0.5)["auc"][0])
    held = 0
    for trial in range(100):
        labels, scores = simulated(rng, 150)
        found = judge(labels, scores, np.arange(150), 0.5, draws=200, seed=trial)["auc"]
        held += found["low"] <= truth <= found["high"]
    assert 87 <= held <= 100  # 95 expected; outside these bounds once in a thousand runs


def test_a_thousand_draws_take_less_memory_than_one_copy_of_them_as_floats():
    labels, scores = simulated(np.random.default_rng(7), 30_000)
    thresholds = choose_thresholds(labels, scores, max_fpr=0.05, max_fnr=0.1)
    tracemalloc.start()
    try:
        weights = group_weights(np.arange(30_000), 1000, 0)
        judge_weighted(labels, scores, thresholds.f1, weights)
        selective(labels, scores, thresholds, weights)
        assert tracemalloc.get_traced_memory()[1] < 1000 * 30_000 * 8
    finally:
        tracemalloc.stop()


def test_figures_are_the_same_however_many_draws_are_worked_on_at_a_time(monkeypatch: pytest.MonkeyPatch):
    labels, scores = simulated(np.random.default_rng(8), 200)
    thresholds = choose_thresholds(labels, scores, max_fpr=0.05, max_fnr=0.1)
    weights = group_weights(np.arange(200) // 2, 50, 0)

    def found() -> list[object]:
        judged = judge_weighted(labels, scores, thresholds.f1, weights), selective(labels, scores, thresholds, weights)
        return [*judged, mean(scores, weights), mean(scores > 0.99, weights), mean(np.full(200, True), weights)]

    at_once = found()
    monkeypatch.setattr(metrics, "BLOCK", 3 * 200)
    assert found() == at_once


def test_one_group_says_nothing_of_how_sure_a_figure_is():
    labels, scores = simulated(np.random.default_rng(4), 50)
    for name, figure in judge(labels, scores, np.zeros(50), 0.5, draws=100, seed=0).items():
        assert figure["value"] is not None and figure["low"] is None and figure["high"] is None, name
    assert "no interval" in figure_text(judge(labels, scores, np.zeros(50), 0.5, draws=100, seed=0)["auc"])
    part = group_weights(np.repeat([0, 1, 2], [50, 20, 20]), 100, 0)[:, :50]  # a slice of an evaluation of several groups
    for figure in (*judge_weighted(labels, scores, 0.5, part).values(), mean(scores, part), mean(labels == 1, part)):
        assert figure["value"] is not None and figure["low"] is None and figure["high"] is None


def test_a_figure_in_words_says_what_is_not_known():
    whole = Figure(value=0.91234, low=0.88, high=0.93)
    assert figure_text(whole) == "0.912 (0.880 to 0.930)"
    assert figure_text(whole, digits=4, sign="+") == "+0.9123 (+0.8800 to +0.9300)"
    assert figure_text(Figure(value=0.91, low=None, high=None), sign="+") == "+0.910 (one group: no interval)"
    assert figure_text(Figure(value=None, low=None, high=None)) == "not defined"


def test_a_share_of_nothing_or_all_is_not_called_certain():
    truth, called = np.repeat([0, 1], 16), np.repeat([0.1, 0.9], 16)
    found = judge(truth, called, np.arange(32), 0.5, 200, 0)
    assert found["recall"]["value"] == found["precision"]["value"] == 1 and found["fpr"]["value"] == 0
    exact = 1 - 0.025 ** (1 / 16)  # Clopper-Pearson bound for 0 of 16
    assert found["fpr"]["high"] == pytest.approx(exact, abs=1e-5) and found["fpr"]["low"] == 0
    assert found["recall"]["low"] == found["precision"]["low"] == pytest.approx(1 - exact, abs=1e-5)
    assert found["accuracy"]["low"] > found["recall"]["low"]
    by_fours = judge(truth, called, np.arange(32) // 4, 0.5, 200, 0)
    assert by_fours["fpr"]["high"] == pytest.approx(1 - 0.025 ** (1 / 4), abs=1e-5)
    weights = group_weights(np.arange(16), 200, 0)
    assert mean(np.full(16, False), weights)["high"] == pytest.approx(exact, abs=1e-5)
    assert mean(np.zeros(16), weights) == {"value": 0.0, "low": 0.0, "high": 0.0}  # figures that are not proportions
    assert mean(np.full(16, False), group_weights(np.zeros(16), 200, 0)) == {"value": 0.0, "low": None, "high": None}


def test_a_figure_made_of_shares_is_no_surer_than_they_are():
    truth, scores = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.repeat([0.1, 0.9], 4)
    found = judge(truth, scores, np.arange(8) // 4, 0.5, 200, 0)  # one group of each class
    assert found["recall"]["low"] == found["f1"]["low"] == found["balanced_accuracy"]["low"] == found["auc"]["low"] == 0.025
    assert found["ap"]["low"] == 0.025 and found["eer"] == {"value": 0.0, "low": 0.0, "high": 0.975}
    assert all(found[name]["value"] == found[name]["high"] == 1 for name in ("f1", "balanced_accuracy", "auc", "ap"))
    turned = judge(truth, 1 - scores, np.arange(8) // 4, 0.5, 200, 0)
    for name in ("f1", "balanced_accuracy", "auc"):
        assert turned[name] == {"value": 0.0, "low": 0.0, "high": 0.975}, name
    uneven = judge(np.repeat([0, 1], [40, 4]), np.repeat([0.1, 0.9], [40, 4]), np.arange(44), 0.5, 200, 0)
    fakes, reals = 0.025 ** (1 / 4), 0.025 ** (1 / 40)
    assert uneven["f1"]["low"] == uneven["auc"]["low"] == pytest.approx(fakes, abs=1e-5)
    assert uneven["balanced_accuracy"]["low"] == pytest.approx((fakes + reals) / 2, abs=1e-5)
    alone = judge(np.ones(20, int), np.full(20, 0.9), np.arange(20), 0.5, 200, 0)
    assert alone["f1"]["low"] == pytest.approx(0.025 ** (1 / 20), abs=1e-5) and alone["auc"]["value"] is alone["ap"]["value"] is None
    labels, scores = simulated(np.random.default_rng(8), 200)
    unlike = judge(labels, scores, np.arange(200), 0.5, 200, 0)
    assert all(unlike[name]["low"] < unlike[name]["value"] < unlike[name]["high"] for name in ("f1", "auc", "balanced_accuracy", "ap"))


def test_a_calibration_error_lies_in_its_interval():
    rng = np.random.default_rng(5)
    for trial in range(20):  # a perfectly calibrated model, whose error comes from sampling alone
        scores = rng.random(600)
        found = judge((rng.random(600) < scores).astype(int), scores, np.arange(600), 0.5, draws=200, seed=trial)["ece"]
        assert found["low"] < found["value"] < found["high"]


def test_one_validation_group_gives_calibration_and_thresholds():
    labels, scores = simulated(np.random.default_rng(6), 60)
    val = pd.DataFrame({"label": np.where(labels == 1, "fake", "real"), "score": scores, "group": "g"})
    calibration, thresholds = calibrate(val, load_params(ROOT / "params.yaml").evaluate)
    assert calibration.temperature > 0 and 0 <= thresholds.real_below <= thresholds.fake_above <= 1


def test_calibration_and_thresholds_come_from_different_groups():
    rng = np.random.default_rng(8)
    labels = np.tile([0, 1], 200)
    scores = rng.normal(2.0 * labels - 1, 1.5) * np.repeat([1.0, 6.0], 200)  # one group's are six times as sure
    val = pd.DataFrame({"label": np.where(labels == 1, "fake", "real"), "score": scores, "group": np.repeat(["calm", "sure"], 200)})
    settings = load_params(ROOT / "params.yaml").evaluate
    found = calibrate(val, settings)
    halves = [slice(200), slice(200, 400)]
    for seen, choose in (halves, halves[::-1]):
        fitted = fit(scores[seen], labels[seen])
        chosen = choose_thresholds(labels[choose], fitted.probability(scores[choose]), settings.max_fpr, settings.max_fnr)
        if found == (fitted, chosen):
            break
    else:
        pytest.fail("both came from the same images")


def test_images_of_a_group_count_as_one():
    rng = np.random.default_rng(3)
    labels, scores = simulated(rng, 100)
    alone = judge(labels, scores, np.arange(100), 0.5, draws=400, seed=0)["auc"]
    copied = judge(np.repeat(labels, 5), np.repeat(scores, 5), np.repeat(np.arange(100), 5), 0.5, draws=400, seed=0)["auc"]
    assert copied["high"] - copied["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    drawn = group_weights(np.array(["a", "a", "b"]), 50, 0)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 0] != drawn[:, 2]).any()


def test_one_class_leaves_undefined_figures_empty():
    nothing = Figure(value=None, low=None, high=None)
    for highest, accuracy in ((1, 0.5), (0.4, 1)):  # with false alarms and without
        found = judge(np.zeros(20, int), np.linspace(0, highest, 20), np.arange(20), 0.5, draws=100, seed=0)
        assert all(found[name] == nothing for name in ("auc", "ap", "recall", "precision", "f1")) and found["accuracy"]["value"] == accuracy


@pytest.mark.parametrize("bias", [-1.5, 0, 1.5])
def test_scores_that_are_overconfident_and_off_to_one_side_become_honest(bias: float):
    rng = np.random.default_rng(4)
    honest = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < expit(honest)).astype(int)
    scores = 3 * (honest - bias)
    found = fit(scores, labels)
    assert found.temperature == pytest.approx(3, rel=0.1) and found.bias == pytest.approx(bias, abs=0.1)
    assert found.fake_share == labels.mean()
    assert figures(labels, found.probability(scores), 0.5)["ece"][0] < 0.02 < figures(labels, expit(scores), 0.5)["ece"][0]


def test_scores_that_say_nothing_become_the_share_of_fakes_and_keep_their_order():
    rng = np.random.default_rng(4)
    labels = (rng.random(2000) < 0.2).astype(int)
    scores = rng.normal(0, 5, 2000) - labels  # fakes a bit lower than reals
    probabilities = fit(scores, labels).probability(scores)
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=0.01) and (np.diff(probabilities[scores.argsort()]) > 0).all()


def test_a_few_images_without_a_mistake_make_nothing_certain():
    rng = np.random.default_rng(9)
    labels = np.tile([0, 1], 1000)
    scores = rng.normal(np.where(labels == 1, 6, -6), 5)
    few = np.flatnonzero((scores > 0) == (labels == 1))[:40]
    found = figures(labels, fit(scores[few], labels[few]).probability(scores), 0.5)
    plain = figures(labels, expit(scores), 0.5)
    assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores)) and found["nll"] < plain["nll"]


def test_a_real_that_is_certainly_a_fake_breaks_no_promise():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 1.0, 0.9, 1.0])
    found = choose_thresholds(labels, scores, max_fpr=0.05, max_fnr=0.05)
    assert not (scores[labels == 0] >= found.fake_above).any() and not (scores[labels == 0] >= found.fpr5).any()


def test_thresholds_keep_their_promises_on_the_data_they_come_from():
    labels, scores = simulated(np.random.default_rng(5), 2000)
    found = choose_thresholds(labels, scores, max_fpr=0.05, max_fnr=0.1)
    reals, fakes = scores[labels == 0], scores[labels == 1]
    assert (reals >= found.fake_above).mean() <= 0.05 and (reals >= found.fpr1).mean() <= 0.01 < (reals >= found.fpr5).mean() <= 0.05
    assert (fakes < found.real_below).mean() <= 0.1
    assert found.real_below <= found.f1 <= found.fake_above
    best = max(sklearn_metrics.f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
    assert sklearn_metrics.f1_score(labels, scores >= found.f1) == pytest.approx(best)


def test_thresholds_that_cross_keep_both_promises():
    crossed = 0
    for seed in range(20):
        labels, scores = simulated(np.random.default_rng(seed), 200, apart=3.0)
        found = choose_thresholds(labels, scores, max_fpr=0.1, max_fnr=0.1)
        assert (scores[labels == 0] >= found.fake_above).mean() <= 0.1
        assert (scores[labels == 1] < found.real_below).mean() <= 0.1
        crossed += found.real_below == found.fake_above != found.f1
    assert crossed > 0  # cases in which the threshold of the highest F1 breaks a promise
