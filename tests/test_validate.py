"""Validation on planted trouble: real Great Expectations on small tables, with the pictures that the tables are about."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline import card, data_card, shortcut, suites, validate, versions
from pipeline.errors import StageError
from pipeline.findings import Finding
from pipeline.images import read, statistics
from pipeline.manifest import COLUMNS, MANIFEST
from pipeline.params import Params, Validate, load_params
from pipeline.settings import apply
from tests.conftest import ROOT

REALS = FAKES = 30


def picture(path: Path, seed: int, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(path, **options)


def row(path: Path, label: str, group: str) -> dict[str, object]:
    """The manifest's row of a file, as ingest describes it."""
    seen, data = read(path), path.read_bytes()
    with Image.open(path) as image:
        tables = getattr(image, "quantization", {})
    measured = statistics(seen)
    return {
        "image_id": hashlib.sha256(data).hexdigest(),
        "path": path.as_posix(),
        "label": label,
        "generator": "swap" if label == "fake" else "none",
        "group": group,
        "source": "faces",
        "parents": "",
        "seed": None,
        "width": seen.rgb.width,
        "height": seen.rgb.height,
        "format": seen.format,
        "bytes": len(data),
        "phash": hashlib.sha256(seen.pixels.tobytes()).hexdigest()[:16],
        "pixel_hash": hashlib.sha256(seen.pixels.tobytes()).hexdigest()[16:32],
        **{name: measured[name] for name in ("blur", "brightness", "contrast")},
        **dict(zip(("red", "green", "blue"), seen.pixels.mean((0, 1)), strict=True)),
        "jpeg_quality": 90.0 if tables else None,
        "quantisation": hashlib.sha256(repr(tables).encode()).hexdigest()[:8] if tables else "",
        "subsampling": "4:2:0" if tables else "",
        "metadata_bytes": 0,
        "faces": None,
        "face_share": None,
    }


def table_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(COLUMNS).sort_values("path", ignore_index=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 reals and 30 fakes, all different and stored alike."""
    folder = tmp_path_factory.mktemp("faces")
    for number, label in enumerate(("real", "fake")):
        for index in range(REALS):
            picture(folder / label / f"{index:02d}.jpg", seed=1000 * number + index, quality=90)
    return folder


@pytest.fixture(scope="module")
def clean(pictures: Path) -> pd.DataFrame:
    """Their manifest: each fake in the group of a real."""
    return table_of([row(path, path.parent.name, f"person{path.stem}") for path in sorted(pictures.rglob("*.jpg"))])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """A function that writes settings into an empty folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)

    def make(**values: object) -> Params:
        Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
        # 60 pictures of noise differ by chance: what metadata tells of them is not what most tests are about.
        settings: dict[str, object] = {"validate.min_images": 10, "validate.shortcut.warn": 1.0, "validate.shortcut.refuse": 1.0}
        settings |= {"validate.ranges": {"brightness": [25, 230], "contrast": [1, None], "jpeg_quality": [None, 95]}}
        apply(settings | {name.replace("__", "."): value for name, value in values.items()}, Path("params.yaml"))
        return load_params()

    return make


def save(table: pd.DataFrame) -> pd.DataFrame:
    MANIFEST.parent.mkdir(exist_ok=True)
    table.to_parquet(MANIFEST, index=False)
    return table


def failures(table: pd.DataFrame, settings: Validate, accepted: pd.DataFrame | None = None) -> dict[str, Finding]:
    """What fails, by name."""
    found = suites.check(suites.manifest(table, settings, accepted), suites.manifest_frame(table, settings))
    return {finding["name"]: finding for finding in found if not finding["success"]}


def test_clean_data_passes_without_a_word(clean: pd.DataFrame, workspace):
    params = workspace()
    save(clean)
    report = validate.run(params)
    assert report["passed"] and not report["critical"] and not report["warnings"]
    assert all(finding["success"] for finding in report["expectations"]) and len(report["expectations"]) > 30
    assert json.loads(validate.REPORT.read_text()) == report
    assert Path("reports/data_docs/manifest/index.html").is_file()


REAL, FAKE = "real/07.jpg", "fake/07.jpg"


