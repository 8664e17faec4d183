"""Images packed into tar files: DVC and file systems then hold hundreds of files instead of millions.

A member is addressed as if the tar were a folder: `data/raw/web/000012.tar/real/a.jpg`. It is read in place, by its offset.
"""

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

SUFFIX = ".tar"
MEMBERS = 1000
"""Images per shard: tens of megabytes, which upload in one piece and are rewritten in a second after a change."""


def of(path: Path) -> Path | None:
    """The shard that holds a path, or None where the path is a plain file."""
    return next((parent for parent in path.parents if parent.suffix == SUFFIX and parent.is_file()), None)


def read(shard: Path, member: str) -> bytes:
    """The bytes of one member.

    Raises:
        FileNotFoundError: if the shard has no such member.
    """
    found = _index(shard, shard.stat().st_mtime_ns).get(member)
    if found is None:
        raise FileNotFoundError(f"{shard} has no member {member!r}")
    offset, size = found
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def members(shard: Path) -> tuple[str, ...]:
    """Names of a shard's members."""
    return tuple(_index(shard, shard.stat().st_mtime_ns))


def pack(shard: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a shard; equal members give equal bytes, whoever writes them and when. If interrupted, it leaves a partial file."""
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))


@lru_cache(maxsize=64)
def _index(shard: Path, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Name -> offset and size. `mtime_ns` makes the cache miss for a rewritten shard."""
    with tarfile.open(shard) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
