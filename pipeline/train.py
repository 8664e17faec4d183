"""Stage train: fine-tunes a network. Killed at any moment, it resumes from its last checkpoint on the next run.

`torchrun --nproc-per-node 2 -m pipeline.train` splits the work of each step among processes; the result is the same as with one, except
with batch normalisation (stem_vit, MobileNet), where each process normalises by its own share of the batch.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from safetensors.torch import load_model
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, ProgressCallback, TrainerCallback, set_seed

from pipeline import manifest, params
from pipeline.cores import cores
from pipeline.errors import DivergedError
from pipeline.evaluation.metrics import figures
from pipeline.memory import keep_freed
from pipeline.network import model
from pipeline.network.model import TRAINED
from pipeline.params_train import Forging
from pipeline.preprocess import Preprocess
from pipeline.record import Record
from pipeline.training import features, patches, tuning
from pipeline.training.arguments import arguments
from pipeline.training.dataset import Pairs, Singles, collate, keep_cached, pixels, rehearsed, sheet
from pipeline.training.trainer import WEIGHTS, Average, History, PairTrainer, Patience, Progress

REPORT = Path("reports/train.json")
CURVES = Path("reports/plots/training.csv")
SHEET = Path("reports/augmented.png")
CHECKPOINTS = Path("var/checkpoints")
CODE = ("forge", "images.py", "network", "preprocess.py", "train.py", "training")
"""What a training runs, for names of what several trainings made together."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Result of a training: a plain transformers network with the best weights, its image processor, and the figures."""

    network: PreTrainedModel
    processor: Any
    report: dict[str, Any]


def run(settings: params.Params) -> dict[str, Any]:
    """Write models/trained: the weights of the epoch with the best AUC on the validation part.

    AUC decides, not loss, because calibration is corrected afterwards and the ranking of the scores is not.

    Returns:
        The report. Of several processes, only the first writes it and the other files; the others return an empty dict.

    Raises:
        StageError: if the model cannot be built, `train.rehearsal` leaves a class without images, the batch cannot be divided among the
            processes, MLflow cannot be reached, or the training diverges.
    """
    parts = manifest.read_parts()
    folder = checkpoints(settings, parts)
    trained = fit(settings, parts, SHEET)
    if trained is None:
        return {}
    shutil.rmtree(TRAINED, ignore_errors=True)
    model.save(trained.network, trained.processor, TRAINED)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(trained.report, indent=2) + "\n")
    CURVES.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(trained.report["epochs"]).to_csv(CURVES, index=False)
    _forget(folder)
    shown = parts | {"train": rehearsed(parts["train"], settings.train.rehearsal)}
    keep_cached(shown.values(), Preprocess.from_processor(trained.processor))
    return trained.report


