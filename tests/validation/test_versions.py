"""A version is compared with the last one that passed."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline import data_card, manifest, validate
from pipeline.errors import StageError
from pipeline.validation import versions
from tests.conftest import ROOT
from tests.data_helpers import picture
from tests.validation.use import REAL, change, failures, row, save, table_of


def test_a_version_is_compared_with_the_last_accepted_one(clean: pd.DataFrame, pictures: Path, workspace):
    params = workspace()
    save(clean)
    validate.run(params)
    assert "No version was accepted before" in data_card.CARD.read_text()
    assert pd.read_parquet(manifest.ACCEPTED).equals(clean)

    assert not validate.run(params)["warnings"]
    assert "Unchanged since the last accepted version" in data_card.CARD.read_text()

    picture(pictures / "new" / "real.jpg", seed=9000, quality=90)
    changed = change("label", "real", "fake/03.jpg")(change("generator", "none", "fake/03.jpg")(clean))
    changed = change("generator", "gan", *(f"fake/{index:02d}.jpg" for index in range(10, 30)))(changed)
    changed = change("blur", 9999.0, *(f"real/{index:02d}.jpg" for index in range(20)))(changed)
    changed = changed[~changed["path"].str.endswith("real/05.jpg")].assign(source="others")
    changed = pd.concat([changed, table_of([row(pictures / "new" / "real.jpg", "real", "stranger") | {"source": "others"}])])
    save(changed.sort_values("path", ignore_index=True))
    warnings = validate.run(params)["warnings"]
    for expected in (
        r"A source of the last accepted data version no longer has any images.*\(faces\)",
        r"distribution of generator differs from that of the last accepted",
        r"distribution of source .*divergence",
        r"distribution of blur ",
    ):
        assert any(re.search(expected, warning) for warning in warnings), warnings
    assert not any("distribution of label" in warning or "distribution of brightness" in warning for warning in warnings)
    text = data_card.CARD.read_text()
    for line in (
        "| all | 60 | 60 | +0 |",
        "| generator: gan | 20 | 0 | +20 |",
        "| source: faces | 0 | 60 | -60 |",
        "| label: real | 31 | 30 | +1 |",
    ):
        assert line in text
    for kind, name in (("new", "new/real.jpg"), ("removed", "real/05.jpg"), ("relabelled", "fake/03.jpg")):
        assert f"- **{kind}**: 1\n  - `{pictures.as_posix()}/{name}`" in text
    assert Path("reports/data_card/blur.png").stat().st_size and "data_card/blur.png" in text
    assert len(pd.read_parquet(manifest.ACCEPTED).query("generator == 'gan'")) == 20


def test_a_version_that_fails_is_described_but_not_accepted(clean: pd.DataFrame, workspace):
    params = workspace()
    save(clean)
    versions.accept()
    save(change("generator", "gan", REAL)(clean))
    with pytest.raises(StageError, match="A real image names a generator"):
        validate.run(params)
    assert pd.read_parquet(manifest.ACCEPTED).equals(clean)
    text = data_card.CARD.read_text()
    assert "did not pass validation" in text and "| generator: gan | 1 | 0 | +1 |" in text


def test_a_generator_that_disappeared_is_named(clean: pd.DataFrame, workspace):
    settings = workspace().validate_
    accepted = change("generator", "gan", *(f"fake/{index:02d}.jpg" for index in range(10)))(clean)
    found = failures(clean, settings, accepted)
    gone = found["expect_column_distinct_values_to_contain_set(generator)"]
    assert "A generator of the last accepted data version no longer has any images" in gone["detail"] and "(gan)" in gone["detail"]


def test_the_same_distribution_does_not_warn(clean: pd.DataFrame, workspace):
    settings = workspace(validate__min_per_generator=5).validate_
    assert not failures(clean.sample(40, random_state=1), settings, clean)


def test_two_manifests_are_compared_from_the_command_line(clean: pd.DataFrame, workspace):
    workspace()
    clean.to_parquet("old.parquet")
    clean.iloc[1:].to_parquet("new.parquet")
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.data_card", "old.parquet", "new.parquet"], text=True, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    text = Path("reports/data_comparison.md").read_text()
    assert "| all | 59 | 60 | -1 |" in text and "- **removed**: 1" in text and Path("reports/data_comparison/blur.png").is_file()
    wrong = subprocess.run(
        [sys.executable, "-m", "pipeline.data_card", "absent.parquet", "new.parquet"], text=True, capture_output=True, env=environment
    )
    assert wrong.returncode == 1 and "absent.parquet: no such file" in wrong.stderr and "Traceback" not in wrong.stderr
