"""Recipes as a user meets them: each moves the weights it should and no others, and leaves a network that can be served."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import PreTrainedModel, TrainerCallback, set_seed

from pipeline import labels, manifest, model, sweep, train, tuning
from pipeline.adversarial import attacked
from pipeline.convert import to_openvino
from pipeline.dataset import pixels
from pipeline.errors import StageError
from pipeline.explain import WithEmbedding
from pipeline.metrics import judge
from pipeline.params import Model, Params, ParamsError, check_params, load_params
from pipeline.params_train import Adversarial, Train
from pipeline.preprocess import Preprocess
from pipeline.runtime import runtime
from pipeline.scoring import labels as scoring_labels
from pipeline.scoring import score
from pipeline.settings import preset
from tests.conftest import ROOT, run

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
    """Pairs of pictures, the fake with a block in its middle, as a part of a manifest."""
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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a split data set in it, which the tests are in."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for seed, (part, pairs) in enumerate({"train": 12, "val": 6, "test": 4}.items()):
            manifest.write(table(Path("data/raw"), pairs, seed), manifest.SPLITS / f"{part}.parquet")
        yield folder


@pytest.fixture
def settings(workspace: Path) -> Callable[..., Params]:
    """A function that gives settings of a training of two epochs; its arguments are of the section `train`."""

    def make(name: str = "vit", augment: dict[str, Any] | None = None, **recipe: Any) -> Params:
        content = load_params(ROOT / "params.yaml").model_dump(by_alias=True, mode="json")
        content["model"] = {"name": name, "init": "scratch", "config": ZOO[name]}
        small = {"epochs": 2, "batch_size": 8, "lr": 0.01, "bf16": False, "checkpoints_per_epoch": 3}
        content["train"] |= small | recipe
        content["augment"] |= augment or {}
        return check_params(content, Path("params.yaml"))

    return make


def fit(settings: Params, *callbacks: TrainerCallback) -> train.Trained:
    trained = train.fit(settings, manifest.read_parts(), callbacks=callbacks)
    assert trained is not None
    return trained


def moved(settings: Params, network: PreTrainedModel) -> set[str]:
    """Names of the weights and statistics that differ from those that the training began with."""
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
    # A key's bias adds the same to every score of a query, so that no loss depends on it.
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


def _section(name: str, section: str) -> dict[str, Any]:
    values = preset(name, ROOT / "params.yaml")
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{section}.")}


class Stop(TrainerCallback):
    """Ends a training with an exception after some steps, as a full disk does."""

    def __init__(self, step: int = 4) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise OSError("no space left on device")


def test_lora_with_averaged_weights_goes_on_where_it_was_cut_short(settings: Callable[..., Params]):
    recipe = {"tune": "lora", "ema": 0.9, "forge": {"share": 0.5, "methods": {"resynthesis": 1.0}}, "patience": 5}
    undisturbed = fit(settings(**recipe, schedule="linear"))

    chosen = settings(**recipe, schedule="linear", workers=1)  # other settings, so other checkpoints, but the same training
    with pytest.raises(OSError, match="no space"):
        fit(chosen, Stop())
    mlflow.end_run()
    resumed = fit(chosen)

    assert resumed.report["resumed_from_step"] == 4
    # Rank 8, on queries and values of three layers; what is merged is part of the network's own weights.
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
    assert len(fit(chosen).report["epochs"]) == 3  # one that had ended does not go on


def test_the_epoch_that_is_named_is_the_one_whose_weights_are_kept(settings: Callable[..., Params]):
    alike = {"lr": 1e-9, "schedule": "constant_with_warmup", "warmup": 0.0, "ema": None}  # so that all epochs are equally good
    one, three = (fit(settings(epochs=epochs, **alike)) for epochs in (1, 3))
    assert three.report["best_epoch"] == 1 and len({epoch["val_auc"] for epoch in three.report["epochs"]}) == 1
    for name, weight in one.network.state_dict().items():
        assert torch.equal(three.network.state_dict()[name], weight), name
    last = load_file(max(train.checkpoints(settings(epochs=3, **alike)).glob("checkpoint-*")) / "model.safetensors")
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


def test_averaged_weights_are_judged_and_kept(settings: Callable[..., Params]):
    plain, averaged = (fit(settings(ema=ema, epochs=1)) for ema in (None, 0.999))
    set_seed(settings().train.seed)
    begun = model.build(settings().model)[0].state_dict()

    def way(trained: train.Trained) -> float:
        return sum(float((weight - begun[name]).abs().sum()) for name, weight in trained.network.state_dict().items())

    assert 0 < way(averaged) < way(plain)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ("cvt", "mobilevit", "swin") else ()) for name in ZOO]
)
def test_any_classifier_trains_and_exports(settings: Callable[..., Params], tmp_path: Path, name: str):
    trained = fit(settings(name, epochs=1, batch_size=20))
    assert moved(settings(name), trained.network)
    model.save(trained.network, trained.processor, tmp_path / "model")
    values = np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    assert to_openvino(tmp_path / "model", tmp_path / "graph" / "openvino.xml", values) < 1e-4


def test_a_pretrained_network_keeps_its_shapes(tmp_path: Path):
    network, processor = model.build(Model(name="vit", init="scratch", config=VIT))
    model.save(network, processor, tmp_path)
    with pytest.raises(StageError, match=r"shape is another one in .* of vit.embeddings.position_embeddings"):
        model.build(Model(name=str(tmp_path), init="pretrained", config={"image_size": 48}))


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


def test_adversarial_training_trains(settings: Callable[..., Params]):
    chosen = settings(adversarial={"eps": 2, "steps": 1}, epochs=1)
    assert moved(chosen, fit(chosen).network)


@pytest.mark.parametrize("name", ["layernorm", "lora", "last_blocks", "probe", "adversarial", "robust"])
def test_presets_are_valid(name: str):
    content = load_params(ROOT / "params.yaml").model_dump(by_alias=True, mode="json")
    for key, value in preset(name, ROOT / "params.yaml").items():
        section, _, field = key.partition(".")
        content[section][field] = value
    assert isinstance(check_params(content, Path("params.yaml")).train, Train)


class Killed(BaseException):
    """What Optuna does not catch, so that its storage is left as a kill leaves it."""


def test_a_search_goes_on_where_it_was_cut_short(settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch):
    space = {"train.lr": {"low": 0.001, "high": 0.1, "log": True}, "train.tune": {"choices": ["head", "layernorm"]}}
    content = settings(epochs=3).model_dump(by_alias=True, mode="json") | {"tune": {"trials": 4, "space": space, "seed": 7}}
    chosen = check_params(content, Path("params.yaml"))
    fit_ = train.fit
    begun: list[Params] = []

    def fit_twice(candidate: Params, *rest: Any, **more: Any) -> train.Trained | None:
        begun.append(candidate)
        if len(begun) == 2:
            raise Killed
        return fit_(candidate, *rest, **more)

    monkeypatch.setattr(train, "fit", fit_twice)
    with pytest.raises(Killed):
        sweep.run(chosen)
    found = sweep.run(chosen)

    assert begun[2].train == begun[1].train and len(begun) == 5
    assert len({candidate.train.lr for candidate in begun}) == 4  # none is tried twice but the one that was cut short
    assert found["trials"] == 4 and found["pruned"] < 4
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("unmask").experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found['run_id']}'")
    assert len(runs) == 4
    assert found["best"]["run_id"] in {run.info.run_id for run in runs}
    best = client.get_metric_history(found["best"]["run_id"], "val_auc")
    assert max(point.value for point in best) == found["best"]["val_auc"] and len(best) == 3
    for key in space:
        assert f"{key}=" in found["best"]["command"]

    spoilt = {"trials": 4, "space": {"train.lr": {"choices": [0.01, 1e38]}}, "seed": 7}
    found = sweep.run(check_params(content | {"tune": spoilt}, Path("params.yaml")))
    assert found["pruned"] and found["best"]["values"] == {"train.lr": 0.01}

    wrong = check_params(content | {"tune": {"trials": 1, "space": {"train.rate": {"choices": [1, 2]}}, "seed": 7}}, Path("params.yaml"))
    with pytest.raises(ParamsError, match=r"train\.rate"):
        sweep.run(wrong)


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
    for name in alone.keys() - {key for key in alone if key.endswith("key.bias")}:  # whose gradient is nothing but rounding
        np.testing.assert_allclose(together[name], alone[name], atol=2e-4, err_msg=name)
