"""Labeled Faces in the Wild (Huang et al., 2007) through scikit-learn's fetcher: photographs of real people, by name."""

from pathlib import Path

import pandas as pd

from pipeline.errors import StageError
from pipeline.params_data import LfwSource


def listing(source: LfwSource) -> pd.DataFrame:
    """One row per photograph: file, path, label, group (the person's name). Downloaded once (230 MB), then read in place.

    Raises:
        StageError: if it is missing and cannot be downloaded, or is incomplete.
    """
    # The public fetch_lfw_people would load all images into one float array of 10 GB; only its first half, which downloads and unpacks,
    # is needed.
    from sklearn.datasets._lfw import FUNNELED_ARCHIVE, _check_fetch_lfw

    home = str(source.data_home) if source.data_home else None
    try:
        home_folder, folder = _check_fetch_lfw(data_home=home, funneled=True, download_if_missing=True)
    except OSError as error:
        raise StageError(
            f"data source {source.name}: LFW is not in {source.data_home or 'the data home of scikit-learn'} and cannot be fetched: {error}"
        ) from None
    if (Path(home_folder) / FUNNELED_ARCHIVE.filename).exists():
        raise StageError(f"data source {source.name}: unpacking into {folder} was cut short; remove that folder and run again")
    files = sorted(Path(folder).glob("*/*.jpg"))
    if not files:
        raise StageError(f"data source {source.name}: {folder} holds no images; remove it and run again to download it")
    return pd.DataFrame(
        [{"file": str(file), "path": f"{file.parent.name}/{file.name}", "label": "real", "group": file.parent.name} for file in files]
    )
