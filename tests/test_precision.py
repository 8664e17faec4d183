"""Lower precision: used only if the answers stay the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline import runtime
from pipeline.detector import Detector
from pipeline.exporting.convert import MOST_DROP, to_int8, to_onnx
from pipeline.exporting.precision import SCORES, cost, reduced_precision
from pipeline.exporting.rounding import Bfloat16, round_weights
from pipeline.images import read
from pipeline.network import model
from pipeline.package import GOLDEN, GRAPH, INT8, ONNX, Calibration, seal, verify
from pipeline.params import load_params
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime
from tests.conftest import ROOT
from tests.package_helpers import META, SIDE, tiny_package

PICTURES = np.random.default_rng(1).integers(0, 255, (64, SIDE, SIDE, 3), dtype=np.uint8)
LABELS = np.arange(64) % 2


@pytest.fixture(scope="module")
def values(package: Path) -> np.ndarray:
    return Preprocess.load(package).normalise(PICTURES)


def quantise(package: Path, labels: np.ndarray = LABELS) -> None:
    to_int8(package / GRAPH, package / INT8, Preprocess.load(package), PICTURES[:24], PICTURES, labels)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    torch.manual_seed(0)  # the loss in 8 bits depends on the weights: 1 in 100 untrained networks loses more than allowed
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny")


def test_a_package_in_8_bits_is_served_in_8_bits_and_answers_alike(package: Path, tmp_path: Path, monkeypatch):
    seal(package, META | {"bf16": False})
    full = Detector.load(package, "cpu")
    assert full.runtime.name == "openvino f32 on CPU"
    quantise(package)
    seal(package, META | {"int8": True})
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f avx512_vnni")
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
    less = Detector.load(package, "cpu")
    assert less.runtime.name == "openvino int8 on CPU"
    less.check()
    pictures = [read(path) for path in verify(package).golden]
    for before, after in zip(full.predict(pictures), less.predict(pictures), strict=True):
        assert 0 < abs(before.probability_fake - after.probability_fake) < 0.02
        assert np.corrcoef(before.embedding, after.embedding)[0, 1] > 0.99
    (heat, _), (heat_less, _) = full.explain(full.prepare(pictures[0])), less.explain(less.prepare(pictures[0]))
    assert heat.method == heat_less.method == "attention_rollout"
    assert np.corrcoef(heat.heat.ravel(), heat_less.heat.ravel())[0, 1] > 0.9


def test_what_would_cost_too_much_stays_in_32_bits(package: Path, values: np.ndarray):
    def scores(graph: str) -> np.ndarray:
        logits, _ = OpenVinoRuntime(package / graph)(values)
        return logits[:, 1] - logits[:, 0]

    full = scores(GRAPH)
    labels = (full > np.median(full)).astype(int)  # the network's AUC is 1 on these, so any change of its scores may lower it
    quantise(package, labels)
    assert np.abs(scores(INT8) - full).max() > 0 and roc_auc_score(labels, scores(INT8)) >= 1 - MOST_DROP


def test_a_graph_in_8_bits_that_costs_too_much_is_not_packed(package: Path, values: np.ndarray, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.exporting.precision.MOST_AUC_DROP", -1.0)  # any network loses more
    own = Path(shutil.copytree(package, tmp_path / "own"))
    logits, _ = OpenVinoRuntime(own / GRAPH)(values)
    scores = logits[:, 1] - logits[:, 0]
    rows = []
    for index in (*scores.argsort()[:12], *scores.argsort()[-12:]):
        Image.fromarray(PICTURES[index]).save(tmp_path / f"{index}.png")
        label = "fake" if scores[index] > np.median(scores) else "real"
        rows.append({"image_id": str(index), "path": f"{index}.png", "part": "test", "label": label, "score": scores[index]})
    table = pd.DataFrame(rows)
    SCORES.parent.mkdir()
    table.to_parquet(SCORES)
    calibration, params = {"temperature": 1.0, "bias": 0.0, "thresholds": {"f1": 0.5}}, load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"export": params.export.model_copy(update={"int8": True})})
    found = reduced_precision(own, Preprocess.load(own), {"train": table, "val": table}, calibration, params)
    assert found["int8"]["n"] == 24 and not found["int8"]["allowed"]
    assert not list((own / INT8).parent.glob(f"{Path(INT8).stem}.*"))


def test_a_processor_that_is_slow_in_8_bits_does_not_run_in_them(package: Path, tmp_path: Path, monkeypatch):
    quantise(package)
    seal(package, META | {"bf16": False, "int8": True})
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f avx512_vnni2 fma")
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
    assert Detector.load(package, "cpu").runtime.name == "openvino f32 on CPU"


def test_a_cpu_computes_in_bfloat16_where_it_can_and_the_package_allows_it(package: Path):
    found = {}
    for allowed in (True, False):
        seal(package, META | {"bf16": allowed})
        detector = Detector.load(package, "cpu")
        detector.check()
        found[allowed] = detector.runtime.name
    assert found == {True: f"openvino {'bf16' if runtime.has_bf16() else 'f32'} on CPU", False: "openvino f32 on CPU"}


def test_fewer_bits_that_change_a_golden_example_are_not_used(package: Path, caplog):
    quantise(package)
    seal(package, META | {"bf16": True, "int8": True, "golden_tolerance": 1e-5})
    detector = Detector.load(package, "cpu")
    detector.check()
    assert detector.runtime.name == "openvino f32 on CPU"
    assert ("does not run in bf16 here" in caplog.text) == runtime.has_bf16()
    assert ("does not run in int8 here" in caplog.text) == runtime.has_vnni()


def test_golden_examples_are_held_against_what_was_recorded_in_as_many_bits(package: Path, tmp_path: Path, monkeypatch):
    package = Path(shutil.copytree(package, tmp_path / "own"))
    quantise(package)
    whole = seal(package, META)
    golden = whole.golden
    answers = Detector(whole, OpenVinoRuntime(package / INT8)).predict([read(path) for path in golden])
    entries = {path.name: example.model_dump() for path, example in golden.items()}
    (package / GOLDEN / "golden.json").write_text(
        json.dumps({name: entries[name] | {"int8": answer.probability_fake} for name, answer in zip(entries, answers, strict=True)})
    )
    seal(package, META | {"bf16": False, "int8": True, "golden_tolerance": 1e-5})
    found = []
    for flags in ("avx512_vnni", "avx2"):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}")
        monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
        detector = Detector.load(package, "cpu")
        detector.check()
        found.append(detector.runtime.precision)
    assert found == ["int8", "f32"]


def test_an_onnx_graph_takes_any_number_of_images(package: Path, values: np.ndarray, tmp_path: Path):
    target = tmp_path / Path(ONNX).name
    assert to_onnx(package / "model", target, values) < 1e-4
    onnx, full = OpenVinoRuntime(target), OpenVinoRuntime(package / GRAPH)
    for number in (1, 5):
        for found, expected in zip(onnx(values[:number]), full(values[:number]), strict=True):
            assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("noise", "allowed"), [(0.0, True), (0.01, True), (2.0, False)])
def test_fewer_bits_are_allowed_where_they_cost_next_to_nothing(noise: float, allowed: bool):
    rng = np.random.default_rng(0)
    labels = np.repeat(["real", "fake"], 250)
    scores = rng.normal(np.where(labels == "fake", 1.0, -1.0), 1.0)
    found = cost(pd.DataFrame({"label": labels, "score": scores}), scores + noise * rng.normal(size=500), Calibration(temperature=1), 0.5)
    assert found["n"] == 500 and found["allowed"] is allowed
    assert (found["flips"] > 0.05) is not allowed


def test_fewer_bits_that_only_spoil_the_calibration_are_not_allowed():
    labels = np.repeat(["real", "fake"], 250)
    scores = 2 * np.random.default_rng(0).normal(np.where(labels == "fake", 1.0, -1.0), 1.0)  # the true odds
    found = cost(pd.DataFrame({"label": labels, "score": scores}), scores * 4, Calibration(temperature=1), 0.5)
    assert found["auc_drop"] == 0 and found["flips"] == 0 and found["ece_rise"] > 0.005 and not found["allowed"]


def test_bfloat16_by_rounding_is_as_far_from_32_bits_as_the_real_one(package: Path):
    values = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model.load(package / "model")(pixel_values=values).logits
        real = model.load(package / "model").to(torch.bfloat16)(pixel_values=values.bfloat16()).logits.float()
        network = round_weights(model.load(package / "model"))
        with Bfloat16():
            found = network(pixel_values=values.bfloat16().float()).logits
    assert torch.equal(found, found.bfloat16().float())
    assert 0 < (found - full).abs().mean() < 3 * (real - full).abs().mean()
