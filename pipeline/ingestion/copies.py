"""Deletes our own copies of images that may no longer be kept."""

from collections.abc import Collection
from pathlib import Path

from pipeline import shards

RAW = Path("data/raw")


def delete(images: Collection[str]) -> int:
    """Delete images from data/raw. A shard that holds one is deleted as a whole; ingest packs its other images again.

    Args:
        images: SHA-256 of each, which is its file name in the sources.

    Returns:
        How many copies were found.
    """
    if not images:
        return 0
    files = [file for file in RAW.rglob("*") if file.name.partition(".")[0] in images and file.is_file()]
    packed = {
        shard: sum(Path(name).name.partition(".")[0] in images for name in shards.members(shard))
        for shard in RAW.rglob(f"*{shards.SUFFIX}")
        if shard.is_file()
    }
    for file in [*files, *(shard for shard, held in packed.items() if held)]:
        file.unlink()
    return len(files) + sum(packed.values())
