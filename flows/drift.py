"""Flow `drift`: checks whether the champion's traffic still looks like the data it was evaluated on, and emits an event if not."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows import monitoring, registry
from flows.materialise import WORKSPACE, at_work, workspace_lock
from flows.notifications import send
from flows.registry import Version
from flows.store import TROUBLE, find_champion, retried, trouble
from pipeline import package
from pipeline.errors import StageError
from pipeline.ingestion import copies
from pipeline.labels import LABEL2ID
from pipeline.monitoring import diagnosis, feedback, labelling, predictions, shadow, trust
from pipeline.monitoring.drift import nearest, references, shifted
from pipeline.monitoring.drift_page import page
from pipeline.package import Package, PackageError
from pipeline.params import ParamsError, load_params
from pipeline.params_data import FeedbackSource
from pipeline.params_loop import Drift
from pipeline.staging import write
from pipeline.var import DRIFT_REPORT, var_folder

DRIFT_EVENT = "unmask.drift"
RESOURCE = {"prefect.resource.id": "unmask.model", "prefect.resource.name": registry.MODEL}
"""What the event is about."""

MOST_NAMED = 3


@flow(name="drift", log_prints=False)
def drift() -> State[Any]:
    """Compare the newest answers of the champion with its reference.

    Writes var/drift/report.json and report.html, and a run in MLflow's experiment `unmask-monitoring`.
    Ends as Completed with the name NoDrift, Drift or NotEnoughData, or as StageFailed.
    """
    try:
        return _look()
    except (StageError, ParamsError, PackageError) as error:
        return Failed(name="StageFailed", message=str(error))
    except TROUBLE as error:
        return Failed(name="StageFailed", message=trouble(error))


def _look() -> State[Any]:
    params = load_params()
    settings = params.drift
    if WORKSPACE in at_work():  # it may read images that would be deleted, and take hours, too long to wait
        get_run_logger().info("a run is active in this folder: expired images will be deleted by the first check after it")
    else:
        with workspace_lock():
            let_expire(params.feedback.retention_days)
    version = find_champion()
    if version is None:
        return Completed(name="NotEnoughData", message=f"no version of {registry.MODEL} is the champion: there is nothing to compare")
    found = fetch_package(version)
    said = feedback.read(var_folder() / feedback.FOLDER)
    source = next((source for source in params.data.sources if isinstance(source, FeedbackSource)), FeedbackSource(kind="feedback"))
    answers, known = predictions.newest(var_folder() / predictions.FILE, version.digest, settings.max_window), references(found.path)
    window = diagnosis.pictures(known[0], answers)
    if len(window) < settings.min_window:
        there = f"{len(window)} different pictures in {len(answers)} answers, " if len(window) < len(answers) else f"{len(answers)} "
        message = f"{there}of the {settings.min_window} answers needed: not enough data"
        return Completed(name="NotEnoughData", message=message)
    reference, report = check(known, window, settings, found.meta.fake_share)
    report = {"version": version.number, "answers": len(answers)} | report
    labels = {line.id: LABEL2ID[line.label] for line in trust.judge(said, source).counted}
    report["f1"] = f1(found, reference, window, report) | {"measured": diagnosis.measured_f1(answers, labels, found.meta.thresholds.f1)}
    report["challenger"] = shadow.compared(
        predictions.shadow_pairs(var_folder() / predictions.FILE, version.digest, settings.max_window), labels
    )
    report["announced"] = announce(report, str(answers["id"].iloc[-1]))
    kept = {line.id: var_folder() / feedback.FOLDER / feedback.IMAGES / line.image for line in said if line.image}
    write(report_file().with_suffix(".html"), page(report, reference, window, kept).encode())
    write(report_file(), (json.dumps(report, indent=2) + "\n").encode())
    monitoring.record(report, report_file().parent)
    return Completed(name="Drift" if report["drift"] else "NoDrift", message=show(report))


def let_expire(days: float | None) -> None:
    """Delete images that users let us keep, and all copies, after this many days; None keeps them. Raises like `feedback.read`."""
    if days is None:
        return
    var, end = var_folder(), datetime.now(UTC) - timedelta(days=days)
    images = feedback.expired(var / feedback.FOLDER, end)
    copies.delete(images)
    labelling.forget(var, images)
    feedback.expire(var / feedback.FOLDER, end)  # last: after a kill or an error, the record still says which copies to delete


@task(name="fetch the package", **retried)
def fetch_package(version: Version) -> Package:
    """The package of a version, downloaded unless there is an intact copy. Before a download, other versions' packages are deleted.

    Raises:
        StageError: if the version was not registered by the flow `train`.
        PackageError: if the download is incomplete or damaged.
    """
    if not version.digest:
        raise StageError(f"version {version.number} of {registry.MODEL} has no tag `{registry.DIGEST}`: register it with the flow `train`")
    folder = var_folder() / "drift" / version.digest[:16]
    with workspace_lock("drift-package", lambda _: None):  # another flow would delete what is half downloaded
        try:
            return package.verify(folder)
        except PackageError:
            for old in folder.parent.glob("*/"):
                shutil.rmtree(old)
            return package.verify(registry.download(version, folder))


def check(known: list[pd.DataFrame], window: pd.DataFrame, settings: Drift, fake_share: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The nearest reference, and the test's report with the kind of drift (None without drift) and the estimated share of fakes."""
    reference, report = nearest(known, window, settings)
    return reference, report | {
        "kind": diagnosis.kind(reference, window, report, settings, fake_share) if report["drift"] else None,
        "share_of_fakes": diagnosis.share_of_fakes(window, fake_share),
    }


