"""The plots of reports and pages, as SVG."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FAKE, REAL, GUIDE = "#d1495b", "#2a7f9e", "#9aa5b1"


def svg(draw: Callable[[Axes], object]) -> str:
    """Call draw(axes) and return an SVG element with real text and a transparent background."""
    mpl.use("Agg")
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "unmask", "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": GUIDE}
    ):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes: Axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def roc(curve: pd.DataFrame, axes: Axes) -> None:
    """Receiver operating characteristic."""
    axes.plot([0, 1], [0, 1], color=GUIDE, linestyle=":")
    axes.plot(curve["fpr"], curve["tpr"], color=FAKE)
    axes.set(xlabel="false-positive rate", ylabel="recall of fakes", title="ROC")


def precision_recall(curve: pd.DataFrame, axes: Axes) -> None:
    """Precision against recall."""
    axes.plot(curve["recall"], curve["precision"], color=FAKE)
    axes.set(xlabel="recall of fakes", ylabel="precision", title="Precision and recall", ylim=(0, 1.03))


def calibration(curve: pd.DataFrame, axes: Axes) -> None:
    """Observed share of fakes against the predicted one; the size of a dot is the number of images."""
    axes.plot([0, 1], [0, 1], color=GUIDE, linestyle=":")
    axes.scatter(curve["predicted"], curve["observed"], s=12 + 120 * curve["n"] / curve["n"].max(), color=FAKE, alpha=0.8, linewidth=0)
    axes.set(xlabel="predicted probability of fake", ylabel="observed share of fakes", title="Calibration")


def scores(probabilities: np.ndarray, labels: np.ndarray, thresholds: dict[str, float], axes: Axes) -> None:
    """Histogram of the probabilities of both classes with the thresholds of the verdict."""
    bins = np.linspace(0, 1, 31).tolist()
    axes.hist(probabilities[labels == 0], bins, color=REAL, alpha=0.7, label="real")
    axes.hist(probabilities[labels == 1], bins, color=FAKE, alpha=0.7, label="fake")
    for name in ("real_below", "fake_above"):
        axes.axvline(thresholds[name], color="#000000", linestyle="--", linewidth=0.8)
    axes.set(xlabel="probability of fake", ylabel="images", title="Scores and the uncertain band")
    axes.legend(frameon=False, loc="upper center")  # the best detectors have their highest bars at both ends


def histogram(samples: dict[str, pd.Series], colours: dict[str, str], column: str, axes: Axes) -> None:
    """Share of each sample per bin; the common bins span the central 99% of all values."""
    values = {name: sample.dropna().to_numpy(np.float64) for name, sample in samples.items()}
    every = np.concatenate(list(values.values()))
    low, high = np.quantile(every, [0.005, 0.995]) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for name, sample in values.items():
        counts, _ = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)
        axes.stairs(counts / max(len(sample), 1), edges, fill=True, color=colours[name], alpha=0.55, label=name)
    axes.set(xlabel=column.replace("_", " "), ylabel="share of images")
    axes.legend(frameon=False)


def training(epochs: pd.DataFrame, axes: Axes) -> None:
    """Losses and validation figures by epoch."""
    axes.plot(epochs["epoch"], epochs["loss"], color=GUIDE, label="loss with ranking term")
    axes.plot(epochs["epoch"], epochs["val_loss"], color=REAL, label="validation loss")
    axes.plot(epochs["epoch"], epochs["val_f1"], color=FAKE, label="validation F1")
    axes.plot(epochs["epoch"], epochs["val_auc"], color=FAKE, linestyle="--", label="validation AUC")
    axes.set(xlabel="epoch", title="Training", ylim=(0, None))
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)


def selective(curve: pd.DataFrame, chosen: dict[str, Any], axes: Axes) -> None:
    """Risk against coverage, and where the two thresholds of the verdict lie."""
    axes.plot(curve["coverage"], curve["risk"], color=FAKE)
    if chosen["error"]["value"] is not None:
        axes.scatter([chosen["coverage"]["value"]], [chosen["error"]["value"]], color=REAL, zorder=3, label="with the uncertain band")
        axes.legend(frameon=False)
    axes.set(xlabel="share of images that get a verdict", ylabel="share of those that are wrong", title="Selective prediction")
    axes.set(xlim=(0, 1.02), ylim=(0, None))
