"""Flow `tune`: searches better settings of training. What it finds is for a person to take over; nothing is trained for serving here."""

from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from flows.study import study
from pipeline.errors import StageError
from pipeline.params import ParamsError


@flow(name="tune", log_prints=False)
def tune() -> State[Any]:
    """Run the search of params.yaml's section `tune`, or go on with one that was cut short.

    Ends as Completed with the command that takes the best values over, or as StageFailed.
    """
    try:
        found = study("sweep")
    except (StageError, ParamsError) as error:
        return Failed(name="StageFailed", message=str(error))
    best = found["best"]
    message = f"{found['trials']} trials, {found['pruned']} ended early; validation AUC {best['val_auc']:.4f} with: {best['command']}"
    rows = "\n".join(f"| {key} | {value} |" for key, value in best["values"].items())
    create_markdown_artifact(key="search", markdown=f"{message}\n\n| setting | value |\n| --- | --- |\n{rows}\n")
    return Completed(message=message)
