"""Stage train: fine-tunes a network. Killed at any moment, it goes on from its last checkpoint when it is run again."""

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from pipeline import manifest, model, params, tuning
from pipeline.dataset import Pairs, Singles, collate, pixels, sheet
from pipeline.metrics import figures
from pipeline.model import TRAINED
from pipeline.preprocess import Preprocess
from pipeline.record import Record
from pipeline.trainer import AVERAGE, PairTrainer

REPORT = Path("reports/train.json")
CURVES = Path("reports/plots/training.csv")
SHEET = Path("reports/augmented.png")
CHECKPOINTS = Path("var/checkpoints")
log = logging.getLogger(__name__)


def run(settings: params.Params) -> dict[str, Any]:
    """Write models/trained: the weights of the epoch with the best AUC on the validation part.

    AUC chooses, not loss, because calibration is put right afterwards and the order of the scores is not.

    Raises:
        StageError: if the model cannot be built, or MLflow cannot be reached.
    """
    parts = manifest.read_parts()
    folder = CHECKPOINTS / _key(settings)
    with _alone(folder):
        record = Record.open(folder, settings)
        return _train(settings, parts, folder, record)


def _train(settings: params.Params, parts: dict[str, pd.DataFrame], folder: Path, record: Record) -> dict[str, Any]:
    recipe = settings.train
    checkpoint = _last_checkpoint(folder)
    untrained, processor = _untrained(settings)
    network = tuning.prepare(untrained, recipe, checkpoint)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    preprocess = Preprocess.from_processor(processor)
    train, val = (pixels(parts[part], preprocess) for part in ("train", "val"))
    pairs = Pairs(parts["train"], train, preprocess, settings.augment, recipe.pairing, recipe.seed, recipe.forge)
    sheet(pairs, SHEET)

    rate = learning_rate(recipe, network)
    history = History(folder, record, pairs)
    trainer = PairTrainer(
        model=network,
        args=_arguments(recipe, folder, rate, len(pairs)),
        train_dataset=pairs,
        eval_dataset=Singles(parts["val"], val, preprocess),
        data_collator=collate,
        compute_metrics=_validation,
        callbacks=[history, *([EarlyStoppingCallback(recipe.patience)] if recipe.patience else [])],
        recipe=recipe,
        preprocess=preprocess,
        average=checkpoint and checkpoint / AVERAGE,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    best = tuning.finish(_untrained(settings)[0], recipe, history.best)
    shutil.rmtree(TRAINED, ignore_errors=True)
    model.save(best, processor, TRAINED)

    report = {
        "run_id": record.run_id,
        "epochs": history.epochs,
        "best_epoch": max(history.epochs, key=lambda epoch: epoch["val_auc"])["epoch"],
        "seconds": round(time.monotonic() - started, 1),
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "parameters": sum(weight.numel() for weight in best.parameters()),
        "trained_parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
        "lr": rate,
        "device": trainer.args.device.type,
        "precision": "bf16" if trainer.args.bf16 else "fp32",
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    CURVES.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(history.epochs).to_csv(CURVES, index=False)
    record.finish(report)
    return report


def _untrained(settings: params.Params) -> tuple[PreTrainedModel, Any]:
    """The same network at each call, from scratch too: what `lora` adds is added to these very weights."""
    set_seed(settings.train.seed)
    return model.build(settings.model)


class History(TrainerCallback):
    """Figures of each epoch, kept beside the checkpoints and logged while training goes on; and the best weights so far."""

    def __init__(self, folder: Path, record: Record, pairs: Pairs) -> None:
        self.folder, self.record, self.pairs = folder, record, pairs
        self.best, self.file = folder / "best", folder / "epochs.json"
        self.epochs: list[dict[str, float]] = json.loads(self.file.read_text()) if self.file.is_file() else []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Augmentation depends on the epoch."""
        self.pairs.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the loss with each checkpoint: Trainer's running sum is not part of it, and a resumed training would begin a new one."""
        control.should_log |= state.global_step % args.save_steps == 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the epoch; keep its weights if they are the best."""
        metrics: dict[str, float] = kwargs["metrics"]
        model: PreTrainedModel = kwargs["model"]
        losses = [entry for entry in state.log_history if "loss" in entry]
        epoch = round(state.epoch)
        row = {
            "epoch": epoch,
            "loss": round(_mean_loss(losses, state.global_step, args.eval_steps), 5),
            "lr": losses[-1]["learning_rate"] if losses else 0.0,
            **{f"val_{name}": round(metrics[f"eval_{name}"], 5) for name in ("loss", "accuracy", "f1", "auc")},
        }
        self.epochs = [*(earlier for earlier in self.epochs if earlier["epoch"] < epoch), row]
        if row["val_auc"] >= max(earlier["val_auc"] for earlier in self.epochs):
            _replace(self.best, model.save_pretrained)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.epochs))
        part.replace(self.file)
        self.record.epoch(row)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))


def _mean_loss(losses: list[dict[str, float]], end: int, steps: int) -> float:
    """The mean over the steps up to `end` of losses that are each a mean since the one before."""
    total, before = 0.0, float(end - steps)
    for entry in losses:
        if entry["step"] > before:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / steps if before == end else float("nan")


class Progress(ProgressCallback):
    """The progress bar without the dictionaries that Trainer prints between: History says the same in words."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print nothing."""


def learning_rate(recipe: params.Train, network: torch.nn.Module) -> float:
    """The rate of the settings; `auto` is 1100 / parameters within 1e-5..1e-3: what fits ViT-tiny (2e-4) and ViT-base (1.3e-5)."""
    if recipe.lr != "auto":
        return recipe.lr
    return float(np.clip(1100 / sum(weight.numel() for weight in network.parameters()), 1e-5, 1e-3))


def bf16_is_native() -> bool:
    """Whether the processor that training will run on multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()


def _arguments(recipe: params.Train, folder: Path, rate: float, examples: int) -> TrainingArguments:
    steps = -(-examples // (recipe.batch_size // 2))
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size // 2,
        per_device_eval_batch_size=64,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=int(recipe.warmup * steps * recipe.epochs),
        bf16=bf16_is_native() if recipe.bf16 == "auto" else recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        # By steps and not by epoch: an epoch's figures are then noted before its last checkpoint is written, and no kill can lose them.
        eval_strategy="steps",
        eval_steps=steps,
        logging_strategy="steps",
        logging_steps=steps,
        save_strategy="steps",
        save_steps=max(1, steps // recipe.checkpoints_per_epoch),
        save_total_limit=2,
        metric_for_best_model="auc",
        seed=recipe.seed,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _validation(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    found = figures(labels, probability, 0.5)
    return {"accuracy": float(found["accuracy"][0]), "f1": float(found["f1"][0]), "auc": float(roc_auc_score(labels, probability))}


def _key(settings: params.Params) -> str:
    """Names the checkpoints of one training: the same settings on the same split go on, anything else starts anew."""
    digest = hashlib.sha256()
    for section in (settings.model, settings.train, settings.augment):
        digest.update(section.model_dump_json().encode())
    for part in ("train", "val"):
        digest.update((manifest.SPLITS / f"{part}.parquet").read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: the child of a killed run may still be training. The lock is freed when its process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another training of the same settings is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. Trainer writes trainer_state.json last, so one without it was cut short and is removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def _replace(folder: Path, write: Any) -> None:
    """Write a folder so that a kill leaves either the old one or the new one."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
