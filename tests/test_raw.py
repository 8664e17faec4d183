"""data/raw: unchanged by a second run; images in place, re-encoded, in shards."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import ingest
from pipeline.images import read as read_image
from pipeline.lineage import lineage
from pipeline.manifest import MANIFEST, read
from pipeline.params import Params
from tests.conftest import run
from tests.data_helpers import picture, quarantined


def test_a_second_run_looks_only_at_what_is_new(faces: Path, prepare: Callable[..., Params]):
    settings = prepare()
    ingest.run(settings)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("data/raw").rglob("*.jpg")}
    first = MANIFEST.read_bytes()
    picture(faces / "real" / "new.jpg", seed=9000, quality=90)
    picture(faces / "real" / "1.jpg", seed=9001, quality=90)
    (faces / "fake" / "2.jpg").unlink()
    ingest.run(settings)
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("data/raw").rglob("*.jpg")}
    changed = {path.as_posix() for path in after if after[path] != before.get(path)}
    assert changed == {"data/raw/faces/real/new.jpg", "data/raw/faces/real/1.jpg"}
    assert before.keys() - after.keys() == {Path("data/raw/faces/fake/2.jpg")}
    assert set(read(MANIFEST)["path"]) == {path.as_posix() for path in after}
    picture(faces / "real" / "1.jpg", seed=1, quality=90)
    picture(faces / "fake" / "2.jpg", seed=1002, quality=90)
    (faces / "real" / "new.jpg").unlink()
    ingest.run(settings)
    assert MANIFEST.read_bytes() == first


def test_other_settings_hold_for_pictures_that_were_taken_before(faces: Path, prepare: Callable[..., Params]):
    with Image.open(faces / "real" / "0.jpg") as image:
        image.resize((64, 40)).save(faces / "real" / "small.jpg")
    assert ingest.run(prepare(ingest__min_side=40))["images"] == 61  # the least side itself is enough
    assert ingest.run(prepare(ingest__min_side=41))["images"] == 60 and quarantined() == {"small.jpg": "too_small"}


def test_other_labels_are_another_data_version(faces: Path, prepare: Callable[..., Params]):
    prepare()
    stage = {"cmd": "python -m pipeline.ingest", "outs": [{"data/raw": {"persist": True}}, "data/manifest.parquet"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": stage}}))
    run(Path.cwd(), "git", "init", "--quiet")
    run(Path.cwd(), sys.executable, "-m", "dvc", "init", "--quiet")

    def version(labels: list[str]) -> str:
        rows = [f"{folder}/{index}.jpg,{label}\n" for folder in ("real", "fake") for index, label in enumerate([*labels, *[folder] * 28])]
        (faces / "manifest.csv").write_text("".join(["path,label\n", *rows]))
        run(Path.cwd(), sys.executable, "-m", "dvc", "repro", "--force", "--quiet")
        return str(lineage()["data_md5"])

    first = version(["real", "fake"])
    assert version(["fake", "real"]) != first == version(["real", "fake"])


def test_a_source_is_only_ever_read(faces: Path, prepare: Callable[..., Params]):
    before = {path: path.read_bytes() for path in faces.rglob("*.jpg")}
    for folder in (faces, faces / "real", faces / "fake"):
        folder.chmod(0o555)
    ingest.run(prepare(data__forge={"methods": {"self_blend": 1}}))
    assert {path: path.read_bytes() for path in faces.rglob("*") if path.is_file()} == before


def test_images_can_stay_where_they_are(faces: Path, prepare: Callable[..., Params]):
    prepare()
    source = {"kind": "folder", "name": "faces", "path": str(faces), "in_place": True}
    report = ingest.run(prepare(data__sources=[source]))
    assert report["images"] == 60 and not list(Path("data/raw").rglob("*.jpg"))
    assert all(Path(path).is_relative_to(faces) for path in read(MANIFEST)["path"])
    sums = Path("data/raw/faces/SHA256SUMS")
    before = sums.read_text()
    picture(faces / "real" / "1.jpg", seed=9001, quality=90)  # DVC sees from the hashes that the data changed
    ingest.run(prepare(data__sources=[source]))
    assert len(before.splitlines()) == 60 and len(set(before.splitlines()) - set(sums.read_text().splitlines())) == 1


def test_normalising_makes_files_of_both_classes_alike(faces: Path, prepare: Callable[..., Params]):
    for path in (faces / "fake").glob("*.jpg"):
        with Image.open(path) as image:
            image.resize((96, 72)).save(path.with_suffix(".png"))
        path.unlink()
    ingest.run(prepare(ingest__normalise={"size": 80, "jpeg_quality": 85}))
    table = read(MANIFEST)
    assert set(table["format"]) == {"JPEG"} and set(table["jpeg_quality"]) == {85} and set(table["subsampling"]) == {"4:2:0"}
    assert set(table["width"]) == {80} and set(table["metadata_bytes"]) == {0}


def test_shards_hold_the_same_pictures_in_few_files(faces: Path, prepare: Callable[..., Params], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.shards.MEMBERS", 16)
    ingest.run(prepare())
    plain = read(MANIFEST)
    pixels = [read_image(Path(path)).pixels for path in plain["path"]]
    ingest.run(prepare(data__shard=True))
    packed = read(MANIFEST)
    assert sorted(path.name for path in Path("data/raw/faces").iterdir()) == [f"{number:06d}.tar" for number in range(4)]
    assert sorted(packed["image_id"]) == sorted(plain["image_id"])
    by_id = packed.set_index("image_id")["path"]
    for image_id, wanted in zip(plain["image_id"], pixels, strict=True):
        assert np.array_equal(read_image(Path(by_id[image_id])).pixels, wanted)
    first = {path.name: path.read_bytes() for path in Path("data/raw/faces").iterdir()}
    picture(faces / "real" / "new.jpg", seed=9000, quality=90)
    ingest.run(prepare(data__shard=True))
    after = {path.name: path.read_bytes() for path in Path("data/raw/faces").iterdir()}
    assert first.items() <= after.items() and set(after) - set(first) == {"000004.tar"}
    (faces / "real" / "new.jpg").unlink()
    (faces / "real" / "3.jpg").unlink()
    ingest.run(prepare(data__shard=True))
    assert len(read(MANIFEST)) == 59
    for row in read(MANIFEST).itertuples():
        assert read_image(Path(str(row.path))).format == "JPEG"


def test_a_folder_may_be_called_like_a_shard(faces: Path, prepare: Callable[..., Params]):
    for index in range(20):
        picture(faces / "real/crops.tar" / f"{index}.jpg", seed=6000 + index, quality=90)
    for shard in (False, True):
        for _ in range(2):
            assert ingest.run(prepare(data__shard=shard))["images"] == 80
    assert all(read_image(Path(path)).format == "JPEG" for path in read(MANIFEST)["path"])


def test_re_encoded_pictures_keep_apart_whatever_their_names(faces: Path, prepare: Callable[..., Params]):
    for index, name in enumerate(("a.png", "a.png.jpg", "b", "b.jpg")):
        picture(faces / "real" / "plain.png", seed=6100 + index)
        (faces / "real" / "plain.png").rename(faces / "real" / name)
    assert ingest.run(prepare(ingest__normalise={"size": 64, "jpeg_quality": 90}))["images"] == 64


def test_a_file_may_become_a_folder_and_a_folder_a_file(faces: Path, prepare: Callable[..., Params]):
    for seed, name in enumerate(("one", "two/inner.jpg", "one/inner.jpg", "two")):
        shutil.rmtree(faces / "real" / Path(name).parts[0], ignore_errors=True)
        (faces / "real" / Path(name).parts[0]).unlink(missing_ok=True)
        picture(faces / "real" / "plain.jpg", seed=6200 + seed, quality=90)
        (faces / "real" / name).parent.mkdir(exist_ok=True)
        (faces / "real" / "plain.jpg").rename(faces / "real" / name)
        ingest.run(prepare())
        assert f"data/raw/faces/real/{name}" in set(read(MANIFEST)["path"])


@pytest.mark.parametrize("left", [0, 500])
def test_notes_that_a_lost_power_cut_off_are_made_again(faces: Path, prepare: Callable[..., Params], left: int):
    ingest.run(params := prepare())
    before = MANIFEST.read_bytes()
    (notes,) = Path("var/ingest").rglob("*.parquet")
    notes.write_bytes(notes.read_bytes()[:left])
    ingest.run(params)
    assert MANIFEST.read_bytes() == before and [file.stat().st_size > left for file in Path("var/ingest").rglob("*.parquet")] == [True]
