"""The comparison of a challenger with the champion on the same images, and its page in MLflow."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from flows import registry
from flows.comparison import MOST, description, note
from pipeline import compare, manifest
from pipeline.detector import Detector
from pipeline.images import read
from pipeline.package import Package, PackageError, seal, verify
from pipeline.params import load_params
from pipeline.settings import apply
from tests.conftest import ROOT, run
from tests.package_helpers import META, SIDE, tiny_package
from tests.service_helpers import aliases, client, versions
from tests.validation.use import row, table_of

RUN = (sys.executable, "-m", "flows.run")


def scored(rng: np.random.Generator, labels: np.ndarray, skill: float) -> tuple[np.ndarray, float]:
    return 1 / (1 + np.exp(-(skill * (2 * labels - 1) + rng.normal(size=len(labels))))), 0.5


def test_a_better_detector_is_found_to_be_better_and_a_copy_is_not():
    rng = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 400), np.repeat(np.arange(200), 4)
    weak, strong = scored(rng, labels, 0.3), scored(rng, labels, 1.5)
    better = compare.difference(labels, groups, strong, weak, 300, 7)
    for name in ("f1", "auc"):
        gap = better[name]["difference"]
        assert gap["value"] == pytest.approx(better[name]["challenger"] - better[name]["champion"], abs=2e-5)
        assert 0 < gap["low"] < gap["value"] < gap["high"]
        assert compare.difference(labels, groups, weak, strong, 300, 7)[name]["difference"]["high"] < 0
        assert compare.difference(labels, groups, weak, weak, 300, 7)[name]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_the_interval_is_paired_and_drawn_by_groups():
    rng = np.random.default_rng(1)
    labels, groups = np.tile([0, 1], 400), np.repeat(np.arange(40), 20)
    hard = np.repeat(rng.normal(size=40), 20) * (1 - 2 * labels)  # a group that is hard is hard for both
    one, other = ((1 / (1 + np.exp(-((2 * labels - 1) + hard + 0.2 * rng.normal(size=800)))), 0.5) for _ in range(2))
    gap = compare.difference(labels, groups, one, other, 500, 7)["auc"]["difference"]
    for side in (one, other):
        alone = compare.difference(labels, groups, side, (labels * 1.0, 0.5), 500, 7)["auc"]["difference"]
        assert gap["high"] - gap["low"] < 0.5 * (alone["high"] - alone["low"])
    # Repeating the same images in the same groups adds no information.
    twice = [(np.repeat(side[0], 2), 0.5) for side in (one, other)]
    again = compare.difference(np.repeat(labels, 2), np.repeat(groups, 2), twice[0], twice[1], 500, 7)
    assert again["auc"]["difference"] == pytest.approx(gap, abs=2e-5)


def test_of_one_class_there_is_no_difference_in_auc():
    labels = np.ones(20, int)
    side = (np.linspace(0, 1, 20), 0.5)
    found = compare.difference(labels, np.arange(20), side, side, 100, 7)
    assert found["auc"] == {"challenger": None, "champion": None, "difference": {"value": None, "low": None, "high": None}}
    assert found["f1"]["difference"]["value"] == 0


def test_each_package_judges_with_its_own_network_and_threshold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # two networks whose figures differ
    rng = np.random.default_rng(2)
    paths = [tmp_path / f"{index:02}.png" for index in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    rows = table_of([row(path, ("real", "fake")[index % 2], str(index)) for index, path in enumerate(paths)])
    manifest.SPLITS.mkdir(parents=True)
    for part in manifest.PARTS:
        rows.to_parquet(manifest.SPLITS / f"{part}.parquet")
    expected, packages, pictures = {}, {}, [read(path) for path in paths]
    for side, share in (("challenger", 0.2), ("champion", 0.7)):  # share of the images that it calls real
        package = tiny_package(tmp_path / side)
        scores = np.array([answer.probability_fake for answer in Detector.load(package, "cpu").predict(pictures)])
        threshold = float(np.quantile(scores, share))
        packages[side] = seal(package, META | {"thresholds": META["thresholds"] | {"f1": threshold}}).path
        truth = rows["label"] == "fake"
        expected[side] = {"f1": f1_score(truth, scores >= threshold), "auc": roc_auc_score(truth, scores)}
    assert min(abs(expected["challenger"][name] - expected["champion"][name]) for name in ("f1", "auc")) > 0.01
    found = compare.run(load_params(ROOT / "params.yaml"), packages["champion"], "1", packages["challenger"])["parts"]["test"]
    for side, figures in expected.items():
        for name, value in figures.items():
            assert found[name][side] == pytest.approx(value, abs=1e-4), (side, name)


def test_a_long_card_is_cut_where_mlflow_has_no_more_room(tmp_path):
    tiny = tiny_package(tmp_path / "tiny")
    (tmp_path / "card.md").write_text("a line of the card\n" * 1000)
    text = description(registry.Version(1, "run", {}), Package(tmp_path, verify(tiny).meta), "| a table |")
    assert len(text) <= MOST and "| a table |" in text and text.endswith("The rest: artifact `package/card.md`.")


def test_what_a_person_writes_on_a_version_stays_until_there_is_a_new_comparison(store: str, package: Path):
    versions(store, package, "passed", "passed")
    gap = {"challenger": 0.9, "champion": 0.8, "difference": {"value": 0.1, "low": 0.05, "high": 0.15}}
    compared = {"champion": {"version": "1"}, "parts": {"test": {"n": 60, "f1": gap, "auc": gap}}}
    compare.REPORT.parent.mkdir()
    for path in (compare.REPORT, compare.TABLE):
        path.write_text("{}")

    def noted(number: int, comparison: dict[str, Any] | None) -> registry.Version:
        note(registry.known(number), verify(package), comparison)
        return registry.known(number)

    for number, comparison in ((1, None), (2, compared)):
        version = noted(number, comparison)
        assert f"Reports: artifacts of run `{version.run_id}`" in version.description
        client(store).update_model_version("unmask", str(number), "Ada: seen, good")
        assert noted(number, comparison).description == "Ada: seen, good"
    version = noted(2, compared | {"champion": {"version": "3"}})
    assert "champion, version 3" in version.description and version.tags["compared_with"] == "3"


def test_a_version_whose_files_are_gone_is_named(store: str, package: Path, tmp_path: Path):
    versions(store, package, "passed")
    version = registry.known(1)
    assert verify(registry.download(version, tmp_path / "there"))
    shutil.rmtree(next(package.parent.glob(f"artifacts/{version.run_id}")))  # as `mlflow gc` does for a deleted run
    with pytest.raises(PackageError, match="no package of version 1 of unmask; was its run deleted"):
        registry.download(version, tmp_path / "again")


@pytest.fixture(scope="module")
def workspace(finished: Path, copy_workspace, prefect_home, tmp_path_factory) -> Iterator[Path]:
    """A workspace whose version 1 is the champion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(prefect_home()))
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        patch.delenv("PREFECT_API_URL", raising=False)
        folder = copy_workspace(finished)
        run(folder, *RUN)
        yield folder


