"""Sources of images other than folders and the hub: LFW, feedback, and fakes forged from reals."""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image, ImageCms

from pipeline import ingest, split
from pipeline.errors import StageError
from pipeline.images import read as read_image
from pipeline.manifest import MANIFEST, read, read_parts
from pipeline.monitoring import feedback
from pipeline.params import Params
from tests.data_helpers import picture, quarantined

FORGE = {"methods": {"self_blend": 0.4, "swap": 0.3, "resynthesis": 0.3}, "seed": 3}


@pytest.fixture
def lfw_home(tmp_path: Path) -> Path:
    """What scikit-learn's fetcher has before unpacking: the downloaded archive and the lists of pairs."""
    home = tmp_path / "scikit_learn_data"
    people = tmp_path / "lfw_funneled"
    for person in range(24):
        for shot in range(1 + person % 3):
            picture(people / f"Person_{person:02d}" / f"Person_{person:02d}_{shot:04d}.jpg", seed=100 * person + shot, quality=90)
    (home / "lfw_home").mkdir(parents=True)
    with tarfile.open(home / "lfw_home" / "lfw-funneled.tgz", "w:gz") as archive:
        archive.add(people, "lfw_funneled")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (home / "lfw_home" / name).touch()
    return home


def test_reals_of_lfw_alone_are_enough(lfw_home: Path, prepare: Callable[..., Params]):
    source = {"kind": "lfw", "name": "lfw", "data_home": str(lfw_home)}
    with pytest.raises(StageError, match=r"no image of class fake in the sources lfw.*Set data\.forge"):
        ingest.run(prepare(data__sources=[source]))
    report = ingest.run(prepare(data__sources=[source], data__forge=FORGE))
    assert report["by_label"] == {"real": 48, "fake": 48} and set(report["by_generator"]) == {"none", "self_blend", "swap", "resynthesis"}
    table = read(MANIFEST)
    reals, fakes = table[table["label"] == "real"].set_index("image_id"), table[table["label"] == "fake"]
    assert set(reals["group"]) == {f"lfw/Person_{person:02d}" for person in range(24)}
    assert fakes["seed"].notna().all() and reals["seed"].isna().all()
    for row in fakes.itertuples():
        parents = row.parents.split()
        assert reals.loc[parents[0], "group"] == row.group
        if row.generator == "swap" and len(parents) > 1:
            assert reals.loc[parents[1], "group"] != row.group  # somebody else's face
        origin, fake = read_image(Path(reals.loc[parents[0], "path"])).pixels, read_image(Path(row.path)).pixels
        assert origin.shape == fake.shape and not np.array_equal(origin, fake)
    assert (fakes["parents"].str.count(" ") == 1).sum() > 5


def test_a_forged_fake_is_stored_as_its_real_is(faces: Path, prepare: Callable[..., Params]):
    for index, path in enumerate(sorted((faces / "real").glob("*.jpg"))):
        with Image.open(path) as image:
            image.load()
        # An MPO file, as phones make them, is a JPEG with a second image appended.
        kind = {"format": "MPO", "save_all": True, "append_images": [image]} if index % 5 == 0 else {}
        if index % 3:  # as a camera that was held in any of eight ways
            exif = Image.Exif()
            exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "A camera", index % 8 + 1
            kind |= {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "comment": "by me"}
        image.crop((0, 0, 64, 56)).save(path, quality=(60, 75, 95)[index % 3], subsampling=("4:4:4", "4:2:2", "4:2:0")[index % 3], **kind)
    ingest.run(prepare(data__forge=FORGE))
    table = read(MANIFEST)
    reals = table.set_index("image_id")[["format", "quantisation", "subsampling", "width", "height", "metadata_bytes"]]
    fakes = table[table["source"] == "forge"]
    assert len(fakes) == 30 and set(table["format"]) == {"JPEG"} and table["metadata_bytes"].nunique() > 1
    files = table.set_index("image_id")["path"]
    for row in fakes.itertuples():
        real = row.parents.split()[0]
        assert tuple(reals.loc[real]) == tuple(getattr(row, column) for column in reals.columns)
        pixels = [read_image(Path(path)).pixels.astype(float).ravel() for path in (files[real], row.path)]
        assert np.corrcoef(*pixels)[0, 1] > 0.4  # both are upright


def test_a_fake_of_a_webp_differs_from_its_real_only_where_it_is_forged(faces: Path, prepare: Callable[..., Params]):
    for index, path in enumerate(sorted((faces / "real").glob("*.jpg"))):
        with Image.open(path) as image:
            image.save(path.with_suffix(".webp"), quality=90, lossless=index % 2 == 0)
        path.unlink()
    ingest.run(prepare(data__forge=FORGE | {"methods": {"self_blend": 0.5, "swap": 0.5}}))
    table = read(MANIFEST)
    files = table.set_index("image_id")["path"]
    fakes = table[table["source"] == "forge"]
    assert len(fakes) == 30 and set(fakes["format"]) == {"WEBP"}
    for row in fakes.itertuples():
        real, fake = (read_image(Path(path)).pixels for path in (files[row.parents.split()[0]], row.path))
        assert np.array_equal(real[:3], fake[:3]) and not np.array_equal(real, fake)


