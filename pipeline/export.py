"""Stage export: the trained model as a package that a server needs nothing else beside."""

import hashlib
import json
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline import card, manifest, model
from pipeline.calibration import CALIBRATION, probability
from pipeline.card import licence_files
from pipeline.dataset import pixels
from pipeline.detector import Detector, Prediction
from pipeline.errors import StageError
from pipeline.explain import WithEmbedding
from pipeline.images import read
from pipeline.labels import ID2LABEL, LABEL2ID
from pipeline.lineage import lineage
from pipeline.metrics import figures
from pipeline.model import TRAINED
from pipeline.package import GOLDEN, GRAPH, PACKAGE, Package, Thresholds, seal, verify
from pipeline.params import Params
from pipeline.params_data import ProceduralSource
from pipeline.predictions import measures
from pipeline.preprocess import Preprocess
from pipeline.rounding import Bfloat16, rounded
from pipeline.runtime import OpenVinoRuntime, traced
from pipeline.sources import procedural
from pipeline.staging import STAGING

EVALUATION = Path("reports/evaluation.json")
SCORES = Path("reports/scores.parquet")
TRAINING = Path("reports/train.json")
VALIDATION = Path("reports/validation.json")
REPORT = Path("reports/export.json")
PARITY_IMAGES = 64
GOLDEN_TOLERANCE = 0.001
"""Of a golden example's probability between the graph, which recorded it, and the network."""
PRECISION_IMAGES = 500
MOST_AUC_DROP, MOST_ECE_RISE = 0.002, 0.005
"""What bfloat16 may cost, if it is to be used."""
log = logging.getLogger(__name__)


def run(params: Params) -> dict[str, Any]:
    """Write models/package.

    Raises:
        StageError: if the exported graph does not give the network's answers.
    """
    settings = params.export
    shutil.rmtree(PACKAGE, ignore_errors=True)
    network = PACKAGE / "model"
    shutil.copytree(TRAINED, network)
    (network / "preprocess.json").rename(PACKAGE / "preprocess.json")
    preprocess = Preprocess.load(PACKAGE)

    parts = manifest.read_parts()
    graph = PACKAGE / GRAPH
    test = parts["test"]
    sample = test.sample(min(PARITY_IMAGES, len(test)), random_state=params.evaluate.seed)
    difference = convert(network, graph, preprocess.normalise(pixels(sample, preprocess)))
    if difference > settings.tolerance:
        raise StageError(
            f"a logit of the exported graph differs by {difference:.2g} from the network's, over export.tolerance = {settings.tolerance:g}"
        )

    calibration, validation, evaluation, training = (
        json.loads(path.read_text()) for path in (CALIBRATION, VALIDATION, EVALUATION, TRAINING)
    )
    scores = pd.read_parquet(SCORES)
    precision = bf16_cost(network, preprocess, scores[scores["part"] == "test"], calibration["temperature"], params.evaluate.seed)
    for terms in licence_files(Path(params.model.name)):
        shutil.copyfile(terms, PACKAGE / terms.name)
    meta = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": {str(index): label for index, label in ID2LABEL.items()},
        "temperature": calibration["temperature"],
        "thresholds": Thresholds.model_validate(calibration["thresholds"]),
        "figures": {name: dict(figure) for name, figure in evaluation["test"].items()},
        "lineage": lineage(),
        "trained_on": "whole",
        "bf16": precision["allowed"],
    }
    (PACKAGE / "card.md").write_text(card.write(params, parts, validation, evaluation, training, meta, precision))
    # The answers that go into the package come from the very detector that will serve it.
    detector = Detector(seal(PACKAGE, meta), OpenVinoRuntime(graph))
    _write_reference(detector, parts["val"], settings.reference, params.evaluate.seed)
    _write_golden(detector, test if settings.golden_from == "test" else _rendered(settings.golden, preprocess.size), settings.golden)
    seal(PACKAGE, meta)
    package = verify(PACKAGE)
    golden = golden_difference(package)
    if golden > GOLDEN_TOLERANCE:
        raise StageError(f"a golden example's probability differs by {golden:.2g} between the graph and the network: export again")

    report = {
        "package": package.digest,
        "bytes": sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()),
        "files": len(package.meta.files),
        "parity": {"images": len(sample), "largest_logit_difference": difference},
        "golden": {"n": len(package.golden), "largest_probability_difference": golden},
        "precision": {"bf16": precision, "int8": None},
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def convert(folder: Path, graph: Path, values: np.ndarray) -> float:
    """Write a network as an OpenVINO graph with logits and embedding, for any number of images.

    Args:
        folder: a trained model's folder.
        graph: the .xml file to write; its .bin lies beside it.
        values: float32 (n, 3, size, size), real inputs to compare both on.

    Returns:
        The largest difference of a logit, both in float32.
    """
    import openvino

    module = WithEmbedding.load(folder)
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(values[start : start + 16]))[0] for start in range(0, len(values), 16)])
    graph.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(traced(module, values.shape[-1]), graph, compress_to_fp16=False)
    found, _ = OpenVinoRuntime(graph)(values)
    return float(np.abs(found - expected).max())


