"""Deletes our own copies of images that may no longer be kept."""

from collections.abc import Collection
from itertools import chain
from pathlib import Path

import pandas as pd

from pipeline import manifest, shards
from pipeline.params_data import FORGED
from pipeline.staging import CACHE, STAGING

RAW = Path("data/raw")


def delete(images: Collection[str]) -> int:
    """Delete images from data/raw, with the fakes that were forged from them, and whatever was decoded for training.

    A shard that holds one is deleted as a whole; ingest packs its other images again.

    Args:
        images: SHA-256 of each, which is its file name in the sources.

    Returns:
        How many copies and forgeries were found.
    """
    if not images:
        return 0
    wanted = {*images, *_forged(images)}
    places = chain(RAW.rglob("*"), (STAGING / FORGED).rglob("*"))
    files = [file for file in places if _name(file) in wanted and file.is_file()]
    packed = {
        shard: sum(_name(Path(name)) in wanted for name in shards.members(shard))
        for shard in RAW.rglob(f"*{shards.SUFFIX}")
        if shard.is_file()
    }
    found = len(files) + sum(packed.values())
    # The files last: after a kill, they still say that there is something to delete.
    for file in [*(CACHE.glob("*.npy") if found else ()), *files, *(shard for shard, held in packed.items() if held)]:
        file.unlink()
    return found


def _forged(images: Collection[str]) -> set[str]:
    """Names of the fakes that have one of these images as a parent."""
    if not manifest.MANIFEST.is_file():
        return set()
    table = pd.read_parquet(manifest.MANIFEST, columns=["image_id", "path", "source", "parents"])
    ids = set(table.loc[[_name(Path(path)) in images for path in table["path"]], "image_id"])
    forged = table[table["source"] == FORGED]
    made = [not ids.isdisjoint(parents.split(" ")) for parents in forged["parents"]]
    return {_name(Path(path)) for path in forged.loc[made, "path"]}


def _name(path: Path) -> str:
    """Its file's name without suffixes, of which ingest may have appended one."""
    return path.name.partition(".")[0]
