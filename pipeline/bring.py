"""Brings images from where a source has them into data/raw, each decoded once and described on the way."""

import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from pipeline import engine, shards
from pipeline.describe import describe
from pipeline.faces import FaceDetector
from pipeline.fingerprint import fingerprint
from pipeline.images import ImageError, Limits, read_bytes
from pipeline.ledger import Ledger, stamp_of
from pipeline.params_data import Ingest, Normalise
from pipeline.staging import write

CODE = ("bring.py", "describe.py", "faces.py", "images.py", "shards.py")
BATCH = 64
"""Images that a worker takes at a time."""

LONGEST_NAME = 200
"""Bytes of a name that every file system takes, with room for what is put before and behind it."""


@dataclass(frozen=True)
class Batch:
    """Images that one worker brings in: of each, the file's place, its name inside the source, and its stamp."""

    items: tuple[tuple[str, str, str], ...]
    shard: Path | None = None


def bring(
    listed: pd.DataFrame, out: Path, settings: Ingest, *, name: str, shard: bool, in_place: bool, where: engine.Engine
) -> pd.DataFrame:
    """Make `out` hold the listed images and describe each; what is there already and unchanged is not touched.

    Args:
        listed: rows as pipeline.sources.listing gives them, sorted by path.
        out: data/raw/<name>; what is not listed is removed from it, as it is a copy.
        settings: limits, normalisation, face detector.
        name: of the source.
        shard: pack the images into tar files of shards.MEMBERS.
        in_place: leave the images where they are and write their hashes to `out`/SHA256SUMS.
        where: engine of the work.

    Returns:
        The listed rows with the columns that follow from the file; `path` is now that of the project, `file` still the source's. A
        file that cannot be used has `reason` and `detail` instead, which are missing for the others.
    """
    out.mkdir(parents=True, exist_ok=True)
    mode = f"{'shard' if shard else 'files'}-{'in-place' if in_place else 'copied'}"
    ledger = Ledger(Path("var/ingest") / f"{name}-{mode}-{fingerprint(settings, *CODE, exclude={'max_broken'})}")
    listed = listed.assign(stamp=[stamp_of(file) for file in listed["file"]])
    known = ledger.known(listed)
    new = listed.loc[~listed["path"].isin(known["name"]), ["file", "path", "stamp"]]
    batches = _shards(new, known, out) if shard else map(Batch, _batches(new, BATCH))
    work = partial(bring_batch, out=out, settings=settings, in_place=in_place)
    with tqdm(total=len(listed), initial=len(listed) - len(new), desc=f"ingest {name}", unit="image") as progress, ledger:
        for rows in engine.run(work, batches, where):
            ledger.add(rows)
            progress.update(len(rows))
    described = ledger.known(listed)
    ledger.compact(described)
    described = described.drop(columns=["stamp", "stored_stamp"])
    table = listed.drop(columns=["stamp"]).merge(described, left_on="path", right_on="name", validate="1:1")
    if in_place:
        sums = table[table["reason"].isna()].sort_values("stored")
        text = "".join(f"{digest}  {path}\n" for digest, path in zip(sums["image_id"], sums["stored"], strict=True))
        write(out / "SHA256SUMS", text.encode())
    _remove_others(out, set() if in_place else set(table["stored"].dropna()), {"SHA256SUMS"} if in_place else set())
    return table.drop(columns=["path", "name"]).rename(columns={"stored": "path"})


def bring_batch(batch: Batch, out: Path, settings: Ingest, in_place: bool) -> list[dict[str, Any]]:
    """Read, check, describe and store the images of one batch.

    Returns:
        One row an image: name, stamp, stored, stored_stamp, reason, detail, and manifest.DESCRIBED.
    """
    rows, members = [], []
    for file, name, stamp in batch.items:
        row = {"name": name, "stamp": stamp, "stored": file, "stored_stamp": "", "reason": None, "detail": None}
        try:
            data, described = _prepare(Path(file), settings)
        except ImageError as error:
            rows.append(row | {"reason": error.code, "detail": error.message})
            continue
        except OSError as error:
            rows.append(row | {"reason": "unreadable", "detail": error.strerror or str(error)})
            continue
        if not in_place:
            member = stored_name(name, settings.normalise)
            target = (batch.shard or out) / member
            row["stored"] = target.as_posix()
            if batch.shard:
                members.append((member, data))
            else:
                _store(target, data)
                row["stored_stamp"] = stamp_of(target)
        rows.append(row | described)
    if batch.shard:
        part = batch.shard.with_suffix(f".{os.getpid()}.part")
        shards.pack(part, members)
        part.replace(batch.shard)
        packed = stamp_of(batch.shard)
        rows = [row | {"stored_stamp": packed} if row["reason"] is None else row for row in rows]
    return rows


def stored_name(name: str, normalise: Normalise | None) -> str:
    """The name that an image of a source gets in data/raw: its own, if file systems take it there."""
    if normalise and not name.lower().endswith((".jpg", ".jpeg")):
        name += ".jpg"
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest <= LONGEST_NAME and len(name.encode()) <= 5 * LONGEST_NAME:
        return name
    return f"long-names/{hashlib.sha256(name.encode()).hexdigest()[:32]}{Path(name[-10:]).suffix}"


def _prepare(file: Path, settings: Ingest) -> tuple[bytes, dict[str, Any]]:
    limits = Limits(max_bytes=int(settings.max_megabytes * 1e6), max_pixels=int(settings.max_megapixels * 1e6))
    data = read_bytes(file, limits)
    detector = _detector(settings.face_detector) if settings.face_detector else None
    # The detector looks at what is stored, so that its columns describe the same picture as the others.
    described, picture = describe(data, limits, None if settings.normalise else detector)
    if min(picture.size) < settings.min_side:
        width, height = picture.size
        raise ImageError("too_small", f"{width} x {height} pixels, ingest.min_side is {settings.min_side}", "Bring larger images.")
    if settings.normalise:
        data = normalised(picture, settings.normalise)
        described, _ = describe(data, limits, detector)
    return data, described


def normalised(picture: Image.Image, settings: Normalise) -> bytes:
    """The picture as a JPEG whose longer side has `size` pixels, chroma 4:2:0, without metadata."""
    scale = settings.size / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling="4:2:0")
    return buffer.getvalue()


@cache
def _detector(weights: Path) -> FaceDetector:
    return FaceDetector(weights)


def _store(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, data)


def _batches(new: pd.DataFrame, size: int) -> Iterator[tuple[tuple[str, str, str], ...]]:
    items = list(zip(new["file"], new["path"], new["stamp"], strict=True))
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def _shards(new: pd.DataFrame, known: pd.DataFrame, out: Path) -> Iterator[Batch]:
    """Batches of one shard each, under the lowest numbers that are free: a run that was cut short then fills its own gaps."""
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
