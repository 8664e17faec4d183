"""Where the served package comes from: a pinned folder, or the version that holds an alias in MLflow."""

import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlencode, urlsplit

from pipeline import package
from pipeline.package import STARTER
from pipeline.servable import ADVICE, obstacle
from pipeline.staging import stamp_of, write
from pipeline.tracking import MODEL

CHAMPION = "champion"
CHALLENGER = "challenger"
STOPPED = Path("canary.json")
"""Inside UNMASK_VAR: a canary that was stopped automatically, for other workers and after a restart. Delete it to restart the canary."""

KEEP = 3
"""Downloads kept on disk: the last ones served, for a quick roll-back."""


class UnavailableError(RuntimeError):
    """The source of packages does not answer, or the version it names may not be served. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Version:
    """A version to serve. A recreated registry counts from 1 again: `made` (run and time) tells equal numbers apart."""

    number: str
    made: str = ""


class Source(Protocol):
    """Where packages come from."""

    def wanted(self) -> Version | None:
        """The version to serve, None if none is chosen. Raises UnavailableError."""

    def last(self) -> Version | None:
        """The version that was served before a restart."""

    def fetch(self, version: Version) -> Path:
        """The folder of its package."""

    def keep(self, version: Version) -> None:
        """Remember that this version is being served."""


class Pinned:
    """A fixed folder."""

    def __init__(self, folder: Path, version: str = "") -> None:
        self.folder, self.number = folder, version
        self._version: Version | None = None
        self._wrong = ""
        self._read: dict[Path, str] | None = None

    def wanted(self) -> Version:
        """The folder's package, under its version or else the start of its digest. Raises UnavailableError if it is not intact.

        A package that is not intact is read again only when a file changes: otherwise that could be gigabytes every second.
        """
        if self._version is None and (files := self._files()) != self._read:
            try:
                self._version = Version(self.number or package.verify(self.folder).digest[:12])
            except package.PackageError as error:
                self._wrong, self._read = str(error), files
        if self._version is None:
            raise UnavailableError(self._wrong, "Check UNMASK_PACKAGE, or unset it to follow the champion in MLflow.")
        return self._version

    def _files(self) -> dict[Path, str]:
        """Each path with a stamp that changes when the file does; empty for a folder that is not a package, which may hold anything."""
        return {path: stamp_of(path) for path in self.folder.rglob("*")} if (self.folder / package.META).is_file() else {}

    def last(self) -> None:
        """Nothing is remembered."""

    def fetch(self, version: Version) -> Path:
        """The folder itself."""
        return self.folder

    def keep(self, version: Version) -> None:
        """Nothing to remember."""


class Registry:
    """An alias of the registered model, in an MLflow server or in its SQLite file.

    Reading the alias does not import mlflow: that costs seconds and 250 MB, and its client would migrate a database that
    another process is just creating. Downloading a new version does.
    """

    def __init__(self, uri: str, folder: Path, alias: str = CHAMPION) -> None:
        """`folder` holds the downloads, and belongs to one alias."""
        self.uri, self.folder, self.alias = uri, folder, alias

    def wanted(self) -> Version | None:
        """The version with the alias. Raises UnavailableError if the store does not answer, or the version may not be served."""
        parts = urlsplit(self.uri)
        if parts.scheme in ("http", "https"):
            return self._from_server()
        if parts.scheme == "sqlite":
            return self._from_file(Path(parts.path.removeprefix("/")))
        raise UnavailableError(f"MLFLOW_TRACKING_URI starts with {parts.scheme}:", "Only http, https and sqlite are supported.")

    def _from_server(self) -> Version | None:
        parts = urlsplit(self.uri)
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        query = urlencode({"name": MODEL, "alias": self.alias})
        request = urllib.request.Request(f"{place}/api/2.0/mlflow/registered-models/alias?{query}")  # noqa: S310 - http(s) only
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", unquote(parts.username or ""))
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            request.add_header("Authorization", f"Bearer {token}")
        elif user:
            pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', unquote(parts.password or ''))}"
            request.add_header("Authorization", f"Basic {b64encode(pair.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
                found = json.load(response)["model_version"]
        except urllib.error.HTTPError as error:
            with error:
                if _code(error.read()) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
                    return None
            hint = "Check MLFLOW_TRACKING_URI and its credentials."
            raise UnavailableError(f"MLflow at {place} answers {error.code} {error.reason}", hint) from None
        except (OSError, HTTPException, ValueError, KeyError) as error:
            hint = "Start it with `make up`, or check MLFLOW_TRACKING_URI."
            raise UnavailableError(f"MLflow at {place} does not answer: {getattr(error, 'reason', error)}", hint) from None
        _check(found["version"], {tag["key"]: tag["value"] for tag in found.get("tags", [])})
        return Version(str(found["version"]), f"{found.get('run_id', '')} {found['creation_timestamp']}")

    def _from_file(self, path: Path) -> Version | None:
        if not path.is_file():
            return None
        query = """SELECT v.version, v.run_id, v.creation_time FROM registered_model_aliases a
                   JOIN model_versions v ON v.name = a.name AND v.version = a.version WHERE a.name = ? AND a.alias = ?"""
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as database:
                row = database.execute(query, (MODEL, self.alias)).fetchone()
                tags = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
                if row:
                    _check(row[0], dict(database.execute(tags, (MODEL, row[0])).fetchall()))
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # another process is just creating the file
                return None
            raise UnavailableError(f"MLflow's database {path} cannot be read: {error}", "Check MLFLOW_TRACKING_URI.") from None
        return Version(str(row[0]), f"{row[1] or ''} {row[2]}") if row else None

    def last(self) -> Version | None:
        """The newest version that was served from this folder."""
        try:
            return Version(**json.loads((self.folder / "last.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, version: Version) -> None:
        """Remember the version for the next start, and delete the oldest downloads."""
        write(self.folder / "last.json", _content(version).encode())
        (self.folder / version.number).touch()
        folders = [entry for entry in self.folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        for folder in sorted(folders, key=lambda entry: entry.stat().st_mtime, reverse=True)[KEEP:]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".json").unlink(missing_ok=True)

    def fetch(self, version: Version) -> Path:
        """The version's package, downloaded unless it is there and intact. Of several workers, one downloads it and the others wait."""
        folder = self.folder / version.number
        if self._has(version):
            return folder
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when its process ends, however it ends
            if self._has(version):
                return folder
            for abandoned in self.folder.glob(".incoming-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".incoming-", dir=self.folder, ignore_cleanup_errors=True) as incoming:
                found = _download(self.uri, version, Path(incoming) / "new")
                if folder.exists():
                    folder.rename(Path(incoming) / "old")
                found.rename(folder)
                write(self._note(version), _content(version).encode())
        return folder

    def _note(self, version: Version) -> Path:
        """The file that records which version the download with this number is."""
        return self.folder / f"{version.number}.json"

    def _has(self, version: Version) -> bool:
        note = self._note(version)
        return note.is_file() and note.read_text() == _content(version) and _whole(self.folder / version.number)


class UntilPromoted:
    """The starter package, until a version of the registry has been served once."""

    def __init__(self, registry: Registry, starter: Path) -> None:
        self.registry, self.starter = registry, Pinned(starter, STARTER.name)

    def wanted(self) -> Version | None:
        """The registry's version; the starter if there is none and never was one. Raises UnavailableError."""
        found = self.registry.wanted()
        return found if found or self.registry.last() else self.starter.wanted()

    def last(self) -> Version | None:
        """See Registry."""
        return self.registry.last()

    def fetch(self, version: Version) -> Path:
        """The folder of the version's package."""
        return (self.starter if version.number == STARTER.name else self.registry).fetch(version)

    def keep(self, version: Version) -> None:
        """Remember what is being served, unless it is the starter, which is always there."""
        if version.number != STARTER.name:
            self.registry.keep(version)


def _check(number: int | str, tags: Mapping[str, str]) -> None:
    """Raise UnavailableError if a version may not be served; one registered by hand, without a gate, needs an override."""
    if (reason := obstacle(number, tags)) is not None:
        raise UnavailableError(reason[0].upper() + reason[1:], f"{ADVICE}.")


def _download(uri: str, version: Version, target: Path) -> Path:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    # The files' address is resolved first, so that nothing depends on a process-wide tracking URI.
    source = mlflow.MlflowClient(uri, uri).get_model_version_download_uri(MODEL, version.number)
    target.mkdir()
    mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=uri, registry_uri=uri)
    found = sorted(target.rglob(package.META), key=lambda path: len(path.parts))
    if not found:
        raise package.PackageError(f"version {version.number} of {MODEL} holds no {package.META}")
    package.verify(found[0].parent)
    return found[0].parent


def _code(body: bytes) -> str | None:
    try:
        return json.loads(body)["error_code"]
    except (ValueError, KeyError, TypeError):
        return None


def _whole(folder: Path) -> bool:
    try:
        package.verify(folder)
    except package.PackageError:
        return False
    return True


def _content(version: Version) -> str:
    return json.dumps(asdict(version))
