"""Networks of a few thousand weights, and images for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from transformers import TrainerCallback

from pipeline import labels, manifest, train
from pipeline.params import Params

SIDE = 32
VIT = {"image_size": SIDE, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
ZOO: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": VIT | {"mlp_ratio": 2},
    "clip": {"vision_config": VIT, "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
    "swin": {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    "cvt": {"image_size": SIDE, "embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "convnextv2": {"image_size": SIDE, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "mlp_ratio": 2.0}
    | {"num_attention_heads": 2},
}
"""Networks of a few thousand weights."""


def table(folder: Path, pairs: int, seed: int) -> pd.DataFrame:
    """Pairs of images, the fakes with a block in the middle, as a part of a split."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(pairs):
        pixels = np.kron(rng.integers(40, 215, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        for label in labels.LABELS:
            path = folder / label / f"{seed}-{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if label == "fake":
                pixels = pixels.copy()
                pixels[12:20, 12:20] = rng.integers(0, 255, (8, 8, 3))
            Image.fromarray(pixels).save(path)
            row = {name: "none" if kind == "str" else 0 for name, kind in manifest.COLUMNS.items()}
            rows.append(row | {"image_id": f"{label}{seed}{index}", "path": str(path), "label": label, "group": f"g{seed}-{index}"})
    return pd.DataFrame(rows)


class Stop(TrainerCallback):
    """Ends a training with an exception after some steps, as a full disk would."""

    def __init__(self, step: int = 4) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise OSError("no space left on device")


def fit(settings: Params, *callbacks: TrainerCallback) -> train.Trained:
    trained = train.fit(settings, manifest.read_parts(), callbacks=callbacks)
    assert trained is not None
    return trained
