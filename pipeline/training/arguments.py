"""A recipe in the words of transformers' Trainer, on the machine at hand."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from pipeline.cores import cores
from pipeline.errors import StageError
from pipeline.params_train import Train


def bf16_is_native() -> bool:
    """Whether the processor that training will run on multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()


def arguments(recipe: Train, folder: Path, rate: float, examples: int, processes: int) -> TrainingArguments:
    """What Trainer is told.

    Args:
        recipe: of params.yaml.
        folder: of the checkpoints.
        rate: learning rate.
        examples: pairs of an epoch.
        processes: that share each batch.

    Raises:
        StageError: if they cannot share it evenly.
    """
    pairs = recipe.batch_size // 2
    if pairs % processes:
        raise StageError(f"train.batch_size = {recipe.batch_size}: its {pairs} pairs cannot be shared evenly among {processes} processes")
    steps = -(-examples // pairs)
    on_gpu = torch.cuda.is_available()
    workers = _workers(on_gpu, processes) if recipe.workers == "auto" else recipe.workers
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=pairs // processes,
        per_device_eval_batch_size=64,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=int(recipe.warmup * steps * recipe.epochs),
        bf16=bf16_is_native() if recipe.bf16 == "auto" else recipe.bf16,
        use_cpu=not on_gpu,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        # By steps and not by epoch: an epoch's figures are then noted before its last checkpoint is written, and no kill can lose them.
        eval_strategy="steps",
        eval_steps=steps,
        logging_strategy="steps",
        logging_steps=steps,
        save_strategy="steps",
        save_steps=max(1, steps // recipe.checkpoints_per_epoch),
        save_total_limit=2,
        metric_for_best_model="auc" if recipe.patience else None,
        greater_is_better=True if recipe.patience else None,
        seed=recipe.seed,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        # Neither the copy of a batch nor a look at its loss may make the processor wait for the GPU: it has the next kernels to launch.
        accelerator_config={"non_blocking": on_gpu},
        logging_nan_inf_filter=False,
    )


def _workers(on_gpu: bool, processes: int) -> int:
    """How many prepare batches in each process. On a processor they would take the cores that the network computes on."""
    return max(1, cores() // processes - 2) if on_gpu else 0
