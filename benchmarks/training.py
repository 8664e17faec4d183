"""Overhead of training: seconds per step of the stage `train`, with its data and on one repeated batch, against a bare PyTorch loop.

`python -m benchmarks.training FACES --model NAME`. All three train the same network, in turns in one process; the median step counts.
Results: benchmarks/results/training.json, or training-gpu.json.
"""

import argparse
import os
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from transformers import TrainerCallback

from benchmarks.detection import prepare
from benchmarks.measure import record
from benchmarks.project import ROOT
from pipeline import manifest, train
from pipeline.network import model
from pipeline.params import Params, load_params
from pipeline.preprocess import Preprocess
from pipeline.settings import apply, pairs, preset
from pipeline.training import patches, tuning
from pipeline.training.arguments import bf16_is_native
from pipeline.training.trainer import PairTrainer

WARM_UP = 3
"""Steps of each turn that do not count."""


class Clock(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(now())


class OneBatch(PairTrainer):
    """Never waits for data: every batch is its first one, which is on the device already."""

    def get_train_dataloader(self) -> Any:
        """The first batch, repeated for as many batches as there are."""
        loader = super().get_train_dataloader()
        return [next(iter(loader))] * len(loader)


def now() -> float:
    """Time in seconds, once all work queued on a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def bare(params: Params, steps: int) -> list[float]:
    """Seconds of each step of a loop that already has its batch."""
    torch.manual_seed(0)
    network, processor = model.build(params.model)
    tuning.prepare(network, params.train)
    patches.drop_patches(network, params.train.patch_dropout)
    side = Preprocess.from_processor(processor).size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = bf16_is_native() if params.train.bf16 == "auto" else params.train.bf16
    torch.nn.Module.to(network, device)
    values = torch.randn(params.train.batch_size, 3, side, side, device=device)
    labels = torch.tensor([0, 1] * (params.train.batch_size // 2), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    network.train()
    found = []
    for _ in range(steps):
        start = now()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(pixel_values=values).logits
        logits = logits.float()
        score = logits[:, 1] - logits[:, 0]
        loss = functional.cross_entropy(logits, labels) + params.train.rank_weight * functional.softplus(score[0::2] - score[1::2]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(now() - start)
    return found[WARM_UP:]


def ours(params: Params, steps: int) -> list[float]:
    """Seconds of each step of the stage `train`, with decoding, pairs, augmentation and logging."""
    parts = manifest.read_parts()
    reals = parts["train"][parts["train"]["label"] == "real"].head(steps * params.train.batch_size // 2)
    parts["train"] = parts["train"][parts["train"]["group"].isin(reals["group"])]
    clock = Clock()
    shutil.rmtree(train.CHECKPOINTS, ignore_errors=True)
    train.fit(params, parts, callbacks=[clock])
    return [after - before for before, after in pairwise(clock.ends)][WARM_UP : steps - 1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("faces", type=Path, help="labelled folder")
    parser.add_argument("--model", required=True, help="hub name or folder of a pretrained network")
    parser.add_argument("--preset", default="finetune", help="of params.yaml")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of params.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    network = str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else arguments.model
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, [arguments.faces], network)
        chosen = preset(arguments.preset, ROOT / "params.yaml") | {"train.epochs": 1, "model.name": network, "model.config": {}}
        apply(chosen | pairs(arguments.set), work / "params.yaml")
        os.chdir(work)
        params = load_params(Path("params.yaml"))
        steps: dict[str, list[float]] = {"bare": [], "one_batch": [], "ours": []}
        for _ in range(arguments.turns):
            steps["bare"] += bare(params, arguments.steps)
            with patch.object(train, "PairTrainer", OneBatch):
                steps["one_batch"] += ours(params, arguments.steps)
            steps["ours"] += ours(params, arguments.steps)
        os.chdir(ROOT)
    seconds = {name: round(median(found), 4) for name, found in steps.items()}
    ratios = {name: round(seconds["ours"] / seconds[name], 4) for name in ("bare", "one_batch")}
    on_gpu = torch.cuda.is_available()
    row = {"batch": params.train.batch_size, "seconds_a_step": seconds, "ratio": ratios}
    name, device = ("training-gpu", torch.cuda.get_device_name()) if on_gpu else ("training", "CPU")
    record(name, {f"{arguments.preset}, {Path(params.model.name).name}": row, "device": device})
    print(
        f"stage train {seconds['ours']:.3f} s a step: {ratios['one_batch']:.3f} times its own on one batch ({seconds['one_batch']:.3f} s), "
        f"{ratios['bare']:.3f} times a bare loop ({seconds['bare']:.3f} s)"
    )


if __name__ == "__main__":
    main()
