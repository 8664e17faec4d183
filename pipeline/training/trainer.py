"""transformers' Trainer plus a ranking loss, adversarial training, averaged weights, and metrics that survive a kill."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainerCallback

from pipeline.params_train import Train
from pipeline.preprocess import Preprocess
from pipeline.record import Record
from pipeline.staging import write
from pipeline.training import adversarial, tuning
from pipeline.training.dataset import Pairs

WEIGHTS, AVERAGED = "model.safetensors", "averaged.safetensors"
log = logging.getLogger(__name__)


class Average(TrainerCallback):
    """Exponential moving average of the weights (Polyak and Juditsky, 1992), whose decay rises to its final value over the first steps.

    All weights are updated in one call: torch's AveragedModel looks up each of them in every step, and waits for the GPU.
    """

    def __init__(self, network: torch.nn.Module, decay: float, checkpoint: Path | None) -> None:
        self.network, self.decay, self.checkpoint = network, decay, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start or resume the average: only now has Trainer moved the network to its device."""
        self.averaged = deepcopy(self.network).requires_grad_(False)
        if self.checkpoint:
            load_model(self.averaged, self.checkpoint / AVERAGED)
        self.pairs = list(zip(_values(self.averaged), _values(self.network), strict=True))
        self.averages, self.weights = map(list, zip(*(pair for pair in self.pairs if pair[0].is_floating_point()), strict=True))
        # Integer buffers, such as batch counts, are copied and not averaged.
        self.counts = [pair for pair in self.pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the current weights."""
        decay = min(self.decay, state.global_step / (9 + state.global_step))
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        for averaged, value in self.counts:
            averaged.copy_(value)

    def save(self, folder: Path) -> None:
        """Write the average next to the weights of a checkpoint."""
        save_model(self.averaged, str(folder / AVERAGED))

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Context in which the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for averaged, value in self.pairs:
            averaged.data, value.data = value.data, averaged.data


def _values(network: torch.nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


class PairTrainer(Trainer):
    """Trainer with a ranking loss: in each pair the fake has to score above its real."""

    def __init__(self, *args: Any, recipe: Train, preprocess: Preprocess, average: Average | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe, self.preprocess, self.average = recipe, preprocess, average

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy + rank_weight * softplus(-(s_fake - s_real)), where s is an image's logit of fake minus that of real."""
        values, recipe = inputs["pixel_values"], self.recipe
        if values.dtype == torch.uint8:
            values = self.preprocess.normalise_tensor(values)
        if model.training:
            if recipe.adversarial:
                network = self.accelerator.unwrap_model(model)
                values = adversarial.attacked(network, values, inputs["labels"], recipe.adversarial, self.preprocess)
            if recipe.tune != "full":
                tuning.freeze_batch_norms(model)
        logits = model(pixel_values=values).logits.float()
        loss = functional.cross_entropy(logits, inputs["labels"], label_smoothing=recipe.label_smoothing if model.training else 0.0)
        if model.training and recipe.rank_weight:
            score = logits[:, 1] - logits[:, 0]
            loss = loss + recipe.rank_weight * functional.softplus(score[0::2] - score[1::2]).mean()
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights if there are any."""
        with self.average.average_parameters() if self.average else nullcontext():
            return super().evaluate(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: nothing reads the number, and Trainer would iterate over all weights in every step."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the weights under their names in memory; `save_pretrained` would use the hub's names and leave out what peft added."""
        if not self.args.should_save:
            return
        assert isinstance(self.model, torch.nn.Module)
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / WEIGHTS))
        if self.average:
            self.average.save(folder)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: pipeline.train has already loaded the checkpoint's weights."""


class History(TrainerCallback):
    """Metrics of each epoch, kept next to the checkpoints and logged during training; and the best weights so far."""

    def __init__(self, folder: Path, record: Record | None, pairs: Pairs) -> None:
        self.record, self.pairs = record, pairs
        self.best, self.file = folder / "best.safetensors", folder / "epochs.json"
        self.epochs: list[dict[str, float]] = json.loads(self.file.read_text()) if self.file.is_file() else []

    @property
    def seconds(self) -> float:
        """Training time so far, including the time before an interruption."""
        return time.monotonic() - self.begun

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Resume counting from the seconds in the checkpoint."""
        self.begun = time.monotonic() - max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the seconds in the log history, which the next checkpoint keeps."""
        state.log_history[-1]["seconds"] = self.seconds

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the data set the epoch, on which its draws depend."""
        self.pairs.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the loss at each checkpoint: it does not hold Trainer's running sum, and a resumed training starts a new one."""
        control.should_log |= state.global_step % args.save_steps == 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the epoch; keep its weights if they are the best so far."""
        metrics: dict[str, float] = kwargs["metrics"]
        losses = [entry for entry in state.log_history if "loss" in entry]
        epoch = round(state.epoch)
        row = {
            "epoch": epoch,
            "loss": round(_mean_loss(losses, state.global_step, args.eval_steps), 5),
            "lr": losses[-1]["learning_rate"] if losses else 0.0,
            **{f"val_{name}": round(metrics[f"eval_{name}"], 5) for name in ("loss", "accuracy", "f1", "auc")},
        }
        self.epochs = [*(earlier for earlier in self.epochs if earlier["epoch"] < epoch), row]
        if self.record is None:  # another process writes
            return
        if row["val_auc"] > max((earlier["val_auc"] for earlier in self.epochs[:-1]), default=-1.0):
            part = self.best.with_suffix(".part")
            save_model(kwargs["model"], str(part))
            part.replace(self.best)
        write(self.file, json.dumps(self.epochs).encode())
        self.record.epoch(row)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))


def _mean_loss(losses: list[dict[str, float]], end: int, steps: int) -> float:
    """Mean loss of the last `steps` steps up to `end`; each entry is the mean since the one before. NaN if none was logged at `end`."""
    total, before = 0.0, float(end - steps)
    for entry in losses:
        if entry["step"] > before:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / steps if before == end else float("nan")


class Patience(EarlyStoppingCallback):
    """Early stopping whose counter survives a kill. History keeps the best weights."""

    def __init__(self, patience: int, history: History) -> None:
        super().__init__(patience)
        self.history = history

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the epochs since the best one; a training that had already stopped does not continue."""
        done = [row["val_auc"] for row in self.history.epochs if row["epoch"] <= (state.epoch or 0) + 1e-6]
        self.early_stopping_patience_counter = len(done) - 1 - done.index(max(done)) if done else 0
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience


class Progress(ProgressCallback):
    """Progress bar without the dictionaries that Trainer prints: History logs the same as text."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print nothing."""
