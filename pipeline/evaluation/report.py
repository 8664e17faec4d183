"""The evaluation as one HTML file that opens offline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline import pages, plots
from pipeline.evaluation.scoring import Subject, labels
from pipeline.explanation.explain import explain
from pipeline.explanation.overlay import colours
from pipeline.images import OWN, read

TRAINING = Path("reports/train.json")
SHOWN = 8
"""Images shown of each kind: mistakes and successes."""
OPACITY = 0.65
"""Opacity of a heat map at its hottest point."""


def page(
    result: dict[str, Any], test: pd.DataFrame, curves: dict[str, pd.DataFrame], subject: Subject, training: Path | None = None
) -> str:
    """The HTML of the report.

    Args:
        result: content of reports/evaluation.json.
        test: rows of the test part with `probability_fake`.
        curves: roc, pr, calibration, selective.
        subject: for the heat maps of the mistakes.
        training: reports/train.json, to show how training went, if this model was trained here.
    """
    truth, probabilities = labels(test), test["probability_fake"].to_numpy()
    drawings = [
        plots.svg(lambda axes: plots.scores(probabilities, truth, result["thresholds"], axes)),
        plots.svg(lambda axes: plots.roc(curves["roc"], axes)),
        plots.svg(lambda axes: plots.precision_recall(curves["pr"], axes)),
        plots.svg(lambda axes: plots.calibration(curves["calibration"], axes)),
        plots.svg(lambda axes: plots.selective(curves["selective"], result["selective"], axes)),
    ]
    if training and training.is_file():
        epochs = pd.DataFrame(json.loads(training.read_text())["epochs"])
        drawings.append(plots.svg(lambda axes: plots.training(epochs, axes)))
    error = np.where(truth == 1, 1 - probabilities, probabilities)
    wrong = (probabilities >= result["threshold"]) != (truth == 1)
    worst = [index for index in np.argsort(-error) if wrong[index]][:SHOWN]
    surest = [index for index in np.argsort(error) if not wrong[index]][:SHOWN]
    return pages.render(
        "evaluation.html",
        result=result,
        drawings=drawings,
        mistakes=[_card(test.iloc[index], subject) for index in worst],
        successes=[_card(test.iloc[index], subject) for index in surest],
    )


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """A heat map over the picture in grey: the picture's own colours could be taken for heat."""
    smooth = np.asarray(Image.fromarray((heat * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)) / 255
    weight = OPACITY * smooth[..., None]
    return Image.fromarray((np.asarray(image.convert("L"))[..., None] * (1 - weight) + colours(smooth) * weight).astype(np.uint8))


def _card(row: pd.Series, subject: Subject) -> dict[str, Any]:
    image = Image.fromarray(subject.preprocess.pixels(read(Path(row["path"]), OWN).rgb))
    seen = explain(subject.network, subject.preprocess.normalise(np.asarray(image)[None]))
    return {
        "picture": pages.data_uri(image),
        "map": pages.data_uri(overlay(image, seen.heat)),
        "method": seen.method.replace("_", " "),
        "label": row["label"],
        "generator": row["generator"],
        "probability": float(row["probability_fake"]),
        "path": row["path"],
    }
