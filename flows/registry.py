"""A small interface to MLflow's registry: find, register and download versions, set and look up aliases.

A package is registered once. Its run and version are found by its digest, which is a tag, so a run that was killed anywhere, or
whose files came from DVC's cache, leads to the same version when it is started again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from flows.gates import Verdict
from pipeline.champion_source import CHALLENGER
from pipeline.lineage import lineage
from pipeline.package import META, Package, PackageError
from pipeline.params import Params
from pipeline.record import Record
from pipeline.tracking import EXPERIMENT, MODEL, connect, reach
from pipeline.var import var_folder

PREVIOUS = "previous"
"""Alias of the version that was served before the champion."""

DIGEST = "package"
REPORTS = Path("reports")
TRAIN_REPORT = REPORTS / "train.json"
PARTS = ("test", "unseen")


@dataclass(frozen=True)
class Version:
    """A registered package."""

    number: int
    run_id: str
    tags: dict[str, str]
    description: str = ""

    @property
    def digest(self) -> str:
        """`Package.digest` of its package; empty if it has no such tag."""
        return self.tags.get(DIGEST, "")

    @property
    def passed(self) -> bool:
        """Whether it passed the gate."""
        return self.tags.get("gate") == "passed"


def register(
    package: Package, settings: Params, evaluation: Mapping[str, Any], verdicts: Sequence[Verdict], because: Mapping[str, str]
) -> Version:
    """Register the package with its figures and verdicts, unless that was done before; then set `challenger` to the newest that passed.

    A package that is registered already keeps its version but gets the new verdicts, because the gates may have changed.

    Args:
        package: its training run is named in reports/train.json. If this store does not know that run, or the run has another package
            already, a new run is made from the reports.
        evaluation: reports/evaluation.json.
        because: tags that tell its origin: Prefect flow run, reason of the training and evidence.

    Raises:
        MlflowException: if MLflow cannot be reached.
    """
    connect()
    client = MlflowClient()
    tags = verdict_tags(verdicts)
    version = find(package.digest)
    if version:
        for key in {key for key in version.tags if key.startswith("gate.")} - set(tags):
            untag(version, key)
        for key, value in tags.items():
            tag(version, key, value)
    else:
        origin = package.meta.lineage | {"dvc_lock": lineage()["dvc_lock"], DIGEST: package.digest, **because}
        run_id = _run_of(package, settings)
        origin_tags = {key: str(value) for key, value in origin.items() if value is not None and key != "run_id"}
        _complete(client, run_id, package, evaluation, origin_tags)
        _make_model(client)
        client.create_model_version(
            MODEL,
            source=f"{client.get_run(run_id).info.artifact_uri}/package",
            run_id=run_id,
            tags=origin_tags | tags,
        )
    _move_challenger(client)
    registered = find(package.digest)
    assert registered is not None
    return registered


def find(digest: str) -> Version | None:
    """The version of the package with this digest, if there is one."""
    return newest(f"tags.`{DIGEST}` = '{digest}'")


def holder(alias: str) -> Version | None:
    """The version that has the alias, if there is one."""
    if not reach():
        return None
    try:
        return _version(MlflowClient().get_model_version_by_alias(MODEL, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise


def known(number: int) -> Version | None:
    """The version with this number, if there is one."""
    if not reach():
        return None
    try:
        return _version(MlflowClient().get_model_version(MODEL, str(number)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def newest(*conditions: str) -> Version | None:
    """The newest version that meets all conditions (filters of MLflow's search), if there is one."""
    if not reach():
        return None
    condition = " and ".join([f"name = '{MODEL}'", *conditions])
    found = MlflowClient().search_model_versions(condition, max_results=1, order_by=["version_number DESC"])
    return _version(found[0]) if found else None


def last_run() -> dict[str, str | None]:
    """The latest run: `run_id`, `status`, and when it `started`, in UTC; all None if there is none."""
    experiment = MlflowClient().get_experiment_by_name(EXPERIMENT) if reach() else None
    ids = [experiment.experiment_id] if experiment else []
    runs = MlflowClient().search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1) if ids else []
    if not runs:
        return dict.fromkeys(("run_id", "status", "started"))
    info = runs[0].info
    return {
        "run_id": info.run_id,
        "status": info.status,
        "started": datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds"),
    }


def move(alias: str, version: Version) -> None:
    """Move an alias to a version."""
    MlflowClient().set_registered_model_alias(MODEL, alias, str(version.number))


