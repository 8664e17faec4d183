"""The automatic loop, from one family of forgeries to two: `python -m benchmarks.continual`. The result is docs/continual.md.

A model learns one family and is served. Traffic brings another, the drift check reports it, and users' labels arrive. Trained on those
alone, a model forgets the first family, and a gate on that family's figure refuses it. Trained on old and new, it passes, beats the
champion on the same images, is promoted as `promotion` in params.yaml says, and the service follows. The next check finds no drift.
All of it runs in its own folder with DVC, MLflow, Prefect and BentoML as in production; what happened is read from their records and
from the service. Each version is measured on images of each family that no training ever sees.
"""

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from benchmarks.measure import machine
from benchmarks.project import ROOT, call, flow, make, prefect, service, wait
from pipeline.detector import Detector
from pipeline.evaluation.metrics import Figure, judge
from pipeline.images import read
from pipeline.labels import LABEL2ID
from pipeline.params_data import ProceduralSource
from pipeline.settings import apply
from pipeline.sources import procedural

OLD, NEW = "resynthesis", "swap"
PAIRS = 720
"""Reals, and as many fakes, of each family in the training data."""

JUDGED = 250
"""Test pairs of each family, for every version."""

SIDE, QUALITY = 64, (90, 98)
CLIENTS = 4


def old(seed: int, pairs: int) -> ProceduralSource:
    """Faces, half of them fakes of the first family."""
    return ProceduralSource(kind="procedural", name="old", reals=pairs, size=SIDE, jpeg_quality=QUALITY, generators={OLD: 1.0}, seed=seed)


def settings() -> dict[str, Any]:
    """Settings that differ from params.yaml."""
    return {
        "data.sources": [
            old(7, PAIRS).model_dump(mode="json"),
            {"kind": "feedback", "name": "users", "path": "var/feedback", "a_day": 10_000},
        ],
        "split.holdout_generators": [],
        # With .15 (360 images), the interval of a difference of .05 would reach from 0 to .1: promotion would be luck.
        "split.shares": {"train": 0.6, "val": 0.15, "test": 0.25},
        "train.epochs": 12,
        "evaluate.bootstrap": 200,
        "evaluate.attack_images": 0,
        "evaluate.robustness_images": 20,
        "evaluate.explain_images": 0,
        "evaluate.baseline_images": 300,
        "gates": {f"slices.generator.{OLD}.auc.value": {"min": 0.85}},
        "promotion.auto": "if_better",
        "drift.max_window": 2 * PAIRS,
        "retrain.cooldown_hours": 0.0,
        "retrain.a_day": 10,
    }


def scenario(folder: Path) -> dict[str, Any]:
    """Run the loop in an empty folder. Returns what happened, in order, and the figures of each version."""
    begun = time.monotonic()
    project, seen = folder / "project", []
    pictures = {name: _render(folder / "pictures", name, seed, pairs) for name, seed, pairs in _renderings()}

    def note(step: str, what: str) -> None:
        seen.append({"after_s": round(time.monotonic() - begun), "step": step, "seen": what})
        print(f"{seen[-1]['after_s']} s, {step}: {what}", flush=True)

    make(project, settings())
    with prefect(folder) as environment:
        call(project, environment, "-m", "flows.run")
        versions = {"1": _keep(project, folder, 1)}
        note("first training", f"{_gate(project)}; version 1 is the champion")
        with service(project, environment) as client:
            _ask(client, pictures["old traffic"])
            note("drift check, traffic as in training", flow(project, environment, "drift"))
            answers = _ask(client, pd.concat([pictures["new traffic"], pictures["old traffic, second"]]).sample(frac=1, random_state=0))
            note("drift check, two thirds of the traffic are of a new family", flow(project, environment, "drift"))
            labelled = _label(client, answers[answers["family"] == NEW])
            note("feedback", f"{labelled} pictures of the new family labelled through the service")

            apply({"train.rehearsal": {"old": 0.0}}, project / "params.yaml")
            ended = flow(project, environment, "train", reason="drift")
            versions["2"] = _keep(project, folder, 2)
            note("training on the feedback alone", f"{ended}; the service answers with version {_version(client)}")

            apply({"train.rehearsal": {"old": 1.0}}, project / "params.yaml")
            ended = flow(project, environment, "train", reason="rehearsal was raised")
            versions["3"] = _keep(project, folder, 3)
            note("training on the feedback beside the old pictures", ended)
            wait(lambda: _version(client) == "3", 60)
            note("the service", f"answers with version {_version(client)}, without a restart")
            _ask(client, pd.concat([pictures["new traffic, later"], pictures["old traffic, later"]]).sample(frac=1, random_state=0))
            note("drift check, half of the traffic is of the new family", flow(project, environment, "drift"))
    figures = {
        version: {family: _judged(package, pictures[f"{family} test"]) for family in ("old", "new")}
        for version, package in versions.items()
    }
    return {"seen": seen, "figures": figures, "seconds": round(time.monotonic() - begun), "machine": machine()}


