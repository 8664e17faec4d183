"""Images that users labelled through the service, where they agreed to have them kept."""

import pandas as pd

from pipeline import feedback
from pipeline.params_data import FeedbackSource


def listing(source: FeedbackSource) -> pd.DataFrame:
    """One row an image and label: file, path, label, group, verdict, answered_by.

    Users who disagree over one image give it two rows; ingest then finds the conflict and leaves it out. No feedback yet is no error.

    Raises:
        StageError: naming a line of the record that cannot be read.
    """
    rows = {
        f"{statement.label}/{statement.image}": {
            "file": str(source.path / feedback.IMAGES / statement.image),
            "path": f"{statement.label}/{statement.image}",
            "label": statement.label,
            "group": statement.image,
            "verdict": statement.verdict,
            "answered_by": statement.version,
        }
        for statement in feedback.read(source.path)
        if statement.image is not None
    }
    return pd.DataFrame(rows.values(), columns=["file", "path", "label", "group", "verdict", "answered_by"])
