"""A complete model package of an untrained network, made in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline import params
from pipeline.detector import Detector
from pipeline.exporting.convert import to_openvino
from pipeline.images import read
from pipeline.monitoring.predictions import measures
from pipeline.network import model
from pipeline.package import GOLDEN, GRAPH, seal
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime

SIDE = 32
CONFIG = {"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LINEAGE = {
    "data_md5": "0123456789abcdef0123456789abcdef",
    "splits_md5": "fedcba9876543210fedcba9876543210.dir",
    "git_commit": "a" * 40,
    "git_dirty": False,
    "dvc_lock": "b" * 64,
    "run_id": "c" * 32,
}
META = {
    "created": "2026-01-02T03:04:05+00:00",
    "labels": {"0": "real", "1": "fake"},
    "temperature": 1.0,
    "thresholds": {"f1": 0.5, "fpr1": 0.9, "fpr5": 0.8, "real_below": 0.4, "fake_above": 0.6},
    "figures": {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}, "auc": {"value": 0.5, "low": 0.4, "high": 0.6}},
    "lineage": LINEAGE,
}
CARD = """# Unmask: model card

- **Network**: vit, untrained.

| figure | value |
| --- | --- |
| auc | 0.500 |
"""


def tiny_package(folder: Path, **meta: object) -> Path:
    """Make a package in the folder; `meta` replaces items of META."""
    return untrained_package(folder, CONFIG, **meta)


def untrained_package(folder: Path, config: dict[str, Any], **meta: object) -> Path:
    """The same with a ViT of any shape: `config` has what differs from a ViT-base for images of 224 pixels."""
    network, processor = model.build(params.Model(name="vit", init="scratch", config=config))
    (folder / "model").mkdir(parents=True)
    model.save(network, processor, folder / "model")
    (folder / "model" / "preprocess.json").rename(folder / "preprocess.json")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(4)]
    preprocess = Preprocess.load(folder)
    graph = folder / GRAPH
    to_openvino(folder / "model", graph, preprocess.normalise(np.stack([preprocess.pixels(picture) for picture in pictures])))
    (folder / "card.md").write_text(CARD)
    (folder / GOLDEN).mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / GOLDEN / f"{index}.png")
    golden = sorted((folder / GOLDEN).glob("*.png"))
    answers = Detector(seal(folder, META | meta), OpenVinoRuntime(graph)).predict([read(path) for path in golden])
    pd.DataFrame([measures(answer) for answer in answers]).to_parquet(folder / "reference.parquet", index=False)
    listed = {
        path.name: {"label": "real", "probability_fake": answer.probability_fake} for path, answer in zip(golden, answers, strict=True)
    }
    (folder / GOLDEN / "golden.json").write_text(json.dumps(listed))
    seal(folder, META | meta)
    return folder
