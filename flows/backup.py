"""`unmask backup` and `unmask restore`: the state of a project as one archive, and back.

What lies in a bucket stays there: the artifacts of MLflow on S3, the data on a DVC remote. Their provider keeps the copies.
"""

import filecmp
import gzip
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import postgres
from flows.materialise import at_work
from flows.ports import running
from flows.state import State, here
from pipeline.errors import StageError
from pipeline.lineage import lineage

FORMAT = 1
INDEX = "backup.json"
"""Last in the archive: one that was cut off has none."""

MADE_AGAIN = ("cache", "checkpoints", "served")
"""Folders of var that are worth no room: what they hold is made or downloaded again."""

MADE_BY_SYSTEM = "lost+found"
ROOM = ".restore-"
IN_GIT = ("params.yaml", "dvc.lock")
SQLITE = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database while somebody writes to it."""


def backup(file: Path) -> dict[str, Any]:
    """Write the state into a new file that only its owner can read. The servers may go on meanwhile.

    Returns:
        The index of the archive: `made`, `folder`, `git_commit`, `files`, `databases`, and `elsewhere`: what stays in a bucket.

    Raises:
        StageError: if the file exists or lies in what is backed up, a database does not answer, or `dvc push` fails.
    """
    state = here()
    if file.exists():
        raise StageError(f"{file} exists already: give the backup a new name")
    if inside := [name for name, place in state.files.items() if file.resolve().is_relative_to(place.resolve())]:
        raise StageError(f"{file} lies in {inside[0]}, which is backed up itself: choose another folder")
    found = {name: place for name, place in state.files.items() if place.exists()}
    elsewhere = dict(state.elsewhere)
    if state.remote and found.pop("cache", None):
        _push()
        elsewhere["cache"] = f"DVC remote {state.remote}"
    index = {"format": FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds"), "folder": str(Path.cwd())}
    index |= {"git_commit": lineage()["git_commit"], "databases": sorted(state.databases), "files": sorted(found), "elsewhere": elsewhere}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=file.parent) as folder:
        part, copy = Path(folder) / "archive", Path(folder) / "copy"
        # The compression is of little use, but its checksum tells a damaged archive from a whole one.
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


def restore(file: Path, force: bool = False) -> dict[str, Any]:
    """Put the state of an archive in place of what is here. If that fails, what was here is put back.

    Args:
        file: what `backup` wrote. Whoever wrote it is trusted: it holds what Prefect will run.
        force: whether state that is here may go.

    Returns:
        The index of the archive.

    Raises:
        StageError: if a server or a run is at work, the archive is not whole or does not fit the settings, there is state already, or a
            database does not answer.
    """
    state = here()
    if found := running():
        where = ", ".join(f"{place} ({name})" for name, place in found.items())
        raise StageError(f"something listens on {where}: stop it before a restore, or unset what names a server that keeps nothing here")
    if held := at_work():
        raise StageError(f"a run is at work in this folder ({', '.join(held)}): let it end, or stop it, before a restore")
    with ExitStack() as tidy:
        staging = _room(Path.cwd(), tidy)
        index = _unpack(file, staging)
        _check_fit(index, state, file)
        if not force and (taken := list(_taken(index, state, staging))):
            raise StageError(f"there is state already: {', '.join(taken)}. Move it away, or let it go with --force")
        if "mlflow.db" in index["files"]:
            _relocate(staging / "mlflow.db", Path(index["folder"]), Path.cwd())
        rooms = {}
        for name in index["files"]:  # into its own folder, which may be a mounted disk: from there it takes its place in no time
            folder = state.files[name] if (staging / name).is_dir() else state.files[name].parent
            rooms[name] = _room(folder, tidy)
            shutil.move(staging / name, rooms[name] / "new")
        undo = ExitStack()
        try:
            _put_databases(index, state, staging, undo)
            _put_files(rooms, state, undo)
        except BaseException as error:
            try:
                undo.close()
            except Exception as second:
                tidy.pop_all()
                raise StageError(f"{error}. What was here could not be put back ({second}): it is in the folders {ROOM}*") from error
            raise
    return index


def _room(folder: Path, tidy: ExitStack) -> Path:
    """A new folder inside of `folder`, until `tidy` is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=ROOM, dir=folder))
    tidy.callback(shutil.rmtree, room, ignore_errors=True)
    return room


def _put_databases(index: dict[str, Any], state: State, staging: Path, undo: ExitStack) -> None:
    """Each step leaves behind in `undo` how it is taken back."""
    for name in index["databases"]:
        url, old = state.databases[name], staging / f"old-{name}.dump"
        postgres.dump(url, old)
        postgres.load(url, staging / f"{name}.dump")
        undo.callback(postgres.load, url, old)


def _put_files(rooms: dict[str, Path], state: State, undo: ExitStack) -> None:
    """The same for files: what is here goes into the folder `old` of each room, what is in `new` comes out."""

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        undo.callback(target.rename, source)

    for name, room in rooms.items():
        place, new, old = state.files[name], room / "new", room / "old"
        old.mkdir()
        if new.is_dir():  # entry by entry: a disk that is mounted here cannot be moved
            for entry in list(place.iterdir()):
                if entry != room and entry.name != MADE_BY_SYSTEM:
                    move(entry, old / entry.name)
            for entry in list(new.iterdir()):
                move(entry, place / entry.name)
        else:
            for present in (place, *(place.with_name(place.name + suffix) for suffix in BESIDE)):
                if present.exists():
                    move(present, old / present.name)
            move(new, place)


