"""The evaluation as one HTML file that opens offline."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image
from transformers import PreTrainedModel

from pipeline import plots
from pipeline.explain import explain
from pipeline.images import read
from pipeline.manifest import LABEL2ID
from pipeline.preprocess import Preprocess

TEMPLATES = Path(__file__).parent / "templates"
TRAINING = Path("reports/train.json")
SHOWN = 8
"""Pictures of each kind."""


def page(
    result: dict[str, Any], test: pd.DataFrame, curves: dict[str, pd.DataFrame], network: PreTrainedModel, preprocess: Preprocess
) -> str:
    """The HTML of the report.

    Args:
        result: content of reports/evaluation.json.
        test: rows of the test part with `probability_fake`.
        curves: roc, pr, calibration.
        network, preprocess: for the heat maps of the mistakes.
    """
    labels, probabilities = test["label"].map(LABEL2ID).to_numpy(), test["probability_fake"].to_numpy()
    drawings = [
        plots.svg(lambda axes: plots.scores(probabilities, labels, result["thresholds"], axes)),
        plots.svg(lambda axes: plots.roc(curves["roc"], axes)),
        plots.svg(lambda axes: plots.precision_recall(curves["pr"], axes)),
        plots.svg(lambda axes: plots.calibration(curves["calibration"], axes)),
        plots.svg(lambda axes: plots.robustness(result["robustness"], axes)),
    ]
    if TRAINING.is_file():
        epochs = pd.DataFrame(json.loads(TRAINING.read_text())["epochs"])
        drawings.append(plots.svg(lambda axes: plots.training(epochs, axes)))
    error = np.where(labels == 1, 1 - probabilities, probabilities)
    worst, best = np.argsort(-error)[:SHOWN], np.argsort(error)[:SHOWN]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["figure"] = _figure
    return environment.get_template("evaluation.html").render(
        result=result,
        drawings=drawings,
        mistakes=[_card(test.iloc[index], network, preprocess) for index in worst if error[index] > 0.5],
        successes=[_card(test.iloc[index], network, preprocess) for index in best],
    )


def overlay(image: Image.Image, heat: np.ndarray, strength: float = 0.5) -> Image.Image:
    """The picture with a heat map over it."""
    smooth = np.asarray(Image.fromarray((heat * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)) / 255
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    weight = strength * smooth[..., None]
    return Image.fromarray((np.asarray(image) * (1 - weight) + colours * weight).astype(np.uint8))


def _card(row: pd.Series, network: PreTrainedModel, preprocess: Preprocess) -> dict[str, Any]:
    image = Image.fromarray(preprocess.pixels(read(Path(row["path"])).rgb))
    seen = explain(network, preprocess.normalise(np.asarray(image)[None]))
    return {
        "picture": _data_uri(image),
        "map": _data_uri(overlay(image, seen.heat, 0.65)),
        "method": seen.method.replace("_", " "),
        "label": row["label"],
        "generator": row["generator"],
        "probability": float(row["probability_fake"]),
        "path": row["path"],
    }


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "not defined"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
