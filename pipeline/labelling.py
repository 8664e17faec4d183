"""Images put out for people to label: a folder that the data source `folder` reads once its manifest.csv is filled in."""

import csv
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.feedback import Statement

FOLDER = Path("labelling")
"""Inside UNMASK_VAR: a folder for each time that images were put out."""

MANIFEST = "manifest.csv"
ABOUT = "about.csv"


def export(folder: Path, statements: Sequence[Statement], images: Path, distances: Mapping[str, float], most: int) -> int:
    """Copy the most telling of the kept images: half of them the most uncertain, half the most foreign, none twice.

    Args:
        folder: to make. manifest.csv gets `path` and an empty `label`; about.csv what the user and the model said, and why it is there.
        statements: of users; those without an image are left out.
        images: folder of the kept images.
        distances: id of an answer -> how foreign it is (pipeline.diagnosis.foreignness).
        most: how many at the most.

    Returns:
        How many were copied; without any, no folder is made.
    """
    kept = {said.image: said for said in statements if said.image is not None and (images / said.image).is_file()}
    uncertain = sorted(kept.values(), key=lambda said: abs(said.probability_fake - 0.5))
    foreign = sorted((said for said in kept.values() if said.id in distances), key=lambda said: -distances[said.id])
    chosen = {said.id: (said, "uncertain") for said in uncertain[: (most + 1) // 2]}
    chosen |= {said.id: (said, "foreign") for said in foreign if said.id not in chosen and len(chosen) < most}
    chosen |= {said.id: (said, "uncertain") for said in uncertain if said.id not in chosen and len(chosen) < most}
    rows = []
    for said, why in list(chosen.values())[:most]:
        name = f"{said.image}{_suffix(images / str(said.image))}"
        distance = round(distances[said.id], 3) if said.id in distances else None
        about = {"id": said.id, "user_said": said.label, "probability_fake": said.probability_fake, "distance": distance, "why": why}
        rows.append({"path": name, "label": ""} | about)
    if not rows:
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".labelling-", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        for row in rows:
            shutil.copyfile(images / Path(str(row["path"])).stem, part / str(row["path"]))
        _write(part / MANIFEST, [{name: row[name] for name in ("path", "label")} for row in rows])
        _write(part / ABOUT, [{name: value for name, value in row.items() if name != "label"} for row in rows])
        part.rename(folder)
    return len(rows)


def forget(var: Path, images: Collection[str]) -> int:
    """Take images out of every folder that was put out for labelling below `var`. Returns how many files were deleted.

    Args:
        var: UNMASK_VAR.
        images: SHA-256 of each.
    """
    files = [file for image in images for file in (var / FOLDER).glob(f"*/{image}.*")]
    for file in files:
        for table in filter(Path.is_file, (file.with_name(MANIFEST), file.with_name(ABOUT))):
            with table.open(newline="") as opened:
                rows = [row for row in csv.DictReader(opened) if row.get("path") != file.name]
            _write(table, rows)
        file.unlink()
    return len(files)


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["path", "label"])
        writer.writeheader()
        writer.writerows(rows)


def _suffix(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return f".{(image.format or 'image').lower()}"
    except (UnidentifiedImageError, OSError):
        return ".image"
