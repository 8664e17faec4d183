"""Planted problems are found, named and shown."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from pipeline import data_card, manifest, validate
from pipeline.errors import StageError
from pipeline.params import Validate
from pipeline.validation import suites
from tests.validation.use import FAKE, REAL, change, failures, save, twin, twin_of_one_class


def test_clean_data_passes_without_a_word(clean: pd.DataFrame, workspace):
    params = workspace()
    save(clean)
    report = validate.run(params)
    assert report["passed"] and not report["critical"] and not report["warnings"]
    assert all(finding["success"] for finding in report["expectations"]) and len(report["expectations"]) > 30
    assert json.loads(validate.REPORT.read_text()) == report
    assert Path("reports/data_docs/manifest/index.html").is_file()


@pytest.mark.parametrize(
    ("plant", "severity", "message", "shown"),
    [
        (lambda table: table.drop(columns=["blur", "faces"]), "critical", r"A column is missing.*\(blur, faces\)", []),
        (lambda table: table[table["label"] == "real"], "critical", r"A class is missing.*\(fake\)", []),
        (lambda table: table.drop(table.index[:25]), "critical", r"fewer than validate.min_images = 10.*5 images: fake", ["fake/25.jpg"]),
        (lambda table: table.drop(table.index[:25]), "warning", r"over validate.max_imbalance = 3 times.*divergence", []),
        (lambda table: table.head(0), "critical", "There are no images", []),
        (twin_of_one_class("image_id"), "critical", "The same file is in two rows", [REAL, "real/08.jpg"]),
        (twin_of_one_class("path"), "critical", "The same path is in two rows", [REAL, REAL]),
        (twin("image_id"), "critical", "The same file is labelled both real and fake", [FAKE, REAL]),
    ],
)
def test_planted_trouble_is_named_and_shown(clean: pd.DataFrame, workspace, plant, severity: str, message: str, shown: list[str]):
    found = failures(plant(clean), workspace().validate_)
    named = [finding for finding in found.values() if re.search(message, finding["detail"])]
    assert len(named) == 1, [finding["detail"] for finding in found.values()]
    assert named[0]["severity"] == severity
    assert [path[-len(REAL) :] for path in named[0]["examples"]][: len(shown) or None] == shown


def test_each_of_many_troubles_is_named_with_its_own_pictures_and_nothing_else(clean: pd.DataFrame, workspace):
    planted: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str, list[str]]] = [
        (change("label", "maybe", "real/20.jpg"), "critical", r"neither real nor fake.*1 image: maybe", ["real/20.jpg"]),
        (change("group", None, "real/21.jpg"), "critical", r"Column group has empty values.*1 image", ["real/21.jpg"]),
        (change("generator", "gan", "real/22.jpg"), "critical", "A real image names a generator.*1 image: gan", ["real/22.jpg"]),
        (change("generator", "none", "fake/20.jpg"), "critical", "A fake has 'none' as its generator", ["fake/20.jpg"]),
        (twin("pixel_hash"), "critical", "The same picture is labelled both real and fake", [FAKE, REAL]),
        (
            change("pixel_hash", "feed" * 4, "real/24.jpg", "real/25.jpg"),
            "warning",
            "The same picture is in several files",
            [FAKE, REAL, "real/24.jpg", "real/25.jpg"],
        ),
        (change("generator", "new", "fake/21.jpg"), "warning", "fewer than.*min_per_generator = 20.*image: new", ["fake/21.jpg"]),
        (change("format", "PNG", "fake/22.jpg"), "warning", r"several formats.*ingest\.normalise", []),
        (
            change("brightness", 3.0, "real/23.jpg", "fake/23.jpg"),
            "warning",
            r"unusual brightness \(usual is at least 25 and at most 230",
            ["fake/23.jpg", "real/23.jpg"],
        ),
    ]
    table = clean
    for plant, *_ in planted:
        table = plant(table)
    found = [*failures(table, workspace().validate_).values()]
    for _, severity, message, shown in planted:
        (named,) = (finding for finding in found if re.search(message, finding["detail"]))
        found.remove(named)
        assert named["severity"] == severity
        assert [path[-len(REAL) :] for path in named["examples"]][: len(shown) or None] == shown
    assert not found


def test_a_range_of_an_unknown_column_and_one_without_bounds_are_named(clean: pd.DataFrame, workspace):
    settings = workspace(validate__ranges={"sharpness": [1, 2]}).validate_
    with pytest.raises(StageError, match=r"validate.ranges: sharpness is not a numeric column; there are: blue, blur"):
        suites.manifest(clean, settings)
    for bounds, message in (((None, None), "ranges.blur needs a lowest value"), ((2.0, 1.0), "the lowest value 2 is above the highest")):
        with pytest.raises(ValidationError, match=message):
            Validate.model_validate(settings.model_dump() | {"ranges": {"blur": bounds}})


def test_every_critical_failure_is_in_the_message_and_the_page_shows_it(clean: pd.DataFrame, pictures: Path, workspace):
    params = workspace()
    table = twin("pixel_hash")(change("generator", "gan", "real/00.jpg")(clean))
    lost = table["path"].iloc[-1].replace("29.jpg", "absent.jpg")
    save(
        table.assign(path=table["path"].replace(table["path"].iloc[-1], lost), generator=table["generator"].mask(table.index == 59, "gan"))
    )
    Path("reports").mkdir()
    Path("reports/quarantine.csv").write_text("path,reason,detail\ndata/raw/cut.jpg,truncated,The file is cut off\n")
    with pytest.raises(StageError) as caught:
        validate.run(params)
    message = str(caught.value)
    assert "labelled both real and fake" in message and "A real image names a generator" in message and "reports/validation.html" in message
    report = json.loads(validate.REPORT.read_text())
    assert not report["passed"] and len(report["critical"]) == 2 and not manifest.ACCEPTED.exists()
    page = validate.PAGE.read_text()
    assert "not fit for training" in page and all(
        line in page for line in ("both real and fake", "names a generator", "The file is cut off")
    )
    assert page.count('src="data:image/png;base64,') == 5  # the two of the conflict, twice, and one of the reals that name a generator
    assert page.count("cannot be read") == 1 and lost in page
    assert all(f"{pictures.as_posix()}/{name}" in page for name in (REAL, FAKE, "real/00.jpg"))
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?(https?:)?//|@import|<script|<link""", page)


