"""Stage ingest: brings the sources' images into data/raw and describes each of them in the manifest."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import imagehash
import pandas as pd
from tqdm import tqdm

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.images import ImageError, read
from pipeline.params import Params
from pipeline.sources import materialise

RAW = Path("data/raw")
REPORT = Path("reports/ingest.json")
QUARANTINE = Path("reports/quarantine.csv")


def run(params: Params) -> dict[str, Any]:
    """Make data/manifest.parquet from the sources. Files that cannot be used are listed in reports/quarantine.csv.

    Raises:
        StageError: if a source cannot be used, or more than `ingest.max_broken` of the files are broken.
    """
    tables = []
    for source in params.data.sources:
        table = materialise(source, RAW / source.name)
        # A group is a matter of one source: equal names in two sources are different people.
        table["group"] = source.name + "/" + table["group"]
        table["path"] = (RAW / source.name).as_posix() + "/" + table["path"]
        tables.append(table.assign(source=source.name))
    listed = pd.concat(tables, ignore_index=True)

    with ProcessPoolExecutor() as pool:
        described = pool.map(_describe, listed["path"], [params.ingest.min_side] * len(listed), chunksize=64)
        found = pd.DataFrame(tqdm(described, total=len(listed), desc="describe", unit="image"))
    table = listed.merge(found, on="path")

    broken = table[table["reason"].notna()][["path", "reason", "detail"]]
    table = table[table["reason"].isna()].drop(columns=["reason", "detail"])
    table, duplicates, conflicts = _one_row_a_picture(table)
    quarantine = pd.concat([broken, conflicts], ignore_index=True)
    QUARANTINE.parent.mkdir(parents=True, exist_ok=True)
    quarantine.to_csv(QUARANTINE, index=False)
    if len(broken) > params.ingest.max_broken * len(listed):
        first = "\n".join(f"  {row.path}: {row.detail}" for row in broken.head(5).itertuples())
        raise StageError(
            f"{len(broken)} of {len(listed)} files are broken, more than ingest.max_broken = {params.ingest.max_broken:g} allows; "
            f"all are in {QUARANTINE}, the first are\n{first}"
        )
    _forget_what_left(params)
    manifest.write(table, manifest.MANIFEST)
    report = {
        "images": len(table),
        "by_label": table["label"].value_counts().to_dict(),
        "by_generator": table["generator"].value_counts().to_dict(),
        "by_source": table["source"].value_counts().to_dict(),
        "quarantined": len(quarantine),
        "duplicates": duplicates,
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _describe(path: str, min_side: int) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "reason": None, "detail": None}
    try:
        picture = read(Path(path))
    except ImageError as error:
        return row | {"reason": error.code, "detail": error.message}
    width, height = picture.rgb.size
    if min(width, height) < min_side:
        return row | {"reason": "too_small", "detail": f"{width} x {height} pixels, ingest.min_side is {min_side}"}
    data = Path(path).read_bytes()
    return row | {
        "image_id": hashlib.sha256(data).hexdigest(),
        "width": width,
        "height": height,
        "format": picture.format,
        "bytes": len(data),
        "phash": str(imagehash.phash(picture.rgb)),
    }


def _one_row_a_picture(table: pd.DataFrame) -> tuple[pd.DataFrame, int, pd.DataFrame]:
    """Leave one row of each file content, and none of a content that stands under both labels."""
    labels = table.groupby("image_id")["label"].transform("nunique")
    conflicts = table.loc[labels > 1, ["path"]].assign(reason="conflict", detail="the same file stands under real and under fake")
    agreed = table[labels == 1]
    unique = agreed.drop_duplicates("image_id")
    return unique, len(agreed) - len(unique), conflicts


def _forget_what_left(params: Params) -> None:
    """Remove our own copies of sources that params.yaml no longer has."""
    names = {source.name for source in params.data.sources}
    for folder in RAW.iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


if __name__ == "__main__":
    from pipeline.cli import stage

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stage(run)
