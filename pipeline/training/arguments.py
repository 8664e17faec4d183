"""Translates the recipe into TrainingArguments of transformers, for the machine at hand."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from pipeline.cores import cores
from pipeline.errors import StageError
from pipeline.params_train import Train


def bf16_is_native() -> bool:
    """Whether the device that training will run on supports bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()


def arguments(recipe: Train, folder: Path, rate: float, examples: int, processes: int) -> TrainingArguments:
    """The arguments for Trainer.

    Args:
        recipe: section `train` of params.yaml.
        folder: for the checkpoints.
        rate: learning rate.
        examples: pairs per epoch.
        processes: number of processes that share each batch.

    Raises:
        StageError: if the pairs of a batch cannot be shared evenly.
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
        # By steps, not by epoch: an epoch's metrics are then recorded before its last checkpoint is written, so that no kill can lose them.
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
        # Neither copying a batch nor checking its loss may make the CPU wait for the GPU: it has the next kernels to launch.
        accelerator_config={"non_blocking": on_gpu},
        logging_nan_inf_filter=False,
    )


def _workers(on_gpu: bool, processes: int) -> int:
    """Data loader workers per process. Without a GPU there are none: they would take the cores that the network computes on."""
    return max(1, cores() // processes - 2) if on_gpu else 0