def test_the_report_is_the_same_every_time(clean: pd.DataFrame, workspace):
    params = workspace(validate__shortcut__warn=0.3)
    save(change("brightness", 3.0, REAL, FAKE)(clean))
    validate.run(params)
    files = [validate.REPORT, validate.PAGE, *Path("reports/data_card").iterdir()]
    before = {path: path.read_bytes() for path in files}
    manifest.ACCEPTED.unlink()
    validate.run(params)
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_a_table_of_one_class_is_refused_without_a_crash(clean: pd.DataFrame, workspace, rows: int):
    params = workspace()
    save(clean[clean["label"] == "real"].head(rows))
    with pytest.raises(StageError, match="There are no images" if rows == 0 else r"A class is missing.*\(fake\)"):
        validate.run(params)
    assert validate.PAGE.is_file() and data_card.CARD.is_file()


def test_a_manifest_without_a_column_is_refused_by_name(clean: pd.DataFrame, workspace):
    params = workspace()
    for column in ("label", "width"):
        (found,) = (
            row for row in failures(clean.drop(columns=column), params.validate_).values() if "A column is missing" in row["detail"]
        )
        assert f"({column})" in found["detail"] and found["severity"] == "critical"
    save(clean.drop(columns="path"))
    with pytest.raises(StageError, match=r"A column is missing.*\(path\)"):
        validate.run(params)
