"""Recipes of training: what moves, what an average and an attacker do, what is forged on the way; on tiny networks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import set_seed

from pipeline import manifest, model, train, tuning
from pipeline.dataset import Pairs
from pipeline.errors import StageError
from pipeline.export import convert
from pipeline.params import Model, Params, Train, TrainForge, load_params
from pipeline.preprocess import Preprocess
from tests.conftest import ROOT
from tests.split_helpers import image, table

PARAMS = load_params(ROOT / "params.yaml")
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
VIT = Model(name="vit", init="scratch", config=SMALL)
BACKBONES = {
    "vit": SMALL,
    "deit": SMALL,
    "dinov2": SMALL | {"mlp_ratio": 2},
    "convnextv2": {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "clip": {"vision_config": SMALL | {"projection_dim": 16}, "image_size": 32},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of 24 pairs; a fake differs from its real by a bright square."""
    folder = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict]] = {part: [] for part in manifest.PARTS}
    for index in range(24):
        real = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8)
        fake = real.copy()
        fake[8:24, 8:24] = 255
        for label, pixels in (("real", real), ("fake", fake)):
            path = folder / label / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
            made_by = "none" if label == "real" else "square"
            rows[manifest.PARTS[index % 3]].append(image(str(path), label=label, group=f"g{index}", generator=made_by))
    for part, images in rows.items():
        manifest.write(table(images), folder / f"data/splits/{part}.parquet")
    return folder


@pytest.fixture
def trained(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict, dict]]:
    """A function that trains a tiny network and gives its weights before and after."""
    monkeypatch.chdir(workspace)

    def run(network: Model = VIT, **recipe: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        values = {"epochs": 2, "batch_size": 8, "warmup": 0.0, "lr": 0.01} | recipe
        settings: Params = PARAMS.model_copy(update={"model": network, "train": Train.model_validate(PARAMS.train.model_dump() | values)})
        set_seed(settings.train.seed)
        before = {name: weight.clone() for name, weight in model.build(network)[0].state_dict().items()}
        train.run(settings)
        return before, model.load(model.TRAINED).state_dict()

    return run


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("tune", "moves", "stays"),
    [
        ("full", ("classifier", "layers.0", "layers.2", "embeddings"), ()),
        ("head", ("classifier",), ("embeddings", "layers.", "layernorm")),
        ("layernorm", ("classifier", "layernorm"), ("embeddings", "attention.", "mlp")),
        ("lora", ("classifier", "q_proj", "v_proj"), ("embeddings", "layernorm", "k_proj")),
        ("last_blocks", ("classifier", "layers.2"), ("embeddings", "layers.0", "layers.1")),
    ],
)
def test_a_recipe_moves_its_weights_and_no_others(trained, tune: str, moves: tuple[str, ...], stays: tuple[str, ...]):
    before, after = trained(tune=tune, last_blocks=1)
    names = changed(before, after)
    for part in moves:
        assert any(part in name for name in names), (part, sorted(names), sorted(before))
    for part in stays:
        assert not [name for name in names if part in name and "classifier" not in name], part


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_takes_a_step_and_becomes_a_graph(trained, workspace: Path, name: str):
    before, after = trained(Model(name=name, init="scratch", config=BACKBONES[name]), epochs=1)
    assert changed(before, after)
    values = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    assert convert(model.TRAINED, workspace / "graph.xml", values) < 1e-4


def test_a_network_without_the_part_that_shall_move_is_refused():
    network, _ = model.build(Model(name="convnextv2", init="scratch", config=BACKBONES["convnextv2"]))
    with pytest.raises(StageError, match="attention projections"):
        tuning.prepare(network, PARAMS.train.model_copy(update={"tune": "lora"}))
    with pytest.raises(StageError, match="last_blocks is 2"):
        tuning.prepare(network, PARAMS.train.model_copy(update={"tune": "last_blocks"}))


def test_the_normalised_head_sees_directions_only(trained):
    trained(tune="layernorm", epochs=1)
    network = model.load(model.TRAINED)
    seen = []
    network.classifier.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network(pixel_values=torch.randn(3, 3, 32, 32))
    assert torch.allclose(seen[0].norm(dim=-1), torch.ones(3))


def test_the_average_is_kept_and_the_attacker_changes_the_training(trained):
    _, plain = trained()
    _, averaged = trained(ema=0.9)
    _, attacked = trained(adversarial={"eps": 4, "steps": 2})
    assert changed(plain, averaged) and changed(plain, attacked)


def test_training_ends_when_nothing_gets_better(trained):
    trained(epochs=6, patience=1, lr=1e-9)  # nothing moves, so the second epoch is no better than the first
    assert len(pd.read_csv(train.CURVES)) == 2


def test_a_share_of_the_fakes_is_forged_from_the_real_beside_it():
    rng = np.random.default_rng(0)
    rows = [{"path": f"{label}/{index}.jpg", "label": label, "group": str(index)} for label in ("real", "fake") for index in range(20)]
    images = np.kron(rng.integers(40, 200, (40, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    off = {name: 0 for name in ("flip", "warp", "brightness", "contrast", "colour", "grayscale", "jpeg", "blur", "noise", "resize")}
    forge = TrainForge(share=0.5, methods={"self_blend": 0.3, "swap": 0.3, "resynthesis": 0.4})
    preprocess = Preprocess(size=32)

    def pairs(forge: TrainForge | None) -> list[np.ndarray]:
        made = Pairs(pd.DataFrame(rows), images, preprocess, PARAMS.augment.model_copy(update=off), True, 1, forge)
        return [np.asarray(made[index]["pixel_values"]) for index in range(20)]

    plain, forged = pairs(None), pairs(forge)
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(plain, forged, strict=True))  # the real stays as it is
    new = [index for index in range(20) if not np.array_equal(plain[index][1], forged[index][1])]
    assert 5 <= len(new) <= 15
    for index in new:
        assert not np.array_equal(forged[index][0], forged[index][1])
    assert all(np.array_equal(one, other) for one, other in zip(forged, pairs(forge), strict=True))