def tag(version: Version, key: str, value: str) -> None:
    """Put a tag on a version."""
    MlflowClient().set_model_version_tag(MODEL, str(version.number), key, value)


def untag(version: Version, key: str) -> None:
    """Take a tag off a version that has it."""
    if key in version.tags:
        MlflowClient().delete_model_version_tag(MODEL, str(version.number), key)


def describe(version: Version, text: str, *reports: Path) -> None:
    """Set a version's description, and add files to the reports of its run."""
    client = MlflowClient()
    for path in reports:
        client.log_artifact(version.run_id, str(path), REPORTS.name)
    client.update_model_version(MODEL, str(version.number), text)


def download(version: Version, target: Path) -> Path:
    """Download a version's package into the folder `target`. Returns the folder of the package.

    Raises:
        PackageError: if MLflow has no package of it: `mlflow gc` deletes the files of deleted runs, but not their versions.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/{version.number}", dst_path=str(target)))
    if not (found / META).is_file():
        raise PackageError(
            f"MLflow has no package of version {version.number} of {MODEL}; was its run deleted? "
            "Delete the version too, and move its aliases to another one"
        )
    return found


def verdict_tags(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """`gate` and one tag for each gate."""
    all_passed = all(verdict.passed for verdict in verdicts)
    return {"gate": "passed" if all_passed else "failed"} | {f"gate.{verdict.name}": str(verdict) for verdict in verdicts}


def figures_table(evaluation: Mapping[str, Any]) -> str:
    """The figures of the test part and of unseen generators as a Markdown table."""
    lines = ["| part | figure | value | 95% interval |", "| --- | --- | --- | --- |"]
    for part in PARTS:
        for name, figure in evaluation.get(part, {}).items():
            lines.append(f"| {part} | {name} | {_short(figure['value'])} | {_short(figure['low'])} to {_short(figure['high'])} |")
    return "\n".join(lines)


def _run_of(package: Package, settings: Params) -> str:
    """The run of a package: the one tagged with its digest, else its training run if that has no package yet, else a new one."""
    client, experiment = MlflowClient(), connect()
    known = client.search_runs([experiment], f"tags.`{DIGEST}` = '{package.digest}'", max_results=1)
    if known:
        return known[0].info.run_id
    report = json.loads(TRAIN_REPORT.read_text())
    try:
        run = client.get_run(report["run_id"])
        run_id = run.info.run_id if run.info.lifecycle_stage == "active" and DIGEST not in run.data.tags else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run_id = None
    run_id = run_id or _replay(package, settings, report)
    client.set_tag(run_id, DIGEST, package.digest)
    return run_id


def _replay(package: Package, settings: Params, report: Mapping[str, Any]) -> str:
    """Record a training after the fact, from its report."""
    folder = var_folder() / "runs" / package.digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.open(folder, settings)
    for row in report["epochs"]:
        record.epoch(row)
    record.finish(dict(report))
    MlflowClient().set_tag(record.run_id, "replayed_from", report["run_id"])
    return record.run_id


def _complete(client: MlflowClient, run_id: str, package: Package, evaluation: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Add to a run what is known only after the evaluation. Idempotent, because the timestamp stays the same."""
    made = int(datetime.fromisoformat(package.meta.created).timestamp() * 1000)
    metrics = [
        Metric(f"{part}_{name}" + ("" if bound == "value" else f"_{bound}"), figure[bound], timestamp=made, step=0)
        for part in PARTS
        for name, figure in evaluation.get(part, {}).items()
        for bound in ("value", "low", "high")
        if figure[bound] is not None
    ]
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_artifacts(run_id, str(REPORTS), "reports")
    client.log_artifacts(run_id, str(package.path), "package")
    if client.get_run(run_id).info.status != "FINISHED":  # MLflow was down when the training ended
        client.set_terminated(run_id)


def _make_model(client: MlflowClient) -> None:
    try:
        client.create_registered_model(MODEL, description="Tells real faces from deepfakes. Promote a version by moving `champion` to it.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _move_challenger(client: MlflowClient) -> None:
    passed, current = newest("tags.gate = 'passed'"), holder(CHALLENGER)
    if passed and passed != current:
        move(CHALLENGER, passed)
    elif current and not passed:
        client.delete_registered_model_alias(MODEL, CHALLENGER)


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), found.run_id or "", dict(found.tags), found.description or "")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
