"""Forges fakes from the real images of other sources: real faces alone are enough to start with."""

import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image
from tqdm import tqdm

from pipeline.face_weights import identity, loaded
from pipeline.faces import FaceDetector
from pipeline.fingerprint import fingerprint
from pipeline.forge import METHODS
from pipeline.forge.face import Face
from pipeline.images import OWN, Picture, decode, identify, read_bytes
from pipeline.ingestion import engine
from pipeline.ingestion.describe import METADATA
from pipeline.params_data import Forge
from pipeline.staging import write

FAMILY = 8
"""Groups that share donors for swaps, on average. A swap ties two people together, and they then have to stay in one part: families keep
what is tied together small."""

BATCH = 16
TRIES = 3
LIES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How to lay an upright picture so that this EXIF orientation turns it upright again."""
MOST_METADATA = 65_000
"""Bytes of EXIF, XMP, profile or comment that fit into one segment of a JPEG; longer ones are rare, and left out."""


@dataclass(frozen=True)
class Task:
    """One fake to make: files of its real and of the donor (the real itself if the method needs none), and where to write it."""

    target: str
    donor: str
    method: str
    seed: int
    out: Path


def listing(
    reals: pd.DataFrame, settings: Forge, staging: Path, *, lossless: bool, detector: Path | None, where: engine.Engine
) -> pd.DataFrame:
    """Make missing fakes, delete those no longer wanted, and list the fakes.

    Which real gets a fake, by which method and from which donor depends only on the seed and the images, not on their order, the workers
    or earlier runs. A new real may become the donor of a few swaps, which are then made again.

    Args:
        reals: file, image_id, group of each real image.
        staging: where the fakes are kept; any other file in it is deleted.
        lossless: store fakes as PNG, because they are re-encoded like everything else later; otherwise each is stored as its real is.
        detector: YuNet's ONNX file; without one, a face is assumed to fill the centre of its picture.

    Returns:
        One row per fake: file, path, label, generator, group, parents (image_ids), seed. Reals that no fake could be made from (no
        face found, nothing changed) have none.
    """
    out = staging / fingerprint(settings, "forge", "faces.py", "sources/forged.py", exclude={"sources", "per_real", "methods"})
    out = out / f"{'png' if lossless else 'as-real'}-{identity(detector)}"
    out.mkdir(parents=True, exist_ok=True)
    plan = _plan(reals, settings)
    plan["name"] += [".png" if lossless else Path(file).suffix for file in plan["target"]]
    plan["file"] = out.as_posix() + "/" + plan["name"]
    tasks = [
        Task(*row) for row in zip(plan["target"], plan["donor"], plan["generator"], plan["seed"], map(Path, plan["file"]), strict=True)
    ]
    missing = [task for task in tasks if not task.out.exists() and not _marker(task.out).exists()]
    batches = [tuple(missing[start : start + BATCH]) for start in range(0, len(missing), BATCH)]
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc="forge", unit="image") as progress:
        for done in engine.run(partial(_forge_batch, lossless=lossless, detector=detector), batches, where):
            progress.update(done)
    _drop_others(staging, {path for task in tasks for path in (task.out, _marker(task.out))})
    made = plan[[Path(file).exists() for file in plan["file"]]]
    made = made.assign(path=made["generator"] + "/" + made["name"], label="fake").sort_values("path", ignore_index=True)
    return made[["file", "path", "label", "generator", "group", "parents", "seed"]]


def _plan(reals: pd.DataFrame, settings: Forge) -> pd.DataFrame:
    """One row per planned fake: target and donor (files), generator, seed, group, parents, name."""
    names, shares = list(settings.methods), np.cumsum(list(settings.methods.values()))
    families = _families(reals, settings.seed)
    rows = []
    for image_id, file, group in zip(reals["image_id"], reals["file"], reals["group"], strict=True):
        digest = _digest(settings.seed, image_id)
        chosen, drawn, seed = (int.from_bytes(digest[start : start + 8]) for start in (0, 8, 16))
        if chosen / 2**64 >= settings.per_real:
            continue
        method = names[min(int(np.searchsorted(shares, drawn / 2**64, side="right")), len(names) - 1)]
        donor_id, donor = image_id, file
        if method == "swap":
            others = [other for other in families[group] if other[0] != group]
            if not others:
                method = next((name for name in names if name != "swap"), "self_blend")
            else:
                # Rendezvous hashing: a new image in the family changes few choices.
                _, donor_id, donor = min(others, key=lambda other: _digest(settings.seed, image_id + other[1]))
        parents = image_id if donor_id == image_id else f"{image_id} {donor_id}"
        name = hashlib.sha256(f"{method} {parents}".encode()).hexdigest()[:32]
        rows.append((file, donor, method, seed % 2**63, group, parents, name))
    return pd.DataFrame(rows, columns=["target", "donor", "generator", "seed", "group", "parents", "name"])


def _families(reals: pd.DataFrame, seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Group -> (group, image_id, file) of all reals in its family.

    Groups are ordered by a hash; one in FAMILY of them, by the last byte of that hash, starts a new family. So a new group
    changes only the family that it falls into.
    """
    members: dict[str, list[tuple[str, str, str]]] = {}
    for row in zip(reals["group"], reals["image_id"], reals["file"], strict=True):
        members.setdefault(row[0], []).append(row)
    families: dict[str, list[tuple[str, str, str]]] = {}
    family: list[tuple[str, str, str]] = []
    for group in sorted(members, key=lambda name: _digest(seed, name)):
        if _digest(seed, group)[31] % FAMILY == 0:
            family = []
        family.extend(members[group])
        families[group] = family
    return families


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _forge_batch(tasks: tuple[Task, ...], lossless: bool, detector: Path | None) -> int:
    for task in tasks:
        data = _forge(task, lossless, loaded(detector) if detector else None)
        write(task.out if data else _marker(task.out), data or b"")
    return len(tasks)


