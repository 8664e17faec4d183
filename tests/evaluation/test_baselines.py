"""Baselines beside the detector (metadata, pixel statistics, a linear probe), and the report's warnings."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluate import calibrate, warnings
from pipeline.evaluation import judge_package
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.metrics import confusion, figure_text, judge
from pipeline.evaluation.scoring import Subject, labels, sample
from pipeline.params import Params, load_params
from tests.conftest import ROOT
from tests.data_helpers import picture
from tests.evaluation.use import judged


def parted(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    even = np.arange(len(table)) % 2 == 0
    return table[even].reset_index(drop=True), table[~even].reset_index(drop=True)


def test_a_planted_leak_is_found_and_the_report_says_so(subject: Subject, params: Params, here: Path):
    for index in range(80):  # the fakes have another JPEG quality, and differ in nothing else
        for number, (label, quality) in enumerate((("real", 95), ("fake", 60))):
            picture(here / "leak" / label / f"{index}.jpg", seed=1000 * number + index, quality=quality)
    train, test = parted(judged(here / "leak"))
    found = baselines(subject, train, test, params)
    assert found["baselines"]["metadata"]["auc"]["low"] > 0.9
    assert found["vs_baseline"]["auc"]["high"] < 0  # random probabilities against a baseline that uses the leak
    said = " ".join(warnings(found | {"groups": 5, "golden": {"broken": 2}}, most=0.6))
    assert (
        "only 5 groups" in said and "How the files are stored" in said and "not shown to be better" in said and "2 golden examples" in said
    )


def test_a_folder_whose_files_give_the_class_away_is_named_in_the_report(package: Path, params: Params, here: Path):
    for index in range(40):
        for number, (label, quality) in enumerate((("real", 95), ("fake", 60))):
            picture(here / "leak" / label / f"{index}.jpg", seed=1000 * number + index, quality=quality)
    settings = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"attack_images": 0, "explain_images": 0})})
    found = judge_package.judge(package, here / "leak", here / "out", settings)
    assert found["baselines"]["metadata"]["auc"]["low"] > 0.9 and "vs_baseline" not in found
    assert "how large they show the face tell real from fake" in (here / "out/evaluation.html").read_text()


def test_files_that_tell_nothing_give_no_warning(subject: Subject, params: Params, faces: Path, here: Path):
    train, test = parted(judged(faces))
    found = baselines(subject, train, test, params)
    for name in ("metadata", "statistics", "linear_probe"):
        assert {"auc", "ap", "of"} <= set(found["baselines"][name])
        assert found["baselines"][name]["auc"]["low"] < 0.5, name  # as it would not be on images that it was fitted on
    quiet = found | {
        "vs_baseline": {"name": "statistics", "auc": {"value": 0.2, "low": 0.1, "high": 0.3}},
        "groups": 60,
        "golden": {"broken": 0},
    }
    assert warnings(quiet, most=0.99) == []


@pytest.mark.parametrize(
    ("before", "share", "wrong"), [(0.5, 0.1, "high"), (0.5, 0.5, None), (0.5, 0.9, "low"), (0.1, 0.1, None), (0.1, 0.5, "low")]
)
def test_data_with_another_share_of_fakes_gets_a_warning_that_probabilities_are_off(before: float, share: float, wrong: str | None):
    rng = np.random.default_rng(0)

    def drawn(share: float) -> pd.DataFrame:
        truth = (rng.random(4000) < share).astype(int)
        scores = 2 * rng.normal(2 * truth - 1, 1)  # the log likelihood ratio, which a network learns from balanced batches
        return pd.DataFrame({"label": np.where(truth == 1, "fake", "real"), "score": scores, "group": range(4000)})

    calibration, thresholds = calibrate(drawn(before), load_params(ROOT / "params.yaml").evaluate)
    table = drawn(share)
    truth, probabilities = labels(table), calibration.probability(table["score"].to_numpy())
    figures = judge(truth, probabilities, table["group"].to_numpy(), thresholds.f1, draws=100, seed=0)
    found = {"groups": 4000, "calibration": figures, "confusion_matrix": confusion(truth, probabilities, thresholds.f1)}
    found |= {"fake_share": calibration.fake_share}
    said = " ".join(warnings(found, most=0.6))
    assert (f"too {wrong} for data like this, with an ECE of 0." in said) if wrong else not said
    assert not warnings(found | {"fake_share": 1.0}, most=0.6)  # validation had one class: calibrated for nothing
    assert figures["ece"]["value"] is not None and (figures["ece"]["value"] > 0.1) == bool(wrong)


def test_the_detector_stands_beside_the_baselines_on_the_same_images(package: Path, faces: Path, here: Path, params: Params):
    for index in range(20, 30):
        (faces / "real" / f"{index}.jpg").unlink()
    quick = params.evaluate.model_copy(update={"attack_images": 0, "explain_images": 0, "baseline_images": 40})
    found = judge_package.judge(package, faces, here / "out", params.model_copy(update={"evaluate": quick}))
    table = sample(pd.read_parquet(here / "out/scores.parquet"), 40, quick.seed)
    assert table["label"].value_counts().to_dict() == {"real": 20, "fake": 20} and found["n"] == 50
    beside = found["baselines"]["detector"]
    groups = table["group"].to_numpy()
    same = judge(labels(table), table["probability_fake"].to_numpy(), groups, found["threshold"], quick.bootstrap, quick.seed)
    assert {name: beside[name] for name in ("auc", "ap", "brier", "balanced_accuracy")}.items() <= same.items()
    assert beside["ap"] != found["test"]["ap"]
    row = (here / "out/evaluation.html").read_text().partition("<td>the detector</td>")[2].partition("</tr>")[0]
    assert figure_text(beside["ap"]) in row and figure_text(beside["brier"]) in row


def test_statistics_of_the_pixels_tell_what_resampling_leaves(subject: Subject, params: Params, here: Path):
    rng = np.random.default_rng(0)
    for index in range(80):
        base = cv2.GaussianBlur(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), (0, 0), 1)
        again = cv2.resize(cv2.resize(base, (32, 32)), (64, 64), interpolation=cv2.INTER_NEAREST)
        for label, pixels in (("real", base), ("fake", again)):
            (here / "set" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(here / "set" / label / f"{index}.bmp")  # all have one size, which tells nothing
    train, test = parted(judged(here / "set"))
    found = baselines(subject, train, test, params)
    aucs = {name: found["baselines"][name]["auc"]["value"] for name in ("metadata", "statistics", "linear_probe")}
    assert found["baselines"]["statistics"]["auc"]["low"] > 0.9
    assert found["vs_baseline"]["name"] == max(aucs, key=lambda name: aucs[name]) != "metadata"  # held against the best
