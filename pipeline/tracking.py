"""Where runs are recorded: an MLflow server, or a SQLite file in the project's folder."""

import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

EXPERIMENT = "unmask"
MODEL = "unmask"
"""Name of the registered model."""

log = logging.getLogger(__name__)


def tracking_uri() -> str:
    """The address of the MLflow store."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if os.environ.get("MLFLOW_BACKEND_STORE_URI"):  # the server's own store: runs go through the server of this machine
        return f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT') or 5000}"
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def without_secrets(text: str) -> str:
    """Remove the user and password from every address in a message."""
    return re.sub(r"(?<=://)[^\s/?#]+@", "", text)


def reach() -> bool:
    """Point MLflow at the store. Returns whether there is one: reading a missing SQLite file would create it."""
    import mlflow

    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)  # which also sets MLFLOW_TRACKING_URI
    return not uri.startswith("sqlite:") or _database(uri).exists()


def connect(experiment: str = EXPERIMENT) -> str:
    """Point MLflow at the store and make the experiment if it is new. Returns the experiment's id.

    A deleted one, which MLflow keeps, is restored with its runs: there can be no other of its name.

    Raises:
        mlflow.exceptions.MlflowException: if a server does not answer.
    """
    import mlflow
    from mlflow.entities import LifecycleStage

    if not reach():
        _make_tables(tracking_uri())
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        # A server decides where artifacts go; a bare SQLite file needs a folder.
        folder = (Path.cwd() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite:") else None
        return mlflow.create_experiment(experiment, artifact_location=folder)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        mlflow.MlflowClient().restore_experiment(found.experiment_id)
        log.warning("MLflow's experiment %s had been deleted: it was restored with its runs. Delete runs instead", experiment)
    return found.experiment_id


def _make_tables(uri: str) -> None:
    """Create a missing SQLite store with all of its tables or not at all: MLflow cannot continue with some of them."""
    import mlflow

    database = _database(uri)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=f"{database.name}.") as folder:
        made = Path(folder) / database.name
        mlflow.MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was faster
            os.link(made, database)


def _database(uri: str) -> Path:
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")