def _forge(task: Task, lossless: bool, detector: FaceDetector | None) -> bytes | None:
    stored = read_bytes(Path(task.target), OWN)  # ingest has applied its own limits
    target = decode(stored, OWN)
    donor = target if task.donor == task.target else decode(read_bytes(Path(task.donor), OWN), OWN)
    face, donor_face = _face(target, detector), _face(donor, detector)
    if face is None or donor_face is None:
        return None
    for attempt in range(TRIES):
        rng = np.random.default_rng([task.seed, attempt])
        fake, mask = METHODS[task.method](target.pixels, face, donor.pixels, donor_face, rng)
        if mask.max() > 0 and not np.array_equal(fake, target.pixels):
            return _encoded(Image.fromarray(fake), stored, lossless)
    return None


def _face(picture: Picture, detector: FaceDetector | None) -> Face | None:
    """The ellipse of the largest face, None if there is none; without a detector, the usual one of a face crop."""
    width, height = picture.rgb.size
    if detector is None:
        return Face.centred(width, height)
    found = detector.find(picture.pixels)
    if not found:
        return None
    box = found[0]
    (x, y), (across, down) = box.centre, box.sides
    return Face(float(x), float(y), across / 2, down / 2, box.tilt)


def _encoded(fake: Image.Image, real: bytes, lossless: bool) -> bytes:
    """The fake encoded like its real: same format and metadata, and for JPEG the same tables, subsampling and number of channels.

    WebP is stored without loss: the quality of the real is not in its file, and any other would alter the fake everywhere, also where
    nothing is forged.
    """
    buffer = io.BytesIO()
    if lossless:
        fake.save(buffer, "PNG")
        return buffer.getvalue()
    with identify(real, OWN) as origin:
        # The metadata may say how to turn the picture, so the fake has to lie as its real does.
        turned = origin.getexif().get(ExifTags.Base.Orientation)
        stored = fake.transpose(LIES[turned]) if turned in LIES else fake
        metadata = {name: value for name in METADATA if (value := origin.info.get(name)) and len(value) <= MOST_METADATA}
        if origin.format == "JPEG":
            tables = getattr(origin, "quantization", {})
            sampling = _subsampling(origin)
            stored = stored.convert("L") if origin.mode == "L" else stored
            stored.save(buffer, "JPEG", qtables=tables, subsampling=sampling, **metadata)
        elif origin.format == "WEBP":
            stored.save(buffer, "WEBP", lossless=True, **metadata)
        else:
            stored.save(buffer, "PNG", **metadata)
    return buffer.getvalue()


def _subsampling(image: Image.Image) -> int:
    from PIL.JpegImagePlugin import get_sampling

    return max(get_sampling(image), 0)


def _drop_others(staging: Path, wanted: Collection[Path]) -> None:
    """Delete all other fakes, also those of earlier settings: a fake made from a picture that was removed still shows that picture."""
    for path in list(staging.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _marker(out: Path) -> Path:
    """Empty file that stands for a fake that cannot be made, so that it is not tried again."""
    return out.with_suffix(".none")
