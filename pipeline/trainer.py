"""The training loop's own parts: the loss over pairs, the attacker, and the average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import Trainer

from pipeline import params
from pipeline.preprocess import Preprocess

AVERAGE = "average.safetensors"


class PairTrainer(Trainer):
    """Trainer with a ranking term: in each pair the fake has to score above its real. And with the recipe's average and attacker."""

    def __init__(self, *args: Any, recipe: params.Train, preprocess: Preprocess, average: Path | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.std = torch.tensor(preprocess.std, device=self.args.device).view(1, 3, 1, 1)
        assert isinstance(self.model, torch.nn.Module)
        self.average = Average(self.model, recipe.ema, average) if recipe.ema else None

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy + rank_weight * softplus(-(s_fake - s_real)), s being the difference of an image's logits."""
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if model.training and self.recipe.adversarial:
            pixel_values = self._attacked(model, pixel_values, labels, self.recipe.adversarial)
        logits = model(pixel_values=pixel_values).logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing if model.training else 0.0)
        if model.training and self.recipe.rank_weight:
            score = logits[:, 1] - logits[:, 0]
            loss = loss + self.recipe.rank_weight * functional.softplus(score[0::2] - score[1::2]).mean()
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step; the average takes in what the step before it left."""
        if self.average:
            self.average.update(self.state.global_step)
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Judge the average where there is one; callbacks that keep the best weights see it too."""
        with self.average.shown() if self.average else nullcontext():
            return super().evaluate(*args, **kwargs)

    def _attacked(self, model: torch.nn.Module, clean: torch.Tensor, labels: torch.Tensor, attack: params.Adversarial) -> torch.Tensor:
        bound = attack.eps / 255 / self.std
        change = (2 * torch.rand_like(clean) - 1) * bound
        for _ in range(attack.steps):
            change.requires_grad_(True)
            (slope,) = torch.autograd.grad(functional.cross_entropy(model(pixel_values=clean + change).logits.float(), labels), change)
            change = torch.max(torch.min(change.detach() + 2 * bound / attack.steps * slope.sign(), bound), -bound)
        return clean + change

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.average and output_dir:
            save_file(self.average.weights, Path(output_dir) / AVERAGE)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The network was built from the checkpoint already; see `_train`."""


class Average:
    """Running average of the weights that move (Polyak and Juditsky 1992), which is steadier than the last ones.

    Attributes:
        weights: name -> average.
    """

    def __init__(self, network: torch.nn.Module, decay: float, earlier: Path | None) -> None:
        self.moving = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.decay = decay
        self.weights = load_file(earlier) if earlier else {name: weight.detach().clone() for name, weight in self.moving.items()}

    def update(self, step: int) -> None:
        """Take in the weights as they are; young averages forget faster, so that the first weights do not weigh on them."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in self.moving.items():
            self.weights[name].lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the average for its weights meanwhile."""
        own = {name: weight.detach().clone() for name, weight in self.moving.items()}
        for name, weight in self.moving.items():
            weight.data.copy_(self.weights[name])
        try:
            yield
        finally:
            for name, weight in self.moving.items():
                weight.data.copy_(own[name])
