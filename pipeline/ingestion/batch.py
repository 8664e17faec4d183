"""Ingests one batch of images. A separate module without pandas, so that worker processes start instantly."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import shards
from pipeline.face_weights import loaded
from pipeline.faces import largest
from pipeline.images import ImageError, Limits, read_bytes
from pipeline.ingestion.describe import ENCODING, describe
from pipeline.params_data import Ingest, Normalise
from pipeline.staging import stamp_of

LONGEST_NAME = 200
"""Bytes of a file name that every file system accepts, with room for a prefix and a suffix."""


@dataclass(frozen=True)
class Batch:
    """Images for one worker. An item is the path of the file, its name inside the source, and its stamp."""

    items: tuple[tuple[str, str, str], ...]
    shard: Path | None = None


def bring_batch(batch: Batch, out: Path, settings: Ingest, in_place: bool) -> list[dict[str, Any]]:
    """Read, check, describe and store the images of one batch.

    Returns:
        One row per image: name, stamp, stored, stored_stamp, reason, detail, and manifest.DESCRIBED.
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
            member = stored_name(name, settings)
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


def stored_name(name: str, settings: Ingest) -> str:
    """Name of an image in data/raw: its name in the source, hashed if too long for file systems, with a suffix appended if re-encoded."""
    if settings.rewrites:
        name += ".jpg" if settings.normalise else ".png"  # even to the name of such a file: `a.png` and `a.png.jpg` must not collide
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest <= LONGEST_NAME and len(name.encode()) <= 5 * LONGEST_NAME:
        return name
    return f"long-names/{hashlib.sha256(name.encode()).hexdigest()[:32]}{Path(name[-10:]).suffix}"


def _prepare(file: Path, settings: Ingest) -> tuple[bytes, dict[str, Any]]:
    limits = Limits(max_bytes=int(settings.max_megabytes * 1e6), max_pixels=int(settings.max_megapixels * 1e6))
    data = read_bytes(file, limits)
    detector = loaded(settings.face_detector) if settings.face_detector else None
    # The detector looks at what is stored, so that its columns describe the same picture as the others.
    described, pixels = describe(data, limits, None if settings.rewrites else detector)
    if detector and settings.face_margin is not None:
        # As the service judges an upload: where no face is found, the whole picture.
        face = largest(pixels, detector, settings.face_margin)
        pixels = pixels if face is None else face
    height, width, _ = pixels.shape
    if min(width, height) < settings.min_side:
        raise ImageError("too_small", f"{width} x {height} pixels, ingest.min_side is {settings.min_side}", "Use larger images.")
    if settings.rewrites:
        before, picture = described, Image.fromarray(pixels)
        data = normalised(picture, settings.normalise) if settings.normalise else lossless(picture)
        described, _ = describe(data, limits, detector)
        if not settings.normalise:  # the pixels still show how the source's file was compressed
            described |= {name: before[name] for name in ENCODING}
    return data, described


def normalised(picture: Image.Image, settings: Normalise) -> bytes:
    """The picture as a JPEG whose longer side has `size` pixels, chroma 4:2:0, without metadata."""
    scale = settings.size / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling="4:2:0")
    return buffer.getvalue()


def lossless(picture: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # noise hardly gets smaller at higher levels, which take ten times as long
    return buffer.getvalue()


def _store(target: Path, data: bytes) -> None:
    """Write directly to the final name: a file cut short by a kill has no row in the ledger, so the next run writes it again."""
    try:
        file = target.open("xb")
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except FileExistsError:
        target.unlink()  # not overwritten in place: it may be a link into DVC's cache
        file = target.open("xb")
    with file:
        file.write(data)
