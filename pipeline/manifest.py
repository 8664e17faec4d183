"""The table of images: one row per image, stored as Parquet."""

import hashlib
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa

from pipeline.labels import LABELS

NO_GENERATOR = "none"
"""The `generator` of a real image."""

COLUMNS = {
    "image_id": "str",  # sha256 of the file's bytes, hex
    "path": "str",  # relative to the project's root folder, with forward slashes; in a shard: the tar's path / the member's name
    "label": "str",  # one of LABELS
    "generator": "str",  # what made a fake; NO_GENERATOR for a real image
    "group": "str",  # images that must stay in one part: same person, source picture or video, parents of a fake
    "source": "str",  # name of the data source
    "parents": "str",  # image_ids of the pictures that a forged fake was made from, separated by spaces; empty where unknown
    "seed": "Int64",  # of the random draws that made a forged fake; missing where unknown
    "width": "int64",  # pixels, after EXIF orientation
    "height": "int64",
    "format": "str",  # Pillow's name: JPEG, PNG, WEBP ...
    "bytes": "int64",
    "phash": "str",  # 64-bit perceptual hash, 16 hex digits
    "mirrored_phash": "str",  # the same of the picture's mirror image
    "pixel_hash": "str",  # 64-bit hash of luma and mean colour, 16 hex digits: equal for one picture in two files
    "blur": "float64",  # variance of the Laplacian of luma, higher is sharper
    "brightness": "float64",  # mean of luma, 0..255
    "contrast": "float64",  # standard deviation of luma, 0..255
    "red": "float64",  # mean of the channel, 0..255
    "green": "float64",
    "blue": "float64",
    "jpeg_quality": "float64",  # 1..100 as libjpeg counts it, estimated from the luma table; missing if the file is not a JPEG
    "quantisation": "str",  # short hash of the JPEG's quantisation tables; empty where there are none
    "subsampling": "str",  # of the JPEG's chroma: 4:4:4, 4:2:2, 4:2:0 ...; empty if the file is not a JPEG
    "metadata_bytes": "int64",  # EXIF, ICC profile, XMP and comments
    "faces": "Int64",  # faces found; missing where no detector was set
    "face_share": "float64",  # of the picture's area, the largest face; missing where no face was found or looked for
}
"""Columns that every manifest has. Any further column is an attribute and becomes a slice of the evaluation."""

GIVEN = ("path", "label", "generator", "group", "source", "parents", "seed")
DESCRIBED = {name: kind for name, kind in COLUMNS.items() if name not in GIVEN}
"""Columns computed from the image file alone; the others come from its source."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}
"""Of the image files that people use."""

SCORED = ("part", "score", "probability_fake")
"""Columns that evaluation adds to those of a manifest."""
SIZE = "size"
"""Column that evaluation slices by as well: a picture's longer side."""

MANIFEST = Path("data/manifest.parquet")
ACCEPTED = Path("data/accepted.parquet")
"""The manifest of the last data version that passed validation."""

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


def digest(table: pd.DataFrame) -> str:
    """Hash of the images of a part in their order, with label, path, group and source; other columns may change."""
    given = table[["image_id", "path", "label", "group", "source"]]
    return hashlib.sha256(pd.util.hash_pandas_object(given, index=False).to_numpy().tobytes()).hexdigest()


def check(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Return the table with its columns in order and of the right types.

    Raises:
        ManifestError: naming `origin`, the missing columns or the labels that are not allowed.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ManifestError(f"{origin}: column {', '.join(missing)} is missing")
    unknown = sorted(set(table["label"].unique()) - set(LABELS))
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
    try:
        table = pd.read_parquet(path)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{path} cannot be read: {error}") from None
    return check(table, str(path))


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a manifest, sorted by path, so that equal content gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check(table, str(path)).sort_values("path", ignore_index=True).to_parquet(path, index=False)


def read_parts(folder: Path = SPLITS) -> dict[str, pd.DataFrame]:
    """The parts train, val and test, and `unseen` if there is one."""
    parts = {part: read(folder / f"{part}.parquet") for part in PARTS}
    unseen = folder / f"{UNSEEN}.parquet"
    return parts | ({UNSEEN: read(unseen)} if unseen.is_file() else {})


def origins(fakes: pd.DataFrame, known: pd.DataFrame) -> list[str | None]:
    """The path of the real that each fake was made from, None where that is unknown.

    It is the fake's first parent, or else the real of its group whose file has the same name, or else the only real of its group.
    """
    reals = known[known["label"] == "real"]
    by_id = dict(zip(reals["image_id"], reals["path"], strict=True))
    by_name = {(group, _bare(path)): path for group, path in zip(reals["group"], reals["path"], strict=True)}
    alone = reals.drop_duplicates("group", keep=False).set_index("group")["path"].to_dict()
    return [
        by_id.get(parents.split(" ")[0]) or by_name.get((group, _bare(path))) or alone.get(group)
        for parents, group, path in zip(fakes["parents"], fakes["group"], fakes["path"], strict=True)
    ]


def _bare(path: str) -> str:
    """The file's name without the suffixes of image formats, of which ingest may have appended one."""
    name = Path(path)
    while name.suffix.lower() in SUFFIXES:
        name = name.with_suffix("")
    return name.name
