"""Heat maps: the method fits the network, the exported graph gives the same map, and it beats random maps."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification

from pipeline.detector import Detector
from pipeline.evaluation import faithfulness
from pipeline.evaluation.scoring import Subject
from pipeline.explanation import overlay
from pipeline.explanation.activation import GraphActivation
from pipeline.explanation.attention import GraphAttention, patches, rollout
from pipeline.explanation.explain import heat_maps, relevance
from pipeline.exporting.convert import to_openvino
from pipeline.images import read
from pipeline.network import model
from pipeline.network.embedding import WithEmbedding
from pipeline.package import Calibration, PackageError, Thresholds
from pipeline.params import Model as ModelSettings
from pipeline.params import load_params
from pipeline.preprocess import Preprocess
from pipeline.runtime import read as read_graph
from pipeline.runtime import runtime
from tests.conftest import ROOT, run
from tests.package_helpers import CONFIG, SIDE, tiny_package


@pytest.mark.parametrize(
    ("kind", "config", "methods"),
    [
        ("vit", CONFIG, ["attention_rollout", "attention_relevance"]),
        ("dinov2", CONFIG | {"mlp_ratio": 2}, ["attention_rollout", "attention_relevance"]),
        ("convnextv2", {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}, ["grad_cam"]),
        (
            "swin",
            {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
            ["grad_cam"],
        ),
        ("mobilenet_v2", {"image_size": 32, "depth_multiplier": 0.25}, ["grad_cam"]),
        ("pvt_v2", {"image_size": 64, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}, ["grad_cam"]),
    ],
)
def test_each_kind_of_network_is_explained_by_a_method_that_fits_it(kind: str, config: dict[str, Any], methods: list[str]):
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, num_labels=2, **config)
    network = AutoModelForImageClassification.from_config(made, attn_implementation="eager").eval()
    side = config["image_size"]
    values = np.random.default_rng(0).normal(0, 1, (1, 3, side, side)).astype(np.float32)
    found = heat_maps(network, values)
    assert [seen.method for seen in found] == methods
    for seen in found:
        assert seen.heat.ndim == 2 and seen.heat.size > 1 and np.isfinite(seen.heat).all()
        assert seen.heat.min() >= 0 and seen.heat.max() <= 1


CONVOLUTIONS: dict[str, dict[str, object]] = {
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "mobilenet_v2": {"image_size": 96, "depth_multiplier": 0.25},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4, "image_size": SIDE},
    "cvt": {"image_size": SIDE, "embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
}


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "beit", "clip", *CONVOLUTIONS])
def test_the_exported_graph_shows_the_same_map_as_the_network(kind: str, tmp_path: Path):
    others = {"beit": CONFIG | {"use_relative_position_bias": True, "layer_scale_init_value": 1.0}, "clip": {"vision_config": CONFIG}}
    torch.manual_seed(0)
    network, processor = model.build(ModelSettings(name=kind, init="scratch", config=(CONVOLUTIONS | others).get(kind, CONFIG)))
    for weights in network.parameters():
        weights.data += 0.1 * torch.randn_like(weights)  # a fresh network has uniform attention
    model.save(network, processor, tmp_path / "model")
    values = np.random.default_rng(0).normal(0, 1, (2, 3, processor.size["height"], processor.size["width"])).astype(np.float32)
    to_openvino(tmp_path / "model", tmp_path / "graph.xml", values)
    graph = read_graph(tmp_path / "graph.xml")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    attention, activation = GraphAttention(graph, config)(values[:1]), GraphActivation(graph)(values[:1])
    expected = heat_maps(model.load(tmp_path / "model"), values[:1])[0]
    if kind == "cvt":  # its class token attends within windows, and only it is averaged
        assert attention is None and activation is None and expected.method == "grad_cam"
        return
    found = activation if kind in CONVOLUTIONS else attention
    assert (attention is None) is (kind in CONVOLUTIONS) and found is not None
    assert found.method == expected.method == ("grad_cam" if kind in CONVOLUTIONS else "attention_rollout")
    assert found.heat.std() > 0.05 and found.heat == pytest.approx(expected.heat, abs=2e-3 if kind in CONVOLUTIONS else 1e-4)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, CONFIG) for kind in ("vit", "vit_msn", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "ijepa")),
        ("beit", CONFIG | {"use_mean_pooling": False}),
        ("deit", CONFIG | {"architectures": ["DeiTForImageClassificationWithTeacher"]}),
        *((kind, {"vision_config": CONFIG}) for kind in ("clip", "metaclip_2", "siglip")),
    ],
    ids=str,
)
def test_a_map_is_seen_from_the_very_tokens_that_the_answer_hangs_on(kind: str, config: dict[str, Any]):
    torch.manual_seed(0)
    network = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **{"architectures": []} | config)).eval()
    seen = network(pixel_values=torch.randn(1, 3, 32, 32), output_hidden_states=True)
    (slope,) = torch.autograd.grad(seen.logits[0, 1] - seen.logits[0, 0], seen.hidden_states[-1])
    for token, reaches in enumerate(slope[0].abs().sum(-1) > 0):
        joined = np.zeros((slope.shape[1], slope.shape[1]))
        joined[token] = 1
        heat = patches(joined, network.config.to_dict())
        assert heat is not None and heat.any() == bool(reaches), token


def test_a_map_shows_the_patch_that_information_came_from_and_not_one_that_it_passed_through_later():
    first, second = np.eye(5, dtype=np.float32)[None], np.eye(5, dtype=np.float32)[None]
    first[0, 1] = [0, 0, 0, 0, 1]  # patch 0 reads patch 3
    second[0, 0] = [0, 1, 0, 0, 0]  # and then the class token reads patch 0
    config, ones = {"model_type": "vit"}, torch.ones(1, 1, 5, 5)
    for heat in (
        rollout([first, second], config),
        relevance([torch.from_numpy(first)[None], torch.from_numpy(second)[None]], [ones, ones], config),
    ):
        assert heat is not None and heat[1, 1] > 0
        assert heat[0, 1] == heat[1, 0] == 0


@pytest.mark.parametrize("flags", ["avx2", "avx512_vnni"])
def test_the_starter_shows_its_maps_without_pytorch(flags: str, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 240, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    script = """
import sys
from pathlib import Path
from pipeline import runtime
from pipeline.detector import Detector
from pipeline.face_weights import NONE
from pipeline.images import read
runtime.CPUINFO = Path(sys.argv[3])
detector = Detector.load(Path(sys.argv[1]), "cpu", NONE)
found, _ = detector.explain(detector.prepare(read(Path(sys.argv[2]))))
print(found.method, found.heat.shape, "torch" in sys.modules)
"""
    said = run(ROOT, sys.executable, "-c", script, str(ROOT / "models/starter"), str(tmp_path / "noise.png"), str(tmp_path / "cpuinfo"))
    assert said.splitlines()[-1] == "grad_cam (7, 7) False"


def test_a_map_is_not_made_with_another_package_that_was_put_there_meanwhile(tmp_path: Path):
    folder = tiny_package(tmp_path / "package")
    detector = Detector.load(folder, "cpu")
    prepared = detector.prepare(read(next((folder / "golden").glob("*.png"))))
    card = detector.card
    for name in ("card.md", "graph/openvino.bin"):
        (folder / name).write_bytes(b"of another package")
    with pytest.raises(PackageError, match=r"openvino\.bin was changed after the package was made"):
        detector.explain(prepared)
    assert detector.card == card != (folder / "card.md").read_text()


class Corner(torch.nn.Module):
    """Calls images fake that are bright in the upper left quarter, the only place where its feature map is lit."""

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False, output_attentions: bool = False):
        if output_attentions:
            raise TypeError("no attention")
        cells = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), 8)
        lit = torch.zeros_like(cells)
        lit[..., : cells.shape[-2] // 2, : cells.shape[-1] // 2] = cells[..., : cells.shape[-2] // 2, : cells.shape[-1] // 2]
        if not torch.is_inference_mode_enabled():
            lit.requires_grad_()
        fake = lit.sum((1, 2, 3))
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(fake), 4 * fake], 1), hidden_states=(lit,))


def test_a_map_that_looks_where_the_forgery_is_beats_a_random_one(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(20):
        real = rng.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
        fake = real.copy()
        fake[: SIDE // 2, : SIDE // 2] += 100
        for label, pixels in (("real", real), ("fake", fake)):
            path = tmp_path / label / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
            row = {"image_id": f"{label}{index}", "path": str(path), "label": label, "group": str(index)}
            rows.append(row | {"parents": f"real{index} other" if label == "fake" and index % 2 else ""})
    settings = load_params(ROOT / "params.yaml").evaluate.model_copy(update={"explain_images": 20})
    thresholds = Thresholds(f1=0.5, fpr1=0.9, fpr5=0.8, real_below=0.4, fake_above=0.6)
    subject = Subject(Corner(), runtime(WithEmbedding(Corner()), SIDE), Preprocess(size=SIDE), Calibration(temperature=1), thresholds)
    found = faithfulness.faithfulness(subject, pd.DataFrame(rows), settings)
    assert found["n"] == found["n_paired"] == found["n_masked"] == 20
    map_ = found["methods"]["grad_cam"]
    assert map_["pointing"]["value"] == 1 and 0.7 < map_["pointing"]["low"] < 1  # 20 of 20 is not certain
    assert 0.2 < found["random"]["pointing"]["value"] < 0.4  # a quarter, with its soft border
    against = map_["vs_random"]
    assert against["deletion"]["high"] < 0 < against["insertion"]["low"] and against["pointing"]["low"] > 0


def test_a_real_counts_as_the_origin_of_a_fake_only_where_it_is_that(tmp_path: Path):
    rng = np.random.default_rng(0)
    reals = rng.integers(60, 120, (7, SIDE, SIDE, 3), dtype=np.uint8)
    fakes = reals.copy()
    fakes[:2, : SIDE // 2, : SIDE // 2] += 100  # forged in part
    fakes[2:4] += 20  # as a whole
    fakes[4:6] = 255 - fakes[4:6]  # another picture of the same person
    rows = []
    for label, pictures in (("real", reals[:6]), ("fake", fakes)):
        for index, pixels in enumerate(pictures):
            name = index if label == "fake" or index % 2 else f"other-{index}"
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / label / f"{name}.png")
            rows.append({"image_id": f"{label}{index}", "path": str(tmp_path / label / f"{name}.png"), "label": label})
    table = pd.DataFrame(rows).assign(group=[str(index) for index in (*range(6), *range(7))], parents="")
    settings = load_params(ROOT / "params.yaml").evaluate.model_copy(update={"explain_images": 7})
    thresholds = Thresholds(f1=0.5, fpr1=0.9, fpr5=0.8, real_below=0.4, fake_above=0.6)
    subject = Subject(Corner(), runtime(WithEmbedding(Corner()), SIDE), Preprocess(size=SIDE), Calibration(temperature=1), thresholds)
    found = faithfulness.faithfulness(subject, table, settings)
    assert (found["n"], found["n_paired"], found["n_masked"]) == (7, 4, 2)


def test_a_map_has_the_same_colours_as_a_file_and_in_the_page_and_its_legend():
    found = re.search(r"const COLOURS = (.*);", (ROOT / "web/map.js").read_text())
    assert found and found[1] == str([list(colour) for colour in overlay.COLOURS])
    legend = re.search(r"linear-gradient\(90deg, (#.*)\);", (ROOT / "web/style.css").read_text())
    assert legend
    assert [bytes.fromhex(colour[1:7]) for colour in legend[1].split(", ")] == [bytes(colour) for colour in overlay.COLOURS]
    whole = overlay.region((8, 8), keep_aspect=False)
    cold, hot = (Image.open(io.BytesIO(overlay.overlay(np.full((2, 2), heat), whole, (8, 8)))).getpixel((4, 4)) for heat in (0.0, 1.0))
    assert cold[3] == 0 and hot == (*overlay.COLOURS[-1], overlay.OPACITY)


def test_a_map_lies_over_what_the_network_saw_the_right_way_up():
    assert overlay.region((300, 200), keep_aspect=True) == pytest.approx({"left": 1 / 6, "top": 0, "width": 2 / 3, "height": 1})
    face = overlay.region((300, 200), keep_aspect=True, crop=(100, 50, 200, 100))
    assert face == pytest.approx({"left": 125 / 300, "top": 0.25, "width": 50 / 300, "height": 0.25})
    seen = {"left": 0.5, "top": 0.25, "width": 0.5, "height": 0.5}
    shown = np.asarray(Image.open(io.BytesIO(overlay.overlay(np.float32([[0, 1], [0, 0]]), seen, (80, 40)))))[..., 3]
    covered = np.zeros((40, 80), bool)
    covered[10:30, 40:] = True
    assert shown.shape == covered.shape and not shown[~covered].any()
    row, column = np.unravel_index(int(shown.argmax()), shown.shape)
    assert row < 20 and column >= 60  # hot is the upper right
