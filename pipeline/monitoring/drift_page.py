"""A drift report as one HTML file that opens offline."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline import pages, plots
from pipeline.monitoring.diagnosis import outlier_scores
from pipeline.monitoring.drift import SCALARS, VERDICTS

DRAWN = 5
"""Scalars plotted besides the probability: the most shifted ones."""

SHOWN = 8
"""Images shown as most typical, and as many as most foreign."""

DOTS = 2000
COLOURS = {"reference": plots.REAL, "window": plots.FAKE}


def page(report: dict[str, Any], reference: pd.DataFrame, window: pd.DataFrame, kept: dict[str, Path]) -> str:
    """The HTML of the page.

    Args:
        report: content of report.json.
        reference, window: what was compared; the window has `id`.
        kept: id of an answer -> its image, if the user agreed to have it kept.
    """
    names = [found["name"] for found in report["statistics"] if found["name"] in SCALARS and found["name"] != "probability_fake"]
    drawings = [plots.svg(lambda axes: _map(reference, window, axes))]
    if "verdict" in reference and "verdict" in window:
        drawings.append(plots.svg(lambda axes: _verdicts(reference, window, axes)))
    for name in ["probability_fake", *names[:DRAWN]]:
        samples = {"reference": reference[name], "window": window[name]}
        drawings.append(plots.svg(partial(plots.histogram, samples, COLOURS, name)))
    distances = pd.Series(outlier_scores(reference, window), window["id"]).sort_values()
    there = distances[distances.index.isin(list(kept))]
    return pages.render(
        "drift.html",
        report=report,
        drawings=drawings,
        pictures={
            "Most typical": [_picture(str(id), kept, distances) for id in there.index[:SHOWN]],
            "Most foreign": [_picture(str(id), kept, distances) for id in there.index[::-1][:SHOWN]],
        },
        kept=len(there),
    )


def _picture(id: str, kept: dict[str, Path], distances: pd.Series) -> dict[str, Any]:
    return {"id": id, "picture": pages.thumbnail(kept[id]), "distance": float(distances[id])}


def _map(reference: pd.DataFrame, window: pd.DataFrame, axes: Axes) -> None:
    """Embeddings in the first two principal directions of the reference."""
    rng = np.random.default_rng(0)
    parts = {name: np.stack(part["embedding"].tolist()) for name, part in (("reference", reference), ("window", window))}
    centre = parts["reference"].mean(0)
    directions = np.linalg.svd(parts["reference"] - centre, full_matrices=False)[2][:2]
    for name, part in parts.items():
        placed = (part[rng.permutation(len(part))[:DOTS]] - centre) @ directions.T
        axes.scatter(placed[:, 0], placed[:, -1], s=6, color=COLOURS[name], alpha=0.5, linewidth=0, label=name)
    axes.set(title="What the network sees", xlabel="first direction of the reference", ylabel="second", xticks=[], yticks=[])
    axes.legend(frameon=False)


def _verdicts(reference: pd.DataFrame, window: pd.DataFrame, axes: Axes) -> None:
    for number, (name, part) in enumerate((("reference", reference), ("window", window))):
        shares = [float((part["verdict"] == verdict).mean()) for verdict in VERDICTS]
        axes.bar(np.arange(len(VERDICTS)) + 0.4 * number - 0.2, shares, 0.38, color=COLOURS[name], label=name)
    axes.set(title="Verdicts", xticks=range(len(VERDICTS)), xticklabels=VERDICTS, ylabel="share of answers", ylim=(0, 1))
    axes.legend(frameon=False)
