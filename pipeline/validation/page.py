"""The validation report as one HTML file that opens offline: verdict, failures with pictures, shortcut audit, quality of both classes."""

from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline import pages, plots
from pipeline.labels import LABELS
from pipeline.manifest import NO_GENERATOR
from pipeline.params import Shortcut
from pipeline.validation.versions import QUALITY

QUARANTINE = Path("reports/quarantine.csv")
LISTED = 20
"""Quarantined files listed per reason."""

COLOURS = {"real": plots.REAL, "fake": plots.FAKE}


def page(report: dict[str, Any], table: pd.DataFrame, bounds: Shortcut) -> str:
    """The HTML of the page.

    Args:
        report: content of reports/validation.json.
        table: the manifest, with all columns.
        bounds: validate.shortcut, drawn beside the audit.
    """
    failures = [finding for finding in report["expectations"] if not finding["success"]]
    shown = {path for finding in failures for path in finding["examples"]}
    rows = table[table["path"].isin(shown)].drop_duplicates("path").set_index("path")
    examples = {path: _example(path, rows.loc[path]) for path in shown}
    drawings = []
    for column in QUALITY:
        classes = {label: table.loc[table["label"] == label, column] for label in LABELS}
        if table[column].notna().any():
            drawings.append(plots.svg(partial(plots.histogram, classes, COLOURS, column)))
    return pages.render(
        "validation.html",
        report=report,
        failures=sorted(failures, key=lambda finding: finding["severity"]),
        examples=examples,
        counts={label: int((table["label"] == label).sum()) for label in LABELS},
        generators=table.loc[table["generator"] != NO_GENERATOR, "generator"].nunique(),
        groups=table["group"].nunique(),
        quarantine=quarantined(),
        listed=LISTED,
        bounds=bounds,
        audit_drawing=plots.svg(lambda axes: _bars(report["shortcut"]["columns"], bounds, axes)) if report["shortcut"]["columns"] else "",
        drawings=drawings,
    )


def quarantined() -> dict[str, list[dict[Hashable, Any]]]:
    """Rows of reports/quarantine.csv by reason; empty if there is no such file."""
    if not QUARANTINE.is_file():
        return {}
    listed = pd.read_csv(QUARANTINE, dtype=str, keep_default_na=False)
    return {str(reason): rows.to_dict("records") for reason, rows in listed.groupby("reason")}


def _bars(columns: list[dict[str, Any]], bounds: Shortcut, axes: Axes) -> None:
    names, values = [column["name"] for column in columns][::-1], np.array([column["auc"] for column in columns][::-1])
    colours = [plots.FAKE if value > bounds.warn else plots.REAL for value in values]
    axes.barh(names, values - 0.5, left=0.5, color=colours)
    for name, bound in (("warn", bounds.warn), ("refuse", bounds.refuse)):
        axes.axvline(bound, color=plots.GUIDE, linestyle=":")
        axes.text(bound, len(names) - 0.4, name, ha="center", color=plots.GUIDE)
    axes.set(xlabel="AUC of the column alone (0.5 is chance)", xlim=(min(0.45, float(values.min())), 1.01))


def _example(path: str, row: pd.Series) -> dict[str, Any]:
    return {"path": path, "picture": pages.thumbnail(Path(path)), "label": row["label"], "generator": row["generator"]}
