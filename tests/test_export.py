"""The stage `export` on data that is stored differently from the embedded data set."""

import hashlib
import json
import shutil
from collections.abc import Callable

import pandas as pd
import pytest
from PIL import Image

from pipeline import evaluate, export, ingest, manifest, split, train
from pipeline.detector import Detector
from pipeline.errors import StageError
from pipeline.face_weights import SHA256
from pipeline.images import Picture
from pipeline.package import GOLDEN, PACKAGE, verify
from pipeline.params import Params
from pipeline.var import var_folder
from tests.data_helpers import noise
from tests.face_helpers import YUNET, needs_yunet
from tests.package_helpers import CONFIG

QUICK = {
    "model.name": "vit",
    "model.config": CONFIG,
    "train.epochs": 1,
    "train.bf16": False,
    "evaluate.bootstrap": 100,
    "evaluate.attack_images": 0,
    "evaluate.robustness_images": 4,
    "evaluate.explain_images": 0,
    "evaluate.baseline_images": 20,
    "export.golden": 2,
    "export.onnx": False,
}


def run_all_but_validation(params: Params) -> None:
    """Run the stages up to export; instead of validating, say that nothing is known about shortcuts."""
    for stage in (ingest, split):
        stage.run(params)
    export.VALIDATION.write_text(json.dumps({"shortcut": {"auc": {"value": None}, "unjudged": "too few"}}))
    for stage in (train, evaluate, export):
        stage.run(params)


def test_golden_examples_come_out_of_shards(prepare: Callable[..., Params], new_store: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store())
    params = prepare(data__shard=True, **QUICK)
    run_all_but_validation(params)
    test = manifest.read_parts()["test"]
    assert all(".tar/" in path for path in test["path"])

    golden = verify(PACKAGE).golden
    assert len(golden) == 4
    listed = json.loads((PACKAGE / GOLDEN / "golden.json").read_text())
    found = {hashlib.sha256(path.read_bytes()).hexdigest(): listed[path.name]["label"] for path in golden}
    assert found.items() <= {(image_id, label) for image_id, label in zip(test["image_id"], test["label"], strict=True)}

    # An export whose answers differ from the network's, however little is allowed, is none.
    exact = params.model_copy(update={"export": params.export.model_copy(update={"tolerance": 1e-15})})
    with pytest.raises(StageError, match=r"the exported graph \(openvino\) differs by .*export\.tolerance"):
        export.run(exact)
    monkeypatch.setattr(export, "NETWORK_TOLERANCE", -1.0)
    with pytest.raises(StageError, match="a golden example's probability differs"):
        export.run(params)


@needs_yunet
def test_a_package_of_faces_has_their_detector_and_cuts_them_out_as_its_training_images_do(
    prepare: Callable[..., Params], new_store: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store())
    rendered = {"kind": "procedural", "reals": 30, "size": 96, "generators": {"self_blend": 1.0}, "jpeg_quality": [90, 98]}
    params = prepare(data__sources=[rendered], ingest__face_detector="yunet", **QUICK)
    fetched = var_folder() / f"yunet-{SHA256[:8]}.onnx"
    fetched.parent.mkdir(exist_ok=True)
    shutil.copy(YUNET, fetched)
    run_all_but_validation(params)
    meta = verify(PACKAGE).meta
    assert meta.trained_on == "faces" and "as large as the training pictures show it" in (PACKAGE / "card.md").read_text()
    detector = Detector.load(PACKAGE, "cpu")
    scene = noise(400, 300)
    path = manifest.read_parts()["train"]["path"].iloc[0]
    scene.paste(Image.open(path), (150, 100))
    (part,) = detector.prepare(Picture(scene, "PNG")).parts
    assert part.crop == pytest.approx((150, 100, 246, 196), abs=12)


def test_golden_examples_are_pictures_that_a_service_takes():
    table = pd.DataFrame({"label": ["real", "fake"] * 3, "bytes": 1000, "width": 100, "height": 100})
    table.loc[2, "bytes"] = 30_000_000
    table.loc[3, ["width", "height"]] = 8000
    assert export.servable(table).index.tolist() == [0, 1, 4, 5]
    with pytest.raises(StageError, match=r"every fake image .* a service refuses"):
        export.servable(table.drop(index=[1, 5]))


def test_the_drift_reference_has_independent_images():
    groups = [f"g{index // 6}" for index in range(1200)]
    table = pd.DataFrame({"group": groups, "label": ["real", "fake", "fake", "fake", "fake", "fake"] * 200})
    found = export.independent(table, 500, seed=1)
    assert found["group"].is_unique and len(found) == 200
    assert 70 < (found["label"] == "real").sum() < 130
    assert export.independent(table, 150, seed=1)["group"].is_unique
    assert found.equals(export.independent(table, 500, seed=1))
    # Of 10 groups, one image each would be too few to compare with.
    few = export.independent(table.assign(group=[f"g{index // 120}" for index in range(1200)]), 500, seed=1)
    assert len(few) == 200 and set(few["group"].value_counts()) == {20}
    assert len(export.independent(table[:12], 500, seed=1)) == 12
