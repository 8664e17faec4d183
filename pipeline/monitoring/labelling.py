"""Exports images for people to label: a folder that the data source `folder` reads once its manifest.csv is filled in."""

import csv
import io
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.monitoring.feedback import Statement
from pipeline.staging import write

FOLDER = Path("labelling")
"""Inside UNMASK_VAR: one folder per export."""

MANIFEST = "manifest.csv"
ABOUT = "about.csv"
TEMPORARY = ".labelling-"


def export(folder: Path, statements: Sequence[Statement], images: Path, distances: Mapping[str, float], most: int) -> int:
    """Copy the most informative of the kept images: half of them the most uncertain, half the most foreign, none twice.

    Images that somebody labelled in another export next to this one are skipped.

    Args:
        folder: to create. manifest.csv has `path` and an empty `label`; about.csv what the user and the model said, and why it was chosen.
        statements: of users; those without an image are left out.
        images: folder of the kept images.
        distances: id of an answer -> how foreign it is (pipeline.monitoring.diagnosis.outlier_scores).
        most: largest number of images.

    Returns:
        The number of images copied; if 0, no folder is created.
    """
    done = _labelled(folder.parent)
    kept = {said.image: said for said in statements if said.image is not None and (images / said.image).is_file()}
    kept = {image: said for image, said in kept.items() if image not in done}
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
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        for row in rows:
            shutil.copyfile(images / Path(str(row["path"])).stem, part / str(row["path"]))
        for table, names in ((MANIFEST, ["path", "label"]), (ABOUT, [name for name in rows[0] if name != "label"])):
            _write(part / table, [names, *([row[name] for name in names] for row in rows)])
        part.rename(folder)
    return len(rows)


def forget(var: Path, images: Collection[str]) -> int:
    """Delete images from every labelling export below `var`. Returns how many files were deleted.

    Args:
        var: UNMASK_VAR.
        images: SHA-256 of each.
    """
    # A killed export leaves its copies in a temporary folder.
    files = [file for image in images for place in ("*", f"{TEMPORARY}*/*") for file in (var / FOLDER).glob(f"{place}/{image}.*")]
    for file in files:
        for table in filter(Path.is_file, (file.with_name(MANIFEST), file.with_name(ABOUT))):
            _write(table, [row for row in _rows(table) if not any(file.name in cell for cell in row)])
        file.unlink()
    return len(files)


def _labelled(folder: Path) -> set[str]:
    """Names, without suffix, of the images that have a label in the exports inside this folder."""
    rows = [",".join(row).replace(";", ",").split(",") for table in folder.glob(f"*/{MANIFEST}") for row in _rows(table)]
    return {Path(row[0]).stem for row in rows if any(cell.strip() for cell in row[1:])}


def _rows(path: Path) -> list[list[str]]:
    """Rows of a table that a spreadsheet may have saved: with a byte order mark, semicolons, another encoding."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return list(csv.reader(file))


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write(path, text.getvalue().encode(errors="surrogateescape"))  # atomically: it may hold an afternoon's labels


def _suffix(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return f".{(image.format or 'image').lower()}"
    except (UnidentifiedImageError, OSError):
        return ".image"
