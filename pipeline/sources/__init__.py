"""Where images come from. A source lists its images, one row each; ingest copies them from there.

A row has: file (where the image is now), path (its name inside the source), label, generator, group, and any attributes.
Sources that make or fetch images keep them in the folder `staging` that they are given; nothing is ever written to, or deleted
from, a folder that belongs to the user.
"""

from pathlib import Path

import pandas as pd

from pipeline.errors import StageError
from pipeline.ingestion import ledger
from pipeline.manifest import COLUMNS, NO_GENERATOR, SCORED, SIZE
from pipeline.params_data import FeedbackSource, FolderSource, HuggingFaceSource, LfwSource, ProceduralSource, Source
from pipeline.sources import feedback, folder, huggingface, lfw, procedural

TAKEN = set(COLUMNS) - {"path", "label", "generator", "group"} | {*ledger.TYPES, *SCORED, SIZE}
"""Names that attributes of a source must not have."""


def listing(source: Source, staging: Path) -> pd.DataFrame:
    """List the images of a source; those made or fetched before are not made or fetched again.

    Returns:
        One row per image: file, path, label, generator, group, and any attributes; sorted by path.

    Raises:
        StageError: if the source cannot be used; the message says why.
    """
    match source:
        case FolderSource():
            table = folder.listing(source)
        case HuggingFaceSource():
            table = huggingface.listing(source, staging)
        case LfwSource():
            table = lfw.listing(source)
        case FeedbackSource():
            table = feedback.listing(source, staging)
        case ProceduralSource():
            table = procedural.listing(source, staging)
    taken = sorted(TAKEN & set(table))
    if taken:
        raise StageError(
            f"data source {source.name}: column name {', '.join(taken)} is reserved for ingest or evaluation; "
            "rename it, or leave the column out"
        )
    return _completed(table).sort_values("path", ignore_index=True)


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in missing values: `unknown` as generator of a fake, and a group of its own. A real always gets NO_GENERATOR."""
    table = table.assign(**{column: "" for column in ("generator", "group") if column not in table})
    fake = table["label"] == "fake"
    table["generator"] = table["generator"].where(fake, NO_GENERATOR).mask(fake & table["generator"].isin(["", NO_GENERATOR]), "unknown")
    table["group"] = table["group"].mask(table["group"] == "", table["path"])
    return table.astype(dict.fromkeys(("file", "path", "label", "generator", "group"), "str"))  # empty columns have no type
