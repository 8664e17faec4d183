"""Tests that need a GPU; skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import params
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.runtime import TorchRuntime, has_gpu
from tests.package_helpers import CONFIG, SIDE

pytestmark = pytest.mark.skipif(not has_gpu(), reason="there is no GPU here")


def network() -> WithEmbedding:
    torch.manual_seed(0)
    return WithEmbedding(model.build(params.Model(name="vit", init="scratch", config=CONFIG))[0]).eval()


@pytest.mark.parametrize("count", [1, 3, 64, 100])
def test_a_recorded_network_gives_the_answers_of_the_network(count):
    values = np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
    with torch.inference_mode():
        expected = [output.numpy() for output in network()(torch.from_numpy(values))]
    running = TorchRuntime(network(), bf16=False)
    for _ in range(2):  # recorded, then replayed
        for found, output in zip(running(values), expected, strict=True):
            assert np.allclose(found, output, atol=0.002)


def test_a_loaded_network_is_recorded_for_every_batch_size_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model.save(*model.build(params.Model(name="vit", init="scratch", config=CONFIG)), tmp_path)
    running = TorchRuntime.load(tmp_path, bf16=True, size=SIDE)
    monkeypatch.setattr(torch.cuda, "graph", None)
    for count in range(1, running.batch + 1):
        assert running(np.zeros((count, 3, SIDE, SIDE), np.float32))[0].shape == (count, 2)


class Peeking(nn.Module):
    """A network whose control flow depends on its values, which a CUDA graph cannot record."""

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = values.mean((2, 3))
        return (means * (2.0 if means.sum().item() > 0 else 1.0))[:, :2], means


def test_a_network_that_cannot_be_recorded_runs_all_the_same():
    running = TorchRuntime(Peeking(), bf16=False)  # type: ignore[arg-type]
    for sign in (1, -1, 1):
        values = np.full((2, 3, SIDE, SIDE), sign, np.float32)
        assert np.allclose(running(values)[0], 2 if sign > 0 else -1)
