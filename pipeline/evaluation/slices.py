"""Metrics on slices of the test set: a detector that is good overall may fail on one kind of image."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline import manifest
from pipeline.evaluation.metrics import group_weights, judge_weighted
from pipeline.evaluation.scoring import labels
from pipeline.manifest import NO_GENERATOR, SCORED, SIZE
from pipeline.params import Evaluate

SMALL = 30
"""With fewer images than this, the metrics of a slice say little."""
MOST_VALUES = 20
"""Values per column: a numeric column with more is cut into thirds; in any other, the rarest become `other`."""
CUT = ("jpeg_quality", SIZE, "blur", "brightness", "face_share")
JUDGED = ("f1", "recall", "fpr", "auc", "ece", "brier", "nll")


def slices(table: pd.DataFrame, threshold: float, settings: Evaluate) -> list[dict[str, Any]]:
    """Metrics of each slice: generators (each against all reals), how the file is stored, how the picture was taken, attributes.

    Args:
        table: rows of the test part with `probability_fake`.

    Returns:
        column, value, n, `small` (under 30 images) and the metrics in JUDGED with their intervals.
    """
    truth, probabilities = labels(table), table["probability_fake"].to_numpy()
    weights = group_weights(table["group"].to_numpy(), settings.bootstrap, settings.seed)
    found = []
    for column, value, inside in _slices(table):
        rows = inside | (table["label"] == "real").to_numpy() if column == "generator" else inside
        judged = judge_weighted(truth[rows], probabilities[rows], threshold, weights[:, rows])
        n = int(inside.sum())
        found.append({"column": column, "value": value, "n": n, "small": n < SMALL, **{name: judged[name] for name in JUDGED}})
    return found


def _slices(table: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Column, value, and which rows have it: bool (n,). A column with a single value gives no slice, except the generator."""
    for name, column in _columns(table):
        ordered = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else sorted(set(column.dropna()))
        values = [value for value in ordered if (name, value) != ("generator", NO_GENERATOR)]
        if len(values) > 1 or name == "generator":
            yield from ((name, value, (column == value).to_numpy(bool, na_value=False)) for value in values)


def _columns(table: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """The columns to slice by, as text."""
    for name in ("generator", "format", "source"):
        yield name, table[name].astype("str")
    measured = table.assign(**{SIZE: table[["width", "height"]].max(axis=1)})
    for name in CUT:
        yield name, tertiles(measured[name].astype("float64"))
    yield "faces", table["faces"].map({0: "none found", 1: "one"}).where(table["faces"].isna() | (table["faces"] < 2), "several")
    for name in manifest.attributes(table.drop(columns=list(SCORED), errors="ignore")):
        yield name, _attribute(table[name])


def tertiles(values: pd.Series) -> pd.Series:
    """Cut numbers into thirds with about equally many images, each named by its lowest and highest value.

    Returns:
        Ordered categories; missing stays missing. Up to three different numbers are categories themselves.
    """
    third = values if values.nunique() <= 3 else pd.qcut(values, 3, labels=False, duplicates="drop")
    bounds = values.groupby(third).agg(["min", "max"]).to_numpy()
    text = _texts(set(bounds.ravel().tolist()))
    names = [text[low] if low == high else f"{text[low]} to {text[high]}" for low, high in bounds.tolist()]
    codes, _ = pd.factorize(third, sort=True)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(names, ordered=True)), values.index)


def _texts(numbers: set[float]) -> dict[float, str]:
    """Each number as text: as it is if all are integers, else with as many digits as tell them apart, and at least three."""
    if all(number.is_integer() for number in numbers):
        return {number: f"{number:.0f}" for number in numbers}
    short: dict[float, float] = {}
    for digits in range(3, 18):
        short = {number: float(f"{number:.{digits}g}") for number in numbers}
        if len(set(short.values())) == len(numbers):
            break
    return {number: np.format_float_positional(value, trim="-") for number, value in short.items()}


def _attribute(column: pd.Series) -> pd.Series:
    column = column.mask(column.astype("str") == "")
    if column.nunique() > MOST_VALUES:
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.notna().sum() == column.notna().sum():
            return tertiles(numbers.astype("float64"))
        common = column.value_counts().index[: MOST_VALUES - 1]
        column = column.where(column.isin(common) | column.isna(), "other")
    return column.astype("object").map(str, na_action="ignore")
