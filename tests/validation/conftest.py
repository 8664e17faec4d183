"""Small tables for real Great Expectations, with the images that they describe."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.params import Params, load_params
from pipeline.settings import apply
from tests.conftest import ROOT
from tests.data_helpers import picture
from tests.validation.use import REALS, row, table_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 reals and 30 fakes, all different, stored in the same way."""
    folder = tmp_path_factory.mktemp("faces")
    for number, label in enumerate(("real", "fake")):
        for index in range(REALS):
            picture(folder / label / f"{index:02d}.jpg", seed=1000 * number + index, quality=90)
    return folder


@pytest.fixture(scope="module")
def clean(pictures: Path) -> pd.DataFrame:
    """Their manifest: each fake in the group of a real."""
    return table_of([row(path, path.parent.name, f"person{path.stem}") for path in sorted(pictures.rglob("*.jpg"))])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """A function that writes settings into an empty folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)

    def make(**values: object) -> Params:
        Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
        # 60 images of noise differ by chance; most tests are not about shortcuts in metadata.
        settings: dict[str, object] = {"validate.min_images": 10, "validate.shortcut.warn": 1.0, "validate.shortcut.refuse": 1.0}
        settings |= {"validate.ranges": {"brightness": [25, 230], "contrast": [1, None], "jpeg_quality": [None, 95]}}
        apply(settings | {name.replace("__", "."): value for name, value in values.items()}, Path("params.yaml"))
        return load_params()

    return make
