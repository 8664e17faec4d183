"""Ablation of the training recipe: one network, each row adds one step, tested on forgeries it was trained on and on unseen ones.

`python -m benchmarks.detection FACES... --model NAME --unseen FOLDER --reals FOLDER` takes hours on a CPU. A finished row is not repeated,
an interrupted one resumes. Rows can run in parallel: `--rows plain paired` in one terminal, `--rows lora` in another.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.measure import RESULTS, machine
from benchmarks.project import ROOT
from pipeline import manifest
from pipeline.evaluate import calibrate
from pipeline.evaluation.judge_package import describe_folder
from pipeline.evaluation.metrics import figure_text, judge
from pipeline.evaluation.robustness import DEGRADATIONS
from pipeline.evaluation.scoring import labels, pictures, score
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.network.model import TRAINED
from pipeline.params import load_params
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.settings import apply, pairs, preset
from pipeline.training.dataset import pixels

LENGTH = {"train.epochs": 2, "train.ema": 0.99}
"""How long each row trains; `--set` overrides it."""
BLENDED = {"share": 0.35, "methods": {"self_blend": 1.0}}
ROWS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "plain": ("full fine-tune, no pairs, flips alone", ("probe",), {"pairing": False, "rank_weight": 0.0}),
    "paired": ("+ pairs and their ranking", ("probe",), {}),
    "degraded": ("+ degradations", ("robust",), {}),
    "blended": ("+ self-blending", ("robust",), {"forge": BLENDED}),
    "forged": ("+ swap and resynthesis", ("robust", "forged"), {}),
    "layernorm": ("the same, norm layers alone", ("robust", "forged", "layernorm"), {}),
    "lora": ("the same, LoRA", ("robust", "forged", "lora"), {}),
}
"""Row -> what it adds to the previous one, presets, and values of `train`."""
COLUMNS = {
    "test": "test AUC",
    "jpeg40_half": "JPEG 40 at half size",
    "unseen": "unseen generator, AUC",
    "reals_fpr": "unseen camera, false positives",
    "ece": "ECE",
}


def values(row: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Settings of a row: dotted key of params.yaml -> value; `chosen` applies to every row."""
    _, presets, train = ROWS[row]
    # `prepare` has set the network.
    found = {key: value for key, value in preset("finetune", ROOT / "params.yaml").items() if not key.startswith("model.")}
    for name in presets:
        # From `probe` a row takes only the augmentation, which is none, and adds flips.
        found |= {key: value for key, value in preset(name, ROOT / "params.yaml").items() if name != "probe" or key.startswith("augment.")}
        found |= {"augment.flip": 0.5}
    return found | LENGTH | {f"train.{key}": value for key, value in train.items()} | chosen


def prepare(work: Path, faces: list[Path], network: str) -> None:
    """Ingest and split the faces once, for all rows."""
    work.mkdir(parents=True, exist_ok=True)
    if (work / "data" / "splits" / "test.parquet").is_file():
        return
    shutil.copyfile(ROOT / "params.yaml", work / "params.yaml")
    sources = [{"kind": "folder", "name": folder.name, "path": str(folder.resolve())} for folder in faces]
    chosen = {"data.sources": sources, "model.name": network, "model.init": "pretrained", "model.config": {}}
    apply(preset("finetune", work / "params.yaml") | chosen, work / "params.yaml")
    for stage in ("ingest", "split"):
        _stage(stage, work)


def train(work: Path, row: str, chosen: dict[str, Any]) -> Path:
    """Train the model of a row. Returns the row's workspace."""
    folder = work / "rows" / row
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(Path("../../data"))
    shutil.copyfile(work / "params.yaml", folder / "params.yaml")
    apply(values(row, chosen), folder / "params.yaml")
    _stage("train", folder)
    return folder


