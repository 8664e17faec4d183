"""Helpers for the tests of evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.judge_package import describe_folder


def judged(folder: Path) -> pd.DataFrame:
    """The folder's images with random probabilities."""
    table, broken = describe_folder(folder)
    assert not broken
    return table.assign(score=0.0, probability_fake=np.random.default_rng(0).random(len(table)))
