"""Records drift checks in MLflow: one run per check, in a separate experiment from the trainings."""

import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from prefect import task

from flows.store import retried
from pipeline.tracking import EXPERIMENT, connect

MONITORING = f"{EXPERIMENT}-monitoring"


@task(name="record the check", **retried)
def record(report: dict[str, Any], folder: Path) -> str:
    """Log a report's figures, and the folder's report.json and report.html. Returns the id of the run."""
    experiment, f1 = connect(MONITORING), report["f1"]
    figures = {"p_value": report["p_value"], "window": report["window"], "share_of_fakes": report["share_of_fakes"]}
    figures |= {f"f1_{name}": f1[name]["value"] for name in f1 if f1[name] is not None}
    figures |= {f"share_{verdict}": share for verdict, share in report.get("verdicts", {}).items()}
    figures |= {found["name"]: found["value"] for found in report["statistics"]}
    figures |= {f"psi_{found['name']}": found["psi"] for found in report["statistics"]}
    if report["challenger"] is not None:
        figures |= {"challenger_agreement": report["challenger"]["agreement"], "challenger_answers": report["challenger"]["n"]}
    kind = report["kind"]["kind"] if report["drift"] else "none"
    client, now = MlflowClient(), int(time.time() * 1000)
    for left in client.search_runs([experiment], "attributes.status = 'RUNNING'"):  # by an attempt that MLflow failed, or by a kill
        client.set_terminated(left.info.run_id, "FAILED")
    run = client.create_run(experiment, tags={"version": str(report["version"]), "drift": kind}).info.run_id
    client.log_batch(run, [Metric(name, value, now, 0) for name, value in figures.items() if value is not None])
    for name in ("report.json", "report.html"):
        client.log_artifact(run, str(folder / name))
    client.set_terminated(run)
    return run
