"""Training as users see it: it resumes after a kill, is repeatable, and gets pairs that differ only in the forgery."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from pipeline.params import load_params
from pipeline.settings import apply
from pipeline.training.dataset import Pairs
from tests.conftest import ROOT, kill_when_training, run

TRAIN = (sys.executable, "-m", "pipeline.train")
AUGMENT = load_params(ROOT / "params.yaml").augment


def trained(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "models/trained/model.safetensors")


@pytest.fixture
def untrained(finished: Path, copy_workspace) -> Path:
    """A workspace with data that is ready for a training of several epochs."""
    folder = copy_workspace(finished)
    apply({"train.batch_size": 8, "train.patch_dropout": 0.0}, folder / "params.yaml")
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe", [{}, {"patch_dropout": 0.5}, {"tune": "lora", "ema": 0.99, "workers": 1}], ids=["full", "patches", "lora"]
)
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(untrained: Path, copy_workspace, recipe: dict[str, object]):
    apply({f"train.{key}": value for key, value in recipe.items()}, untrained / "params.yaml")
    undisturbed = copy_workspace(untrained)
    run(undisturbed, *TRAIN)

    kill_when_training(TRAIN, untrained)
    run(untrained, *TRAIN)

    before, after = (json.loads((folder / "reports/train.json").read_text()) for folder in (undisturbed, untrained))
    assert after["resumed_from_step"] > 0 and before["resumed_from_step"] == 0
    assert len(after["epochs"]) == len(before["epochs"]) == 4
    for one, other in zip(before["epochs"], after["epochs"], strict=True):
        assert other == pytest.approx(one, abs=1e-4, nan_ok=True)
    expected, found = trained(undisturbed), trained(untrained)
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        np.testing.assert_allclose(found[name], weights, atol=1e-5, err_msg=name)


def test_labels_are_written_down_and_nothing_is_pickled(finished: Path):
    config = json.loads((finished / "models/package/model/config.json").read_text())
    assert config["id2label"] == {"0": "real", "1": "fake"}
    kinds = {path.suffix for path in (finished / "models/package").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".xml", ".bin", ".onnx", ".parquet", ".md", ".jpg"}


def test_a_pair_is_one_group_and_gets_one_augmentation():
    rng = np.random.default_rng(0)
    rows = [{"path": f"{label}/{index}.jpg", "label": label, "group": f"g{index // 2}"} for label in ("real", "fake") for index in range(6)]
    images = rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    images[6:] = images[:6]  # each fake is a copy of its real, so what differs comes from the augmentation
    table = pd.DataFrame(rows).assign(image_id=lambda rows: rows["path"], parents="")
    pairs = Pairs(table, images, AUGMENT.model_copy(update={"noise": 1.0, "jpeg": 1.0}), pairing=True, seed=1)
    for index in range(len(pairs)):
        example = pairs[index]
        assert example["labels"].tolist() == [0, 1]
        assert np.array_equal(example["pixel_values"][0], example["pixel_values"][1])
    first = pairs[0]["pixel_values"]
    assert np.array_equal(first, pairs[0]["pixel_values"])  # the same draw when a killed run resumes
    pairs.epoch = 1
    assert not np.array_equal(first, pairs[0]["pixel_values"])  # another draw in the next epoch
