"""The starter model: it answers on a fresh clone, and says what it is."""

import csv
import sys
from pathlib import Path

import pytest

from pipeline.detector import Detector
from pipeline.face_weights import NONE
from pipeline.package import STARTER, verify
from tests.conftest import ROOT, run
from tests.service_helpers import served

PACKAGE = ROOT / STARTER


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a fresh clone that the service and batch scoring read."""
    (tmp_path / "models").mkdir()
    (tmp_path / STARTER).symlink_to(PACKAGE)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    return tmp_path


def test_it_is_whole_small_and_gives_the_answers_that_it_was_packed_with():
    package = verify(PACKAGE)
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*")) <= 30_000_000
    Detector.load(PACKAGE, "cpu", NONE).check()
    answers = [(example.label, example.probability_fake) for example in package.golden.values()]
    assert {label for label, _ in answers} == {"real", "fake"}


def test_it_says_what_it_is_and_on_what_terms():
    card = (PACKAGE / "card.md").read_text()
    assert "research demonstration" in card.partition("\n## ")[0]
    assert "dfdc-faces" in card and "no licence" in card
    assert "Apache License" in (PACKAGE / "LICENSE").read_text()


def test_batch_scoring_answers_with_it_before_any_training(clone):
    run(clone, sys.executable, "-m", "pipeline.score", str(PACKAGE / "golden"), "--out", "scores.csv")
    with (clone / "scores.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    package, precision = verify(PACKAGE), Detector.load(PACKAGE, "cpu", NONE).runtime.precision
    for path, example in package.golden.items():
        expected = pytest.approx(example.expected(precision), abs=package.meta.golden_tolerance)
        assert float(rows[path.name]["probability_fake"]) == expected


@pytest.mark.parametrize("chosen", [{}, {"UNMASK_PACKAGE": str(STARTER)}])
def test_the_service_answers_with_it_before_any_promotion_and_when_it_is_told_to(clone, chosen):
    with served(clone, **chosen) as client:
        picture = next((PACKAGE / "golden").glob("*.jpg"))
        answer = client.post("/predict", files={"image": picture.read_bytes()}).raise_for_status().json()
        assert answer["model"]["version"] == "starter"
        assert answer["verdict"] in ("real", "fake", "uncertain")
        assert "research demonstration" in client.get("/model/card").raise_for_status().text