def fit(
    settings: params.Params, parts: dict[str, pd.DataFrame], shown: Path | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Trained | None:
    """Train on the parts train and val, or resume an interrupted training with the same settings.

    Args:
        parts: from `manifest.read_parts`.
        shown: where to write a sheet of augmented examples.
        callbacks: called for each epoch after its figures are recorded.

    Returns:
        The trained network and report; None in every process but the first.

    Raises:
        StageError: as `run` does.
    """
    folder = checkpoints(settings, parts)
    parts = parts | {"train": rehearsed(parts["train"], settings.train.rehearsal)}
    processes = _processes()
    with _alone(folder) if processes.is_main_process else nullcontext():
        processes.wait_for_everyone()
        record = Record.open(folder, settings) if processes.is_main_process else None
        trained = _fit(settings, parts, folder, record, processes, shown if processes.is_main_process else None, callbacks)
        processes.wait_for_everyone()
        return trained


def _fit(
    settings: params.Params,
    parts: dict[str, pd.DataFrame],
    folder: Path,
    record: Record | None,
    processes: PartialState,
    shown: Path | None,
    callbacks: Sequence[TrainerCallback],
) -> Trained | None:
    recipe = settings.train
    cv2.setNumThreads(0)  # pictures are small, and a forked worker must not wait for threads that it did not inherit
    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    set_seed(recipe.seed)
    network, processor = model.build(settings.model)
    tuning.prepare(network, recipe)
    patches.drop_patches(network, recipe.patch_dropout)
    preprocess = Preprocess.from_processor(processor)
    with processes.main_process_first():
        checkpoint = _last_checkpoint(folder)
        moving, pairs, val = _examples(settings, parts, network, preprocess)
    if shown:
        sheet(Pairs(parts["train"], pixels(parts["train"], preprocess), settings.augment, *_pairing(recipe)), shown)
    if checkpoint:
        # Trainer's own loading is not strict: a renamed weight would silently restart from its initial value.
        load_model(moving, checkpoint / WEIGHTS)
        log.info("resuming from %s", checkpoint)

    rate = tuning.learning_rate(recipe, network)
    history = History(folder, record, pairs)
    average = Average(moving, recipe.ema, checkpoint) if recipe.ema else None
    trainer = PairTrainer(
        model=moving,
        args=arguments(recipe, folder, rate, len(pairs), processes.num_processes),
        train_dataset=pairs,
        eval_dataset=val,
        data_collator=collate,
        compute_metrics=_validation,
        callbacks=[*filter(None, (average, history, recipe.patience and Patience(recipe.patience, history))), *callbacks],
        recipe=recipe,
        preprocess=preprocess,
        average=average,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if record is None:
        return None
    load_model(moving, history.best)
    nn.Module.to(network, "cpu")
    trained_parameters = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    if recipe.tune == "lora":
        tuning.merge(network)
    report = {
        "run_id": record.run_id,
        "images": parts["train"]["source"].value_counts().sort_index().to_dict(),
        "epochs": history.epochs,
        "best_epoch": max(history.epochs, key=lambda epoch: epoch["val_auc"])["epoch"],
        "seconds": round(history.seconds, 1),
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "trained_parameters": trained_parameters,
        "lr": rate,
        "device": trainer.args.device.type,
        "processes": processes.num_processes,
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }
    record.finish(report)
    return Trained(network, processor, report)


def _examples(
    settings: params.Params, parts: dict[str, pd.DataFrame], network: PreTrainedModel, preprocess: Preprocess
) -> tuple[nn.Module, Pairs, Singles]:
    """The module to train and its data: the network on pictures, or its head on precomputed features."""
    train, val = (pixels(parts[part], preprocess) for part in ("train", "val"))
    if not features.are_fixed(settings.train, settings.augment):
        pairs = Pairs(parts["train"], train, settings.augment, *_pairing(settings.train))
        return network, pairs, Singles(parts["val"], val)
    seen, judged = (features.features(network, parts[part], images, preprocess) for part, images in (("train", train), ("val", val)))
    pairs = features.FeaturePairs(parts["train"], seen, settings.augment, *_pairing(settings.train))
    return features.Head(network), pairs, features.FeatureSingles(parts["val"], judged)


def _pairing(recipe: params.Train) -> tuple[bool, int, Forging | None]:
    return recipe.pairing, recipe.seed, recipe.forge


def _validation(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = np.asarray(prediction.predictions, np.float64), np.asarray(prediction.label_ids)
    if not np.isfinite(logits).all():
        raise DivergedError("training: the network's outputs are no longer finite; lower train.lr, or train with train.bf16=false")
    score = logits[:, 1] - logits[:, 0]
    probability = expit(score)
    found = figures(labels, probability, 0.5)
    return {
        # Replaces Trainer's own loss, which counts images twice that pad the last batch of several processes.
        "loss": float(np.logaddexp(0, np.where(labels == 1, -score, score)).mean()),
        "accuracy": float(found["accuracy"][0]),
        "f1": float(found["f1"][0]),
        "auc": float(roc_auc_score(labels, probability)),
    }


def checkpoints(settings: params.Params, parts: dict[str, pd.DataFrame]) -> Path:
    """The folder of one training: the same settings on the same images resume, anything else starts over."""
    digest = hashlib.sha256()
    for section in (settings.model, settings.train, settings.augment):
        digest.update(section.model_dump_json().encode())
    base = Path(settings.model.name)  # if it is a folder, its name does not identify the weights in it
    for path in sorted([*base.glob("*.json"), *base.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for part in ("train", "val"):
        digest.update(manifest.digest(parts[part]).encode())
    return CHECKPOINTS / digest.hexdigest()[:16]


def _processes() -> PartialState:
    """The processes that train together: one, or as many as torchrun or accelerate started."""
    return PartialState(cpu=not torch.cuda.is_available())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: the child of a killed run may still be training. The lock is freed when its process ends, however it ends."""
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    with _lock(folder).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another training of the same settings is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield


def _forget(folder: Path) -> None:
    """Remove the checkpoints of a finished training, so that the next run starts over, with the code of that time.

    If another process is waiting for the lock, they stay: it resumes from them, and removes them itself.
    """
    with _lock(folder).open("w") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


def _lock(folder: Path) -> Path:
    """The lock file; beside the folder, because it outlives the folder."""
    return folder.with_suffix(".lock")


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. Trainer writes trainer_state.json last, so a checkpoint without it is incomplete and is removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


if __name__ == "__main__":
    from pipeline.cli import stage

    keep_freed()
    stage(run)
