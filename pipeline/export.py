"""Stage export: packages the trained model with everything that a server needs."""

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

from pipeline import manifest
from pipeline.detector import Detector
from pipeline.errors import StageError
from pipeline.evaluation.calibration import CALIBRATION
from pipeline.evaluation.scoring import sample
from pipeline.exporting import card
from pipeline.exporting.card import licence_files
from pipeline.exporting.convert import to_onnx, to_openvino
from pipeline.exporting.precision import reduced_precision
from pipeline.face_weights import located
from pipeline.faces import FaceDetector, framing
from pipeline.images import OWN, Limits, read, read_bytes
from pipeline.labels import ID2LABEL
from pipeline.lineage import lineage
from pipeline.monitoring.predictions import measures
from pipeline.network import model
from pipeline.network.model import TRAINED
from pipeline.package import FACES, GOLDEN, GOLDEN_TOLERANCE, GRAPH, INT8, ONNX, PACKAGE, REFERENCE, Package, seal, verify
from pipeline.params import Export, Params
from pipeline.params_data import ProceduralSource
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime, has_bf16
from pipeline.score import predict
from pipeline.sources import procedural
from pipeline.staging import STAGING
from pipeline.training.dataset import pixels

EVALUATION = Path("reports/evaluation.json")
TRAINING = Path("reports/train.json")
VALIDATION = Path("reports/validation.json")
REPORT = Path("reports/export.json")
PARITY_IMAGES = 64
FRAMED_IMAGES = 200
"""Training images in which faces are looked for, to measure how large they are shown."""
MOST_ASPECT = 1.1
"""Ratio of the sides of training images, either way, up to which a face in a square looks as it does there."""

LEAST_REFERENCE = 200
"""Images in the drift reference, even if there are fewer groups to draw them from."""
NETWORK_TOLERANCE = 0.001
"""Largest difference of a golden example's probability between the graph, which recorded it, and PyTorch."""
log = logging.getLogger(__name__)


def run(params: Params) -> dict[str, Any]:
    """Write models/package.

    Raises:
        StageError: if the exported graph's answers differ from the network's, or a class has no test image that can be a golden example.
    """
    settings = params.export
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(TRAINED, PACKAGE / "model")
    (PACKAGE / "model" / "preprocess.json").rename(PACKAGE / "preprocess.json")
    for terms in licence_files(Path(params.model.name)):
        shutil.copyfile(terms, PACKAGE / terms.name)
    preprocess, parts = Preprocess.load(PACKAGE), manifest.read_parts()
    compared = sample(parts["test"], PARITY_IMAGES, params.evaluate.seed)
    parity = _write_graphs(preprocess.normalise(pixels(compared, preprocess)), settings)

    calibration, validation, evaluation, training = (
        json.loads(path.read_text()) for path in (CALIBRATION, VALIDATION, EVALUATION, TRAINING)
    )
    precision = reduced_precision(PACKAGE, preprocess, parts, calibration, params)
    meta = _meta(calibration, evaluation, precision) | _faces(params, parts["train"])
    (PACKAGE / "card.md").write_text(card.write(params, parts, validation, evaluation, training, meta, precision))
    # The files below record answers of the package, which must be sealed to give them; each of them changes the seal.
    full = Detector(seal(PACKAGE, meta), OpenVinoRuntime(PACKAGE / GRAPH))
    shown = servable(parts["test"]) if settings.golden_from == "test" else _rendered(settings.golden, preprocess.size)
    detectors = {"probability_fake": full}
    if meta["int8"]:
        detectors["int8"] = Detector(full.package, OpenVinoRuntime(PACKAGE / INT8))
    _write_golden(detectors, shown, settings.golden)
    golden = golden_difference(full.package)
    if golden > NETWORK_TOLERANCE:
        raise StageError(f"a golden example's probability differs by {golden:.2g} between the graph and the network: export again")
    _write_references(full.package, independent(parts["val"], settings.reference, params.evaluate.seed))
    seal(PACKAGE, meta)
    package = verify(PACKAGE)

    report = {
        "package": package.digest,
        "bytes": sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()),
        "files": len(package.meta.files),
        "parity": {"images": len(compared), "largest_logit_difference": parity},
        "golden": {"n": len(package.golden), "largest_probability_difference": golden},
        "precision": precision,
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _write_graphs(values: np.ndarray, settings: Export) -> dict[str, float]:
    """Export the network as graphs; return each one's largest logit difference from PyTorch on `values`, float32 (n, 3, size, size)."""
    network = PACKAGE / "model"
    parity = {"openvino": to_openvino(network, PACKAGE / GRAPH, values)}
    if settings.onnx:
        parity["onnx"] = to_onnx(network, PACKAGE / ONNX, values)
    for name, found in parity.items():
        if found > settings.tolerance:
            over = f"over export.tolerance = {settings.tolerance:g}"
            raise StageError(f"a logit of the exported graph ({name}) differs by {found:.2g} from the network's, {over}")
    return parity


