"""Behaviour of the trained demonstration: what must not change a verdict, what must, and the minimum it must achieve.

The kinds of test are those of Ribeiro et al., ACL 2020 (invariance, direction, minimum function).
"""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score

from pipeline.detector import Detector
from pipeline.images import Picture, decode
from pipeline.manifest import read_parts
from tests.conftest import ROOT, run

pytestmark = pytest.mark.long
IMAGES = 200


@pytest.fixture(scope="module")
def demo(make_workspace, tmp_path_factory) -> Path:
    """A workspace in which the demonstration was trained with the settings that it ships with."""
    folder: Path = make_workspace(tmp_path_factory.mktemp("demo") / "workspace")
    shutil.copy(ROOT / "params.yaml", folder)
    run(folder, sys.executable, "-m", "dvc", "repro")
    return folder


@pytest.fixture(scope="module")
def detector(demo: Path) -> Detector:
    return Detector.load(demo / "models/package", "cpu")


@pytest.fixture(scope="module")
def test_part(demo: Path) -> pd.DataFrame:
    """Reals of the test part, each with the path of the fake that was made from it."""
    rows = read_parts(demo / "data/splits")["test"]
    named = rows.assign(key=rows["group"] + rows["path"].map(lambda path: Path(path).stem))
    pairs = named[named["label"] == "real"].merge(named[named["label"] == "fake"], on="key", suffixes=("", "_fake"))
    return pairs.head(IMAGES)


def opened(demo: Path, paths: pd.Series) -> list[Image.Image]:
    return [decode((demo / path).read_bytes()).rgb for path in paths]


def probabilities(detector: Detector, images: list[Image.Image]) -> np.ndarray:
    return np.array([answer.probability_fake for answer in detector.predict([Picture(image, "JPEG") for image in images])])


def stored(image: Image.Image, kind: str, **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return decode(buffer.getvalue()).rgb


def test_saving_as_png_changes_nothing(demo: Path, detector: Detector, test_part: pd.DataFrame):
    images = opened(demo, test_part["path"].head(20))
    again = [stored(image, "PNG") for image in images]
    np.testing.assert_allclose(probabilities(detector, again), probabilities(detector, images), atol=1e-6)


def test_a_mirrored_or_mildly_compressed_picture_keeps_its_class(demo: Path, detector: Detector, test_part: pd.DataFrame):
    images = opened(demo, pd.concat([test_part["path"], test_part["path_fake"]]))
    threshold = detector.package.meta.thresholds.f1
    before = probabilities(detector, images)
    for changed in ([ImageOps.mirror(image) for image in images], [stored(image, "JPEG", quality=95) for image in images]):
        after = probabilities(detector, changed)
        assert ((before >= threshold) == (after >= threshold)).mean() >= 0.8
        assert np.corrcoef(before, after)[0, 1] >= 0.8


def test_the_stronger_a_forgery_the_higher_its_score(demo: Path, detector: Detector, test_part: pd.DataFrame):
    reals, fakes = opened(demo, test_part["path"]), opened(demo, test_part["path_fake"])
    means = []
    for strength in (0, 0.5, 1):
        mixed = [Image.blend(real, fake, strength) for real, fake in zip(reals, fakes, strict=True)]
        means.append(probabilities(detector, mixed).mean())
    assert means[0] < means[1] < means[2]


def test_it_tells_a_real_from_the_fake_that_was_made_from_it(demo: Path, detector: Detector, test_part: pd.DataFrame):
    real = probabilities(detector, opened(demo, test_part["path"]))
    fake = probabilities(detector, opened(demo, test_part["path_fake"]))
    assert (fake > real).mean() >= 0.8
    assert roc_auc_score([0] * len(real) + [1] * len(fake), np.concatenate([real, fake])) >= 0.8
