"""Tables of images that do not exist."""

import hashlib
from typing import Any

import pandas as pd

from pipeline.manifest import COLUMNS, check
from pipeline.params import Params, Split, load_params
from tests.conftest import ROOT

SETTINGS = Split(shares={"train": 0.7, "val": 0.15, "test": 0.15}, duplicate_radius=4, holdout_generators=[], seed=7)


def params(**values: Any) -> Params:
    """The project's settings, with SETTINGS and changes for the split."""
    settings = Split.model_validate(SETTINGS.model_dump() | values)
    return load_params(ROOT / "params.yaml").model_copy(update={"split": settings})


def image(name: str, **columns: Any) -> dict[str, Any]:
    """A row of the manifest whose hashes are far from those of all others (for up to some ten thousand images)."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    hashes = {"phash": digest[:16], "mirrored_phash": digest[32:48], "pixel_hash": digest[16:32]}
    empty = {column: "" if kind == "str" else 0 for column, kind in COLUMNS.items()}
    own = {"image_id": digest, "path": name, "label": "real", "generator": "none", "group": name, "source": "a", "format": "JPEG"}
    return empty | own | hashes | columns


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return check(pd.DataFrame(rows), "the test")
