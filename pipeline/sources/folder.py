"""A folder of images: `real/` and `fake/` in it, or a `manifest.csv` beside them. It is read, never written."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import pandas as pd

from pipeline.errors import StageError
from pipeline.labels import LABELS
from pipeline.params_data import FolderSource

MANIFEST_NAME = "manifest.csv"


def listing(source: FolderSource) -> pd.DataFrame:
    """One row an image: file, path, label, generator, group, and the further columns of manifest.csv.

    Raises:
        StageError: if the folder or a listed file is missing, a label is unknown, or there is no image.
    """
    if not source.path.is_dir():
        raise StageError(f"data source {source.name}: {source.path} is not a folder")
    table = _listed(source) if (source.path / MANIFEST_NAME).is_file() else _found(source)
    root = source.path.as_posix()
    return table.assign(file=root + "/" + table["path"])


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
    absent = [path for path in table["path"] if not os.path.isfile(source.path / path)]  # noqa: PTH113 - pathlib raises for a long name
    if absent:
        raise StageError(f"{origin}: {len(absent)} listed files do not exist, the first is {absent[0][:200]!r}")
    table["path"] = [PurePosixPath(path).as_posix() for path in table["path"]]
    twice = table["path"][table["path"].duplicated()]
    if len(twice):
        raise StageError(f"{origin}: {twice.iloc[0]!r} is listed twice")
    return table


def _found(source: FolderSource) -> pd.DataFrame:
    rows = []
    for label in LABELS:
        for path in _files(str(source.path / label), label):
            inner = path.split("/")
            rows.append({"path": path, "label": label, "generator": inner[1] if label == "fake" and len(inner) > 2 else ""})
    if not rows:
        raise StageError(f"data source {source.name}: {source.path} has neither {MANIFEST_NAME} nor images under real/ and fake/")
    return pd.DataFrame(rows)


def _files(folder: str, name: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of all files under a folder, named as if the folder were called `name`.

    Symlinks are followed, but not back into a folder that they stand in; hidden files are left out. A folder that cannot be read is
    named like a file, so that it ends in quarantine and not in silence.
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
        # A name that is no UTF-8 fits into no table: it is written with escapes, which the reader then reports as unreadable.
        shown = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        if entry.is_dir():
            yield from _files(entry.path, f"{name}/{shown}", above | {here})
        else:
            yield f"{name}/{shown}"
