"""Where images come from. A source puts its images under data/raw/<name> and returns one row an image."""

from pathlib import Path

import pandas as pd

from pipeline.params import FolderSource, ProceduralSource
from pipeline.sources import folder, procedural


def materialise(source: ProceduralSource | FolderSource, out: Path) -> pd.DataFrame:
    """Bring the images of a source into the folder `out`; what is there already and still right is not touched.

    Returns:
        One row an image: path (relative to `out`), label, generator, group, and any attributes.

    Raises:
        StageError: if the source cannot be used; the message says why.
    """
    if isinstance(source, FolderSource):
        return folder.copy(source, out)
    return procedural.generate(source, out)
