"""A folder of images: `real/` and `fake/` in it, or a `manifest.csv` beside them. It is read, never written."""

import shutil
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.manifest import LABELS, NO_GENERATOR
from pipeline.params import FolderSource

MANIFEST_NAME = "manifest.csv"


def copy(source: FolderSource, out: Path) -> pd.DataFrame:
    """Copy what is new or changed into `out` and remove from `out` what the source no longer has.

    Returns:
        One row an image: path (relative to `out`), label, generator, group, and the further columns of manifest.csv.

    Raises:
        StageError: if the folder or a listed file is missing, a label is unknown, or a class has no image.
    """
    if not source.path.is_dir():
        raise StageError(f"data source {source.name}: {source.path} is not a folder")
    table = _listed(source) if (source.path / MANIFEST_NAME).is_file() else _found(source)
    for label in LABELS:
        if not (table["label"] == label).any():
            raise StageError(f"data source {source.name}: no image of class {label} in {source.path}; both classes are needed")
    for path in tqdm(table["path"], desc=f"copy {source.name}", unit="image"):
        _copy_if_changed(source.path / path, out / path)
    kept = set(table["path"])
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.relative_to(out).as_posix() not in kept:
            path.unlink()
    return table


def _listed(source: FolderSource) -> pd.DataFrame:
    origin = source.path / MANIFEST_NAME
    table = pd.read_csv(origin, dtype=str, keep_default_na=False)
    missing = [column for column in ("path", "label") if column not in table]
    if missing:
        raise StageError(f"{origin}: column {', '.join(missing)} is missing; it needs path,label and may have generator,group,...")
    unknown = sorted(set(table["label"]) - set(LABELS))
    if unknown:
        raise StageError(f"{origin}: label {', '.join(map(repr, unknown))}; allowed are {', '.join(LABELS)}")
    outside = [path for path in table["path"] if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]
    if outside:
        raise StageError(f"{origin}: {outside[0]!r} points out of the folder; paths are relative to it")
    absent = [path for path in table["path"] if not (source.path / path).is_file()]
    if absent:
        raise StageError(f"{origin}: {len(absent)} listed files do not exist, the first is {absent[0]!r}")
    table["path"] = [PurePosixPath(path).as_posix() for path in table["path"]]
    twice = table["path"][table["path"].duplicated()]
    if len(twice):
        raise StageError(f"{origin}: {twice.iloc[0]!r} is listed twice")
    return _completed(table)


def _found(source: FolderSource) -> pd.DataFrame:
    rows = []
    for label in LABELS:
        folder = source.path / label
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                inner = path.relative_to(folder).parts
                generator = inner[0] if label == "fake" and len(inner) > 1 else ""
                rows.append({"path": path.relative_to(source.path).as_posix(), "label": label, "generator": generator})
    if not rows:
        raise StageError(f"data source {source.name}: {source.path} has neither {MANIFEST_NAME} nor images under real/ and fake/")
    return _completed(pd.DataFrame(rows))


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in `generator` and `group` where the source does not say: an unnamed generator, and a group of its own."""
    for column in ("generator", "group"):
        if column not in table:
            table[column] = ""
    fake = table["label"] == "fake"
    table["generator"] = table["generator"].where(fake, NO_GENERATOR).mask(fake & (table["generator"] == ""), "unknown")
    table["group"] = table["group"].mask(table["group"] == "", table["path"])
    return table


def _copy_if_changed(origin: Path, target: Path) -> None:
    wanted = origin.stat()
    if target.is_file() and (target.stat().st_size, int(target.stat().st_mtime)) == (wanted.st_size, int(wanted.st_mtime)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name first: a copy that is cut short must not look finished.
    part = target.with_name(target.name + ".part")
    shutil.copyfile(origin, part)
    shutil.copystat(origin, part)
    part.chmod(0o644)
    part.replace(target)
