"""Flow `drift`: does what the champion is asked still look like what it was judged on? If not, an event says so."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows import registry
from flows.registry import Version
from flows.store import find_champion, retried
from pipeline import package, predictions
from pipeline.drift import compare
from pipeline.errors import StageError
from pipeline.package import PackageError
from pipeline.params import ParamsError, load_params

DRIFT_EVENT = "unmask.drift"
RESOURCE = {"prefect.resource.id": "unmask.model", "prefect.resource.name": registry.MODEL}
"""What the event is about."""

MOST_NAMED = 3


@flow(name="drift", log_prints=False)
def drift() -> State[Any]:
    """Compare the newest answers of the champion with its reference.

    Ends as Completed with the name NoDrift, Drift or NotEnoughData, or as StageFailed.
    """
    try:
        settings = load_params().drift
        version = find_champion()
        if version is None:
            return Completed(name="NotEnoughData", message=f"no version of {registry.MODEL} is the champion: there is nothing to compare")
        reference = fetch_reference(version)
    except (StageError, ParamsError, PackageError) as error:
        return Failed(name="StageFailed", message=str(error))
    window = predictions.newest(_var() / predictions.FILE, version.digest, settings.max_window)
    if len(window) < settings.min_window:
        message = f"{len(window)} of {settings.min_window} answers needed: not enough data to say anything"
        return Completed(name="NotEnoughData", message=message)
    report = {"version": version.number} | compare(reference, window, settings)
    report["announced"] = announce(report, str(window["id"].iloc[-1]))
    part = _report_file().with_suffix(".part")
    part.write_text(json.dumps(report, indent=2) + "\n")
    part.replace(_report_file())
    return Completed(name="Drift" if report["drift"] else "NoDrift", message=show(report))


@task(name="fetch the reference", **retried)
def fetch_reference(version: Version) -> pd.DataFrame:
    """The reference of a version, from its package, which is downloaded unless a whole one is there; other versions' packages are dropped.

    Raises:
        StageError: if the version was not registered by the flow `train`.
        PackageError: if what was downloaded is not whole.
    """
    if not version.digest:
        raise StageError(f"version {version.number} of {registry.MODEL} has no tag `{registry.DIGEST}`: register it with the flow `train`")
    folder = _var() / "drift" / version.digest[:16]
    try:
        found = package.verify(folder)
    except PackageError:
        for old in folder.parent.glob("*/"):
            shutil.rmtree(old)
        found = package.verify(registry.download(version, folder))
    return pd.read_parquet(found.path / "reference.parquet")


def announce(report: dict[str, Any], newest: str) -> str | None:
    """Emit the event of a drift, unless the same answers were announced before. Returns the id of the newest answer announced so far."""
    last = json.loads(_report_file().read_text())["announced"] if _report_file().is_file() else None
    if not report["drift"] or newest == last:
        return last
    payload = {name: report[name] for name in ("p_value", "window", "version")} | {"shifted": _shifted(report)}
    emit_event(event=DRIFT_EVENT, resource=RESOURCE, payload=payload)
    return newest


def show(report: dict[str, Any]) -> str:
    """Say how it ended, in the log and as artifacts. Returns the sentence."""
    found = "differ from" if report["drift"] else "look like"
    sentence = f"the newest {report['window']} answers of version {report['version']} {found} its reference (p = {report['p_value']:.2g})"
    if report["drift"]:
        sentence += f", above all in {', '.join(_shifted(report))}"
    (get_run_logger().warning if report["drift"] else get_run_logger().info)(sentence)
    table = [{name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in report["statistics"]]
    create_table_artifact(key="drift", table=table, description=sentence)
    create_markdown_artifact(key="drift-result", markdown=f"# {'Drift' if report['drift'] else 'No drift'}\n\n{sentence}")
    return sentence


def _shifted(report: dict[str, Any]) -> list[str]:
    """Names of the statistics that shifted most."""
    return [found["name"] for found in report["statistics"] if found["p_value"] <= report["alpha"]][:MOST_NAMED]


def _var() -> Path:
    return Path(os.environ.get("UNMASK_VAR", "var"))


def _report_file() -> Path:
    return _var() / "drift" / "report.json"