def change(name: str, value: object, *endings: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Sets a column where the path ends so."""
    return lambda table: table.assign(**{name: table[name].mask(table["path"].str.endswith(endings), value)})


def twin(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Gives a fake the value that a real has."""

    def plant(table: pd.DataFrame) -> pd.DataFrame:
        return change(column, table.loc[table["path"].str.endswith(REAL), column].iloc[0], FAKE)(table)

    return plant


def twin_of_one_class(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def plant(table: pd.DataFrame) -> pd.DataFrame:
        return change(column, table.loc[table["path"].str.endswith(REAL), column].iloc[0], "real/08.jpg")(table)

    return plant


@pytest.mark.parametrize(
    ("plant", "severity", "message", "shown"),
    [
        (change("label", "maybe", REAL), "critical", r"neither real nor fake.*1 image: maybe", [REAL]),
        (lambda table: table.drop(columns=["blur", "faces"]), "critical", r"A column is missing.*\(blur, faces\)", []),
        (change("group", None, REAL), "critical", r"Column group has empty values.*1 image", [REAL]),
        (lambda table: table[table["label"] == "real"], "critical", r"A class is missing.*\(fake\)", []),
        (lambda table: table.drop(table.index[:25]), "critical", r"fewer than validate.min_images = 10.*5 images: fake", ["fake/25.jpg"]),
        (lambda table: table.drop(table.index[:25]), "warning", r"over validate.max_imbalance = 3 times.*divergence", []),
        (lambda table: table.head(0), "critical", "There are no images", []),
        (twin_of_one_class("image_id"), "critical", "The same file stands in two rows", [REAL, "real/08.jpg"]),
        (twin_of_one_class("path"), "critical", "The same path stands in two rows", [REAL, REAL]),
        (twin_of_one_class("pixel_hash"), "warning", "The same picture stands in several files", [REAL, "real/08.jpg"]),
        (twin("image_id"), "critical", "The same file is called both real and fake", [FAKE, REAL]),
        (twin("pixel_hash"), "critical", "The same picture is called both real and fake", [FAKE, REAL]),
        (change("generator", "gan", REAL), "critical", "A real image names a generator.*1 image: gan", [REAL]),
        (change("generator", "none", FAKE), "critical", "A fake has 'none' as its generator", [FAKE]),
        (change("generator", "gan", FAKE), "warning", "A generator has fewer than.*min_per_generator = 20.*1 image: gan", [FAKE]),
        (change("format", "PNG", FAKE), "warning", r"several formats.*ingest\.normalise", []),
        (change("brightness", 3.0, REAL, FAKE), "warning", r"unusual brightness \(usual is at least 25 and at most 230", [FAKE, REAL]),
    ],
)
def test_planted_trouble_is_named_and_shown(clean: pd.DataFrame, workspace, plant, severity: str, message: str, shown: list[str]):
    found = failures(plant(clean), workspace().validate_)
    named = [finding for finding in found.values() if re.search(message, finding["detail"])]
    assert len(named) == 1, [finding["detail"] for finding in found.values()]
    if shown == [REAL]:  # one picture is wrong in one way: nothing else may be said of it
        assert {finding["severity"] for finding in found.values() if finding is not named[0]} <= {"warning"}
    assert named[0]["severity"] == severity
    assert [path[-len(REAL) :] for path in named[0]["examples"]][: len(shown) or None] == shown


def test_a_range_of_an_unknown_column_and_one_without_bounds_are_named(clean: pd.DataFrame, workspace):
    settings = workspace(validate__ranges={"sharpness": [1, 2]}).validate_
    with pytest.raises(StageError, match=r"validate.ranges: no number is called sharpness; there are: blue, blur"):
        suites.manifest(clean, settings)
    for bounds, message in (((None, None), "ranges.blur needs a lowest value"), ((2.0, 1.0), "the lowest value 2 is over the highest")):
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
    assert "called both real and fake" in message and "A real image names a generator" in message and "reports/validation.html" in message
    report = json.loads(validate.REPORT.read_text())
    assert not report["passed"] and len(report["critical"]) == 2 and not versions.ACCEPTED.exists()
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
    versions.ACCEPTED.unlink()
    validate.run(params)
    assert {path: path.read_bytes() for path in files} == before


def test_a_version_is_compared_with_the_last_accepted_one(clean: pd.DataFrame, pictures: Path, workspace):
    params = workspace()
    save(clean)
    validate.run(params)
    assert "No version was accepted before" in data_card.CARD.read_text()
    assert pd.read_parquet(versions.ACCEPTED).equals(clean)

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
        r"A source of the last accepted data version has no image any more.*\(faces\)",
        r"distribution of generator is not that of the last accepted",
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
    assert len(pd.read_parquet(versions.ACCEPTED).query("generator == 'gan'")) == 20


def test_a_version_that_fails_is_described_but_not_accepted(clean: pd.DataFrame, workspace):
    params = workspace()
    save(clean)
    validate.run(params)
    save(change("generator", "gan", REAL)(clean))
    with pytest.raises(StageError, match="A real image names a generator"):
        validate.run(params)
    assert pd.read_parquet(versions.ACCEPTED).equals(clean)
    text = data_card.CARD.read_text()
    assert "did not pass validation" in text and "| generator: gan | 1 | 0 | +1 |" in text


def test_a_generator_that_disappeared_is_named(clean: pd.DataFrame, workspace):
    settings = workspace().validate_
    accepted = change("generator", "gan", *(f"fake/{index:02d}.jpg" for index in range(10)))(clean)
    found = failures(clean, settings, accepted)
    gone = found["expect_column_distinct_values_to_contain_set(generator)"]
    assert "A generator of the last accepted data version has no image any more" in gone["detail"] and "(gan)" in gone["detail"]


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


def test_the_proposal_fits_the_lesser_class(clean: pd.DataFrame):
    fake = clean["label"] == "fake"
    table = clean.assign(width=clean["width"].mask(fake, 300).mask(~fake, 1000), jpeg_quality=clean["jpeg_quality"].mask(~fake, 75.0))
    assert shortcut.proposal(table) == {"size": 64, "jpeg_quality": 75} | {"size": 296}


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (lambda table: "one", "at least 2 groups, and one has 1"),
        (lambda table: table["label"], "at least 2 groups, and one has 1"),
        (lambda table: table["group"].where(table["label"] == "real", "all fakes"), "at least 2 groups, and one has 1"),
    ],
)
def test_groups_that_allow_no_folds_are_said_and_do_not_crash(clean: pd.DataFrame, workspace, groups, reason: str):
    params = workspace()
    save(clean.assign(group=groups(clean)))
    report = validate.run(params)
    assert report["shortcut"]["auc"]["value"] is None and any(reason in warning for warning in report["warnings"])
    assert "could not be judged" in validate.PAGE.read_text() and "Not judged" in data_card.CARD.read_text()


