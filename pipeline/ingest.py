"""Stage ingest: checks the sources' images, copies them into data/raw unless they are read in place, and describes each in the manifest."""

import glob
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.ingestion.bring import LEDGERS, bring
from pipeline.ingestion.duplicates import join
from pipeline.labels import LABELS
from pipeline.params import Params
from pipeline.params_data import FORGED, FeedbackSource, FolderSource
from pipeline.sources import forged, listing
from pipeline.staging import STAGING

RAW = Path("data/raw")
REPORT = Path("reports/ingest.json")
QUARANTINE = Path("reports/quarantine.csv")


def run(params: Params) -> dict[str, Any]:
    """Write data/manifest.parquet from the sources. Unusable files are listed in reports/quarantine.csv.

    Raises:
        StageError: if a source cannot be used, data/raw holds files that ingest did not make, a class has no image, or more than
            `ingest.max_broken` of the files are broken.
    """
    _check_owned(params)
    table = pd.concat([_brought(listing(source, STAGING / source.name), params, source.name) for source in params.data.sources])
    users = {source.name for source in params.data.sources if isinstance(source, FeedbackSource)}
    if params.data.forge:
        # Only rows that the manifest keeps are forged from: duplicates have no row there for their fakes to stand beside.
        pictures, _, _ = one_row_a_picture(table[table["reason"].isna()], users)
        fakes = _forge(pictures, params)
        table = pd.concat([table, _brought(fakes, params, FORGED)])
    table = table.reset_index(drop=True)

    broken = table[table["reason"].notna()]
    usable = table[table["reason"].isna()]
    unique, duplicates, conflicts = one_row_a_picture(usable, users)
    quarantine = pd.concat([broken, conflicts]).assign(path=lambda rows: rows["file"]).sort_values("path")
    quarantine = quarantine[["path", "source", "label", "reason", "detail"]]
    QUARANTINE.parent.mkdir(parents=True, exist_ok=True)
    quarantine.to_csv(QUARANTINE, index=False)
    if len(broken) > params.ingest.max_broken * len(table):
        few = broken.head(5)
        first = "\n".join(f"  {file[:200]}: {detail}" for file, detail in zip(few["file"], few["detail"], strict=True))
        raise StageError(
            f"{len(broken)} of {len(table)} files are broken, more than ingest.max_broken = {params.ingest.max_broken:g} allows; "
            f"all are in {QUARANTINE}, the first are\n{first}"
        )
    for label in LABELS:
        if not (unique["label"] == label).any():
            hint = " Set data.forge in params.yaml to make fakes from the reals." if label == "fake" and not params.data.forge else ""
            names = ", ".join(source.name for source in params.data.sources)
            raise StageError(f"no image of class {label} in the sources {names}; both classes are needed.{hint}")
    _forget_what_left(params)
    manifest.write(unique.drop(columns=["file", "reason", "detail"]), manifest.MANIFEST)
    report = {
        "images": len(unique),
        "by_label": _counts(unique, "label"),
        "by_generator": _counts(unique, "generator"),
        "by_source": _counts(unique, "source"),
        "quarantined": len(quarantine),
        "quarantined_by_reason": _counts(quarantine, "reason"),
        "duplicates": duplicates,
        "faces_looked_for": params.ingest.face_detector is not None,
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def one_row_a_picture(table: pd.DataFrame, users: Collection[str] = ()) -> tuple[pd.DataFrame, int, pd.DataFrame]:
    """Keep one row per picture, and none of a picture that is labelled both real and fake.

    Two files hold the same picture if their bytes or their pixels are equal. Near-duplicates do not count: a good forgery is one of its
    original; pipeline.split keeps them in one part instead. Groups that share a picture are merged: once the duplicate rows are dropped,
    nothing else shows that they belong together.

    Args:
        table: rows of usable images.
        users: sources of what users sent in. If another source has the same picture, their rows are dropped whatever their label:
            otherwise anybody could remove a picture from training by contradicting its label.

    Returns:
        The rows to keep, the number of duplicates, and the contradictory rows with `reason` and `detail`.
    """
    table = table.assign(together=_joined_groups(table))
    key, sent = table["pixel_hash"], table["source"].isin(users)
    outvoted = sent & key.isin(key[~sent])
    contradictory = table.groupby(key)["label"].transform("nunique") > 1
    agreed = table[~outvoted & (table["label"].mask(outvoted).groupby(key).transform("nunique") == 1)]
    conflicts = table[contradictory & ~table.index.isin(agreed.index)]
    other = table[contradictory].groupby("pixel_hash")["file"].agg(lambda files: "; ".join(files.head(4)))
    detail = "the same picture is labelled both real and fake: " + conflicts["pixel_hash"].map(other).astype("str")
    conflicts = conflicts.assign(reason="conflict", detail=detail)
    unique = agreed.sort_values("path").drop_duplicates("pixel_hash")
    codes, names = pd.factorize(unique["group"], sort=True)
    first = pd.Series(codes).groupby(unique["together"].to_numpy()).transform("min")  # of kept rows: copies alone rename no group
    unique = unique.assign(group=names[first]).drop(columns="together")
    return unique, len(table) - len(conflicts) - len(unique), conflicts


def _joined_groups(table: pd.DataFrame) -> np.ndarray:
    """int (rows,): equal for groups that share a picture, directly or through a chain of groups."""
    group, picture = (pd.factorize(table[column])[0] for column in ("group", "pixel_hash"))
    groups = int(group.max(initial=-1)) + 1
    return join(np.stack([group, groups + picture], axis=1), groups + int(picture.max(initial=-1)) + 1)[group]


def _brought(listed: pd.DataFrame, params: Params, name: str) -> pd.DataFrame:
    in_place = any(source.name == name and isinstance(source, FolderSource) and source.in_place for source in params.data.sources)
    table = bring(listed, RAW / name, params.ingest, name=name, shard=params.data.shard, in_place=in_place, where=params.data.engine)
    if "parents" not in table:
        # Group names are local to a source: the same name in two sources means different people.
        table = table.assign(group=name + "/" + table["group"], parents="", seed=pd.array([pd.NA] * len(table), "Int64"))
    return table.assign(source=name)


def _forge(pictures: pd.DataFrame, params: Params) -> pd.DataFrame:
    assert params.data.forge is not None
    sources = params.data.forge.sources or [source.name for source in params.data.sources]
    reals = pictures[(pictures["label"] == "real") & pictures["source"].isin(sources)]
    if reals.empty:
        raise StageError(f"data.forge: there is no real image in the sources {', '.join(sources)}")
    ingest = params.ingest
    return forged.listing(
        reals,
        params.data.forge,
        STAGING / FORGED,
        lossless=ingest.normalise is not None,
        detector=ingest.face_detector,
        where=params.data.engine,
    )


def _check_owned(params: Params) -> None:
    """Raise StageError if the user's own images are in data/raw, where everything is deleted that is not a copy of a listed image."""
    for source in params.data.sources:
        if isinstance(source, FolderSource) and source.path.resolve().is_relative_to(RAW.resolve()):
            raise StageError(f"data source {source.name}: {source.path} is in {RAW}, which is for copies only: move it elsewhere")
    accepted = set(pd.read_parquet(manifest.ACCEPTED, columns=["source"])["source"]) if manifest.ACCEPTED.is_file() else set()
    for folder in RAW.glob("*/"):
        if folder.name not in accepted and any(folder.iterdir()) and not any(LEDGERS.glob(f"{glob.escape(folder.name)}-*")):
            raise StageError(f"ingest has no record of creating {folder}, and would delete it: move it out of {RAW}")


def _forget_what_left(params: Params) -> None:
    """Remove our copies of sources that params.yaml no longer has and, without `data.forge`, forged fakes: they still show the faces."""
    names = {source.name for source in params.data.sources} | ({FORGED} if params.data.forge else set())
    for folder in RAW.glob("*/"):
        if folder.name not in names:
            shutil.rmtree(folder)
    if not params.data.forge:
        shutil.rmtree(STAGING / FORGED, ignore_errors=True)


def _counts(table: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(name): int(count) for name, count in table[column].value_counts().sort_index().items()}


if __name__ == "__main__":
    from pipeline.cli import stage

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stage(run)
