"""Flow `score`: judges a folder of images with a model package, as a batch."""

import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from flows.process import environment, stream


@flow(name="score", log_prints=False)
def score(paths: list[str], out: str = "reports/scores.csv", package: str | None = None) -> State[Any]:
    """Write one row per image, as `python -m pipeline.score` does.

    Args:
        paths: images, or folders of images.
        out: CSV file to write.
        package: folder of the model package; by default the one trained last, else the starter model.
    """
    command = [sys.executable, "-m", "pipeline.score", *paths, "--out", out, *(["--package", package] if package else [])]
    ended = stream(command, get_run_logger().info, environment())
    if ended.returncode:
        return Failed(name="StageFailed", message=ended.message())
    message = f"{Path(out).resolve()} holds the scores of {', '.join(paths)}"
    create_markdown_artifact(key="scores", markdown=message)
    return Completed(message=message)
