"""Verdicts on tilted pictures, judged as they lie and with their faces turned upright: `python -m benchmarks.tilt --detector ONNX`.

Reads data/splits/test.parquet. What lies beyond a turned picture mirrors it. Results: benchmarks/results/tilt.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.measure import record
from pipeline.detector import Detector, Prediction
from pipeline.images import OWN, Picture, read

ANGLES = (0, 10, 20, 30, 45, 60, 90, 180, 270)
BATCH = 16


def tilted(pixels: np.ndarray, degrees: int) -> np.ndarray:
    """A square picture turned clockwise: uint8 (side, side, 3)."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(pixels, -degrees // 90))
    side = len(pixels)
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), -degrees, 1)
    return cv2.warpAffine(pixels, turn, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def judged(detector: Detector, pictures: list[Picture]) -> tuple[list[Prediction], float]:
    """Verdicts, and milliseconds per picture to prepare it."""
    found, seconds = [], 0.0
    for start in range(0, len(pictures), BATCH):
        begin = time.perf_counter()
        prepared = [detector.prepare(picture) for picture in pictures[start : start + BATCH]]
        seconds += time.perf_counter() - begin
        found += detector.judge(prepared)
    return found, seconds * 1000 / len(pictures)


def row(detector: Detector, found: list[Prediction], before: list[Prediction], fake: np.ndarray) -> dict[str, Any]:
    """AUC; shares of reals called fake, of fakes called fake, of verdicts that changed, and of those that turned into the opposite."""
    said, was = (np.array([answer.verdict for answer in answers]) for answers in (found, before))
    opposite = ((said == "real") & (was == "fake")) | ((said == "fake") & (was == "real"))
    shares = {
        "auc": roc_auc_score(fake, [answer.probability_fake for answer in found]),
        "reals_called_fake": (said[~fake] == "fake").mean(),
        "fakes_called_fake": (said[fake] == "fake").mean(),
        "changed": (said != was).mean(),
        "opposite": opposite.mean(),
    }
    if detector.finds_faces:
        shares["found"] = np.mean([bool(answer.faces) for answer in found])
    return {name: round(float(share), 3) for name, share in shares.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tilt", description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("models/package"))
    parser.add_argument("--detector", type=Path, required=True, help="YuNet's ONNX file")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--name", default="tilt", help="of the results")
    arguments = parser.parse_args()
    table = pd.read_parquet("data/splits/test.parquet")
    table = table.sample(min(arguments.images, len(table)), random_state=0)
    fake = (table["label"] == "fake").to_numpy()
    pictures = [read(Path(path), OWN).pixels for path in table["path"]]
    ways = {"as it lies": Detector.load(arguments.package), "upright": Detector.load(arguments.package, faces=arguments.detector)}
    results: dict[str, Any] = {"images": len(table)}
    straight: dict[str, list[Prediction]] = {}
    for degrees in tqdm(ANGLES, unit="angle"):
        seen = [Picture(Image.fromarray(tilted(pixels, degrees)), "PNG") for pixels in pictures]
        for way, detector in ways.items():
            found, milliseconds = judged(detector, seen)
            found_row = row(detector, found, straight.setdefault(way, found), fake)
            results.setdefault(way, {})[str(degrees)] = found_row | {"prepare_ms": round(milliseconds, 1)}
            tqdm.write(f"{degrees:3d} degrees, {way}: {found_row}")
    record(arguments.name, results)


if __name__ == "__main__":
    main()
