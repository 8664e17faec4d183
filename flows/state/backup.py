"""`unmask backup`: the state of a project as one archive.

Data in a bucket (MLflow artifacts on S3, a DVC remote) is not included: copies of it are its provider's job.
"""

import fcntl
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.state import postgres
from flows.state.contents import here
from pipeline.errors import StageError
from pipeline.lineage import lineage
from pipeline.params import PARAMS_FILE

FORMAT = 1
INDEX = "backup.json"
"""Written last, so that a truncated archive has none."""

ROOM = ".unmask-backup-"
"""Prefix of the temporary folder, beside the archive, in which it is made."""

MADE_AGAIN = ("cache", "checkpoints", "served")
"""Folders of var that are left out, because their content can be made or downloaded again."""

MADE_BY_SYSTEM = "lost+found"
SQLITE = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database during writes."""


def backup(file: Path) -> dict[str, Any]:
    """Write the state to a new file that only its owner can read. The servers may keep running.

    Returns:
        The index of the archive: `format`, `made`, `folder`, `git_commit`, `databases`, `files`, and `elsewhere` (what stays in a bucket).

    Raises:
        StageError: if this is not the project's folder, the file exists or is inside a folder that is backed up, a database does not
            answer, or `dvc push` fails.
    """
    state = here()
    if not PARAMS_FILE.is_file():  # a crontab without `cd` would make empty archives for months
        raise StageError(f"{Path.cwd()} is not the project's folder, for it has no {PARAMS_FILE}: change to that first")
    if file.exists():
        raise StageError(f"{file} already exists: give the backup a new name")
    if inside := [name for name, place in state.files.items() if file.resolve().is_relative_to(place.resolve())]:
        raise StageError(f"{file} is in {inside[0]}, which is itself backed up: choose another folder")
    found = {name: place for name, place in state.files.items() if place.exists()}
    elsewhere = dict(state.elsewhere)
    if state.remote and found.pop("cache", None):
        _push()
        elsewhere["cache"] = f"DVC remote {state.remote}"
    index = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),
        "git_commit": lineage()["git_commit"],
        "databases": sorted(state.databases),
        "files": sorted(found),
        "elsewhere": elsewhere,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _sweep(file.parent)
    with tempfile.TemporaryDirectory(prefix=ROOM, dir=file.parent) as folder, _held(Path(folder)):
        part, copy = Path(folder) / "archive", Path(folder) / "copy"
        # Compression saves little here, but the checksum of gzip reveals a damaged archive.
        with tarfile.open(part, "w:gz", compresslevel=1, dereference=True) as archive:
            for name, url in state.databases.items():
                postgres.dump(url, copy)
                archive.add(copy, f"{name}.dump")
            for name, place in found.items():
                _add(archive, place, name, copy)
            _add_index(archive, index)
        part.chmod(0o600)
        part.rename(file)
    return index


def _sweep(parent: Path) -> None:
    """Delete what killed backups left there: each may hold most of an archive, secrets included."""
    for left in parent.glob(f"{ROOM}*/"):
        with suppress(OSError), _held(left):  # another backup is using it, or it belongs to another user
            shutil.rmtree(left)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises BlockingIOError if another one has it. The lock ends with the process, even by `kill -9`."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _add(archive: tarfile.TarFile, place: Path, name: str, copy: Path) -> None:
    """Add a file, or a folder with its content. SQLite databases are copied as consistent snapshots."""
    left_out = (MADE_BY_SYSTEM, *(MADE_AGAIN if name == "var" else ()))
    for path in [place, *(sorted(below(place, left_out)) if place.is_dir() else [])]:
        member = name if path == place else f"{name}/{path.relative_to(place).as_posix()}"
        with suppress(FileNotFoundError):  # deleted in the meantime
            if path.is_file() and _is_sqlite(path):
                with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as out:
                    source.backup(out)
                shutil.copymode(path, copy)
                archive.add(copy, member)
                copy.unlink()
            elif path.is_dir() or path.is_file():
                archive.add(path, member, recursive=False)


def below(folder: Path, left_out: Collection[str] = ()) -> Iterator[Path]:
    """Yield everything below a folder except SQLite's side files. Follows links, as part of it may have been moved to a larger disk.

    Args:
        folder: not yielded itself.
        left_out: names of direct entries of the folder to skip.

    Raises:
        OSError: if a folder cannot be read.
    """
    for root, folders, files in os.walk(folder, onerror=_unless_it_went, followlinks=True):
        inside = Path(root)
        folders[:] = [
            name
            for name in folders
            if (inside / name).relative_to(folder).parts[0] not in left_out and not _is_circle(inside, inside / name)
        ]
        for path in (inside / name for name in (*folders, *files)):
            beside = next((path.with_name(path.name.removesuffix(suffix)) for suffix in BESIDE if path.name.endswith(suffix)), None)
            if not (beside and beside.is_file() and _is_sqlite(beside)):
                yield path


def _unless_it_went(error: OSError) -> None:
    """Fail on an unreadable folder, which would otherwise be missing from the backup unnoticed; ignore a deleted one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_circle(folder: Path, inside: Path) -> bool:
    return inside.is_symlink() and folder.resolve().is_relative_to(inside.resolve())


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _add_index(archive: tarfile.TarFile, index: dict[str, Any]) -> None:
    content = json.dumps(index, indent=2).encode()
    member = tarfile.TarInfo(INDEX)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _push() -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], text=True, capture_output=True)
    if done.returncode:
        raise StageError(f"`dvc push` of all data to the remote failed: {done.stderr.strip()}")
