"""Flow `leave-one-out`: how well the recipe of params.yaml detects each kind of forgery without training on it."""

from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from flows.study import study
from pipeline.errors import StageError
from pipeline.evaluation.metrics import figure_text
from pipeline.params import ParamsError


@flow(name="leave-one-out", log_prints=False)
def leave_one_out() -> State[Any]:
    """Train once without each generator; an interrupted run resumes. Ends as Completed with the figures, or as StageFailed."""
    try:
        found = study("leave_one_out")
    except (StageError, ParamsError) as error:
        return Failed(name="StageFailed", message=str(error))
    message = (
        f"AUC on an unseen kind of forgery: mean {found['mean_auc']:.3f}, worst {found['worst_auc']:.3f} ({found['worst']}), "
        f"pooled {figure_text(found['pooled_auc'])}"
    )
    lines = [f"| {name} | {figure_text(row['auc'])} | {figure_text(row['recall'])} |" for name, row in found["generators"].items()]
    table = "\n".join(["| left out | AUC | recall |", "| --- | --- | --- |", *lines])
    create_markdown_artifact(key="leave-one-out", markdown=f"{message}\n\n{table}\n")
    return Completed(message=message)
