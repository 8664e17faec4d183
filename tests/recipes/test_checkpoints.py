"""What a training leaves on disk while it runs, and what it resumes from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import manifest, train
from pipeline.network import model
from pipeline.params import Params
from pipeline.preprocess import Preprocess
from pipeline.training.dataset import CACHE, pixels
from tests.recipes.small import Stop, fit, table


def test_a_training_whose_weights_are_kept_begins_anew(settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch):
    chosen = settings(epochs=1)
    folder = train.checkpoints(chosen, manifest.read_parts())

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save", full)
        with pytest.raises(OSError, match="no space"):
            train.run(chosen)
    kept = train.run(chosen)
    assert kept["resumed_from_step"] == 3  # it was interrupted after its last step, before the weights were written
    assert not folder.exists()
    again = train.run(chosen)
    assert again["resumed_from_step"] == 0 and again["run_id"] != kept["run_id"]


def test_a_training_that_another_process_waits_for_is_left_to_it(settings: Callable[..., Params]):
    chosen = settings(epochs=1, lr=0.02)
    folder = train.checkpoints(chosen, manifest.read_parts())
    fit(chosen)
    with train._alone(folder):
        train._forget(folder)
        assert train._last_checkpoint(folder)
    train._forget(folder)
    assert not folder.exists()


def test_the_newest_whole_checkpoint_is_the_one_of_most_steps(tmp_path: Path):
    for steps, state in ((900, "{}"), (1000, "{}"), (1100, '{"cut sh')):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        (tmp_path / f"checkpoint-{steps}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-1200").mkdir()
    assert train._last_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-900", "checkpoint-1000"}


def test_other_weights_in_the_folder_of_the_base_are_another_training(settings: Callable[..., Params], tmp_path: Path):
    network, processor = model.build(settings().model)
    model.save(network, processor, tmp_path)
    chosen = settings()
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"name": str(tmp_path), "init": "pretrained"})})
    parts = manifest.read_parts()
    before = train.checkpoints(chosen, parts)
    weights = load_file(tmp_path / "model.safetensors")
    assert train.checkpoints(chosen, parts) == before
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "model.safetensors")
    assert train.checkpoints(chosen, parts) != before


@pytest.mark.parametrize("part", ["train", "val"])
def test_corrected_labels_are_another_training(settings: Callable[..., Params], part: str):
    parts = manifest.read_parts()
    turned = parts[part].assign(label=parts[part]["label"].map({"real": "fake", "fake": "real"}))
    assert train.checkpoints(settings(), parts | {part: turned}) != train.checkpoints(settings(), parts)
    assert train.checkpoints(settings(), parts | {part: parts[part].assign(blur=0.0)}) == train.checkpoints(settings(), parts)


def test_the_seconds_of_a_training_are_those_of_all_its_parts(settings: Callable[..., Params]):
    chosen = settings(lr=0.03)
    with pytest.raises(OSError, match="no space"):
        fit(chosen, Stop())
    mlflow.end_run()
    note = train.checkpoints(chosen, manifest.read_parts()) / "checkpoint-4" / "trainer_state.json"
    state = json.loads(note.read_text())
    assert state["log_history"][-1]["seconds"] > 0
    state["log_history"][-1]["seconds"] = 1000.0
    note.write_text(json.dumps(state))
    assert fit(chosen).report["seconds"] > 1000


def test_pictures_of_other_versions_of_the_data_are_not_kept(settings: Callable[..., Params], tmp_path: Path):
    shutil.rmtree(CACHE, ignore_errors=True)
    other = table(tmp_path, 3, seed=9)
    preprocess = Preprocess.from_processor(model.build(settings().model)[1])
    read = pixels(other, preprocess)
    expected = np.array(read)
    parts = manifest.read_parts()
    test = pixels(parts["test"], preprocess)
    train.run(settings(epochs=1, lr=0.04))
    assert sorted(np.load(path).shape[0] for path in CACHE.glob("*.npy")) == sorted(len(part) for part in parts.values())
    assert np.array_equal(read, expected) and len(test)  # still there for a process that has them open
