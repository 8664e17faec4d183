"""A folder of images with `real/` and `fake/` in it, or a `manifest.csv`. It is only read, never written to."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from pipeline.errors import StageError
from pipeline.labels import LABELS
from pipeline.monitoring import labelling
from pipeline.params_data import FolderSource

MANIFEST_NAME = "manifest.csv"
GIVEN = ("path", "label", "generator", "group")
"""Columns of manifest.csv that have a meaning; the others are attributes."""

NAMED = 5
"""Labels or folders that a message lists at most: a wrong column may have a million."""

log = logging.getLogger(__name__)


def listing(source: FolderSource) -> pd.DataFrame:
    """One row per image: file, path, label, generator, group, and any other columns of manifest.csv.

    Raises:
        StageError: if the folder or a listed file is missing, manifest.csv is invalid or has an unknown label, or there is neither
            a manifest.csv nor an image.
    """
    if not source.path.is_dir():
        raise StageError(f"data source {source.name}: {source.path} is not a folder")
    table = _listed(source) if (source.path / MANIFEST_NAME).is_file() else _found(source)
    root = source.path.as_posix()
    return table.assign(file=[f"{root}/{path}" for path in table["path"]])


def _listed(source: FolderSource) -> pd.DataFrame:
    origin = source.path / MANIFEST_NAME
    table = _table(origin)
    missing = [column for column in ("path", "label") if column not in table]
    if missing:
        raise StageError(
            f"{origin}: column {', '.join(missing)} is missing; it needs path,label and may have generator,group,..., separated by commas"
        )
    table["label"] = [label.strip().lower() for label in table["label"]]
    for name in {"generator", "group"} & set(table):
        table[name] = table[name].str.strip()  # an invisible blank would split a group in two
    if (source.path / labelling.ABOUT).is_file() and (open_ := table["label"] == "").any():
        log.warning("%s: %d images have no label yet and are left out", origin, open_.sum())
        table = table[~open_].reset_index(drop=True)
    unknown = sorted(set(table["label"]) - set(LABELS))
    if unknown:
        first = ", ".join(map(repr, unknown[:NAMED])) + (f" and {len(unknown) - NAMED} others" if len(unknown) > NAMED else "")
        raise StageError(f"{origin}: label {first}; allowed are {', '.join(LABELS)}")
    outside = [path for path in table["path"] if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]
    if outside:
        raise StageError(f"{origin}: {outside[0]!r} is absolute or has `..`; paths are relative to the folder")
    absent = [path for path in table["path"] if not os.path.isfile(source.path / path)]  # noqa: PTH113 - pathlib raises for a long name
    if absent:
        raise StageError(f"{origin}: {len(absent)} listed files do not exist, the first is {absent[0][:200]!r}")
    table["path"] = [PurePosixPath(path).as_posix() for path in table["path"]]
    twice = table["path"][table["path"].duplicated()]
    if len(twice):
        raise StageError(f"{origin}: {twice.iloc[0]!r} is listed twice")
    return table


def _table(origin: Path) -> pd.DataFrame:
    """The file's rows, all as text. The column names in GIVEN are case-insensitive. Raises StageError if it is not a valid table."""
    try:
        table = pd.read_csv(origin, dtype=str, keep_default_na=False)
    except ValueError as error:  # from pandas for anything that is not CSV, from Python for bytes that are not UTF-8
        raise StageError(f"{origin} cannot be read: {str(error).strip()}. Save it as CSV in UTF-8, with commas") from None
    if len(table) and not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields for row names
        raise StageError(f"{origin}: its rows have more fields than its header has names: {', '.join(table.columns)}")
    names = [name.strip() for name in table.columns]
    table.columns = pd.Index([name.lower() if name.lower() in GIVEN else name for name in names])
    if table.columns.has_duplicates:
        raise StageError(f"{origin}: column {table.columns[table.columns.duplicated()][0]} appears twice")
    return table


def _found(source: FolderSource) -> pd.DataFrame:
    rows = []
    for label in LABELS:
        for path in _files(str(source.path / label), label):
            inner = path.split("/")
            rows.append({"path": path, "label": label, "generator": inner[1] if label == "fake" and len(inner) > 2 else ""})
    others = sorted(path.name for path in source.path.iterdir() if path.is_dir() and path.name not in LABELS and path.name[0] != ".")
    named = ", ".join(map(repr, others[:NAMED])) + (" and others" if len(others) > NAMED else "")
    if not rows:
        there = f"; there is {named}" if others else ""
        raise StageError(f"data source {source.name}: {source.path} has neither {MANIFEST_NAME} nor images under real/ and fake/{there}")
    if others:
        log.warning("%s: only real/ and fake/ are read, not %s; a %s can name images anywhere", source.path, named, MANIFEST_NAME)
    return pd.DataFrame(rows)


def _files(folder: str, name: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of all files under a folder, named as if the folder were called `name`.

    Symlinks are followed, but not back into a folder that contains them; hidden files are skipped. A folder that cannot be read is
    listed like a file, so that it is quarantined and not silently ignored.
    """
    try:
        found = os.stat(folder)  # noqa: PTH116 - as fast as it gets, for a million files
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError:
        yield name
        return
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # A name that is not UTF-8 does not fit into a table: it is escaped, and the file is then reported as unreadable.
        shown = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        if _is_folder(entry):
            yield from _files(entry.path, f"{name}/{shown}", above | {here})
        else:
            yield f"{name}/{shown}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself or into a folder without permission: unreadable, like a file
        return False
