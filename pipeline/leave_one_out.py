"""How a recipe does on kinds of forgery unseen in training: for each generator, a training without it, judged on its fakes.

The split stays as it is: the fakes are those of the test part; calibration and thresholds come from the validation part without
the generator. Killed, it resumes on the next run.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import manifest, train
from pipeline.errors import StageError
from pipeline.evaluate import calibrate, judge_rows
from pipeline.evaluation.metrics import figure_text
from pipeline.evaluation.scoring import score
from pipeline.fingerprint import fingerprint
from pipeline.manifest import NO_GENERATOR
from pipeline.network.embedding import WithEmbedding
from pipeline.params import Params
from pipeline.preprocess import Preprocess
from pipeline.record import child_of, parent_run
from pipeline.runtime import runtime
from pipeline.training.dataset import pixels

FOLDER = Path("var/leave_one_out")
REPORT = Path("reports/leave_one_out.json")
log = logging.getLogger(__name__)


def run(settings: Params) -> dict[str, Any]:
    """Write reports/leave_one_out.json, and a run in MLflow with the trainings nested in it.

    Returns:
        run_id; generators: name -> n, auc, recall and fpr, each with its interval; mean_auc, worst, worst_auc; pooled_auc: over all images,
        each fake with its probability from the training that did not see its kind.

    Raises:
        StageError: if there are fewer than two generators to learn from, or a training fails.
    """
    parts = manifest.read_parts()
    generators = _generators(parts)
    owner = parent_run("leave-one-out", train.checkpoints(settings, parts).name)
    judged = {name: _judged(name, settings, parts, owner) for name in generators}

    found: dict[str, dict[str, Any]] = {}
    for name, (table, threshold) in judged.items():
        figures = judge_rows(table, threshold, settings.evaluate)
        found[name] = {"n": len(table), **{figure: figures[figure] for figure in ("auc", "recall", "fpr")}}
    aucs = {name: float(figures["auc"]["value"] or 0.0) for name, figures in found.items()}
    worst = min(aucs, key=lambda name: aucs[name])
    result = {
        "run_id": owner,
        "generators": found,
        "mean_auc": round(float(np.mean(list(aucs.values()))), 5),
        "worst": worst,
        "worst_auc": aucs[worst],
        "pooled_auc": judge_rows(pd.concat([table for table, _ in judged.values()]), 0.5, settings.evaluate)["auc"],
    }
    _note(result)
    return result


def _generators(parts: dict[str, pd.DataFrame]) -> list[str]:
    """The generators in all of train, val and test. Raises StageError for fewer than two."""
    held = [set(parts[part]["generator"]) - {NO_GENERATOR} for part in manifest.PARTS]
    found = sorted(set.intersection(*held))
    if len(found) < 2:
        raise StageError(
            f"leave-one-out: train, val and test have {', '.join(found) or 'no generator'} in common; two are needed. "
            "Name what made each fake (the column `generator` of manifest.csv), and hold out none: "
            "python -m pipeline.settings -S 'split.holdout_generators=[]'"
        )
    return found


def _judged(generator: str, settings: Params, parts: dict[str, pd.DataFrame], owner: str) -> tuple[pd.DataFrame, float]:
    """The test part's reals and the generator's fakes, with `probability_fake` by a training without it, and its F1 threshold."""
    rest = {part: parts[part][parts[part]["generator"] != generator].reset_index(drop=True) for part in ("train", "val")}
    test = parts["test"][parts["test"]["generator"].isin([NO_GENERATOR, generator])]
    if settings.train.forge:
        # Forging during training would show the kind that is left out.
        recipe = settings.train.model_copy(update={"forge": settings.train.forge.without(generator)})
        settings = settings.model_copy(update={"train": recipe})
    folder = train.checkpoints(settings, rest)
    made = fingerprint(settings.train, *train.CODE)
    scores = FOLDER / f"{folder.name}-{made}-{manifest.digest(test)[:16]}.parquet"
    if not scores.is_file():
        log.info("training without %s", generator)
        with child_of(owner, left_out=generator):
            trained = train.fit(settings, rest)
        assert trained is not None
        preprocess = Preprocess.from_processor(trained.processor)
        running = runtime(WithEmbedding(trained.network).eval(), preprocess.size)
        scored = [
            table.assign(part=part, score=score(running, preprocess, pixels(table, preprocess)))
            for part, table in (("val", rest["val"]), ("test", test))
        ]
        FOLDER.mkdir(parents=True, exist_ok=True)
        pd.concat(scored)[["part", "image_id", "label", "group", "score"]].to_parquet(scores.with_suffix(".part"), index=False)
        scores.with_suffix(".part").replace(scores)
    shutil.rmtree(folder, ignore_errors=True)  # weights and optimizer states of many trainings fill a disk
    table = pd.read_parquet(scores)
    val, test = (table[table["part"] == part] for part in ("val", "test"))
    calibration, thresholds = calibrate(val, settings.evaluate)
    return test.assign(probability_fake=calibration.probability(test["score"].to_numpy())), thresholds.f1


def _note(result: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    for name in ("mean_auc", "worst_auc"):
        client.log_metric(result["run_id"], name, result[name])
    client.set_terminated(result["run_id"])
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(result, indent=2) + "\n")
    for name, figures in result["generators"].items():
        log.info("without %s: AUC %s", name, figure_text(figures["auc"]))
    text = figure_text(result["pooled_auc"])
    log.info("mean AUC %.3f, worst %.3f (%s), pooled %s", result["mean_auc"], result["worst_auc"], result["worst"], text)


if __name__ == "__main__":
    from pipeline.cli import stage
    from pipeline.memory import keep_freed

    keep_freed()
    stage(run)