def page(result: dict[str, Any]) -> str:
    """The result as docs/continual.md."""
    what = {"1": "the old family", "2": "users' labels of the new family alone", "3": "both: the labels, and all of the old pictures"}
    lines = [
        "# From one family of forgeries to two",
        "",
        f"A run of `python -m benchmarks.continual` on rendered faces: the forgeries are `{OLD}` at first and `{NEW}` later,",
        f"with {PAIRS} reals and as many fakes of each; {result['seconds']} s on {result['machine']['cores']} cores.",
        "DVC, MLflow, Prefect and BentoML run as in production; nobody moves an alias by hand.",
        "",
        f"AUC on {2 * JUDGED} test images of each family, never used for training (95% interval):",
        "",
        f"| version | trained on | old family, `{OLD}` | new family, `{NEW}` |",
        "| --- | --- | --- | --- |",
    ]
    for version, found in result["figures"].items():
        lines.append(f"| {version} | {what[version]} | {_text(found['old'])} | {_text(found['new'])} |")
    lines += ["", "| after | step | result |", "| --- | --- | --- |"]
    lines += [f"| {row['after_s']} s | {row['step']} | {row['seen'].replace('|', ' ')} |" for row in result["seen"]]
    lines += [
        "",
        f"Version 2 forgot what version 1 knew; the gate `slices.generator.{OLD}.auc.value` in `params.yaml` kept it from being served.",
        "`train.rehearsal` sets how much of each source is trained on, here `{old: 0.0}` and then `{old: 1.0}`.",
        "",
        "Without labels a drift check cannot tell whether the model misses new fakes or there are fewer fakes; it names the likelier.",
        "It does detect that something changed; labels show what.",
        "If the first model partly recognises the second family, no drift is found: `swap`, then `self_blend` (AUC .76), 600 pairs: p .16.",
    ]
    return "\n".join(lines) + "\n"


def _renderings() -> list[tuple[str, int, int]]:
    """Name, seed and pairs of each rendering; no two share an image."""
    names = ["old traffic", "old traffic, second", "old traffic, later", "new traffic", "new traffic, later"]
    return [(name, 100 + number, PAIRS if name == "new traffic" else PAIRS // 2) for number, name in enumerate(names)] + [
        ("old test", 200, JUDGED),
        ("new test", 201, JUDGED),
    ]


def _render(folder: Path, name: str, seed: int, pairs: int) -> pd.DataFrame:
    family = NEW if name.startswith("new") else OLD
    source = old(seed, pairs).model_copy(update={"generators": {family: 1.0}})
    return procedural.listing(source, folder / name).assign(family=family)


def _ask(client: httpx.Client, table: pd.DataFrame) -> pd.DataFrame:
    """Send the images. Returns the table with the `id` of each answer."""

    def one(file: str) -> str:
        return str(client.post("/predict", files={"image": Path(file).read_bytes()}).raise_for_status().json()["id"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = table.assign(id=list(pool.map(one, table["file"])))
    time.sleep(2)  # until the last answers are in the prediction log
    return found


def _label(client: httpx.Client, answers: pd.DataFrame) -> int:
    """Label the images through the service and allow it to keep them. Returns how many."""

    def one(row: Any) -> None:
        said = {"id": row.id, "label": row.label, "keep_image": "true"}
        client.post("/feedback", data=said, files={"image": Path(row.file).read_bytes()}).raise_for_status()

    with ThreadPoolExecutor(CLIENTS) as pool:
        return len(list(pool.map(one, answers.itertuples())))


def _version(client: httpx.Client) -> str:
    return str(client.get("/model").raise_for_status().json()["version"])


def _keep(project: Path, folder: Path, number: int) -> Path:
    """Copy the package of the training that has just ended. Returns the copy."""
    return Path(shutil.copytree(project / "models/package", folder / f"version-{number}"))


def _gate(project: Path) -> str:
    evaluation = json.loads((project / "reports/evaluation.json").read_text())
    return f"AUC {evaluation['test']['auc']['value']:.3f} on the test part"


def _judged(package: Path, table: pd.DataFrame) -> Figure:
    """AUC of a package, with its bootstrap interval over groups."""
    detector = Detector.load(package, "cpu")
    found = detector.predict([read(Path(file)) for file in table["file"]])
    probabilities, labels = np.array([answer.probability_fake for answer in found]), table["label"].map(LABEL2ID).to_numpy()
    return judge(labels, probabilities, table["group"].to_numpy(), detector.package.meta.thresholds.f1, 500, 0)["auc"]


def _text(figure: Figure) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual", description="The loop on its own, in a temporary folder.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/continual.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unmask-continual-") as folder:
        arguments.out.write_text(page(scenario(Path(folder))))


if __name__ == "__main__":
    main()
