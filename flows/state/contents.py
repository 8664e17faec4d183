"""What the state of a project consists of and where it is, from the same settings that the servers read."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.request import url2pathname

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pipeline.errors import StageError
from pipeline.tracking import tracking_uri
from pipeline.var import var_folder

BACKEND = "MLFLOW_BACKEND_STORE_URI"
ARTIFACTS = "MLFLOW_ARTIFACTS_DESTINATION"
PREFECT = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Prefect's two names for one setting."""

PROJECT = ("params.yaml", "dvc.lock", "reports")


@dataclass(frozen=True)
class State:
    """The state, part by part.

    Attributes:
        databases: name -> a Postgres database.
        files: name -> a file or folder, which may not exist. MLflow's database comes before the artifacts that it names.
        elsewhere: name -> the bucket that holds it.
        remote: name of DVC's default remote, None without one.
    """

    databases: dict[str, URL]
    files: dict[str, Path]
    elsewhere: dict[str, str]
    remote: str | None


def here() -> State:
    """The state of the project in this folder.

    Raises:
        StageError: if a database is neither SQLite nor Postgres, or its address cannot be read.
    """
    prefect = next((os.environ[name] for name in PREFECT if os.environ.get(name)), "")
    home = Path(os.environ.get("PREFECT_HOME") or "var/prefect").expanduser()
    recorded = tracking_uri()
    uris = {
        "mlflow": os.environ.get(BACKEND) or ("sqlite:///mlflow.db" if recorded.startswith("http") else recorded),
        "prefect": prefect or f"sqlite:///{home / 'prefect.db'}",
    }
    try:
        urls = {name: make_url(uri) for name, uri in uris.items()}
    except (ArgumentError, ValueError):  # its message would show the password
        raise StageError(f"one of {BACKEND} and {PREFECT[1]} is not a URL like postgresql://USER:PASSWORD@HOST/NAME") from None
    for name, url in urls.items():
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise StageError(f"the database of {name} is {url.get_backend_name()}: only SQLite and Postgres can be backed up")
    artifacts = os.environ.get(ARTIFACTS) or "mlartifacts"
    bucket = "://" in artifacts and not artifacts.startswith("file:")
    cache, remote = _dvc()
    var = var_folder()
    sqlite = {f"{name}.db": Path(url.database or "") for name, url in urls.items() if url.get_backend_name() == "sqlite"}
    files = sqlite | ({} if bucket else {"mlartifacts": Path(url2pathname(artifacts.removeprefix("file://")))})
    files |= {"var": var, "cache": cache} | {name: Path(name) for name in PROJECT}
    return State(
        databases={name: url for name, url in urls.items() if url.get_backend_name() == "postgresql"},
        # What is inside var is part of it.
        files={name: path for name, path in files.items() if name == "var" or not path.resolve().is_relative_to(var.resolve())},
        elsewhere={"mlartifacts": artifacts} if bucket else {},
        remote=remote,
    )


def _dvc() -> tuple[Path, str | None]:
    """DVC's cache, and the name of its default remote."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local.path).parent.parent, repo.config["core"].get("remote")
    except NotDvcRepoError:
        return Path(".dvc/cache"), None
