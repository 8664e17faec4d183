"""Adversarial attacks that evaluation runs on the model, on images that are not square."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluation.judge_package import describe_folder
from pipeline.evaluation.robustness import attacked
from pipeline.evaluation.scoring import Subject
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.package import Calibration, Thresholds
from pipeline.params import Model, load_params
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from tests.conftest import ROOT
from tests.package_helpers import CONFIG, SIDE


def test_an_attack_that_transfers_is_on_the_part_that_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(16):
        path = tmp_path / "faces" / ("real", "fake")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (SIDE, 4 * SIDE, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    network, processor = model.build(Model(name="vit", init="scratch", config=CONFIG))
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 8  # so that an attack on one image does not work on another
    model.save(network, processor, tmp_path / "trained")
    network, preprocess = model.load(tmp_path / "trained"), Preprocess(size=SIDE, keep_aspect=True)
    table, _ = describe_folder(tmp_path / "faces")
    calibration, thresholds = Calibration(temperature=1), Thresholds.model_construct(f1=0.5)
    subject = Subject(network, runtime(WithEmbedding(network).eval(), SIDE), preprocess, calibration, thresholds)
    settings = load_params(ROOT / "params.yaml").evaluate.model_copy(update={"attack_images": 16, "transfer_from": tmp_path / "trained"})
    found = attacked(subject, table, settings)
    # The same weights give the same attack, even if their own preprocessing would give an image another shape.
    assert found["transfer_pgd10"] == found["pgd10"]
