"""The data stages on planted problems: a class that is missing or leaked by metadata, wrong tables."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline import ingest, validate
from pipeline.errors import StageError
from pipeline.manifest import COLUMNS, ManifestError, check, read
from pipeline.monitoring import feedback
from pipeline.params_data import ProceduralSource
from pipeline.sources import procedural
from tests.data_helpers import picture, quarantined


def test_users_take_no_picture_out_of_another_source(faces: Path, tmp_path: Path, prepare):
    said = {"version": "1", "verdict": "fake", "probability_fake": 0.9, "label": "fake"}
    for id, path in {"against": faces / "real" / "0.jpg", "alike": faces / "fake" / "0.jpg"}.items():
        feedback.record(tmp_path / "feedback", id=id, image=path.read_bytes(), **said)
    listed = {"kind": "folder", "name": "z", "path": str(faces)}, {"kind": "feedback", "path": str(tmp_path / "feedback")}
    report = ingest.run(prepare(data__sources=list(listed)))
    assert report["by_source"] == {"z": 60} and report["duplicates"] == 1
    assert list(quarantined().values()) == ["conflict"]
    assert "real/0.jpg" in Path("reports/quarantine.csv").read_text()


def test_copies_of_a_source_go_when_the_settings_no_longer_name_it(faces: Path, tmp_path: Path, prepare):
    picture(tmp_path / "other" / "real" / "0.jpg", seed=5000, quality=90)
    sources = [{"kind": "folder", "name": name, "path": str(tmp_path / name)} for name in ("faces", "other")]
    ingest.run(prepare(data__sources=sources))
    assert Path("data/raw/other/real/0.jpg").is_file()
    assert ingest.run(prepare(data__sources=sources[:1]))["by_source"] == {"faces": 60}
    assert [folder.name for folder in Path("data/raw").iterdir()] == ["faces"] and (tmp_path / "other/real/0.jpg").is_file()


def test_rendered_fakes_are_made_of_the_reals_of_their_group_alone(tmp_path: Path):
    source = ProceduralSource(kind="procedural", reals=9, size=32, jpeg_quality=(90, 90), generators={"swap": 1.0})
    whole = procedural.listing(source, tmp_path / "whole").set_index("path")["file"]
    alone = procedural.listing(source.model_copy(update={"reals": 3}), tmp_path / "alone")
    assert len(alone) == 6 and alone["group"].nunique() == 1
    assert all(Path(row.file).read_bytes() == Path(whole[row.path]).read_bytes() for row in alone.itertuples())


def test_files_that_give_the_class_away_are_refused(faces: Path, prepare):
    for path in (faces / "fake").glob("*.jpg"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    settings = prepare()
    ingest.run(settings)
    with pytest.raises(StageError, match=r"Metadata alone tells real from fake with AUC (0\.9|1\.0).*(format|quantisation|bytes)"):
        validate.run(settings)
    assert Path("reports/validation.json").is_file()  # the report outlives the failure


def test_a_missing_class_is_named(faces: Path, prepare):
    settings = prepare()
    shutil.rmtree(faces / "fake")
    with pytest.raises(StageError, match="no image of class fake"):
        ingest.run(settings)


def test_a_folder_with_nothing_is_named(faces: Path, prepare):
    settings = prepare()
    shutil.rmtree(faces)
    faces.mkdir()
    with pytest.raises(StageError, match=r"neither manifest\.csv nor images"):
        ingest.run(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,class\na.jpg,real\n", "column label is missing"),
        ("path;label\nreal/0.jpg;real\n", "column path, label is missing; .* separated by commas"),
        ("path,label\nreal/0.jpg,\n", "label ''; allowed are real, fake"),
        ("path,label\nreal/0.jpg,real,\nreal/1.jpg,real,\n", "more fields than its header has names: path, label"),
        ("path,label\nreal/0.jpg,real\nreal/1.jpg,real,90\n", "manifest.csv cannot be read: .*Expected 2 fields in line 3, saw 3"),
        ('path,label\n"real/0.jpg,real\n', "manifest.csv cannot be read: .*EOF inside string starting at row 1"),
        ("", "manifest.csv cannot be read: No columns to parse.* Save it as CSV in UTF-8"),
        ("Label,path,label\nreal,real/0.jpg,real\n", "column label appears twice"),
        ("path,label\nreal/0.jpg,genuine\n", "label 'genuine'; allowed are real, fake"),
        ("path,label\n" + "".join(f"real/0.jpg,{n}\n" for n in range(9)), "label '0', '1', '2', '3', '4' and 4 others; allowed"),
        ("path,label\n../outside.jpg,real\n", "is absolute or has `..`; paths are relative to the folder"),
        ("path,label\nreal/absent.jpg,real\n", "1 listed files do not exist, the first is 'real/absent.jpg'"),
        ("path,label\nreal/0.jpg,real\nreal/0.jpg,real\n", "listed twice"),
        ("path,label,width,name\nreal/0.jpg,real,64,Ada\n", "column name name, width is reserved for ingest or evaluation; rename it"),
        ("path,label,score,part\nreal/0.jpg,real,9,a\n", "data source faces: column name part, score is reserved"),
        (
            "path,label,probability_fake,size\nreal/0.jpg,real,.5,S\n",
            "column name probability_fake, size is reserved .* leave the column out",
        ),
    ],
)
def test_a_wrong_manifest_is_named(faces: Path, prepare, content: str, message: str):
    (faces / "manifest.csv").write_text(content)
    with pytest.raises(StageError, match=message.replace("(", r"\(")):
        ingest.run(prepare())


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_manifest_that_is_not_utf_8_is_named(faces: Path, prepare, encoding: str):
    (faces / "manifest.csv").write_text("path,label,group\nreal/0.jpg,real,Müller\n", encoding=encoding)
    with pytest.raises(StageError, match=r"manifest\.csv cannot be read: 'utf-8' codec.* Save it as CSV in UTF-8"):
        ingest.run(prepare())


def test_capitals_and_blanks_around_names_and_labels_mean_nothing(faces: Path, prepare):
    rows = [f"{folder}/{i}.jpg, {label},{i}, 0{i}" for folder, label in (("real", "Real"), ("fake", "FAKE ")) for i in range(30)]
    (faces / "manifest.csv").write_text("Path, Label ,Light,Group\n" + "\n".join(rows) + "\n")
    assert ingest.run(prepare())["by_label"] == {"real": 30, "fake": 30}
    table = read(Path("data/manifest.parquet"))
    assert "Light" in table and set(table["group"]) == {f"faces/0{i}" for i in range(30)}  # an attribute keeps its name


def test_a_manifest_brings_groups_generators_and_attributes(faces: Path, prepare):
    rows = [
        f"{label}/{i}.jpg,{label},{'' if label == 'real' else 'gan'},p{i // 3},{'dark' if i % 2 else 'light'}"
        for label in ("real", "fake")
        for i in range(30)
    ]
    (faces / "manifest.csv").write_text("path,label,generator,group,light\n" + "\n".join(rows) + "\n")
    settings = prepare()
    ingest.run(settings)
    table = read(Path("data/manifest.parquet"))
    assert set(table["group"]) == {f"faces/p{i}" for i in range(10)} and set(table["light"]) == {"dark", "light"}
    assert set(table.loc[table["label"] == "fake", "generator"]) == {"gan"} and set(table.loc[table["label"] == "real", "generator"]) == {
        "none"
    }


def test_a_file_that_is_no_parquet_is_no_manifest(tmp_path: Path):
    (tmp_path / "README.md").write_text("# Faces")
    with pytest.raises(ManifestError, match=r"README\.md cannot be read: .*Parquet"):
        read(tmp_path / "README.md")


def test_an_unknown_label_is_no_manifest():
    table = pd.DataFrame([dict.fromkeys(COLUMNS, 1) | {"label": "maybe"}])
    with pytest.raises(ManifestError, match="label 'maybe'; allowed are real, fake"):
        check(table, "here")