def f1(found: Package, reference: pd.DataFrame, window: pd.DataFrame, report: dict[str, Any]) -> dict[str, Any]:
    """F1 without labels: `expected` of the window, and `tested`, the F1 of the test part."""
    probabilities, known = window["probability_fake"].to_numpy(np.float64), found.meta.fake_share
    # Unless it is what drifted, the share of fakes is that of the reference, which export draws from validation by class.
    drifted = report["drift"] and report["kind"]["kind"] == "share of fakes"
    share = report["share_of_fakes"] if drifted else diagnosis.share_of_fakes(reference, known)
    chances = diagnosis.adjust_prior(probabilities, known, share)
    return {
        "expected": diagnosis.expected_f1(probabilities, found.meta.thresholds.f1, chances),
        "tested": found.meta.figures.get("f1"),
    }


def announce(report: dict[str, Any], newest: str) -> str | None:
    """Emit the drift event, unless the same answers were announced before. Notify people only if the drift is new or of another kind.

    The event is repeated, because the training it asks for may have been refused last time.

    Returns:
        Id of the newest answer announced so far.
    """
    last: dict[str, Any] = json.loads(report_file().read_text()) if report_file().is_file() else {}
    before: str | None = last.get("announced")
    if not report["drift"] or newest == before:
        return before
    kind = report["kind"]["kind"]
    # `get`, because reports of other releases have other fields, and a check that failed here would never write the next one.
    if not (last.get("drift") and (last.get("version"), (last.get("kind") or {}).get("kind")) == (report["version"], kind)):
        send("drift found", sentence(report))
    payload = {name: report[name] for name in ("p_value", "window", "version")}
    emit_event(event=DRIFT_EVENT, resource=RESOURCE, payload=payload | {"shifted": shifted(report)[:MOST_NAMED], "kind": kind})
    return newest


def sentence(report: dict[str, Any]) -> str:
    """The result in words."""
    found = "differ from" if report["drift"] else "look like"
    different = f", on {report['window']} different pictures," if report["window"] < report["answers"] else ""
    text = f"the newest {report['answers']} answers of version {report['version']}{different} {found} its reference"
    text += f" (p = {report['p_value']:.2g})"
    if report["drift"]:
        text += f", above all in {', '.join(shifted(report)[:MOST_NAMED])}; {report['kind']['kind']}: {report['kind']['why']}"
    if (challenger := report["challenger"]) is not None:
        text += f". As a shadow, version {challenger['version']} agreed on {challenger['agreement']:.0%} of {challenger['n']} answers"
    return text


def show(report: dict[str, Any]) -> str:
    """Report the result in the log and as artifacts. Returns the sentence."""
    text = sentence(report)
    (get_run_logger().warning if report["drift"] else get_run_logger().info)(text)
    table = [{name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in report["statistics"]]
    create_table_artifact(key="drift", table=table, description=text)
    markdown = (
        f"# {'Drift' if report['drift'] else 'No drift'}\n\n{text}\n\nReport with plots: {report_file().with_suffix('.html').resolve()}"
    )
    create_markdown_artifact(key="drift-result", markdown=markdown)
    return text


def report_file() -> Path:
    """Path of the last check's report."""
    return var_folder() / DRIFT_REPORT
