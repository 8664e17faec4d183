"""Verdicts on faces that are tilted or cut out otherwise than in training: `python -m benchmarks.faces --detector ONNX`.

Reads data/splits/test.parquet, of square pictures. What lies beyond a picture mirrors it. Results: benchmarks/results/faces.json.
"""

import argparse
import time
from collections.abc import Iterable
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
from pipeline.face_weights import NONE, located
from pipeline.faces import FaceBox, FaceDetector, framing
from pipeline.images import OWN, Picture, read

MARGINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
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
    return found, round(seconds * 1000 / len(pictures), 1)


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


def framed(pixels: np.ndarray, face: FaceBox, margin: float) -> np.ndarray:
    """The square around a face; what lies beyond the picture mirrors it: uint8 (side, side, 3)."""
    side = round(max(face.width, face.height) * (1 + 2 * margin))
    left, top = (round(middle - side / 2) for middle in face.centre.tolist())
    height, width = pixels.shape[:2]
    beyond = max(0, -left, -top, left + side - width, top + side - height)
    padded = cv2.copyMakeBorder(pixels, beyond, beyond, beyond, beyond, cv2.BORDER_REFLECT_101)
    return padded[top + beyond : top + beyond + side, left + beyond : left + beyond + side]


def in_squares(pictures: Iterable[np.ndarray]) -> list[Picture]:
    """The same as pictures."""
    return [Picture(Image.fromarray(pixels), "PNG") for pixels in pictures]


def tilts(whole: Detector, faces: Detector, pictures: list[np.ndarray], fake: np.ndarray) -> dict[str, Any]:
    """Rows for each of ANGLES, judged as the pictures lie, and with their faces turned upright."""
    found: dict[str, Any] = {"as it lies": {}, "upright": {}}
    straight: dict[str, list[Prediction]] = {}
    for degrees in tqdm(ANGLES, unit="angle"):
        seen = in_squares(tilted(pixels, degrees) for pixels in pictures)
        for way, detector in zip(found, (whole, faces), strict=True):
            answers, milliseconds = judged(detector, seen)
            found[way][str(degrees)] = row(detector, answers, straight.setdefault(way, answers), fake) | {"prepare_ms": milliseconds}
            tqdm.write(f"{degrees:3d} degrees, {way}: {found[way][str(degrees)]}")
    return found


def margins(whole: Detector, finder: FaceDetector, pictures: list[np.ndarray], fake: np.ndarray) -> dict[str, Any]:
    """Rows for each of MARGINS, of the pictures in which a face is found, and for these pictures as they are."""
    boxes = [finder.find(pixels) for pixels in pictures]
    cut = [(pixels, found[0]) for pixels, found in zip(pictures, boxes, strict=True) if found]
    labels = fake[[bool(found) for found in boxes]]
    before, _ = judged(whole, in_squares(pixels for pixels, _ in cut))
    rows = {"as it is": row(whole, before, before, labels)}
    for margin in tqdm(MARGINS, unit="margin"):
        answers, _ = judged(whole, in_squares(framed(pixels, face, margin) for pixels, face in cut))
        rows[str(margin)] = row(whole, answers, before, labels)
        tqdm.write(f"margin {margin}: {rows[str(margin)]}")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("models/package"))
    parser.add_argument("--detector", type=Path, required=True, help="YuNet's ONNX file")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--name", default="model", help="of the package, in the results")
    arguments = parser.parse_args()
    table = pd.read_parquet("data/splits/test.parquet")
    table = table.sample(min(arguments.images, len(table)), random_state=0)
    fake = (table["label"] == "fake").to_numpy()
    pictures = [read(Path(path), OWN).pixels for path in table["path"]]
    finder = FaceDetector(located(arguments.detector))
    whole, faces = (Detector.load(arguments.package, faces=detector) for detector in (NONE, arguments.detector))
    found: dict[str, Any] = {"images": len(table), "margin of the data": framing(finder, pictures)}
    found |= {"margins": margins(whole, finder, pictures, fake), "tilts": tilts(whole, faces, pictures, fake)}
    record("faces", {arguments.name: found})


if __name__ == "__main__":
    main()