def _meta(calibration: dict[str, Any], evaluation: dict[str, Any], precision: dict[str, Any]) -> dict[str, Any]:
    """Content of package.json except `format` and `files`."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": {str(index): label for index, label in ID2LABEL.items()},
        **calibration,
        "figures": evaluation["test"],
        "lineage": lineage(),
        "bf16": precision["bf16"]["allowed"],
        "int8": precision["int8"] is not None and precision["int8"]["allowed"],
        "golden_tolerance": GOLDEN_TOLERANCE,
    }


def _faces(params: Params, train: pd.DataFrame) -> dict[str, Any]:
    """What package.json says about faces. If the training pictures show faces, the face detector goes into the package."""
    if params.ingest.face_detector is None:
        return {"trained_on": "whole", "face_margin": None}
    detector = located(params.ingest.face_detector)
    shown = sample(train, FRAMED_IMAGES, params.evaluate.seed)["path"]
    margin = framing(FaceDetector(detector), (read(Path(path), OWN).pixels for path in shown))
    if margin is None:
        log.warning("too few of the training images show a face: the package judges whole images, without a face detector")
        return {"trained_on": "whole", "face_margin": None}
    aspect = float((train["width"] / train["height"]).median())
    if not 1 / MOST_ASPECT < aspect < MOST_ASPECT and not Preprocess.load(PACKAGE).keep_aspect:
        log.warning(
            f"the network saw faces squeezed, in images {aspect:.2f} times as wide as high; the service shows it squares. Cut the faces "
            "out before training: python -m pipeline.settings photos"
        )
    shutil.copyfile(detector, PACKAGE / FACES)
    return {"trained_on": "faces", "face_margin": round(margin, 3)}


def golden_difference(package: Package) -> float:
    """Largest difference between the golden examples' recorded probabilities and those of the package's PyTorch network."""
    preprocess, golden = Preprocess.load(package.path), package.golden
    values = preprocess.normalise(np.stack([preprocess.pixels(read(path).rgb) for path in golden]))
    with torch.inference_mode():
        logits = model.load(package.path / "model")(pixel_values=torch.from_numpy(values)).logits.numpy()
    found = package.meta.probability(logits[:, 1] - logits[:, 0])
    return float(np.abs(found - [example.probability_fake for example in golden.values()]).max())


def _write_references(package: Package, val: pd.DataFrame) -> None:
    """Write what drift compares traffic with: answers to images that training has not seen, in each precision that may be served.

    One reference is not enough: 8-bit embeddings differ so much from 32-bit ones that 500 answers from the same source were found to
    drift in half of all checks.
    """
    runtimes = {"": OpenVinoRuntime(PACKAGE / GRAPH)}
    if package.meta.int8:
        runtimes["-int8"] = OpenVinoRuntime(PACKAGE / INT8)
    if package.meta.bf16 and has_bf16():
        runtimes["-bf16"] = OpenVinoRuntime(PACKAGE / GRAPH, bf16=True)
    faces = PACKAGE / FACES if (PACKAGE / FACES).is_file() else None
    for name, runtime in runtimes.items():
        answers = predict(Detector(package, runtime, faces), val["path"].tolist(), "drift reference")
        pd.DataFrame([measures(answer) for answer in answers]).to_parquet(PACKAGE / REFERENCE.format(name), index=False)


def independent(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` rows, drawn at random: one of each group, and more only if that would be fewer than LEAST_REFERENCE.

    The drift test takes its rows for independent. With a real and the fake made from it in the reference, it found drift without any in
    5% of the checks instead of 1%. Of a group with both classes, either is as likely.
    """
    shuffled = rows.sample(frac=1, random_state=seed)
    of_class = shuffled.groupby(["group", "label"]).cumcount()
    shuffled = shuffled.iloc[np.lexsort((np.random.default_rng(seed).random(len(rows)), of_class))]
    turn = shuffled.groupby("group").cumcount().to_numpy()
    last = np.sort(turn)[min(LEAST_REFERENCE, len(rows)) - 1]
    return sample(shuffled[turn <= last].sort_index(), most, seed)


def _write_golden(detectors: dict[str, Detector], test: pd.DataFrame, of_each: int) -> None:
    """Write images of each class with each detector's answer; `detectors` is keyed by fields of pipeline.package.Golden."""
    folder = PACKAGE / GOLDEN
    folder.mkdir()
    chosen = pd.concat([_spread(test[test["label"] == label], of_each) for label in ID2LABEL.values()])
    listed = {}
    answers = {name: predict(detector, chosen["path"].tolist(), "golden examples") for name, detector in detectors.items()}
    for row, (image_id, path, label) in enumerate(zip(chosen["image_id"], chosen["path"], chosen["label"], strict=True)):
        name = image_id[:16] + Path(path).suffix.lower()
        (folder / name).write_bytes(read_bytes(Path(path), OWN))
        listed[name] = {"label": label} | {kind: found[row].probability_fake for kind, found in answers.items()}
    (folder / "golden.json").write_text(json.dumps(listed, indent=2) + "\n")


def servable(test: pd.DataFrame) -> pd.DataFrame:
    """The images within a service's default limits: a service has to be able to judge its golden examples.

    Raises:
        StageError: if a class has none.
    """
    limits = Limits()
    found = test[(test["bytes"] <= limits.max_bytes) & (test["width"] * test["height"] <= limits.max_pixels)]
    for label in ID2LABEL.values():
        if not (found["label"] == label).any():
            raise StageError(
                f"every {label} image of the test part is over {limits.max_bytes / 1e6:.0f} MB or {limits.max_pixels:,} pixels, which a "
                "service refuses: none can be a golden example. Set export.golden_from: rendered, or add smaller images"
            )
    return found


def _rendered(of_each: int, size: int) -> pd.DataFrame:
    """Rendered faces and forgeries of them: image_id, path, label."""
    thirds = dict.fromkeys(("self_blend", "swap"), 1 / 3) | {"resynthesis": 1 - 2 / 3}
    source = ProceduralSource(kind="procedural", reals=of_each, size=size, jpeg_quality=(85, 95), generators=thirds)
    table = procedural.listing(source, STAGING)
    return table.assign(image_id=[hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in table["file"]], path=table["file"])


def _spread(rows: pd.DataFrame, number: int) -> pd.DataFrame:
    """Evenly spaced rows in the order of their ids, so that the choice is reproducible."""
    ordered = rows.sort_values("image_id")
    return ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, number).astype(int))]


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
