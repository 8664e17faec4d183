"""Studies of many trainings: the search for better settings, and leaving out each generator in turn. Both resume after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline import leave_one_out, manifest, sweep, train
from pipeline.errors import StageError
from pipeline.params import Params, ParamsError, check_params


class Killed(BaseException):
    """Not caught by Optuna, so that its storage is left as after a kill."""


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
    assert len({candidate.train.lr for candidate in begun}) == 4  # only the interrupted one is tried twice
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


def test_each_generator_is_left_out_in_turn(
    settings: Callable[..., Params], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/raw").symlink_to(workspace / "data/raw")
    monkeypatch.chdir(tmp_path)
    for part, pairs in manifest.read_parts(workspace / manifest.SPLITS).items():
        fakes = pairs["label"] == "fake"
        pairs.loc[fakes, "generator"] = ["swap" if row % 2 else "blend" for row in range(fakes.sum())]
        manifest.write(pairs, manifest.SPLITS / f"{part}.parquet")
    chosen = settings(forge={"share": 0.5, "methods": {"swap": 1.0}})
    fit_ = train.fit
    shown: list[set[str]] = []
    forged: list[set[str]] = []

    def fit_twice(candidate: Params, parts: dict[str, Any], **more: Any) -> train.Trained | None:
        shown.append(set(parts["train"]["generator"]) | set(parts["val"]["generator"]))
        forged.append(candidate.train.forge.shown if candidate.train.forge else set())
        if len(shown) == 2:
            raise Killed
        return fit_(candidate, parts, **more)

    monkeypatch.setattr(train, "fit", fit_twice)
    with pytest.raises(Killed):
        leave_one_out.run(chosen)
    found = leave_one_out.run(chosen)
    assert shown == [{"none", "swap"}, {"none", "blend"}, {"none", "blend"}]  # what was finished before the kill is not trained again
    assert forged == [{"swap"}, set(), set()]
    assert leave_one_out.run(chosen) == found and len(shown) == 3

    aucs = {name: row["auc"]["value"] for name, row in found["generators"].items()}
    assert set(aucs) == {"blend", "swap"} and all(row["n"] == 4 + 2 for row in found["generators"].values())
    assert found["worst_auc"] == min(aucs.values()) == aucs[found["worst"]]
    assert found["mean_auc"] == pytest.approx(sum(aucs.values()) / 2, abs=1e-4)
    assert 0 <= found["pooled_auc"]["low"] <= found["pooled_auc"]["value"] <= found["pooled_auc"]["high"] <= 1
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("unmask").experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found['run_id']}'")
    assert {run.data.tags["left_out"] for run in runs} == {"blend", "swap"}

    part = manifest.read(manifest.SPLITS / "val.parquet")
    part.loc[part["label"] == "fake", "generator"] = "swap"
    manifest.write(part, manifest.SPLITS / "val.parquet")
    with pytest.raises(StageError, match=r"have swap in common; two are needed"):
        leave_one_out.run(chosen)
