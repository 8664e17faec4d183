"""Drift: the statistics and their false-alarm rate, the diagnosis, and the prediction log that both read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binom, ks_2samp

from pipeline.evaluation.metrics import figures
from pipeline.monitoring import diagnosis
from pipeline.monitoring.drift import SCALARS, compare, nearest, psi, references, shifted
from pipeline.monitoring.drift_page import page
from pipeline.monitoring.predictions import FILE, newest
from pipeline.params import ParamsError, check_params, load_params
from tests.conftest import ROOT
from tests.data_helpers import picture
from tests.drift_helpers import DIMENSIONS, SETTINGS, record, sample


def found_first(report: dict) -> str:
    assert report["drift"] and report["p_value"] <= report["alpha"]
    return report["statistics"][0]["name"]


def test_clean_windows_raise_alarms_at_the_set_rate():
    rng, settings, windows = np.random.default_rng(0), SETTINGS.model_copy(update={"alpha": 0.1, "permutations": 99}), 200
    alarms = sum(compare(sample(rng, 60), sample(rng, 50), settings, seed=number)["drift"] for number in range(windows))
    low, high = binom.interval(0.999, windows, settings.alpha)
    assert low <= alarms <= high


def test_a_shift_of_one_statistic_is_found_by_its_name():
    rng = np.random.default_rng(1)
    for name, change in (("brightness", lambda x: x - 20), ("blur", lambda x: x / 2), ("width", lambda x: x * 2)):
        window = sample(rng, 300)
        window[name] = change(window[name])
        assert found_first(compare(sample(rng, 300), window, SETTINGS)) == name


def test_a_shift_of_the_scores_is_found():
    rng = np.random.default_rng(2)
    window = sample(rng, 300)
    window["probability_fake"] **= 2
    assert found_first(compare(sample(rng, 300), window, SETTINGS)) == "probability_fake"


def test_a_shift_of_the_embedding_alone_is_found():
    rng = np.random.default_rng(3)
    mixing = np.linalg.cholesky(np.full((DIMENSIONS, DIMENSIONS), 0.5) + 0.5 * np.eye(DIMENSIONS))
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mean": lambda x: x + 0.3,
        "correlation": lambda x: mixing @ x,  # each dimension keeps its mean and variance
    }
    for name, change in changes.items():
        window = sample(rng, 300)
        window["embedding"] = [change(row).astype(np.float32) for row in window["embedding"]]
        assert found_first(compare(sample(rng, 300), window, SETTINGS)) == "embedding", name


def test_answers_in_another_precision_that_the_package_knows_are_no_drift(tmp_path):
    def rounded(rows: pd.DataFrame) -> pd.DataFrame:
        """Embeddings as lower precision shifts them: each by nearly the same."""
        return rows.assign(embedding=[row + np.eye(DIMENSIONS, dtype=np.float32)[0] for row in rows["embedding"]])

    rng = np.random.default_rng(0)
    sample(rng, 300).to_parquet(tmp_path / "reference.parquet")
    (full,) = references(tmp_path)
    window = rounded(sample(rng, 300))
    assert compare(full, window, SETTINGS)["drift"]
    rounded(sample(rng, 300)).to_parquet(tmp_path / "reference-int8.parquet")
    full, less = known = references(tmp_path)
    for there, expected in ((window, less), (sample(rng, 300), full)):
        found, report = nearest(known, there, SETTINGS)
        assert found is expected and not report["drift"]
    dark = window.assign(brightness=window["brightness"] - 60)
    found, report = nearest(known, dark, SETTINGS)
    assert found is less and report["drift"] and shifted(report) == ["brightness"]


def test_constant_columns_are_no_drift():
    rows = {name: np.full(100, 0.1) for name in SCALARS} | {"embedding": [np.full(DIMENSIONS, 0.1, np.float32)] * 100}
    report = compare(pd.DataFrame(rows), pd.DataFrame(rows).iloc[:70], SETTINGS)
    assert not report["drift"] and report["p_value"] == 1
    assert all(found["p_value"] == 1 and not found["psi"] for found in report["statistics"])
    assert {found["name"]: found["value"] for found in report["statistics"]} == dict.fromkeys(("embedding", *SCALARS), 0) | {
        "embedding_auc": 0.5
    }


def test_a_constant_that_changes_is_drift():
    rng = np.random.default_rng(4)
    assert found_first(compare(sample(rng, 100), sample(rng, 100).assign(height=128.0), SETTINGS)) == "height"


def test_the_report_says_what_was_compared():
    rng = np.random.default_rng(5)
    reference = sample(rng, 80).assign(verdict=["real", "fake"] * 40, warnings=[["too_dark"]] * 8 + [[]] * 72)
    window = sample(rng, 60).assign(verdict=["real"] * 45 + ["fake"] * 15, warnings=[["no_face", "too_dark"]] * 30 + [[]] * 30)
    report = compare(reference, window, SETTINGS)
    assert json.loads(json.dumps(report)) == report == compare(reference, window, SETTINGS)
    assert (report["window"], report["reference"], report["alpha"]) == (60, 80, 0.01)
    assert report["verdicts"] == {"real": 0.75, "fake": 0.25}
    assert shifted(report) == ["warning_no_face", "warning_too_dark"]
    found = {statistic.pop("name"): statistic for statistic in report["statistics"]}
    shares = {"verdict_real": 0.25, "verdict_fake": 0.25, "verdict_uncertain": 0, "warning_no_face": 0.5, "warning_too_dark": 0.4}
    assert set(found) == {"embedding", "embedding_auc", *SCALARS, *shares}
    assert {name: round(found[name]["value"], 9) for name in shares} == shares
    assert found["warning_too_dark"]["reference_mean"] == 0.1 and 0.3 < found["embedding_auc"]["value"] < 0.7
    for name in SCALARS:
        assert found[name]["value"] == pytest.approx(ks_2samp(reference[name], window[name]).statistic)  # ties included
        assert found[name]["window_mean"] == pytest.approx(window[name].mean())
    for statistic in found.values():
        deals = statistic["p_value"] * (SETTINGS.permutations + 1)
        assert deals >= 1 and deals == pytest.approx(round(deals))


def test_the_smallest_p_value_is_reached_however_many_statistics_there_are():
    rng = np.random.default_rng(6)
    report = compare(sample(rng, 300), sample(rng, 300).assign(brightness=0.0), SETTINGS)
    assert report["p_value"] == pytest.approx(1 / (SETTINGS.permutations + 1))


def test_psi_counts_what_lies_outside_the_reference():
    values = np.arange(1000.0)
    assert psi(values, values) == 0
    assert psi(values, values + 100) > 0.25 and psi(values, values - 100) > 0.25
    assert psi(np.ones(100), np.zeros(100)) > 0.25


def calibrated(rng: np.random.Generator, rows: int, fakes: float = 0.5) -> tuple[pd.DataFrame, np.ndarray]:
    """Answers whose probabilities are calibrated for as many fakes as reals, and the labels. Embeddings shift with the score."""
    labels = (rng.random(rows) < fakes).astype(int)
    scores = rng.normal(2 * labels - 1, 1)
    table = sample(rng, rows).assign(probability_fake=expit(2 * scores), warnings=[[]] * rows, id=[str(number) for number in range(rows)])
    table["verdict"] = np.where(table["probability_fake"] > 0.5, "fake", "real")
    table["embedding"] = [row + np.float32(2 * score) for row, score in zip(table["embedding"], scores, strict=True)]
    return table, labels


def test_each_kind_of_drift_is_told_by_its_rule():
    rng = np.random.default_rng(10)
    reference, window = calibrated(rng, 600)[0], calibrated(rng, 300)[0]
    elsewhere = [row + np.float32(2) * (np.arange(DIMENSIONS) % 2) for row in window["embedding"]]
    windows = {
        "camera or compression": window.assign(blur=window["blur"] / 2),
        "new generator": window.assign(embedding=elsewhere),
        "share of fakes": calibrated(rng, 300, fakes=0.1)[0],
        "broken client": window.assign(warnings=[["no_face"]] * 150 + [[]] * 150),
        "unknown": window.assign(probability_fake=window["probability_fake"] ** 8),
    }
    repeated = diagnosis.pictures(reference, window.iloc[[0] * 200 + list(range(200, 300))])
    dull = window.assign(warnings=[["heavily_compressed"]] * 60 + [[]] * 240)
    for expected, shown in [*windows.items(), ("broken client", repeated), ("camera or compression", dull)]:
        report = compare(reference, shown, SETTINGS)
        assert report["drift"] and diagnosis.kind(reference, shown, report, SETTINGS, 0.5)["kind"] == expected
    assert diagnosis.share_of_fakes(windows["share of fakes"], 0.5) == pytest.approx(0.1, abs=0.05)


def test_a_picture_that_many_people_ask_about_is_no_drift():
    rng = np.random.default_rng(10)
    reference, window = calibrated(rng, 600)[0], calibrated(rng, 300)[0]
    answers = window.iloc[[*range(150), *[7] * 45, *range(150, 300)]].assign(id=[str(number) for number in range(345)])
    assert compare(reference, answers, SETTINGS)["drift"]
    counted = diagnosis.pictures(reference, answers)
    assert len(counted) == 300 and "194" in set(counted["id"]) and not compare(reference, counted, SETTINGS)["drift"]


def test_f1_is_estimated_without_labels_where_the_calibration_holds():
    rng = np.random.default_rng(11)
    table, labels = calibrated(rng, 3000)
    hard = np.abs(table["probability_fake"] - 0.5) < 0.4  # traffic may be harder than the reference
    for rows in (np.ones(len(table), bool), hard.to_numpy()):
        probabilities = table["probability_fake"].to_numpy()[rows]
        estimate, truth = diagnosis.expected_f1(probabilities, 0.5), figures(labels[rows], probabilities, 0.5)["f1"][0]
        assert estimate["value"] == pytest.approx(truth, abs=0.03) and estimate["low"] < truth < estimate["high"]
    few, labels_of_few = calibrated(rng, 3000, fakes=0.1)
    probabilities = few["probability_fake"].to_numpy()
    chances = diagnosis.adjust_prior(probabilities, 0.5, diagnosis.share_of_fakes(few, 0.5))
    truth = figures(labels_of_few, probabilities, 0.5)["f1"][0]
    assert diagnosis.expected_f1(probabilities, 0.5, chances)["value"] == pytest.approx(truth, abs=0.06)
    assert diagnosis.expected_f1(probabilities, 0.5)["value"] > truth + 0.1
    known = dict(zip(table["id"][:100], labels[:100].tolist(), strict=True))
    measured = diagnosis.measured_f1(table, known, 0.5)
    assert measured is not None and measured["n"] == 100
    assert measured["value"] == pytest.approx(figures(labels[:100], table["probability_fake"][:100].to_numpy(), 0.5)["f1"][0], abs=1e-5)
    often = pd.concat([table[:100].assign(id=[f"{id}/{time}" for id in table["id"][:100]]) for time in range(9)], ignore_index=True)
    again = diagnosis.measured_f1(often, dict(zip(often["id"], labels[:100].tolist() * 9, strict=True)), 0.5)
    assert again == measured | {"n": 900}  # the same pictures, asked about again, make nothing more certain
    assert diagnosis.measured_f1(table, {"elsewhere": 1}, 0.5) is None


def test_the_page_names_what_shifted_and_shows_pictures_that_were_kept(tmp_path):
    rng = np.random.default_rng(12)
    reference, window = calibrated(rng, 200)[0], calibrated(rng, 100)[0].assign(brightness=10.0)
    window.at[7, "embedding"] = window["embedding"][7] + np.float32(50)
    picture(tmp_path / "kept.png", seed=1)
    report = {"version": 3, "answers": 1234, "share_of_fakes": 0.5} | compare(reference, window, SETTINGS)
    report["kind"] = diagnosis.kind(reference, window, report, SETTINGS, 0.5)
    measured = diagnosis.measured_f1(window, {window["id"].iloc[0]: 1}, 0.0)  # on one answer, which has no interval
    report["f1"] = {"expected": diagnosis.expected_f1(window["probability_fake"].to_numpy(), 0.5), "measured": measured, "tested": None}
    report["challenger"] = {"version": "9", "n": 1234, "agreement": 0.9, "difference": -0.02, "verdicts": {"real": {"real": 3}}}
    report["challenger"]["labelled"] = {"n": 5, "champion": 2, "challenger": 4, "p_value": 0.5}
    text = page(report, reference, window, {"7": tmp_path / "kept.png", "8": tmp_path / "gone.png"})
    assert re.search(r"users labelled</span><b>1.000</b><small>[^0-9]*1 answers", text)
    assert "<span>Answers compared</span><b>100</b><small>of 1,234, with 200 of the reference" in text
    assert "Camera or compression" in text and text.index("<td>brightness") < text.index("<td>height")
    assert not re.search(r"(src|href)=.http", text) and "data:image/png" in text and text.count("<svg") == 8
    assert diagnosis.outlier_scores(reference, window).argmax() == 7
    assert diagnosis.outlier_scores(reference, reference).mean() == pytest.approx(1)


@pytest.mark.parametrize(("change", "problem"), [({"alpha": 0.001}, "smallest p-value"), ({"max_window": 60}, "below min_window")])
def test_settings_that_could_never_find_drift_are_refused(change, problem):
    content = load_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["drift"] |= {"permutations": 500, "alpha": 0.01, "min_window": 100} | change
    with pytest.raises(ParamsError, match=problem):
        check_params(content, Path("params.yaml"))
    check_params(content | {"drift": content["drift"] | {"alpha": 1 / 501, "max_window": 100}}, Path("params.yaml"))


def test_what_was_recorded_is_read_back(tmp_path):
    path, rows = tmp_path / "var" / FILE, sample(np.random.default_rng(7), 30)
    assert newest(path, "one", 10).empty
    for part in (rows[:20], rows[20:]):
        assert record(path, "one", part).dropped == 0
    record(path, "other", rows[:5])
    read = newest(path, "one", 1000)
    pd.testing.assert_frame_equal(read[rows.columns.tolist()].drop(columns="embedding"), rows.drop(columns="embedding"))
    np.testing.assert_array_equal(np.stack(read["embedding"]), np.stack(rows["embedding"]))
    assert read["embedding"].iloc[0].dtype == np.float32
    assert (
        set(read["verdict"]) == {"uncertain"}
        and read["warnings"].iloc[0] == ["too_dark"]
        and read["id"].is_unique
        and read["time"].is_monotonic_increasing
    )
    assert newest(path, "one", 3)["id"].tolist() == read["id"].tolist()[-3:]
    assert len(newest(path, "other", 1000)) == 5


def test_a_record_that_cannot_be_written_drops_and_counts(tmp_path):
    (tmp_path / "file").write_text("not a database, and no folder either" * 100)
    for path in (tmp_path / "file", tmp_path / "file" / FILE):
        assert record(path, "one", sample(np.random.default_rng(8), 3)).dropped == 3