@pytest.mark.long
def test_a_new_version_is_compared_with_the_champion_and_its_page_shows_it(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    assert json.loads((workspace / "var/promotions.jsonl").read_text())["by"].startswith("make run")
    assert "model card" in client(store).get_model_version("unmask", "1").description
    assert not (workspace / "reports/comparison.json").exists()

    apply({"export.golden": 3}, workspace / "params.yaml")
    run(workspace, *RUN)
    version = client(store).get_model_version("unmask", "2")
    report = json.loads((workspace / "reports/comparison.json").read_text())
    assert report["champion"]["version"] == "1" and set(report["parts"]) == {"test", "unseen", "golden"}
    assert report["challenger"]["package"] == verify(workspace / "models/package").digest
    evaluation = json.loads((workspace / "reports/evaluation.json").read_text())
    assert report["parts"]["test"]["n"] == evaluation["n"]
    # The comparison uses the serving detector; on a CPU with 32 bits, it agrees with evaluation.
    serving, test = Detector.load(workspace / "models/package", "cpu"), pd.read_parquet(workspace / "data/splits/test.parquet")
    scores = [answer.probability_fake for answer in serving.predict([read(workspace / path) for path in test["path"]])]
    found = pytest.approx(report["parts"]["test"]["auc"]["challenger"], abs=1e-4)
    assert roc_auc_score(test["label"] == "fake", scores) == found
    assert serving.runtime.precision != "f32" or evaluation["test"]["auc"]["value"] == found
    assert report["parts"]["golden"]["n"] in range(6, 11)
    assert version.tags["compared_with"] == "1" and version.tags["difference.test.f1"] == "+0.0000 (+0.0000 to +0.0000)"
    for text in ("champion, version 1", "| golden, ", "reports/evaluation.html", version.run_id, "model card"):
        assert text in version.description, text
    artifacts = {artifact.path for artifact in client(store).list_artifacts(version.run_id, "reports")}
    assert {"reports/comparison.json", "reports/comparison.md"} <= artifacts
    assert aliases(store) == {"champion": "1", "challenger": "2"}
    assert "compare: package of" not in run(workspace, *RUN)  # not compared twice


@pytest.mark.long
def test_where_the_settings_say_so_a_version_that_is_not_worse_takes_over(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    apply({"promotion.auto": "if_not_worse", "promotion.margin": 0.1, "export.golden": 4}, workspace / "params.yaml")
    printed = run(workspace, *RUN)
    assert "promotion.auto: if_not_worse" in printed
    assert aliases(store) == {"champion": "3", "challenger": "3", "previous": "1"}
    line = json.loads((workspace / "var/promotions.jsonl").read_text().splitlines()[-1])
    assert (line["version"], line["previous"], line["gate"]) == (3, 1, "passed") and line["by"].startswith("the flow train, promotion.auto")
    assert line["bento"] == client(store).get_model_version("unmask", "3").tags["bento"]


@pytest.mark.long
def test_a_champion_that_cannot_be_compared_with_holds_nothing_up(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    shutil.rmtree(next((workspace / "mlartifacts").glob(f"{client(store).get_model_version('unmask', '3').run_id}/artifacts/package")))
    apply({"export.golden": 5}, workspace / "params.yaml")
    printed = run(workspace, *RUN)
    assert "not compared with the champion, version 3" in printed
    assert client(store).get_model_version("unmask", "4").tags["gate"] == "passed"
    assert aliases(store)["champion"] == "3" and not (workspace / "reports/comparison.json").exists()
