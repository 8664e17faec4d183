"""A training's run in MLflow, opened once and continued after a kill."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.params import Params
from pipeline.staging import write
from pipeline.tracking import connect, tracking_uri, without_secrets

TAGS = "UNMASK_RUN_TAGS"
"""Environment variable with tags for every run that is opened, as JSON."""
CONTEXTS = {"train": "training", "val": "validation", "test": "test"}
log = logging.getLogger(__name__)


@dataclass
class Record:
    """An open run. If the store fails later, that is logged and does not stop the training: the same figures are in files."""

    run_id: str

    @classmethod
    def open(cls, folder: Path, settings: Params) -> Self:
        """Start a run, or continue the one recorded in `folder`.

        Raises:
            StageError: if MLflow does not answer.
        """
        import mlflow

        note = folder / "run.json"
        try:
            experiment = connect()
            run_id = json.loads(note.read_text())["run_id"] if note.is_file() else None
            if run_id and _exists(run_id):
                mlflow.start_run(run_id=run_id)
            else:
                name = settings.model.name.rstrip("/").rpartition("/")[2]
                run_id = mlflow.start_run(experiment_id=experiment, run_name=name).info.run_id
                # Immediately: after a failure from here on, the next attempt continues this run.
                write(note, json.dumps({"run_id": run_id}).encode())
            noted = mlflow.get_run(run_id)
            if not noted.data.params:
                sections = settings.model_dump(by_alias=True, mode="json", include={"data", "split", "model", "train", "augment"})
                mlflow.log_params(_flat(sections))
            if len(noted.inputs.dataset_inputs if noted.inputs else ()) < len(CONTEXTS):
                mlflow.set_tags(json.loads(os.environ.get(TAGS, "{}")))
                for part, context in CONTEXTS.items():
                    mlflow.log_input(_dataset(part), context=context)
        except mlflow.exceptions.MlflowException as error:
            raise StageError(
                without_secrets(f"MLflow at {tracking_uri()} did not accept the run: {str(error).splitlines()[0]} ")
                + "Start it (make up), or unset MLFLOW_TRACKING_URI to record in mlflow.db here."
            ) from None
        return cls(run_id)

    def epoch(self, row: dict[str, float]) -> None:
        """Log the figures of an epoch; MLflow shows them live."""
        self._log_metrics({name: value for name, value in row.items() if name != "epoch" and value == value}, int(row["epoch"]))

    def finish(self, report: dict[str, Any]) -> None:
        """Close the run."""
        import mlflow

        self._log_metrics({"training_seconds": report["seconds"], "parameters": report["parameters"]}, None)
        try:
            mlflow.end_run()
        except mlflow.exceptions.MlflowException as error:
            log.warning("MLflow could not be told that the training ended: %s", error)

    def _log_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        import mlflow

        try:
            mlflow.log_metrics(metrics, step=step)
        except mlflow.exceptions.MlflowException as error:
            log.warning("MLflow did not accept metrics of this step: %s", error)


def parent_run(kind: str, key: str) -> str:
    """The id of the run that trainings are nested in: the one of this kind, e.g. "tune", with this key, or a new one."""
    from mlflow import MlflowClient

    experiment, client = connect(), MlflowClient()
    known = client.search_runs([experiment], f"tags.kind = '{kind}' AND tags.key = '{key}'", max_results=1)
    return str((known[0] if known else client.create_run(experiment, run_name=kind, tags={"kind": kind, "key": key})).info.run_id)


@contextmanager
def child_of(run_id: str, **tags: str) -> Iterator[None]:
    """Runs opened inside this context are nested in the given run, and have these tags."""
    before = os.environ.get(TAGS)
    os.environ[TAGS] = json.dumps(json.loads(before or "{}") | {"mlflow.parentRunId": run_id} | tags)
    try:
        yield
    finally:
        if before is None:
            del os.environ[TAGS]
        else:
            os.environ[TAGS] = before


def _exists(run_id: str) -> bool:
    import mlflow

    try:
        return mlflow.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _dataset(part: str) -> Any:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset

    path = manifest.SPLITS / f"{part}.parquet"
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's hash of this file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow finds the right type of source under two names, and warns
        source = resolve_dataset_source(str(path))
    return MetaDataset(source=source, name=part, digest=digest)  # type: ignore[abstract]


def _flat(content: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested settings for MLflow: dotted names, values of at most 500 characters."""
    if isinstance(content, dict):
        return {key: value for name, inner in content.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(content)[:500]}
