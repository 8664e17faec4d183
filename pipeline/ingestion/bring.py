"""Copies the images of a source into data/raw; each is decoded once and described on the way."""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pipeline import shards
from pipeline.errors import StageError
from pipeline.face_weights import identity
from pipeline.fingerprint import fingerprint
from pipeline.ingestion import engine
from pipeline.ingestion.batch import Batch, bring_batch
from pipeline.ingestion.ledger import Ledger
from pipeline.params_data import Ingest
from pipeline.staging import stamp_of, write

CODE = ("ingestion/batch.py", "ingestion/describe.py", "faces.py", "images.py", "shards.py")
LEDGERS = Path("var/ingest")
"""Ledgers of earlier runs, one folder per source, mode, settings and code."""

BATCH = 64
"""Images per task of a worker."""


def bring(
    listed: pd.DataFrame, out: Path, settings: Ingest, *, name: str, shard: bool, in_place: bool, where: engine.Engine
) -> pd.DataFrame:
    """Make `out` hold the listed images and describe each; those already there and unchanged are not touched.

    Args:
        listed: rows from pipeline.sources.listing, sorted by path.
        out: data/raw/<name>, which holds only copies; any other file in it is deleted.
        settings: limits, normalisation, face detector.
        name: name of the source.
        shard: pack the images into tar files of shards.MEMBERS images.
        in_place: leave the images where they are and write their hashes to `out`/SHA256SUMS.
        where: engine that runs the work.

    Returns:
        The listed rows plus the columns derived from the file; `path` is now its path in the project, `file` still the one in the source.
        An unusable file has `reason` and `detail` instead, which are missing for the others.

    Raises:
        StageError: if images just stored in `out` are no longer as they were stored, or the face detector cannot be loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    mode = f"{'shard' if shard else 'files'}-{'in-place' if in_place else 'copied'}"
    made = f"{fingerprint(settings, *CODE, exclude={'max_broken'})}-{identity(settings.face_detector)}"
    ledger = Ledger(LEDGERS / f"{name}-{mode}-{made}")
    listed = listed.assign(stamp=[stamp_of(file) for file in listed["file"]])
    known = ledger.known(listed)
    _remove_others(out, set() if in_place else set(known["stored"].dropna()), {"SHA256SUMS"} if in_place else set())
    new = listed.loc[~listed["path"].isin(known["name"]), ["file", "path", "stamp"]]
    batches = _shards(new, known, out) if shard else map(Batch, _batches(new, BATCH))
    work = partial(bring_batch, out=out, settings=settings, in_place=in_place)
    with tqdm(total=len(listed), initial=len(listed) - len(new), desc=f"ingest {name}", unit="image") as progress, ledger:
        for rows in engine.run(work, batches, where):
            ledger.add(rows)
            progress.update(len(rows))
    described = ledger.known(listed)
    lost = listed.loc[~listed["path"].isin(described["name"]), "file"]
    if len(lost):
        raise StageError(
            f"{len(lost)} of {len(listed)} images of the source {name} were copied, but are missing from {out} or changed there; the first "
            f"is {lost.iloc[0][:200]}. Does another program write there? Run it again"
        )
    ledger.compact(described)
    described = described.drop(columns=["stamp", "stored_stamp"])
    table = listed.drop(columns=["stamp"]).merge(described, left_on="path", right_on="name", validate="1:1")
    if in_place:
        sums = table[table["reason"].isna()].sort_values("stored")
        text = "".join(f"{digest}  {path}\n" for digest, path in zip(sums["image_id"], sums["stored"], strict=True))
        write(out / "SHA256SUMS", text.encode())
    return table.drop(columns=["path", "name"]).rename(columns={"stored": "path"})


def _batches(new: pd.DataFrame, size: int) -> Iterator[tuple[tuple[str, str, str], ...]]:
    items = list(zip(new["file"], new["path"], new["stamp"], strict=True))
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def _shards(new: pd.DataFrame, known: pd.DataFrame, out: Path) -> Iterator[Batch]:
    """Batches of one shard each, with the lowest free numbers, so that an interrupted run fills its own gaps."""
    taken = {shard for path in known["stored"] if (shard := shards.of(Path(path)))}
    free = (path for number in itertools.count() if (path := out / f"{number:06d}{shards.SUFFIX}") not in taken)
    for items, shard in zip(_batches(new, shards.MEMBERS), free, strict=False):
        yield Batch(items, shard)


def _remove_others(out: Path, stored: set[str], besides: set[str]) -> None:
    wanted = stored | {(out / name).as_posix() for name in besides}
    wanted |= {shard.as_posix() for path in stored if (shard := shards.of(Path(path)))}
    for folder, _, files in os.walk(out, topdown=False):
        for file in files:
            path = Path(folder) / file
            if path.as_posix() not in wanted:
                path.unlink()
        if Path(folder) != out and not any(Path(folder).iterdir()):
            Path(folder).rmdir()
