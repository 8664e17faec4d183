"""`unmask restore`: replaces the state of this project with that of a backup, all or nothing."""

import filecmp
import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from flows.materialise import at_work
from flows.ports import running
from flows.state import postgres
from flows.state.backup import BESIDE, FORMAT, INDEX, MADE_BY_SYSTEM, below
from flows.state.contents import State, here
from pipeline.errors import StageError

ROOM = ".restore-"
"""Prefix of the temporary folders that hold new files before they are moved into place, and old ones until the restore succeeds."""

IN_GIT = ("params.yaml", "dvc.lock")


def restore(file: Path, force: bool = False) -> dict[str, Any]:
    """Replace the state that is here with that of an archive. If that fails, the old state is put back.

    Args:
        file: archive that `backup` wrote. Its author is trusted: it holds what Prefect will run.
        force: whether state that is here may be replaced.

    Returns:
        The index of the archive.

    Raises:
        StageError: if a server or a run is active, the archive is incomplete or does not fit the settings, there is state already and
            no `force`, or a database does not answer.
    """
    state = here()
    _check_idle()
    with ExitStack() as tidy:
        staging = _room(Path.cwd(), tidy)
        index = _unpack(file, staging)
        _check_fit(index, state, file)
        if not force and (taken := list(_taken(index, state, staging))):
            raise StageError(f"there is state already: {', '.join(taken)}. Move it away, or replace it with --force")
        if "mlflow.db" in index["files"]:
            relocate(staging / "mlflow.db", Path(index["folder"]), Path.cwd())
        rooms = {}
        for name in index["files"]:  # to the target's own disk, which may be a mount: from there, a rename is instant
            folder = state.files[name] if (staging / name).is_dir() else state.files[name].parent
            rooms[name] = _room(folder, tidy)
            shutil.move(staging / name, rooms[name] / "new")
        _check_idle()  # again: unpacking took minutes
        undo = ExitStack()
        try:
            _put_databases(index, state, staging, undo)
            _put_files(rooms, state, undo)
        except BaseException as error:
            try:
                undo.close()
            except Exception as second:
                tidy.pop_all()
                raise StageError(f"{error}. The previous state could not be put back ({second}): it is in the folders {ROOM}*") from error
            raise
    return index


def _check_idle() -> None:
    if found := running():
        where = ", ".join(f"{place} ({name})" for name, place in found.items())
        raise StageError(f"a server listens on {where}: stop it before a restore, or unset the variable if it keeps no state here")
    if held := at_work():
        raise StageError(f"a run is active in this folder ({', '.join(held)}): let it end, or stop it, before a restore")


def _room(folder: Path, tidy: ExitStack) -> Path:
    """A new temporary folder inside `folder`, deleted when `tidy` closes."""
    folder.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=ROOM, dir=folder))
    tidy.callback(shutil.rmtree, room, ignore_errors=True)
    return room


def _put_databases(index: dict[str, Any], state: State, staging: Path, undo: ExitStack) -> None:
    """Load the databases. Each step adds its reversal to `undo`."""
    for name in index["databases"]:
        url, old = state.databases[name], staging / f"old-{name}.dump"
        postgres.dump(url, old)
        postgres.load(url, staging / f"{name}.dump")
        undo.callback(postgres.load, url, old)


def _put_files(rooms: dict[str, Path], state: State, undo: ExitStack) -> None:
    """The same for files: what is here moves into the folder `old` of each room, and what is in `new` takes its place."""

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        undo.callback(target.rename, source)

    for name, room in rooms.items():
        place, new, old = state.files[name], room / "new", room / "old"
        old.mkdir()
        if new.is_dir():  # entry by entry: a mount point cannot be moved
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


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    """Unpack the whole archive into a new folder, and nothing outside it. Returns its index."""
    try:
        with gzip.open(file) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as archive:
                for member in archive:
                    _extract(archive, member, folder)
            while packed.read(1 << 20):  # to the end, where the checksum is
                pass
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        name = error.filename and Path(error.filename).name
        what = "does not exist" if not file.exists() else f"is not a complete backup: {name} is missing"
        raise StageError(f"{file} {what}") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise StageError(f"{file} cannot be restored: {error}") from None
    if index.get("format") != FORMAT:
        raise StageError(f"{file} has format {index.get('format')}; this release reads {FORMAT}: restore it with the release that wrote it")
    return index


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Like tarfile's filter "data", which came with Python 3.11.4, too late for Debian 12. Raises tarfile.ReadError."""
    target = folder / member.name
    if not (member.isfile() or member.isdir()) or ".." in Path(member.name).parts or not target.is_relative_to(folder):
        raise tarfile.ReadError(f"it holds {member.name!r}, which is not a regular file or folder inside the target")
    archive.extract(member, folder, set_attrs=False)  # the owner in the archive does not count
    if member.isfile():
        target.chmod(member.mode & 0o755 | 0o600)
        os.utime(target, (member.mtime, member.mtime))


def relocate(database: Path, old: Path, new: Path) -> None:
    """Change artifact paths in MLflow's database to the project's current folder: without a server, MLflow stores absolute paths."""
    before, after = f"{old.as_uri()}/", f"{new.as_uri()}/"
    columns = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in connection.execute(columns).fetchall():
            change = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?'  # noqa: S608
            connection.execute(change, (after, len(before) + 1, len(before), before))


def _check_fit(index: dict[str, Any], state: State, file: Path) -> None:
    if wrong := sorted(set(index["databases"]) - set(state.databases)) or sorted(set(index["files"]) - set(state.files)):
        raise StageError(
            f"{file} holds {', '.join(wrong)}, which the current settings do not include. "
            "Set the stores (.env) as they were when it was made; a backup cannot move a database between SQLite and Postgres"
        )
    for name, place in index["elsewhere"].items():
        if name in state.elsewhere and state.elsewhere[name] != place:
            raise StageError(f"{file} expects {name} at {place}; the current settings have {state.elsewhere[name]}")


def _taken(index: dict[str, Any], state: State, new: Path) -> Iterator[str]:
    """What a restore would overwrite and git could not bring back."""
    for name in index["databases"]:
        if postgres.tables(state.databases[name]):
            yield f"database {name}"
    for name in index["files"]:
        place = state.files[name]
        if place.is_dir():
            there = any(path.is_file() for path in below(place))
        else:
            there = place.is_file() and not filecmp.cmp(place, new / name, shallow=False)
        if there and not (name in IN_GIT and _committed(name)):
            yield str(place)


def _committed(name: str) -> bool:
    done = subprocess.run(["git", "status", "--porcelain", "--", name], text=True, capture_output=True)
    return done.returncode == 0 and not done.stdout
