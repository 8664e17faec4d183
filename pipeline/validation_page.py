"""The validation as one HTML file that opens offline: verdict, failures with pictures, shortcut audit, quality of both classes."""

import base64
import io
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from pipeline import plots
from pipeline.images import ImageError, read
from pipeline.labels import LABELS
from pipeline.manifest import NO_GENERATOR
from pipeline.params import Shortcut
from pipeline.versions import QUALITY

TEMPLATES = Path(__file__).parent / "templates"
QUARANTINE = Path("reports/quarantine.csv")
SIDE = 144
"""Pixels of an example's longer side."""

LISTED = 20
"""Quarantined files of each reason that are named."""

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
            drawings.append(plots.svg(lambda axes, column=column, classes=classes: histogram(classes, COLOURS, column, axes)))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("validation.html").render(
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
    """Rows of reports/quarantine.csv by reason; empty where there is no such file."""
    if not QUARANTINE.is_file():
        return {}
    listed = pd.read_csv(QUARANTINE, dtype=str, keep_default_na=False)
    return {str(reason): rows.to_dict("records") for reason, rows in listed.groupby("reason")}


def histogram(samples: dict[str, pd.Series], colours: dict[str, str], column: str, axes: Axes) -> None:
    """Shares of each sample over bins that all have in common, from the lowest to the highest of 99% of the values."""
    values = {name: sample.dropna().to_numpy(np.float64) for name, sample in samples.items()}
    every = np.concatenate(list(values.values()))
    low, high = np.quantile(every, [0.005, 0.995]) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for name, sample in values.items():
        counts, _ = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)
        axes.stairs(counts / max(len(sample), 1), edges, fill=True, color=colours[name], alpha=0.55, label=name)
    axes.set(xlabel=column.replace("_", " "), ylabel="share of images")
    axes.legend(frameon=False)


def _bars(columns: list[dict[str, Any]], bounds: Shortcut, axes: Axes) -> None:
    names, values = [column["name"] for column in columns][::-1], np.array([column["auc"] for column in columns][::-1])
    colours = [plots.FAKE if value > bounds.warn else plots.REAL for value in values]
    axes.barh(names, values - 0.5, left=0.5, color=colours)
    for name, bound in (("warn", bounds.warn), ("refuse", bounds.refuse)):
        axes.axvline(bound, color=plots.GUIDE, linestyle=":")
        axes.text(bound, len(names) - 0.4, name, ha="center", color=plots.GUIDE)
    axes.set(xlabel="AUC of the column alone (0.5 says nothing)", xlim=(min(0.45, float(values.min())), 1.01))


def thumbnail(path: Path) -> str | None:
    """A picture as a data URI; None if it cannot be read."""
    try:
        image = read(path).rgb
    except (ImageError, OSError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _example(path: str, row: pd.Series) -> dict[str, Any]:
    return {"path": path, "picture": thumbnail(Path(path)), "label": row["label"], "generator": row["generator"]}