def test_few_groups_are_judged_where_they_can_be(clean: pd.DataFrame):
    table = clean.assign(group=clean["label"] + (clean.index % 2).astype(str))
    assert shortcut.audit(table)["auc"]["value"] is not None


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_a_table_of_one_class_is_refused_without_a_crash(clean: pd.DataFrame, workspace, rows: int):
    params = workspace()
    save(clean[clean["label"] == "real"].head(rows))
    with pytest.raises(StageError, match="There are no images" if rows == 0 else r"A class is missing.*\(fake\)"):
        validate.run(params)
    assert validate.PAGE.is_file() and data_card.CARD.is_file()


def test_a_manifest_without_a_column_is_refused_by_name(clean: pd.DataFrame, workspace):
    params = workspace()
    for column in ("label", "path", "width"):
        save(clean.drop(columns=column))
        with pytest.raises(StageError, match=rf"A column is missing.*\({column}\)"):
            validate.run(params)


@pytest.fixture
def parts(clean: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A split as it should be; `unseen` holds the reals of test."""
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
        ("group", "A group .* stands in several parts.*2 images: "),
        ("cluster", "Near-duplicates stand in several parts.*2 images"),
        ("image_id", "The same file stands in several parts.*2 images"),
        ("pixel_hash", "The same picture, in two files, stands in several parts.*2 images"),
        ("parents", "made from stand in different parts.*1 image"),
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


def test_the_model_card_says_what_metadata_tells(clean: pd.DataFrame, workspace):
    params = workspace()
    figure = {"value": 0.8, "low": 0.7, "high": 0.9}
    evaluation = {"n": 9, "threshold": 0.5, "test": {"auc": figure}, "thresholds": {"real_below": 0.4, "fake_above": 0.6}}
    evaluation |= {"selective": {"coverage": 0.9, "error": None}, "robustness": {"n": 9, "clean": {"auc": 0.8}}}
    training = {"parameters": 1, "epochs": [1], "device": "cpu", "precision": "float32", "best_epoch": 1}
    meta = {"created": "today", "trained_on": "whole", "lineage": dict.fromkeys(("git_commit", "git_dirty", "data_md5", "run_id"))}

    def text(auc: dict[str, object]) -> str:
        return card.write(params, {"train": clean}, {"shortcut": auc}, evaluation, training, meta)

    assert "tell real from fake with AUC 0.625 (0.600 to 0.650)" in text({"auc": {"value": 0.625, "low": 0.6, "high": 0.65}})
    assert "could not be judged: too few" in text({"auc": {"value": None}, "unjudged": "too few"})