def judged(folder: Path, unseen: Path | None, reals: Path | None) -> dict[str, Any]:
    """The figures of a row's model. Calibration and thresholds come from its validation part."""
    os.chdir(folder)
    params = load_params(Path("params.yaml"))
    network, preprocess = model.load(TRAINED), Preprocess.load(TRAINED)
    running = runtime(WithEmbedding(network).eval(), preprocess.size)
    parts = manifest.read_parts()
    val = parts["val"].assign(score=score(running, preprocess, pixels(parts["val"], preprocess)))
    calibration, thresholds = calibrate(val, params.evaluate)

    def figures(table: pd.DataFrame, images: np.ndarray, threshold: float) -> dict[str, Any]:
        found = calibration.probability(score(running, preprocess, images))
        return judge(labels(table), found, table["group"].to_numpy(), threshold, params.evaluate.bootstrap, params.evaluate.seed)

    test = parts["test"]
    clean = figures(test, pixels(test, preprocess), thresholds.f1)
    sent = figures(test, _changed(test, preprocess, "jpeg40_half"), thresholds.f1)
    result = {"n": len(test), "test": clean["auc"], "f1": clean["f1"], "ece": clean["ece"], "jpeg40_half": sent["auc"]}
    if unseen:
        result["unseen"] = figures(*_folder(unseen, preprocess), thresholds.f1)["auc"]
    if reals:
        result["reals_fpr"] = figures(*_folder(reals, preprocess), thresholds.fpr5)["fpr"]
    training = json.loads(Path("reports/train.json").read_text())
    kept = ("seconds", "parameters", "trained_parameters", "lr")
    return result | {key: training[key] for key in kept} | {"val_auc": [epoch["val_auc"] for epoch in training["epochs"]]}


def _folder(folder: Path, preprocess: Preprocess) -> tuple[pd.DataFrame, np.ndarray]:
    table, _ = describe_folder(folder)
    return table, pixels(table, preprocess)


def _changed(table: pd.DataFrame, preprocess: Preprocess, name: str) -> np.ndarray:
    change = DEGRADATIONS[name]
    return np.stack([preprocess.pixels(change(picture.rgb)) for picture in tqdm(pictures(table), desc=name, unit="image")])


def _stage(name: str, folder: Path) -> None:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-m", f"pipeline.{name}"], cwd=folder, env=environment, check=True)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| recipe | " + " | ".join(COLUMNS.values()) + " | moved weights | minutes |", "| --- |" + " --- |" * (len(COLUMNS) + 2)]
    for name, (title, _, _) in ROWS.items():
        if found := rows.get(name):
            cells = [figure_text(found[column]) if column in found else "trained on" for column in COLUMNS]
            lines.append(f"| {title} | {' | '.join(cells)} | {found['trained_parameters']:,} | {found['seconds'] / 60:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("faces", nargs="+", type=Path, help="labelled folders to train and test on")
    parser.add_argument("--model", required=True, help="hub name or folder of a pretrained network")
    parser.add_argument("--unseen", type=Path, help="labelled folder of a generator that is not trained on")
    parser.add_argument("--reals", type=Path, help="folder of real faces from a camera that is not trained on")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of params.yaml, for every row")
    parser.add_argument("--name", default="ablation", help="of the table")
    parser.add_argument("--work", type=Path, default=Path("var/detection"), help="folder for data, models and checkpoints")
    arguments = parser.parse_args()
    network = str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else arguments.model
    unseen, reals = (folder.resolve() if folder else None for folder in (arguments.unseen, arguments.reals))
    chosen = pairs(arguments.set)
    work: Path = (arguments.work / arguments.name).resolve()
    prepare(work, arguments.faces, network)
    for row in arguments.rows:
        done = work / "rows" / f"{row}.json"
        if not done.is_file():
            found = judged(train(work, row, chosen), unseen, reals)
            done.write_text(json.dumps(found, indent=2) + "\n")
    files = {row: work / "rows" / f"{row}.json" for row in ROWS}
    finished = {row: json.loads(file.read_text()) for row, file in files.items() if file.is_file()}
    content = {"faces": [folder.name for folder in arguments.faces], "rows": finished, "machine": machine()}
    (RESULTS / f"detection-{arguments.name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(table(finished))


if __name__ == "__main__":
    main()
