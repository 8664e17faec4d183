"""The evaluation report: slices, curves, attacks, and golden examples."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from flows import gates
from pipeline import manifest
from pipeline.errors import StageError
from pipeline.evaluate import examine
from pipeline.evaluation import golden
from pipeline.evaluation.curves import curves, risk_coverage, selective
from pipeline.evaluation.judge_package import describe_folder
from pipeline.evaluation.metrics import group_weights
from pipeline.evaluation.report import page
from pipeline.evaluation.robustness import DEGRADATIONS, attacked, degraded
from pipeline.evaluation.scoring import Subject, labels, sample
from pipeline.evaluation.slices import slices, tertiles
from pipeline.images import read
from pipeline.network import model
from pipeline.network.attack import attack
from pipeline.network.embedding import WithEmbedding
from pipeline.package import PACKAGE, Thresholds, verify
from pipeline.params import Bound, Params
from pipeline.params import Model as ModelSettings
from pipeline.runtime import runtime
from tests.evaluation.use import judged
from tests.package_helpers import CONFIG, SIDE


def test_a_sample_has_both_classes():
    table = pd.DataFrame({"label": ["real"] * 1000 + ["fake"] * 15})
    assert sample(table, 100, 0)["label"].value_counts().to_dict() == {"real": 85, "fake": 15}
    assert sample(table[:1000], 100, 0)["label"].value_counts().to_dict() == {"real": 100}
    assert len(sample(table, 2000, 0)) == 1015
    assert sample(table, 100, 0).index[:85].max() > 800  # drawn from everywhere: tables are sorted by source


def test_the_report_shows_mistakes_by_the_threshold_that_the_figures_use(subject: Subject, params: Params, faces: Path, here: Path):
    table, _ = describe_folder(faces)
    odd = np.arange(len(table)) % 2 == 0
    truth = (table["label"] == "fake").to_numpy()
    # At the threshold of .3 a real at .4 is called fake, and a fake at .4 correctly so.
    table = table.assign(score=0.0, probability_fake=np.where(odd, 0.4, np.where(truth, 0.95, 0.05)))
    worst = table.index[odd & ~truth][-1]
    table.loc[worst, "probability_fake"] = 0.9
    low = replace(subject, thresholds=subject.thresholds.model_copy(update={"f1": 0.3}))
    result = examine(low, table, None, params.evaluate.model_copy(update={"attack_images": 0, "explain_images": 0}))
    drawn = curves(labels(table), table["probability_fake"].to_numpy(), 0.3)
    html = page(result | {"warnings": [], "no_baselines": "a test"}, table, drawn, low)
    wrong, right = html.partition("Worst mistakes")[2].split("Most confident")
    mistaken = set(table.loc[odd & ~truth, "path"])
    assert {path for path in table["path"] if path in wrong} <= mistaken and table.loc[worst, "path"] in wrong
    assert not any(path in right for path in mistaken) and any(path in right for path in table["path"])


def test_every_attribute_and_measured_column_is_a_slice_and_small_ones_say_so(params: Params, faces: Path):
    ages = [str(number) if number % 6 else "" for number in range(60)]
    table = judged(faces).assign(skin=["none"] * 10 + ["light"] * 50, age=ages)
    table["faces"] = pd.array([0] * 8 + [1] * 40 + [2] * 5 + [7] * 2 + [pd.NA] * 5, "Int64")
    table["generator"] = np.where(table["label"] == "fake", "blend", manifest.NO_GENERATOR)
    found = slices(table, 0.5, params.evaluate)
    columns = {part["column"] for part in found}
    assert {"generator", "blur", "brightness", "skin", "age"} <= columns and "jpeg_quality" not in columns  # all have one quality
    small = {(part["column"], part["value"]): part["small"] for part in found}
    assert small["skin", "none"] and not small["skin", "light"]
    assert {part["value"]: part["n"] for part in found if part["column"] == "faces"} == {"none found": 8, "one": 40, "several": 7}
    assert [part["value"] for part in found if part["column"] == "age"] == ["1 to 20", "21 to 39", "40 to 59"]
    generator = next(part for part in found if part["column"] == "generator")
    assert generator["n"] == 30 and generator["auc"]["value"] is not None  # against all reals


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ([640, 800, 1024, 1280, 1920, 4000], ["640 to 800", "1024 to 1280", "1920 to 4000"]),
        ([2003, 2004, 2009, 2010, 2021, 2022], ["2003 to 2004", "2009 to 2010", "2021 to 2022"]),
        ([1_700_000_000 + day for day in range(6)], ["1700000000 to 1700000001", "1700000002 to 1700000003", "1700000004 to 1700000005"]),
        ([0.01234, 0.02345, 0.5, 0.6, 0.71111, np.nan], ["0.0123 to 0.0234", "0.5", "0.6 to 0.711"]),
        ([1.00001, 1.00002, 1.00003, 1.00004, 1.00005, 1.00006], ["1.00001 to 1.00002", "1.00003 to 1.00004", "1.00005 to 1.00006"]),
        ([1e-9, 0.5, 123_456.7], ["0.000000001", "0.5", "123000"]),
        ([np.nan, np.nan], []),
    ],
)
def test_a_third_is_named_by_numbers_that_tell_it_from_the_others(numbers: list[float], names: list[str]):
    values = pd.Series(numbers, dtype="float64")[::-1]
    found = tertiles(values)
    assert found.cat.categories.tolist() == names and (found.isna() == values.isna()).all()
    assert found.sort_index().dropna().drop_duplicates().tolist() == names


def test_the_surest_verdicts_come_first_in_the_risk_curve():
    truth, probabilities = np.array([1, 0, 1, 0]), np.array([0.99, 0.02, 0.4, 0.55])
    curve = risk_coverage(truth, probabilities, 0.5)
    assert curve["coverage"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve["risk"].round(3).tolist() == [0.0, 0.0, 0.333, 0.5]


def test_an_abstaining_detector_is_judged_with_intervals():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 600)
    probabilities = np.clip(0.5 + (truth - 0.5) * 0.4 + rng.normal(0, 0.25, 600), 0.001, 0.999)
    thresholds = Thresholds(f1=0.5, fpr1=0.9, fpr5=0.8, real_below=0.4, fake_above=0.6)
    found = selective(truth, probabilities, thresholds, group_weights(np.arange(600), 500, 0))
    sure = (probabilities < 0.4) | (probabilities >= 0.6)
    assert found["coverage"]["value"] == pytest.approx(sure.mean(), abs=1e-5)
    assert found["error"]["value"] == pytest.approx(((probabilities >= 0.5) != truth)[sure].mean(), abs=1e-5)
    assert found["area"]["value"] == pytest.approx(risk_coverage(truth, probabilities, 0.5)["risk"].mean(), abs=1e-5)
    spread = {name: np.sqrt(share * (1 - share) / n) for name, share, n in (("coverage", sure.mean(), 600), ("error", 0.15, sure.sum()))}
    for name, figure in found.items():
        assert figure["low"] < figure["value"] < figure["high"]
        if name in spread:
            assert (figure["high"] - figure["low"]) / spread[name] == pytest.approx(2 * 1.96, rel=0.3)
    none = selective(truth, np.full(600, 0.5), thresholds, group_weights(np.arange(600), 10, 0))
    assert none["coverage"]["value"] == 0 and none["error"]["value"] is None


def test_gates_take_every_kind_of_figure():
    figure = {"value": 0.9, "low": 0.8, "high": 0.95}
    evaluation = {"test": {"f1": figure}, "calibration": {"ece": figure}, "robustness": {"n": 3, "blur0.5": {"drop": 0.04}}}
    evaluation |= {"slices": [{"column": "generator", "value": "swap", "n": 3, "small": True, "auc": figure}]}
    bounds = {"test.f1.low": 0.8, "calibration.ece": 0.9, "robustness.blur0.5.drop": 0.04, "slices.generator.swap.auc.high": 0.95}
    for verdict in gates.judge({name: Bound(min=value, max=value) for name, value in bounds.items()}, evaluation):
        assert verdict.passed, verdict
    with pytest.raises(StageError, match=r"slices.generator.swop.auc.*slices.generator.swap.auc"):
        gates.judge({"slices.generator.swop.auc": Bound(min=0)}, evaluation)


@pytest.mark.parametrize("size", [(16_400, 20), (20, 16_400), (65_535, 8)])
def test_a_picture_longer_than_a_format_can_store_is_degraded_like_any_other(size: tuple[int, int]):
    image = Image.new("RGB", size, (90, 120, 150))
    for name, change in DEGRADATIONS.items():
        changed = change(image)
        assert changed.mode == "RGB" and min(changed.size) > 0 and abs(np.asarray(changed).mean() - 120) < 3, name


def test_each_degradation_takes_more_than_the_milder_one():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC).resize((96, 96), Image.Resampling.BICUBIC)

    def lost(name: str) -> float:
        changed = DEGRADATIONS[name](image).resize(image.size, Image.Resampling.BICUBIC)
        return float(np.abs(np.asarray(changed, np.float32) - np.asarray(image, np.float32)).mean())

    rows = [[f"jpeg{quality}" for quality in (100, 80, 60, 40, 20)], ["half", "quarter"], ["half", "jpeg40_half"]]
    rows += [[name for name in DEGRADATIONS if name.startswith(kind)] for kind in ("blur", "noise")]
    for row in rows:
        losses = [lost(name) for name in row]
        assert losses == sorted(set(losses)) and losses[0] > 0, dict(zip(row, losses, strict=True))


def test_what_a_degradation_costs_is_measured_against_the_same_pictures(subject: Subject, params: Params, faces: Path, here: Path):
    torch.manual_seed(0)
    network, _ = model.build(ModelSettings(name="vit", init="scratch", config=CONFIG))
    subject = replace(subject, runtime=runtime(WithEmbedding(network).eval(), SIDE))
    table = sample(describe_folder(faces)[0], 24, 0).reset_index(drop=True)
    table["probability_fake"] = subject.probabilities(np.stack([subject.preprocess.pixels(read(Path(path)).rgb) for path in table["path"]]))
    middle = replace(subject, thresholds=subject.thresholds.model_copy(update={"f1": float(table["probability_fake"].median())}))
    found = degraded(middle, table, params.evaluate.model_copy(update={"robustness_images": 24}))["jpeg20"]
    pictures = []
    for path in table["path"]:
        file = io.BytesIO()
        read(Path(path)).rgb.save(file, "JPEG", quality=20)
        pictures.append(subject.preprocess.pixels(Image.open(file)))
    truth, before, after = labels(table), table["probability_fake"].to_numpy(), subject.probabilities(np.stack(pictures))
    drop = roc_auc_score(truth, before) - roc_auc_score(truth, after)
    flipped = ((before >= middle.thresholds.f1) != (after >= middle.thresholds.f1)).mean()
    assert drop != 0 and 0 < flipped < 0.5
    assert found["drop"] == pytest.approx(drop, abs=1e-5) and found["flip_rate"] == pytest.approx(flipped, abs=1e-5)
    assert found["drop_low"] <= found["drop"] <= found["drop_high"]


def test_the_generator_that_is_missed_most_is_the_worst(subject: Subject, params: Params, faces: Path, here: Path):
    table = judged(faces)
    fake = (table["label"] == "fake").to_numpy()
    missed = fake & (np.arange(len(table)) % 2 == 0)
    table["generator"] = np.where(missed, "missed", np.where(fake, "found", manifest.NO_GENERATOR))
    table["probability_fake"] = np.where(fake, np.where(missed, 0.2, 0.9), np.linspace(0.1, 0.5, len(table)))
    few = params.evaluate.model_copy(update={"attack_images": 0, "explain_images": 0, "robustness_images": 2})
    found = examine(subject, table, table, few)
    each = {name: figures["auc"]["value"] for name, figures in found["unseen_generators"].items()}
    assert each["missed"] < 0.5 and each["found"] == 1
    assert found["unseen_worst"] == "missed" and found["unseen_worst_auc"] == each["missed"]
    assert found["unseen_mean_auc"] == pytest.approx((each["missed"] + 1) / 2)


def test_attacks_stay_within_their_bound_and_transfer_from_another_size(
    subject: Subject, params: Params, package: Path, faces: Path, here: Path
):
    clean = torch.rand((5, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    change = attack(subject.network, subject.preprocess, clean, torch.tensor([0, 1, 0, 1, 1]), eps=4, steps=10)
    assert 0 < change.abs().max() <= 4 / 255 + 1e-6
    moved = clean + change
    assert moved.min() >= 0 and moved.max() <= 1
    other = here / "other"
    network, processor = model.build(ModelSettings(name="vit", init="scratch", config=CONFIG | {"image_size": 48}))
    model.save(network, processor, other)
    found = attacked(subject, judged(faces), params.evaluate.model_copy(update={"transfer_from": other}))
    assert (
        set(found) == {"n", "fgsm", "pgd10", "transfer_pgd10"}
        and found["transfer_pgd10"]["eps8"]["value"] >= found["pgd10"]["eps8"]["value"]
    )
    assert all(set(found[name][f"eps{eps}"]) == {"value", "low", "high"} for name in ("fgsm", "pgd10") for eps in (1, 2, 4, 8))
    with pytest.raises(StageError, match=r"evaluate.transfer_from"):
        attacked(subject, judged(faces), params.evaluate.model_copy(update={"transfer_from": here / "nothing"}))


def test_golden_examples_that_flip_are_listed(subject: Subject, package: Path):
    whole = verify(package)
    same = golden.flips(subject, whole)
    assert same["n"] == 4 and same["flips"] == [] and same["broken"] == 0
    cautious = Thresholds(f1=0.5, fpr1=0.9, fpr5=0.8, real_below=0.0, fake_above=0.0001)
    found = golden.flips(replace(subject, thresholds=cautious), whole)
    was_real = [example for example in whole.golden.values() if example.probability_fake < 0.4]
    assert {flip["now"] for flip in found["flips"]} == {"fake"} and found["broken"] == len(was_real)
    assert len(found["flips"]) == sum(example.probability_fake < 0.6 for example in whole.golden.values())
    assert golden.flips(subject, None) == {"package": None, "n": 0, "broken": 0, "flips": []}


def test_a_model_is_held_against_the_champion_or_else_the_package_before_it(package: Path, here: Path):
    assert golden.previous() is None
    for folder in (PACKAGE, golden.CHAMPION):
        shutil.copytree(package, folder)
        before = golden.previous()
        assert before is not None and before.path == folder
    (golden.CHAMPION / "card.md").write_text("changed")
    before = golden.previous()
    assert before is not None and before.path == PACKAGE