def test_a_black_and_white_photograph_is_forged_without_colour(faces: Path, prepare: Callable[..., Params]):
    for path in sorted((faces / "real").glob("*.jpg"))[::2]:
        with Image.open(path) as image:
            image.convert("L").save(path, quality=90)
    ingest.run(prepare(data__forge=FORGE))
    table = read(MANIFEST)
    stored = table.set_index("image_id")["subsampling"]
    fakes = table[table["source"] == "forge"]
    assert (fakes["subsampling"] == "4:0:0").sum() == 15
    for row in fakes.itertuples():
        assert row.subsampling == stored[row.parents.split()[0]]
        assert np.ptp(read_image(Path(row.path)).pixels, axis=-1).any() == (row.subsampling != "4:0:0")


def test_forging_depends_on_the_images_alone_and_new_reals_change_few_fakes(faces: Path, prepare: Callable[..., Params]):
    settings = prepare(data__forge=FORGE)
    ingest.run(settings)
    first = read(MANIFEST)
    shutil.rmtree("data")
    shutil.rmtree("var")
    ingest.run(settings)
    pd.testing.assert_frame_equal(read(MANIFEST), first)
    for index in range(3):
        picture(faces / "real" / f"new{index}.jpg", seed=5000 + index, quality=90)
    ingest.run(settings)
    fakes, before = (set(table.loc[table["source"] == "forge", "image_id"]) for table in (read(MANIFEST), first))
    assert len(fakes) == 33 and len(before - fakes) <= 3


def test_the_forgeries_of_a_picture_leave_with_it_whatever_they_were_made_with(faces: Path, prepare: Callable[..., Params]):
    ingest.run(prepare(data__forge=FORGE | {"seed": 1}))
    settings = prepare(data__forge=FORGE)
    ingest.run(settings)
    reals = read(MANIFEST).query("label == 'real'")
    (faces / "real/0.jpg").unlink()
    (left,) = reals.loc[reals["path"].str.endswith("real/0.jpg"), "image_id"]
    ingest.run(settings)
    fakes = read(MANIFEST).query("source == 'forge'")
    assert len(fakes) and not fakes["parents"].str.contains(left).any()
    kept = [*Path("var/sources").rglob("*.jpg"), *Path("data/raw/forge").rglob("*.jpg")]
    assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in kept} == set(fakes["image_id"])
    ingest.run(prepare(data__forge=None))
    assert not [*Path("var/sources").rglob("*.jpg"), *Path("data/raw/forge").rglob("*.jpg")]


def test_only_the_reals_of_the_named_sources_are_forged(faces: Path, prepare: Callable[..., Params], tmp_path: Path):
    for index in range(10):
        picture(tmp_path / "other" / "real" / f"{index}.jpg", seed=5000 + index, quality=90)
    sources = [{"kind": "folder", "name": name, "path": str(tmp_path / name)} for name in ("faces", "other")]
    ingest.run(prepare(data__sources=sources, data__forge=FORGE | {"sources": ["other"]}))
    fakes = read(MANIFEST).query("source == 'forge'")
    assert len(fakes) == 10 and fakes["group"].str.startswith("other/").all()


def test_a_picture_in_two_files_is_forged_once_and_from_the_one_that_stays(faces: Path, prepare: Callable[..., Params]):
    for path in (faces / "real").glob("*.jpg"):
        (faces / "real" / f"copy-{path.name}").write_bytes(path.read_bytes() + b"\0")
    ingest.run(prepare(data__forge=FORGE))
    table = read(MANIFEST)
    parents = table["parents"].str.split().explode().dropna()
    assert (table["source"] == "forge").sum() == 30 and set(parents) <= set(table["image_id"])


def test_parents_and_fakes_are_never_parted(faces: Path, prepare: Callable[..., Params]):
    settings = prepare(data__forge={"methods": {"swap": 1}, "per_real": 0.5})
    ingest.run(settings)
    split.run(settings)
    parts = read_parts()
    place = {image_id: name for name, part in parts.items() for image_id in part["image_id"]}
    swaps = pd.concat(parts.values()).query("generator == 'swap'")
    assert 5 <= len(swaps) <= 25
    for row in swaps.itertuples():
        assert {place[parent] for parent in row.parents.split()} == {place[row.image_id]}


def test_feedback_comes_back_as_data_and_disagreement_is_left_out(tmp_path: Path, faces: Path, prepare: Callable[..., Params]):
    folder = tmp_path / "feedback"
    images = sorted((faces / "real").glob("*.jpg"))
    said = {"version": "3", "verdict": "fake", "probability_fake": 0.9}
    for index, path in enumerate(images[:6]):
        feedback.record(folder, id=f"a{index}", label="real", image=path.read_bytes(), **said)
    feedback.record(folder, id="a1", label="fake", image=images[1].read_bytes(), **said)  # the user changed their mind
    feedback.record(folder, id="b2", label="fake", image=images[2].read_bytes(), **said)  # another user disagrees
    feedback.record(folder, id="c", label="real", **said)  # without consent to keep the image
    with (folder / "feedback.jsonl").open("ab") as file:
        file.write(b'{"id": "d", "label"')  # a crash in the middle of a line
    source = {"kind": "feedback", "name": "users", "path": str(folder)}
    ingest.run(prepare(data__sources=[source]))
    table = read(MANIFEST)
    assert sorted(table["label"]) == ["fake", "real", "real", "real", "real"] and not quarantined()
    assert {line.split(",")[0] for line in Path("var/sources/users/set_aside.csv").read_text().splitlines()[1:]} == {"a2", "b2"}
    assert {path.name for path in folder.iterdir()} == {"feedback.jsonl", "images", "lock"}  # nothing is written to a source
    assert set(table["answered_by"]) == {"3"} and set(table["verdict"]) == {"fake"}
    with (folder / "feedback.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(StageError, match=r"feedback.jsonl, line 10: .*"):
        ingest.run(prepare(data__sources=[source]))
