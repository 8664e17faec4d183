"""The table of images: one row an image, kept as Parquet."""

from pathlib import Path
from typing import Literal

import pandas as pd

LABELS = ("real", "fake")
"""Class names in the order of the model's outputs; "fake" is the positive class everywhere."""

ID2LABEL = dict(enumerate(LABELS))
LABEL2ID = {name: index for index, name in ID2LABEL.items()}

NO_GENERATOR = "none"
"""The `generator` of a real image."""

COLUMNS = {
    "image_id": "str",  # sha256 of the file's bytes, hex
    "path": "str",  # relative to the project's root folder, with forward slashes
    "label": "str",  # one of LABELS
    "generator": "str",  # what made a fake; NO_GENERATOR for a real image
    "group": "str",  # images that must stay in one part: same person, source picture or video, parents of a fake
    "source": "str",  # name of the data source
    "width": "int64",  # pixels, after EXIF orientation
    "height": "int64",
    "format": "str",  # Pillow's name: JPEG, PNG, WEBP ...
    "bytes": "int64",
    "phash": "str",  # 64-bit perceptual hash, 16 hex digits
}
"""Columns that every manifest has. Any further column is an attribute and becomes a slice of the evaluation."""

MANIFEST = Path("data/manifest.parquet")
SPLITS = Path("data/splits")
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
UNSEEN = "unseen"
"""Name of the optional fourth part: generators that neither train nor val contain."""


class ManifestError(ValueError):
    """A manifest lacks a column or holds a label that is not allowed."""


def attributes(table: pd.DataFrame) -> list[str]:
    """Names of the columns beyond COLUMNS."""
    return [column for column in table.columns if column not in COLUMNS]


def check(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Return the table with its columns in order and of the right types.

    Raises:
        ManifestError: naming `origin`, the missing columns or the labels that are not allowed.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ManifestError(f"{origin}: column {', '.join(missing)} is missing")
    unknown = sorted(set(table["label"]) - set(LABELS))
    if unknown:
        raise ManifestError(f"{origin}: label {', '.join(map(repr, unknown))}; allowed are {', '.join(LABELS)}")
    return table[[*COLUMNS, *attributes(table)]].astype(COLUMNS)


def read(path: Path) -> pd.DataFrame:
    """Read a manifest or a part of it.

    Raises:
        ManifestError: if the file is missing or is not a manifest.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; `dvc repro` makes it")
    return check(pd.read_parquet(path), str(path))


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a manifest, sorted by path, so that equal content gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check(table, str(path)).sort_values("path", ignore_index=True).to_parquet(path, index=False)


def read_parts(folder: Path = SPLITS) -> dict[str, pd.DataFrame]:
    """The parts train, val and test, and `unseen` where there is one."""
    parts = {part: read(folder / f"{part}.parquet") for part in PARTS}
    unseen = folder / f"{UNSEEN}.parquet"
    return parts | ({UNSEEN: read(unseen)} if unseen.is_file() else {})
