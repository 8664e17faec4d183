"""Recipes as users see them: each trains the right weights and no others, and leaves a network that can be served."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import EvalPrediction, PreTrainedModel, set_seed
from transformers.modeling_outputs import ImageClassifierOutput

from pipeline import manifest, train
from pipeline.errors import StageError
from pipeline.evaluation.metrics import judge
from pipeline.evaluation.scoring import labels as scoring_labels
from pipeline.evaluation.scoring import score
from pipeline.exporting.convert import to_openvino
from pipeline.network import model
from pipeline.network.attack import attack
from pipeline.network.embedding import WithEmbedding
from pipeline.params import Model, Params, check_params, load_params
from pipeline.params_train import Adversarial, Train
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.settings import preset
from pipeline.training import tuning
from pipeline.training.adversarial import attacked
from pipeline.training.dataset import pixels
from tests.conftest import ROOT, run
from tests.recipes.small import SIDE, VIT, ZOO, Stop, fit, table


def moved(settings: Params, network: PreTrainedModel) -> set[str]:
    """Names of the weights and statistics that the training changed."""
    set_seed(settings.train.seed)
    before = model.build(settings.model)[0].state_dict()
    after = network.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def part_of(network: PreTrainedModel, *patterns: str) -> set[str]:
    return {name for name in network.state_dict() if any(pattern in name for pattern in patterns)}


@pytest.mark.parametrize(
    ("recipe", "patterns"),
    [
        ({"tune": "full"}, ("",)),
        ({"tune": "head"}, ("classifier",)),
        ({"tune": "last_blocks", "last_blocks": 1}, ("classifier", "layers.2.", "vit.layernorm")),
        ({"tune": "layernorm"}, ("classifier", "layernorm")),
        ({"tune": "lora"}, ("classifier", "q_proj.weight", "v_proj.weight")),
    ],
    ids=lambda value: value["tune"] if isinstance(value, dict) else "",
)
def test_a_recipe_moves_what_it_should_and_nothing_else(
    settings: Callable[..., Params], tmp_path: Path, recipe: dict[str, Any], patterns: tuple[str, ...]
):
    chosen = settings(**recipe)
    trained = fit(chosen)
    # A key's bias adds the same to every score of a query, so the loss does not depend on it.
    without_effect = {name for name in part_of(trained.network, "k_proj.bias") if recipe["tune"] != "last_blocks"}
    assert moved(chosen, trained.network) - without_effect == part_of(trained.network, *patterns) - without_effect

    model.save(trained.network, trained.processor, tmp_path)
    values = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(model.load(tmp_path)(pixel_values=values).logits, trained.network.eval()(pixel_values=values).logits)


def test_statistics_of_frozen_batch_norms_stay(settings: Callable[..., Params]):
    chosen = settings("mobilevit", tune="last_blocks", last_blocks=1)
    names = moved(chosen, fit(chosen).network)
    assert names and not any("conv_stem" in name for name in names)


def test_features_for_a_frozen_backbone_are_computed_once(settings: Callable[..., Params], workspace: Path):
    chosen = settings(augment=_section("probe", "augment"), tune="head")
    trained = fit(chosen)
    cached = sorted(workspace.glob("var/cache/*.features.npy"))
    assert [np.load(path).shape for path in cached] in ([(24, 16), (12, 16)], [(12, 16), (24, 16)])
    assert moved(chosen, trained.network) == {"classifier.weight", "classifier.bias"}
    stamps = [path.stat().st_mtime_ns for path in cached]
    fit(settings(augment=_section("probe", "augment"), tune="head", lr=0.02))
    assert [path.stat().st_mtime_ns for path in cached] == stamps
    fit(settings(augment=_section("probe", "augment"), tune="head", seed=8))  # another backbone: its features are others
    assert len(list(workspace.glob("var/cache/*.features.npy"))) == 4


def _section(name: str, section: str) -> dict[str, Any]:
    values = preset(name, ROOT / "params.yaml")
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{section}.")}


def test_lora_with_averaged_weights_goes_on_where_it_was_cut_short(settings: Callable[..., Params]):
    recipe = {"tune": "lora", "ema": 0.9, "forge": {"share": 0.5, "methods": {"resynthesis": 1.0}}, "patience": 5}
    undisturbed = fit(settings(**recipe, schedule="linear"))

    chosen = settings(**recipe, schedule="linear", workers=1)  # other settings, so other checkpoints, but the same training
    with pytest.raises(OSError, match="no space"):
        fit(chosen, Stop())
    mlflow.end_run()
    resumed = fit(chosen)

    assert resumed.report["resumed_from_step"] == 4
    # Rank 8, on queries and values of three layers; merged into the network's own weights.
    assert resumed.report["trained_parameters"] == 3 * 2 * 8 * (16 + 16) + 2 * 17
    assert resumed.report["parameters"] == sum(weight.numel() for weight in model.build(chosen.model)[0].parameters())
    for one, other in zip(undisturbed.report["epochs"], resumed.report["epochs"], strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    for name, weight in undisturbed.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], weight, msg=name)


def test_training_ends_when_it_gets_no_better(settings: Callable[..., Params]):
    chosen = settings(epochs=8, lr=1e-9, patience=2)
    with pytest.raises(OSError, match="no space"):
        fit(chosen, Stop(step=8))  # in the third epoch
    mlflow.end_run()
    assert len(fit(chosen).report["epochs"]) == 3
    assert len(fit(chosen).report["epochs"]) == 3  # a training that stopped early does not go on


def test_the_epoch_that_is_named_is_the_one_whose_weights_are_kept(settings: Callable[..., Params]):
    alike = {"lr": 1e-9, "schedule": "constant_with_warmup", "warmup": 0.0, "ema": None}  # so that all epochs are equally good
    one, three = (fit(settings(epochs=epochs, **alike)) for epochs in (1, 3))
    assert three.report["best_epoch"] == 1 and len({epoch["val_auc"] for epoch in three.report["epochs"]}) == 1
    for name, weight in one.network.state_dict().items():
        assert torch.equal(three.network.state_dict()[name], weight), name
    last = load_file(max(train.checkpoints(settings(epochs=3, **alike), manifest.read_parts()).glob("checkpoint-*")) / "model.safetensors")
    assert any(not np.array_equal(last[name], weight) for name, weight in three.network.state_dict().items())


def test_labels_at_random_teach_nothing(settings: Callable[..., Params], tmp_path: Path):
    rng = np.random.default_rng(0)
    parts = {name: table(tmp_path / name, pairs, seed) for name, pairs, seed in (("train", 24, 5), ("val", 12, 6), ("test", 150, 7))}
    parts = {name: part.assign(label=rng.permutation(part["label"])) for name, part in parts.items()}
    trained = train.fit(settings(epochs=3), parts)
    assert trained is not None
    preprocess = Preprocess.from_processor(trained.processor)
    found = score(runtime(WithEmbedding(trained.network).eval(), preprocess.size), preprocess, pixels(parts["test"], preprocess))
    auc = judge(scoring_labels(parts["test"]), found, parts["test"]["group"].to_numpy(), 0.0, draws=500, seed=0)["auc"]
    assert auc["low"] < 0.5 < auc["high"] and auc["high"] - auc["low"] < 0.2


def test_weights_that_grow_beyond_all_numbers_are_a_plain_error(settings: Callable[..., Params]):
    with pytest.raises(StageError, match=r"lower train\.lr"):
        fit(settings(epochs=1, lr=1e38))
    mlflow.end_run()


def test_logits_however_far_apart_are_judged():
    found = train._validation(EvalPrediction(np.array([[900.0, 0.0], [0.0, 900.0]]), np.array([0, 1])))
    assert found["auc"] == found["accuracy"] == 1 and found["loss"] == 0


def test_averaged_weights_are_judged_and_kept(settings: Callable[..., Params]):
    plain, averaged = (fit(settings(ema=ema, epochs=1)) for ema in (None, 0.999))
    set_seed(settings().train.seed)
    begun = model.build(settings().model)[0].state_dict()

    def way(trained: train.Trained) -> float:
        return sum(float((weight - begun[name]).abs().sum()) for name, weight in trained.network.state_dict().items())

    # Of a few steps, the average is not still that of the weights that training began with, whatever the decay.
    assert 0.1 * way(plain) < way(averaged) < way(plain)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ("cvt", "mobilevit", "swin") else ()) for name in ZOO]
)
def test_any_classifier_trains_and_exports(settings: Callable[..., Params], tmp_path: Path, name: str):
    trained = fit(settings(name, epochs=1, batch_size=20))
    assert moved(settings(name), trained.network)
    model.save(trained.network, trained.processor, tmp_path / "model")
    values = np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    assert to_openvino(tmp_path / "model", tmp_path / "graph" / "openvino.xml", values) < 1e-4


def test_lora_says_what_it_could_be_put_on():
    network, _ = model.build(Model(name="convnextv2", init="scratch", config=ZOO["convnextv2"]))
    recipe = load_params(ROOT / "params.yaml").train.model_copy(update={"tune": "lora"})
    with pytest.raises(StageError, match="pwconv1"):
        tuning.prepare(network, recipe)


def test_an_attack_stays_within_reach_and_does_harm():
    network, _ = model.build(Model(name="vit", init="scratch", config=VIT))
    network.train()
    preprocess, labels = Preprocess(size=SIDE), torch.tensor([0, 1] * 4)
    values = torch.rand(8, 3, SIDE, SIDE) * 2 - 1
    changed = attacked(network, values, labels, Adversarial(eps=4, steps=3), preprocess)
    assert float((changed - values).abs().max()) <= 4 / 255 / 0.5 + 1e-6
    assert float(changed.min()) >= -1 and float(changed.max()) <= 1
    network.eval()
    losses = [torch.nn.functional.cross_entropy(network(pixel_values=seen).logits, labels) for seen in (values, changed)]
    assert losses[1] > losses[0]


class Blue(torch.nn.Module):
    """Calls an image fake if the first channel of its input is strong."""

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        score = pixel_values[:, 0].mean((1, 2))
        return ImageClassifierOutput(logits=torch.stack([-score, score], 1))


def test_attacks_know_the_order_of_the_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    preprocess = Preprocess(size=SIDE, mean=(0.2, 0.5, 0.8), std=(0.1, 0.5, 0.9), flip_channels=True)
    truth = np.array([0, 1, 0, 1])
    clean, fakes = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.from_numpy(truth)
    change = attack(Blue(), preprocess, clean, fakes, eps=4, steps=3)
    assert not change[:, :2].any() and (change[::2, 2].mean((1, 2)) > 0).all() and (change[1::2, 2].mean((1, 2)) < 0).all()

    values = preprocess.normalise_tensor(torch.from_numpy(pixels))
    changed = attacked(Blue(), values, fakes, Adversarial(eps=4, steps=3), preprocess)
    std = torch.tensor((0.9, 0.5, 0.1))[:, None, None]  # of blue, green, red
    assert 3.9 / 255 < float(((changed - values) * std).abs().max()) <= 4 / 255 + 1e-6
    assert all(((changed - values)[:, channel] * std[channel]).abs().max() > 3 / 255 for channel in range(3))


def test_adversarial_training_trains(settings: Callable[..., Params]):
    chosen = settings(adversarial={"eps": 2, "steps": 1}, epochs=1)
    assert moved(chosen, fit(chosen).network)


@pytest.mark.parametrize("name", ["photos", "layernorm", "lora", "last_blocks", "probe", "adversarial", "forged", "robust"])
def test_presets_are_valid(name: str):
    content = load_params(ROOT / "params.yaml").model_dump(by_alias=True, mode="json")
    for key, value in preset(name, ROOT / "params.yaml").items():
        section, _, field = key.partition(".")
        content[section][field] = value
    assert isinstance(check_params(content, Path("params.yaml")).train, Train)


@pytest.mark.long
def test_two_processes_train_what_one_does(settings: Callable[..., Params], workspace: Path):
    (workspace / "pipeline").symlink_to(ROOT / "pipeline")
    (workspace / "params.yaml").write_text(json.dumps(settings(lr=0.001, schedule="linear").model_dump(by_alias=True, mode="json")))
    found = []
    for command in (("-m", "pipeline.train"), ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.train")):
        shutil.rmtree("var/checkpoints", ignore_errors=True)
        run(workspace, sys.executable, *command)
        found.append((json.loads(train.REPORT.read_text()), load_file(model.TRAINED / "model.safetensors")))
    (one, alone), (two, together) = found
    assert (one["processes"], two["processes"]) == (1, 2)
    for epoch, other in zip(one["epochs"], two["epochs"], strict=True):
        assert other == pytest.approx(epoch, abs=1e-4)
    for name in alone.keys() - {key for key in alone if key.endswith("key.bias")}:  # their gradient is rounding error alone
        np.testing.assert_allclose(together[name], alone[name], atol=2e-4, err_msg=name)
