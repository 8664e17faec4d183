"""The check of a split: no twin in another part."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.validation import suites


@pytest.fixture
def parts(clean: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A correct split; `unseen` holds the reals of test."""
    number = clean["group"].str[-2:].astype(int)
    table = clean.assign(generator=clean["generator"].mask((clean["label"] == "fake") & (number >= 25), "held"), cluster=clean["phash"])
    test = table[number >= 20]
    return {
        "train": table[number < 10],
        "val": table[(number >= 10) & (number < 20)],
        "test": test[test["generator"] != "held"],
        "unseen": test[(test["label"] == "real") | (test["generator"] == "held")],
    }


def leaks(parts: dict[str, pd.DataFrame]) -> list[str]:
    frame = suites.splits_frame(parts.items(), ["held"])
    return [finding["detail"] for finding in suites.check(suites.splits(frame), frame) if not finding["success"]]


def test_a_clean_split_has_no_leak(parts: dict[str, pd.DataFrame], workspace):
    workspace()
    assert leaks(parts) == []


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("group", "A group .* is in several parts.*2 images: "),
        ("cluster", "Near-duplicates are in several parts.*2 images"),
        ("image_id", "The same file is in several parts.*2 images"),
        ("pixel_hash", "The same picture, in two files, is in several parts.*2 images"),
        ("parents", "made from are in different parts.*1 image"),
    ],
)
@pytest.mark.parametrize("part", ["val", "unseen"])
def test_a_leak_between_parts_is_named(parts: dict[str, pd.DataFrame], workspace, part: str, column: str, message: str):
    workspace()
    stranger = parts["train"]["image_id"].iloc[0]
    leaked = parts[part].reset_index(drop=True)
    fake = leaked.index[leaked["label"] == "fake"][0]
    if column == "parents":
        leaked.loc[fake, "parents"] = f"{leaked['image_id'].iloc[-1]} {stranger}"
    elif column == "group":
        leaked.loc[fake, "group"] = "alone"
        parts["train"] = parts["train"].assign(group=parts["train"]["group"].mask(parts["train"]["image_id"] == stranger, "alone"))
    else:
        leaked.loc[fake, column] = parts["train"][column].iloc[0]
    found = leaks(parts | {part: leaked})
    assert len(found) == 1 and re.search(message, found[0]), found


def test_a_held_out_generator_in_training_and_a_part_without_a_class_are_named(parts: dict[str, pd.DataFrame], workspace):
    workspace()
    parts["train"] = parts["train"].assign(generator=parts["train"]["generator"].replace("swap", "held"))
    parts["val"] = parts["val"][parts["val"]["label"] == "real"]
    found = leaks(parts)
    assert len(found) == 2
    assert any("split.holdout_generators is in train" in line and "10 images: held" in line for line in found)
    assert any("A part lacks a class" in line and "(val fake)" in line for line in found)
    assert Path("reports/data_docs/splits/index.html").is_file()
