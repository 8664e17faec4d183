"""Flow `tune`: searches for better training settings. A person decides whether to adopt them; no model is trained for serving."""

from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from flows.study import study
from pipeline.errors import StageError
from pipeline.params import ParamsError


@flow(name="tune", log_prints=False)
def tune() -> State[Any]:
    """Run the search that `tune` in params.yaml describes, or resume one that was interrupted.

    Ends as Completed with the command that adopts the best values, or as StageFailed.
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
