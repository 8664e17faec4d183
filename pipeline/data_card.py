"""The data card: what a data version holds, and what changed since another.

`python -m pipeline.data_card OLD.parquet NEW.parquet` compares any two manifests. To get that of an older version:
`dvc get . data/manifest.parquet --rev TAG -o old.parquet`.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipeline import manifest, pages, plots
from pipeline.labels import LABELS
from pipeline.manifest import ACCEPTED, ManifestError
from pipeline.validation.page import quarantined
from pipeline.validation.versions import QUALITY, changes

CARD = Path("reports/data_card.md")
COMPARISON = Path("reports/data_comparison.md")
INGEST = Path("reports/ingest.json")
LISTED = 20
"""At most this many paths of each kind are listed."""


def write(new: pd.DataFrame, old: pd.DataFrame | None, report: dict[str, Any]) -> None:
    """Write reports/data_card.md, the card of a data version, and its plots into a folder beside it.

    Args:
        new: the manifest that the card describes, with all columns.
        old: the last accepted manifest, if there is one and it differs; else None.
        report: content of reports/validation.json, for the verdict and the shortcut audit.
    """
    found = report | {
        "unchanged": old is None and ACCEPTED.is_file(),
        "quarantine": {reason: len(rows) for reason, rows in quarantined().items()},
        "duplicates": json.loads(INGEST.read_text()).get("duplicates") if INGEST.is_file() else None,
    }
    _write(CARD, new, old, found)


def compare(old: pd.DataFrame, new: pd.DataFrame, to: Path) -> None:
    """Write what changed from one manifest to another, as a card without verdict."""
    _write(to, new, old, None)


def _write(to: Path, new: pd.DataFrame, old: pd.DataFrame | None, report: dict[str, Any] | None) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    pictures = to.with_suffix("")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    columns = [column for column in QUALITY if new[column].notna().any()]
    for column in columns:
        _picture(new, old, column, pictures / f"{column}.png")
    counts = {column: _counts(new[column], None if old is None else old[column]) for column in ("label", "source", "generator")}
    text = pages.render(
        "data_card.md",
        images=(len(new), None if old is None else len(old)),
        counts=counts,
        changes=None if old is None else changes(old, new),
        listed=LISTED,
        pictures=[f"{pictures.name}/{column}.png" for column in columns],
        report=report,
    )
    to.write_text(text, encoding="utf-8")


def _counts(new: pd.Series, old: pd.Series | None) -> dict[str, tuple[int, int]]:
    """Value -> images now and before."""
    now, before = new.value_counts(), pd.Series(dtype="int64") if old is None else old.value_counts()
    return {str(value): (int(now.get(value, 0)), int(before.get(value, 0))) for value in sorted({*now.index, *before.index})}


def _picture(new: pd.DataFrame, old: pd.DataFrame | None, column: str, to: Path) -> None:
    """Histograms of a column: of both versions, or of both classes if there is only one version."""
    if old is None:
        samples = {label: new.loc[new["label"] == label, column] for label in LABELS}
        colours = {"real": plots.REAL, "fake": plots.FAKE}
    else:
        samples, colours = {"before": old[column], "now": new[column]}, {"before": plots.GUIDE, "now": plots.REAL}
    figure = Figure(figsize=(4.2, 2.8), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    plots.histogram(samples, colours, column, axes)
    figure.savefig(to, metadata={"Software": None})


def main() -> None:
    """Compare two manifests from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.data_card", description="What changed between two data versions.")
    parser.add_argument("old", type=Path, help="manifest of the older version (Parquet)")
    parser.add_argument("new", type=Path, help="manifest of the newer version (Parquet)")
    parser.add_argument("--to", type=Path, default=COMPARISON, help=f"Markdown file to write (default: {COMPARISON})")
    arguments = parser.parse_args()
    try:
        compare(manifest.read(arguments.old), manifest.read(arguments.new), arguments.to)
    except ManifestError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.to} shows what changed; its plots are in {arguments.to.with_suffix('')}/")


if __name__ == "__main__":
    main()
