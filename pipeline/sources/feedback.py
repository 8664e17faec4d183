"""Images that users labelled through the service, where they agreed to have them kept."""

import logging
from pathlib import Path

import pandas as pd

from pipeline.monitoring import feedback, trust
from pipeline.params_data import FeedbackSource

SET_ASIDE = "set_aside.csv"
"""File in the staging folder: statements that do not count, and why. Not in reports/, which MLflow keeps, because it names clients."""

log = logging.getLogger(__name__)


def listing(source: FeedbackSource, staging: Path) -> pd.DataFrame:
    """One row per image: file, path, label, group, verdict, answered_by. It is not an error if there is no feedback yet.

    pipeline/monitoring/trust.py decides which statements count; the others are listed in SET_ASIDE.

    Raises:
        StageError: if a line of the record cannot be read; the message names it.
    """
    judged = trust.judge(feedback.read(source.path), source)
    aside = staging / SET_ASIDE
    aside.unlink(missing_ok=True)  # it may list what was deleted from the record since
    if judged.set_aside:
        fields = ("id", "image", "client", "label", "time")
        listed = [{name: getattr(said, name) for name in fields} | {"reason": reason} for said, reason in judged.set_aside]
        staging.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(listed).to_csv(aside, index=False)
        log.warning("%d user labels were not counted, see %s", len(listed), aside)
    rows = {
        said.image: {
            "file": str(source.path / feedback.IMAGES / said.image),
            "path": f"{said.label}/{said.image}",
            "label": said.label,
            "group": said.image,
            "verdict": said.verdict,
            "answered_by": said.version,
        }
        for said in judged.counted
        if said.image is not None and (source.path / feedback.IMAGES / said.image).is_file()
    }
    return pd.DataFrame(rows.values(), columns=["file", "path", "label", "group", "verdict", "answered_by"])
