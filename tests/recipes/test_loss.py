"""What the settings ask of a training reaches transformers, and the loss is the one that the settings describe."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput

from pipeline.params import Params
from pipeline.preprocess import Preprocess
from pipeline.training.arguments import arguments
from pipeline.training.trainer import PairTrainer
from pipeline.training.tuning import learning_rate
from tests.recipes.small import SIDE


def test_what_the_settings_say_is_what_transformers_is_told(settings: Callable[..., Params], tmp_path: Path):
    asked = {"epochs": 3, "batch_size": 8, "schedule": "polynomial", "warmup": 0.25, "weight_decay": 0.07, "seed": 5, "bf16": False}
    told = arguments(settings(**asked, checkpoints_per_epoch=5, patience=2).train, tmp_path, rate=0.02, examples=78, processes=2)
    assert (told.num_train_epochs, told.lr_scheduler_type, told.learning_rate, told.weight_decay) == (3, "polynomial", 0.02, 0.07)
    assert (told.per_device_train_batch_size, told.seed, told.bf16) == (2, 5, False)  # pairs, half of them for each process
    assert (told.eval_steps, told.save_steps, told.warmup_steps) == (20, 4, 15)  # of 20 steps an epoch
    assert (told.metric_for_best_model, told.greater_is_better) == ("auc", True)  # a rising AUC is no reason to lose patience


@pytest.mark.parametrize(
    ("tune", "weights", "rate"),
    [
        ("full", 5_500_000, 2e-4),
        ("full", 300_000_000, 1e-5),
        ("full", 10_000, 1e-3),
        ("last_blocks", 85_800_000, 1.28e-5),
        ("layernorm", 85_800_000, 3e-4),
        ("lora", 85_800_000, 3e-4),
        ("head", 85_800_000, 1e-3),
    ],
)
def test_the_learning_rate_fits_what_is_trained(settings: Callable[..., Params], tune: str, weights: int, rate: float):
    network = torch.nn.Linear(weights, 1, bias=False, device="meta")
    assert learning_rate(settings(tune=tune, lr="auto").train, network) == pytest.approx(rate, rel=0.01)
    assert learning_rate(settings(tune=tune, lr=0.07).train, network) == 0.07


class Fixed(torch.nn.Module):
    """Gives these logits, whatever it is shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.logits)


def test_a_pair_in_the_wrong_order_costs_what_the_settings_say(settings: Callable[..., Params], tmp_path: Path):
    recipe = settings(rank_weight=0.7, label_smoothing=0.1).train
    logits, labels = torch.tensor([[2.0, -1.0], [0.5, 1.5], [0.0, 4.0], [1.0, 0.0]]), torch.tensor([0, 1, 0, 1])
    told = arguments(recipe, tmp_path, rate=0.01, examples=4, processes=1)
    network = Fixed(logits)
    trainer = PairTrainer(network, told, eval_dataset=[], recipe=recipe, preprocess=Preprocess(size=SIDE), average=None)
    inputs = {"pixel_values": torch.zeros(4, 3, SIDE, SIDE), "labels": labels}
    ahead = torch.tensor([1.0 - -3.0, -1.0 - 4.0])  # by how much the fake of each pair is above its real
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1) + 0.7 * torch.log1p(torch.exp(-ahead)).mean()
    assert trainer.compute_loss(network.train(), inputs).item() == pytest.approx(float(expected), abs=1e-6)
    plain = functional.cross_entropy(logits, labels)
    assert trainer.compute_loss(network.eval(), inputs).item() == pytest.approx(float(plain), abs=1e-6)
