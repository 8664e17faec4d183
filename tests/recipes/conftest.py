"""A workspace with a split data set, and settings for short trainings on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import manifest
from pipeline.params import Params, check_params, load_params
from tests.conftest import ROOT
from tests.recipes.small import ZOO, table


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a split data set; the tests' working directory."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for seed, (part, pairs) in enumerate({"train": 12, "val": 6, "test": 4}.items()):
            manifest.write(table(Path("data/raw"), pairs, seed), manifest.SPLITS / f"{part}.parquet")
        yield folder


@pytest.fixture
def settings(workspace: Path) -> Callable[..., Params]:
    """A function that returns settings for a training of two epochs; its arguments are keys of the section `train`."""

    def make(name: str = "vit", augment: dict[str, Any] | None = None, **recipe: Any) -> Params:
        content = load_params(ROOT / "params.yaml").model_dump(by_alias=True, mode="json")
        content["split"]["holdout_generators"] = []
        content["model"] = {"name": name, "init": "scratch", "config": ZOO[name]}
        small = {"epochs": 2, "batch_size": 8, "lr": 0.01, "bf16": False, "checkpoints_per_epoch": 3}
        content["train"] |= small | recipe
        content["augment"] |= augment or {}
        return check_params(content, Path("params.yaml"))

    return make