def bf16_cost(folder: Path, preprocess: Preprocess, test: pd.DataFrame, temperature: float, seed: int) -> dict[str, Any]:
    """What bfloat16, in which a GPU runs the network, costs against the 32-bit scores of the evaluation.

    Args:
        folder: a trained model's folder.
        preprocess: of the network.
        test: rows of reports/scores.parquet; PRECISION_IMAGES of them are scored again.
        temperature, seed: of the calibration, and of the draw.

    Returns:
        n, auc_drop, ece_rise, and `allowed`, whether both are within MOST_AUC_DROP and MOST_ECE_RISE.
    """
    rows = test.sample(min(PRECISION_IMAGES, len(test)), random_state=seed)
    network, images = rounded(model.load(folder)), pixels(rows, preprocess)
    batches = [preprocess.normalise(images[start : start + 16]) for start in range(0, len(images), 16)]
    with torch.no_grad(), Bfloat16():
        logits = torch.cat([network(pixel_values=torch.from_numpy(batch).bfloat16().float()).logits for batch in batches]).numpy()
    truth = rows["label"].map(LABEL2ID).to_numpy()
    full = figures(truth, probability(rows["score"].to_numpy(), temperature), 0.5)
    half = figures(truth, probability(logits[:, 1] - logits[:, 0], temperature), 0.5)
    drop, rise = (round(float(change), 6) for change in (full["auc"][0] - half["auc"][0], half["ece"][0] - full["ece"][0]))
    return {"n": len(rows), "auc_drop": drop, "ece_rise": rise, "allowed": drop <= MOST_AUC_DROP and rise <= MOST_ECE_RISE}


def golden_difference(package: Package) -> float:
    """The largest difference between what is written down of the golden examples and what the package's network says of them."""
    preprocess, golden = Preprocess.load(package.path), package.golden
    values = preprocess.normalise(np.stack([preprocess.pixels(read(path).rgb) for path in golden]))
    with torch.inference_mode():
        logits = model.load(package.path / "model")(pixel_values=torch.from_numpy(values)).logits.numpy()
    found = probability(logits[:, 1] - logits[:, 0], package.meta.temperature)
    return float(np.abs(found - [example.probability_fake for example in golden.values()]).max())


def _write_reference(detector: Detector, val: pd.DataFrame, most: int, seed: int) -> None:
    """What drift compares traffic with: images that training has not seen, as the detector sees them."""
    sample = val.sample(min(most, len(val)), random_state=seed)
    answers = _predict(detector, sample["path"])
    pd.DataFrame([measures(answer) for answer in answers]).to_parquet(detector.package.path / "reference.parquet", index=False)


def _write_golden(detector: Detector, test: pd.DataFrame, of_each: int) -> None:
    """Images of each class with their answers."""
    folder = detector.package.path / GOLDEN
    folder.mkdir()
    chosen = pd.concat([_spread(test[test["label"] == label], of_each) for label in ID2LABEL.values()])
    listed = {}
    answers = _predict(detector, chosen["path"])
    for image_id, path, label, answer in zip(chosen["image_id"], chosen["path"], chosen["label"], answers, strict=True):
        name = image_id[:16] + Path(path).suffix.lower()
        shutil.copyfile(path, folder / name)
        listed[name] = {"label": label, "probability_fake": answer.probability_fake}
    (folder / "golden.json").write_text(json.dumps(listed, indent=2) + "\n")


def _rendered(of_each: int, size: int) -> pd.DataFrame:
    """Rendered faces and forgeries of them: image_id, path, label."""
    thirds = dict.fromkeys(("self_blend", "swap"), 1 / 3) | {"resynthesis": 1 - 2 / 3}
    source = ProceduralSource(kind="procedural", reals=of_each, size=size, jpeg_quality=(85, 95), generators=thirds)
    table = procedural.listing(source, STAGING)
    return table.assign(image_id=[hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in table["file"]], path=table["file"])


def _spread(rows: pd.DataFrame, number: int) -> pd.DataFrame:
    """Rows at even steps in the order of their ids, so that the choice is the same whoever makes it."""
    ordered = rows.sort_values("image_id")
    return ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, number).astype(int))]


def _predict(detector: Detector, paths: pd.Series) -> list[Prediction]:
    batches = [paths.iloc[start : start + 16] for start in range(0, len(paths), 16)]
    found = []
    for batch in tqdm(batches, desc="predict", unit="batch"):
        found += detector.predict([read(Path(path)) for path in batch])
    return found


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
