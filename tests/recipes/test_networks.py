"""Building networks: outputs are real and fake whatever the origin, and newly initialised weights are reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    ViTImageProcessorPil,
    set_seed,
)

from pipeline.errors import StageError
from pipeline.exporting.convert import to_onnx, to_openvino
from pipeline.network import model
from pipeline.params import Model
from pipeline.preprocess import Preprocess
from tests.recipes.small import SIDE, VIT, ZOO

PVT = {"image_size": SIDE, "hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
PVT |= {"sequence_reduction_ratios": [1] * 4}


def test_a_pretrained_network_keeps_its_shapes(tmp_path: Path):
    network, processor = model.build(Model(name="vit", init="scratch", config=VIT))
    model.save(network, processor, tmp_path)
    with pytest.raises(StageError, match=r"shapes differ from those in .*: vit.embeddings.position_embeddings"):
        model.build(Model(name=str(tmp_path), init="pretrained", config={"image_size": 48}))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""], ids=["git LFS pointer", "empty"])
def test_weights_that_did_not_arrive_are_named(tmp_path: Path, content: bytes):
    model.save(*model.build(Model(name="vit", init="scratch", config=VIT)), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(StageError, match=f"{tmp_path.name}'?: its weights cannot be read"):
        model.build(Model(name=str(tmp_path), init="pretrained"))


@pytest.mark.parametrize("name", ["convnextv2", "swin"])
@pytest.mark.parametrize(
    ("processor", "keep_aspect"),
    [
        (ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}), False),
        (ConvNextImageProcessorPil(size={"shortest_edge": SIDE}), True),
        (BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE}), True),
    ],
    ids=["square", "shortest edge", "crop"],
)
def test_a_pretrained_network_for_any_size_is_shown_the_size_that_is_asked_for(
    tmp_path: Path, name: str, processor: Any, keep_aspect: bool
):
    network, _ = model.build(Model(name=name, init="scratch", config=ZOO[name]))
    model.save(network, processor, tmp_path / "before")
    for config, side in (({}, SIDE), ({"image_size": 64}, 64)):
        model.save(*model.build(Model(name=str(tmp_path / "before"), init="pretrained", config=config)), tmp_path / "after")
        preprocess = Preprocess.load(tmp_path / "after")
        assert preprocess.size == side and preprocess.keep_aspect is keep_aspect


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"size": {"height": 224, "width": 224}}, r"Input image size \(224\*224\) doesn't match"),
        ({"size": {"longest_edge": SIDE}}, "shortest_edge"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "mean"),
    ],
    ids=["another size", "no size", "grey"],
)
def test_a_processor_that_does_not_fit_its_network_is_named_before_the_training(tmp_path: Path, written: dict[str, Any], reason: str):
    network, processor = model.build(Model(name="vit", init="scratch", config=VIT))
    model.save(network, processor, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    with pytest.raises(StageError, match=f"preprocessor_config.json does not fit its network.*{reason}"):
        model.build(Model(name=str(tmp_path), init="pretrained"))


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[0.9] * 3),
        ViTImageProcessorPil(do_rescale=False, image_mean=[127.0, 120.0, 110.0], image_std=[60.0] * 3),
        ViTImageProcessorPil(do_rescale=False, do_normalize=False),
        EfficientNetImageProcessorPil(size={"height": SIDE, "width": SIDE}, rescale_factor=1 / 127.5, rescale_offset=True),
    ],
    ids=["to 0..2", "not", "neither that nor normalised", "to -1..1"],
)
def test_values_that_a_processor_rescales_in_another_way_arrive_as_it_gives_them(processor: Any):
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    expected = processor(images=list(pixels), do_resize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(Preprocess.from_processor(processor).normalise(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [("vit", VIT), ("pvt", PVT), ("swiftformer", {"image_size": 64, "embed_dims": [8, 8, 8, 16], "depths": [1] * 4})],
    ids=["vit", "a config that counts by itself", "a head of another name"],
)
def test_a_network_for_other_classes_gets_a_head_of_two(tmp_path: Path, name: str, config: dict[str, Any]):
    of_five = AutoModelForImageClassification.from_config(AutoConfig.for_model(name, num_labels=5, architectures=[], **config))
    of_five.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": config["image_size"], "width": config["image_size"]}).save_pretrained(tmp_path)
    values = torch.rand(1, 3, config["image_size"], config["image_size"])
    for chosen in (Model(name=name, init="scratch", config=config), Model(name=str(tmp_path), init="pretrained")):
        network, _ = model.build(chosen)
        assert network.eval()(pixel_values=values).logits.shape == (1, 2) and network.config.id2label == {0: "real", 1: "fake"}


def test_weights_that_are_stored_in_16_bits_are_trained_in_32(tmp_path: Path):
    network, processor = model.build(Model(name="vit", init="scratch", config=VIT))
    model.save(network.to(torch.bfloat16), processor, tmp_path)
    for init in ("pretrained", "scratch"):
        again, _ = model.build(Model(name=str(tmp_path), init=init))
        assert {weight.dtype for weight in again.parameters()} == {torch.float32}, init
    assert model.load(tmp_path).dtype == torch.float32


def test_a_head_on_normalised_features_stays_one_from_scratch(tmp_path: Path):
    network, processor = model.build(Model(name="vit", init="scratch", config=VIT))
    model.normalise_features(network)
    model.save(network, processor, tmp_path / "before")
    again, processor = model.build(Model(name=str(tmp_path / "before"), init="scratch"))
    model.save(again, processor, tmp_path / "after")
    values = torch.rand(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model.load(tmp_path / "after")(pixel_values=values).logits, again.eval()(pixel_values=values).logits)


@pytest.mark.parametrize("name", ["vit", "clip", "convnextv2"])
def test_a_pretrained_head_answers_in_the_order_of_the_labels(tmp_path: Path, name: str):
    chosen = Model(name=name, init="scratch", config=ZOO[name])
    network, processor = model.build(chosen)
    model.save(network, processor, tmp_path)
    torch.nn.init.normal_(network.get_submodule("classifier").bias)
    values = torch.rand(2, 3, SIDE, SIDE)

    def logits(*labels: str) -> torch.Tensor:
        """Logits of the network, loaded from a folder in which its outputs have these names."""
        network.config.id2label = dict(enumerate(labels))
        network.config.label2id = {label: index for index, label in enumerate(labels)}
        network.save_pretrained(tmp_path)
        set_seed(0)
        again, _ = model.build(Model(name=str(tmp_path), init="pretrained"))
        assert again.config.id2label == {0: "real", 1: "fake"}
        with torch.no_grad():
            return again.eval()(pixel_values=values).logits

    kept = logits("real", "fake")
    assert torch.equal(logits("Real", "FAKE"), kept) and not torch.allclose(kept[:, 0], kept[:, 1])
    torch.testing.assert_close(logits("Fake", "Real"), kept.flip(1))
    for labels in (("LABEL_0", "LABEL_1"), ("cat", "dog")):
        anew = logits(*labels)
        assert not torch.allclose(anew, kept, atol=1e-4) and not torch.allclose(anew, kept.flip(1), atol=1e-4)


LEVIT = {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
EFFICIENTNET = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}


@pytest.mark.parametrize(
    ("name", "config"),
    [("dinov2_with_registers", VIT | {"image_size": 128, "mlp_ratio": 2}), ("levit", LEVIT), ("efficientnet", EFFICIENTNET)],
)
def test_a_graph_is_made_of_networks_that_are_hard_to_trace(tmp_path: Path, name: str, config: dict[str, Any]):
    network, processor = model.build(Model(name=name, init="scratch", config=config))
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)  # positions differ from each other, as after training
    model.save(network, processor, tmp_path / "model")
    values = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    assert to_openvino(tmp_path / "model", tmp_path / "openvino.xml", values) < 1e-4
    assert to_onnx(tmp_path / "model", tmp_path / "model.onnx", values) < 1e-4


def test_a_network_that_onnx_does_not_know_says_how_to_go_without(tmp_path: Path):
    network, processor = model.build(Model(name="mobilevitv2", init="scratch", config={"image_size": 64, "width_multiplier": 0.5}))
    model.save(network, processor, tmp_path)
    with pytest.raises(StageError, match=r"export\.onnx=false"):
        to_onnx(tmp_path, tmp_path / "model.onnx", np.zeros((2, 3, 64, 64), np.float32))
