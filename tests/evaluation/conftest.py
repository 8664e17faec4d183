"""A package to evaluate, and settings with which that takes seconds."""

from pathlib import Path

import pytest

from pipeline.evaluation.scoring import Subject
from pipeline.package import verify
from pipeline.params import Model as ModelSettings
from pipeline.params import Params, load_params
from tests.conftest import ROOT
from tests.package_helpers import CONFIG

QUICK = {"bootstrap": 100, "attack_images": 4, "robustness_images": 6, "baseline_images": 120, "explain_images": 4}


@pytest.fixture(scope="module")
def params() -> Params:
    made = load_params(ROOT / "params.yaml")
    network = ModelSettings(name="vit", init="scratch", config=CONFIG)
    return made.model_copy(update={"evaluate": made.evaluate.model_copy(update=QUICK), "model": network})


@pytest.fixture(scope="module")
def subject(package: Path) -> Subject:
    return Subject.from_package(verify(package))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