def _add(archive: tarfile.TarFile, place: Path, name: str, copy: Path) -> None:
    """Add a file, or a folder with what is in it. SQLite's databases are copied as they are between two transactions."""
    left_out = (MADE_BY_SYSTEM, *(MADE_AGAIN if name == "var" else ()))
    for path in [place, *(sorted(_below(place, left_out)) if place.is_dir() else [])]:
        member = name if path == place else f"{name}/{path.relative_to(place).as_posix()}"
        with suppress(FileNotFoundError):  # it went while we were at it
            if path.is_file() and _is_sqlite(path):
                with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as out:
                    source.backup(out)
                shutil.copymode(path, copy)
                archive.add(copy, member)
                copy.unlink()
            elif path.is_dir() or path.is_file():
                archive.add(path, member, recursive=False)


def _below(folder: Path, left_out: Collection[str]) -> Iterator[Path]:
    """What lies in a folder, behind links as well: somebody may have moved a part of it to a larger disk."""
    for root, folders, files in os.walk(folder, onerror=_unless_it_went, followlinks=True):
        here = Path(root)
        folders[:] = [
            name for name in folders if (here / name).relative_to(folder).parts[0] not in left_out and not _is_circle(here, here / name)
        ]
        for path in (here / name for name in (*folders, *files)):
            beside = next((path.with_name(path.name.removesuffix(suffix)) for suffix in BESIDE if path.name.endswith(suffix)), None)
            if not (beside and beside.is_file() and _is_sqlite(beside)):
                yield path


def _unless_it_went(error: OSError) -> None:
    """What cannot be read ends a backup: it would be missing in it, and nobody told."""
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


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    """Unpack the whole archive into a new folder, and nothing outside of it. Returns its index."""
    try:
        with gzip.open(file) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as archive:
                for member in archive:
                    _extract(archive, member, folder)
            while packed.read(1 << 20):  # to the end, where the checksum is
                pass
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        what = "does not exist" if not file.exists() else f"is no whole backup: it has no {error.filename and Path(error.filename).name}"
        raise StageError(f"{file} {what}") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise StageError(f"{file} cannot be restored: {error}") from None
    if index.get("format") != FORMAT:
        raise StageError(
            f"{file} has the format {index.get('format')}, this release reads {FORMAT}: restore it with the release that wrote it"
        )
    return index


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """What the filter "data" of tarfile does, which Python has from 3.11.4 on and Debian 12 has not. Raises tarfile.ReadError."""
    target = folder / member.name
    if not (member.isfile() or member.isdir()) or ".." in Path(member.name).parts or not target.is_relative_to(folder):
        raise tarfile.ReadError(f"it holds {member.name!r}, which is no plain file or folder below where it is unpacked")
    archive.extract(member, folder, set_attrs=False)  # nobody else's ownership
    if member.isfile():
        target.chmod(member.mode & 0o755 | 0o600)
        os.utime(target, (member.mtime, member.mtime))


def _relocate(database: Path, old: Path, new: Path) -> None:
    """Without a server MLflow notes the whole path of each artifact: have it name the folder that the project is in now."""
    before, after = f"{old.as_uri()}/", f"{new.as_uri()}/"
    columns = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in connection.execute(columns).fetchall():
            change = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?'  # noqa: S608
            connection.execute(change, (after, len(before) + 1, len(before), before))


def _check_fit(index: dict[str, Any], state: State, file: Path) -> None:
    if wrong := sorted(set(index["databases"]) - set(state.databases)) or sorted(set(index["files"]) - set(state.files)):
        raise StageError(
            f"{file} holds {', '.join(wrong)}, for which the settings here name no such place. "
            "Set the stores (.env) as they were when it was made; a database moves between SQLite and Postgres by no backup"
        )
    for name, place in index["elsewhere"].items():
        if name in state.elsewhere and state.elsewhere[name] != place:
            raise StageError(f"{file} counts on {name} at {place}; the settings here name {state.elsewhere[name]}")


def _taken(index: dict[str, Any], state: State, new: Path) -> Iterator[str]:
    """What a restore would overwrite, and git does not keep."""
    for name in index["databases"]:
        if postgres.tables(state.databases[name]):
            yield f"database {name}"
    for name in index["files"]:
        place = state.files[name]
        if place.is_dir():
            there = any(path.is_file() for path in _below(place, ()))
        else:
            there = place.is_file() and not filecmp.cmp(place, new / name, shallow=False)
        if there and not (name in IN_GIT and _committed(name)):
            yield str(place)


def _committed(name: str) -> bool:
    done = subprocess.run(["git", "status", "--porcelain", "--", name], text=True, capture_output=True)
    return done.returncode == 0 and not done.stdout


def _push() -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], text=True, capture_output=True)
    if done.returncode:
        raise StageError(f"dvc push, so that the remote holds all data: {done.stderr.strip()}")
