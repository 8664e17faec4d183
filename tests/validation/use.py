"""Helpers for the tests of validation: images, their manifest, and planted problems."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from PIL import Image

from pipeline.images import read, statistics
from pipeline.manifest import COLUMNS, MANIFEST
from pipeline.params import Validate
from pipeline.validation import suites
from pipeline.validation.findings import Finding

REALS = 30
REAL, FAKE = "real/07.jpg", "fake/07.jpg"


def row(path: Path, label: str, group: str) -> dict[str, object]:
    """The manifest's row of a file, as ingest describes it."""
    seen, data = read(path), path.read_bytes()
    with Image.open(path) as image:
        tables = getattr(image, "quantization", {})
    measured = statistics(seen)
    return {
        "image_id": hashlib.sha256(data).hexdigest(),
        "path": path.as_posix(),
        "label": label,
        "generator": "swap" if label == "fake" else "none",
        "group": group,
        "source": "faces",
        "parents": "",
        "seed": None,
        "width": seen.rgb.width,
        "height": seen.rgb.height,
        "format": seen.format,
        "bytes": len(data),
        "phash": hashlib.sha256(seen.pixels.tobytes()).hexdigest()[:16],
        "mirrored_phash": hashlib.sha256(seen.pixels.tobytes()).hexdigest()[32:48],
        "pixel_hash": hashlib.sha256(seen.pixels.tobytes()).hexdigest()[16:32],
        **{name: measured[name] for name in ("blur", "brightness", "contrast")},
        **dict(zip(("red", "green", "blue"), seen.pixels.mean((0, 1)), strict=True)),
        "jpeg_quality": 90.0 if tables else None,
        "quantisation": hashlib.sha256(repr(tables).encode()).hexdigest()[:8] if tables else "",
        "subsampling": "4:2:0" if tables else "",
        "metadata_bytes": 0,
        "faces": None,
        "face_share": None,
    }


def table_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(COLUMNS).sort_values("path", ignore_index=True)


def save(table: pd.DataFrame) -> pd.DataFrame:
    MANIFEST.parent.mkdir(exist_ok=True)
    table.to_parquet(MANIFEST, index=False)
    return table


def failures(table: pd.DataFrame, settings: Validate, accepted: pd.DataFrame | None = None) -> dict[str, Finding]:
    """Failed checks, by name."""
    found = suites.check(suites.manifest(table, settings, accepted), suites.manifest_frame(table, settings))
    return {finding["name"]: finding for finding in found if not finding["success"]}


def change(name: str, value: object, *endings: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Set a column in the rows whose path ends like this."""
    return lambda table: table.assign(**{name: table[name].mask(table["path"].str.endswith(endings), value)})


def twin(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Give a fake the value of a real."""

    def plant(table: pd.DataFrame) -> pd.DataFrame:
        return change(column, table.loc[table["path"].str.endswith(REAL), column].iloc[0], FAKE)(table)

    return plant


def twin_of_one_class(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        return change(column, table.loc[table["path"].str.endswith(REAL), column].iloc[0], "real/08.jpg")(table)

    return plant
