"""Labels that metadata gives away: refused, or reported on the card."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import data_card, validate
from pipeline.errors import StageError
from pipeline.exporting import card
from pipeline.images import read
from pipeline.params_train import Forging
from pipeline.validation import shortcut
from tests.validation.use import row, save, table_of


def as_png(clean: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The fakes stored as PNG."""
    rows = []
    for image in clean.itertuples():
        path = Path(image.path)
        if image.label == "fake":
            path = folder / f"{path.stem}.png"
            read(Path(image.path)).rgb.save(path)
        rows.append(row(path, image.label, image.group))
    return table_of(rows)


def test_png_against_jpeg_is_refused_and_normalising_is_proposed(clean: pd.DataFrame, tmp_path: Path, workspace):
    params = workspace(validate__shortcut={"warn": 0.6, "refuse": 0.75})
    save(as_png(clean, tmp_path))
    with pytest.raises(StageError) as caught:
        validate.run(params)
    message = str(caught.value)
    assert re.search(r"Metadata alone tells real from fake with AUC (0\.9\d|1\.00)", message) and "validate.shortcut.refuse" in message
    assert re.search(r"(format|quantisation|jpeg_quality|subsampling) \(alone 1\.00\)", message)
    assert "Set `ingest.normalise: {size: 64, jpeg_quality: 90}` in params.yaml" in message
    assert "AUC of metadata alone" in validate.PAGE.read_text()

    refused_only_above = workspace(validate__shortcut={"warn": 0.6, "refuse": 1.0})
    report = validate.run(refused_only_above)
    assert report["passed"] and any("validate.shortcut.warn" in warning for warning in report["warnings"])


def test_colour_is_a_shortcut_that_normalising_does_not_take_away(clean: pd.DataFrame, workspace):
    params = workspace()
    table = clean.assign(red=clean["red"].mask(clean["label"] == "fake", 250.0))
    found = shortcut.audit(table)
    assert found["columns"][0]["name"] == "red" and found["auc"]["value"] > 0.9
    assert "Re-encoding leaves mean colour as it is" in shortcut.message(found, table, params.ingest)


def test_faces_shown_larger_in_one_class_are_a_shortcut_too(clean: pd.DataFrame, workspace):
    params = workspace()
    shares = np.random.default_rng(0).uniform(0.3, 0.5, len(clean))
    alike = clean.assign(face_share=shares)
    assert "face_share" not in {column["name"] for column in shortcut.audit(alike)["columns"] if column["auc"] > 0.6}
    table = clean.assign(face_share=shares + 0.3 * (clean["label"] == "fake"))
    found = shortcut.audit(table)
    assert found["columns"][0]["name"] == "face_share" and found["auc"]["value"] > 0.9
    message = shortcut.message(found, table, params.ingest)
    assert "Faces are shown larger in one class: cut all out alike" in message and "ingest.normalise" not in message


def test_the_proposal_fits_the_lesser_class(clean: pd.DataFrame):
    fake = clean["label"] == "fake"
    table = clean.assign(width=clean["width"].mask(fake, 300).mask(~fake, 1000), jpeg_quality=clean["jpeg_quality"].mask(~fake, 75.0))
    assert shortcut.proposal(table) == {"size": 64, "jpeg_quality": 75} | {"size": 296}


@pytest.mark.parametrize("number", [6, 200])
def test_no_group_is_judged_by_what_was_learned_from_it(number: int):
    groups = np.repeat(np.arange(number), 10)
    labels = np.tile([0, 1], 5 * number)
    folds = shortcut.group_folds(labels, groups, seed=0)
    assert not isinstance(folds, str) and sorted(index for _, judged in folds for index in judged) == list(range(10 * number))
    for fitted, judged in folds:
        assert not set(groups[fitted]) & set(groups[judged])


def test_groups_that_allow_no_folds_are_said_and_do_not_crash(clean: pd.DataFrame, workspace):
    few = "at least 2 groups, and one has 1"
    for groups in ("one", clean["label"], clean["group"].where(clean["label"] == "real", "all fakes")):
        found = shortcut.audit(clean.assign(group=groups))
        assert found["auc"]["value"] is None and few in found["unjudged"]
    params = workspace()
    save(clean.assign(group="one"))
    assert any(few in warning for warning in validate.run(params)["warnings"])
    assert "could not be judged" in validate.PAGE.read_text() and "Not judged" in data_card.CARD.read_text()


def test_few_groups_are_judged_where_they_can_be(clean: pd.DataFrame):
    table = clean.assign(group=clean["label"] + (clean.index % 2).astype(str))
    assert shortcut.audit(table)["auc"]["value"] is not None


def test_the_model_card_says_what_metadata_tells(clean: pd.DataFrame, workspace):
    params = workspace()
    figure = {"value": 0.8, "low": 0.7, "high": 0.9}
    evaluation = {"n": 9, "threshold": 0.5, "test": {"auc": figure}, "thresholds": {"real_below": 0.4, "fake_above": 0.6}}
    evaluation |= {"selective": {"coverage": figure, "error": dict.fromkeys(figure)}, "robustness": {"n": 9, "clean": {"auc": 0.8}}}
    training = {"parameters": 1, "epochs": [1], "device": "cpu", "precision": "float32", "best_epoch": 1}
    meta = {"created": "today", "trained_on": "whole", "lineage": dict.fromkeys(("git_commit", "git_dirty", "data_md5", "run_id"))}

    def text(auc: dict[str, object]) -> str:
        return card.write(params, {"train": clean}, {"shortcut": auc}, evaluation, training, meta, {"bf16": None, "int8": None})

    assert "tells real from fake with AUC 0.625 (0.600 to 0.650)" in text({"auc": {"value": 0.625, "low": 0.6, "high": 0.65}})
    unjudged: dict[str, object] = {"auc": {"value": None}, "unjudged": "too few"}
    assert "could not be judged: too few" in text(unjudged)

    slices = {0.9: False, 0.7: False, 0.1: True, 0.8: False, 0.6: False}  # AUC -> whether it is from too few images
    evaluation["slices"] = [{"column": "age", "value": auc, "small": few, "auc": figure | {"value": auc}} for auc, few in slices.items()]
    weakest = text(unjudged).partition("Weakest slices of 30 images or more, by AUC: ")[2].partition("\n")[0]
    assert [part.split()[:2] for part in weakest.split("; ")] == [["age", "0.6"], ["age", "0.7"], ["age", "0.8"]]

    made = sorted(set(clean["generator"]) - {"none"})
    assert f"Generators seen in training: {', '.join(made)}.\n" in text(unjudged)
    forge = Forging(share=0.3, methods={"resynthesis": 1.0, "swap": 0.0})
    params = params.model_copy(update={"train": params.train.model_copy(update={"forge": forge})})
    assert f"Generators seen in training: {', '.join(sorted([*made, 'resynthesis']))}.\n" in text(unjudged)
