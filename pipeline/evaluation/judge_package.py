"""Judges a package on a labelled folder: `python -m pipeline.evaluate --package DIR --data FOLDER --out DIR`.

Calibration and thresholds are the package's own, and so is the face detector, unless UNMASK_FACE_DETECTOR says otherwise. The baselines are
fitted on the folder itself, by cross-validation over groups.
"""

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from pipeline.detector import face_margin
from pipeline.errors import StageError
from pipeline.evaluate import examine, warnings
from pipeline.evaluation import curves, report
from pipeline.evaluation.baselines import cross_validated
from pipeline.evaluation.metrics import Figure, figure_text
from pipeline.evaluation.scoring import Subject, labels, score
from pipeline.face_weights import chosen_detector, detector_for
from pipeline.faces import FaceDetector, largest
from pipeline.images import ImageError, Limits, read, read_bytes
from pipeline.ingestion.describe import describe
from pipeline.manifest import check
from pipeline.package import Package, PackageError, verify
from pipeline.params import Params, ParamsError, load_params
from pipeline.params_data import FolderSource
from pipeline.sources import listing
from pipeline.staging import STAGING
from pipeline.training.dataset import pixels

log = logging.getLogger(__name__)


def judge(package: Path, data: Path, out: Path, params: Params) -> dict[str, Any]:
    """Write evaluation.json, evaluation.html, scores.parquet and plots/ into `out`.

    Args:
        package: folder of the package.
        data: a folder with real/ and fake/ in it, one of them, or a manifest.csv.
        out: created if missing.
        params: number of bootstrap draws and of images to degrade, attack and explain, and the AUC above which metadata is warned of.

    Returns:
        The content of evaluation.json: that of the stage, with `package` (its digest), `unreadable` (files that are not readable images),
        `cut_out` (see there; None without a face detector) and, if no baseline could be fitted, `no_baselines` (why), but without
        vs_baseline and golden.

    Raises:
        PackageError: if the package is not intact.
        StageError: if the folder is not a labelled folder, or contains no readable image.
    """
    found = verify(package)
    subject = Subject.from_package(found)
    listed, unreadable = describe_folder(data)
    detector = detector_for(found, chosen_detector())
    with tempfile.TemporaryDirectory() as folder:
        table, cut = (listed, None) if detector is None else cut_out(listed, found, FaceDetector(detector), Path(folder))
        scores = score(subject.runtime, subject.preprocess, pixels(table, subject.preprocess), "score")
        table = table.assign(part="test", score=scores, probability_fake=subject.calibration.probability(scores))
        result = {"package": found.digest, "unreadable": unreadable, "cut_out": cut, **examine(subject, table, None, params.evaluate)}
        simple = cross_validated(subject, table, params.evaluate)
        result |= {"no_baselines": simple} if isinstance(simple, str) else simple
        result["warnings"] = warnings(result, params.validate_.shortcut.warn)
        if unreadable:
            result["warnings"].append(f"{len(unreadable)} files are not readable images and are left out of the metrics.")

        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
        table.assign(image_id=listed["image_id"], path=listed["path"]).to_parquet(out / "scores.parquet", index=False)
        drawn = curves.curves(labels(table), table["probability_fake"].to_numpy(), subject.thresholds.f1)
        curves.write(drawn, out / "plots")
        (out / "evaluation.html").write_text(report.page(result, table, drawn, subject))
    return result


def cut_out(table: pd.DataFrame, package: Package, finder: FaceDetector, folder: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """Cut out the largest face of each image, as the service does.

    Returns:
        The table with paths and ids of what was cut out, written into `folder`; images without a face remain. And `found`, in how many
        there is a face, and `margin`, how much was cut out around it (pipeline.faces.surroundings).
    """
    margin, found, shown = face_margin(package, finder), 0, []
    for image_id, path in tqdm(zip(table["image_id"], table["path"], strict=True), total=len(table), desc="faces", unit="image"):
        face = largest(read(Path(path)).pixels, finder, margin)
        if face is not None:
            found += 1
            file = folder / f"{image_id}.png"
            Image.fromarray(face).save(file)
            image_id, path = hashlib.sha256(file.read_bytes()).hexdigest(), file.as_posix()
        shown.append((image_id, path))
    ids, paths = zip(*shown, strict=True)
    return table.assign(image_id=ids, path=paths), {"found": found, "margin": round(margin, 3)}


def describe_folder(data: Path) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """The folder as a manifest, and its unreadable files with the reason. Raises StageError as `judge` does."""
    listed = listing(FolderSource(kind="folder", path=data, in_place=True), STAGING)
    limits = Limits()

    def described(file: str) -> dict[str, Any] | str:
        try:
            return describe(read_bytes(Path(file), limits), limits)[0]
        except ImageError as error:
            return error.code
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor() as pool:
        rows = list(tqdm(pool.map(described, listed["file"]), total=len(listed), desc="read", unit="image"))
    unreadable = [{"path": file, "reason": row} for file, row in zip(listed["file"], rows, strict=True) if isinstance(row, str)]
    if len(unreadable) == len(rows):
        raise StageError(f"{data}: none of its {len(rows)} files is a readable image")
    readable = listed[[not isinstance(row, str) for row in rows]].reset_index(drop=True)
    columns = pd.DataFrame([row for row in rows if isinstance(row, dict)])
    table = pd.concat([readable.drop(columns=list(columns), errors="ignore"), columns], axis=1)
    seeds = pd.array([pd.NA] * len(table), "Int64")
    table = table.assign(path=table["file"], source="folder", parents="", seed=seeds).drop(columns=["file"])
    return check(table, str(data)), unreadable


def figures_text(test: dict[str, Figure]) -> str:
    """The metrics of the test part, one per line."""
    width = max(map(len, test))
    return "\n".join(f"{name:<{width}}  {figure_text(figure)}" for name, figure in test.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description="Judge a package on a labelled folder. Without any option: run the stage on what was trained here.",
    )
    parser.add_argument("--package", type=Path, required=True, help="folder of the package")
    parser.add_argument("--data", type=Path, required=True, help="folder with real/ and fake/, or with a manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        result = judge(arguments.package, arguments.data, arguments.out, load_params())
    except (PackageError, ParamsError, StageError) as error:
        sys.exit(f"error: {error}")
    if result["cut_out"]:
        print(
            "{found} faces were cut out, with a margin of {margin:.0%}; images without a face were judged whole".format(**result["cut_out"])
        )
    print(f"{result['n']} images in {result['groups']} groups, threshold {result['threshold']:.3f}")
    print(figures_text(result["test"]))
    print(f"the report is {arguments.out / 'evaluation.html'}")
