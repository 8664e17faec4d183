"""Ingest: broken files, odd names, groups, and settings that do not fit together."""

import base64
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline import ingest
from pipeline.errors import StageError
from pipeline.images import read as read_image
from pipeline.manifest import COLUMNS, MANIFEST, read
from pipeline.params import Params
from pipeline.settings import apply
from pipeline.sources import listing
from pipeline.sources.folder import listing as list_folder
from tests.data_helpers import picture, quarantined


def encoded(kind: str, size: tuple[int, int] = (64, 64), flat: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 1 if flat else 255, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def broken_files() -> dict[str, bytes]:
    """Name -> content of files that must not be trained on."""
    jpeg, png, webp, gif = (encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))
    bmp, tiff = encoded("BMP"), encoded("TIFF")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", jpeg)
    bomb = b"IHDR" + struct.pack(">II", 60000, 60000) + png[24:29]
    sof = jpeg.index(b"\xff\xc0")
    return {
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "page.jpg": b"<!doctype html><html><body>404</body></html>",
        "json.jpg": b'{"error": "not found"}',
        "zeros.jpg": bytes(5000),
        "random.jpg": np.random.default_rng(1).bytes(5000),
        "base64.jpg": base64.b64encode(jpeg),
        "gzip.jpg": gzip.compress(jpeg),
        "zip.jpg": archive.getvalue(),
        "pdf.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
        "elf.png": b"\x7fELF" + bytes(200),
        "video.jpg": b"\x00\x00\x00\x18ftypmp42" + bytes(500),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n",
        "photoshop.png": b"8BPS\x00\x01" + bytes(200),
        "magic.jpg": jpeg[:3],
        "magic.png": png[:8],
        "header.jpg": jpeg[:40],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2],
        "half.webp": webp[: len(webp) // 2],
        "half.gif": gif[: len(gif) // 2],
        "half.bmp": bmp[: len(bmp) // 2],
        "half.tiff": tiff[: len(tiff) // 2],
        "shifted.jpg": b"\x00" + jpeg,
        "chunk.png": png[:60] + bytes(40) + png[100:],
        "no-tables.jpg": jpeg[:2] + jpeg[sof:],
        "tall.jpg": jpeg[: sof + 5] + struct.pack(">HH", 65000, 65000) + jpeg[sof + 9 :],
        "bomb.png": png[:12] + bomb + struct.pack(">I", zlib.crc32(bomb)) + png[33:],
        "zero.png": png[:16] + bytes(8) + png[24:],
        "one-pixel.png": encoded("PNG", (1, 1)),
        "thin.jpg": encoded("JPEG", (8, 200)),
        "many-pixels.png": encoded("PNG", (1200, 1200), flat=True),
        "heavy.bmp": encoded("BMP", (600, 900)),
    }


def test_every_kind_of_broken_file_is_listed_with_its_reason(faces: Path, prepare: Callable[..., Params]):
    for number, (name, content) in enumerate(broken_files().items()):
        (faces / ("real", "fake")[number % 2] / name).write_bytes(content)
    (faces / "real" / "dangling.jpg").symlink_to(faces / "absent.jpg")
    os.mkfifo(faces / "real" / "pipe.jpg")
    (faces / "fake" / "caf\udce9").mkdir()  # the byte E9, which is not UTF-8
    shutil.copy(faces / "fake" / "0.jpg", faces / "fake" / "caf\udce9" / "0.jpg")
    report = ingest.run(prepare(ingest__max_broken=0.5, ingest__max_megapixels=1, ingest__max_megabytes=1.5))
    found = quarantined()
    assert set(broken_files()) | {"dangling.jpg", "pipe.jpg"} <= set(found) and report["images"] == 60
    assert {found[name] for name in ("dangling.jpg", "pipe.jpg")} == {"unreadable"}
    assert found["empty.jpg"] == "empty" and found["half.jpg"] == "truncated"
    assert found["one-pixel.png"] == found["thin.jpg"] == "too_small"
    assert found["many-pixels.png"] == found["bomb.png"] == found["tall.jpg"] == "too_many_pixels"
    assert found["heavy.bmp"] == "too_large" and found["half.png"] == "truncated" and found["pdf.jpg"] == "not_an_image"
    assert report["quarantined_by_reason"]["unreadable"] == 3  # the third has a name that is not UTF-8
    with pytest.raises(StageError, match=r"37 of 97 files are broken, more than ingest.max_broken = 0.05"):
        ingest.run(prepare(ingest__max_megapixels=1, ingest__max_megabytes=1.5))


def test_what_is_new_may_all_be_broken(faces: Path, prepare: Callable[..., Params]):
    ingest.run(params := prepare())
    (faces / "real" / "new.jpg").write_bytes(b"hello")
    assert ingest.run(params)["images"] == 60 and quarantined() == {"new.jpg": "not_an_image"}


@pytest.mark.parametrize("source", ["data/raw/mine", "faces"])
def test_originals_in_data_raw_are_not_taken_for_copies(faces: Path, prepare: Callable[..., Params], source: str):
    prepare()
    shutil.copytree(faces, "data/raw/mine")
    with pytest.raises(StageError, match="move it"):
        ingest.run(prepare(data__sources=[{"kind": "folder", "name": "faces", "path": source if source != "faces" else str(faces)}]))
    assert len(list(Path("data/raw/mine").rglob("*.jpg"))) == 60


def test_groups_that_hold_one_picture_stay_together_without_its_copy(faces: Path, tmp_path: Path, prepare: Callable[..., Params]):
    other = tmp_path / "other"  # a second data set, with the same reals under other names
    other.mkdir()
    rows = ["path,label,group"]
    for number in range(30):
        for label in ("real", "fake"):
            shutil.copy(faces / "real" / f"{number}.jpg", other / f"{label}-{number}.jpg")
            rows.append(f"{label}-{number}.jpg,{label},video {number}")
        picture(other / f"fake-{number}.jpg", seed=9000 + number, quality=90)
    (other / "manifest.csv").write_text("\n".join(rows))
    sources = [{"kind": "folder", "name": path.name, "path": str(path)} for path in (faces, other)]
    ingest.run(prepare(data__sources=sources))
    table = read(MANIFEST).set_index("path")["group"]
    assert len(table) == 90
    for number in range(30):
        assert table[f"data/raw/other/fake-{number}.jpg"] == table[f"data/raw/faces/real/{number}.jpg"] == f"faces/real/{number}.jpg"


def test_odd_names_are_no_trouble(faces: Path, prepare: Callable[..., Params]):
    names = ["émile.jpg", "人脸.jpg", "😀.jpg", "a b'\"c;$(rm).jpg", "new\nline.jpg", "no_suffix", "x" * 251 + ".jpg", "comma,.JPG"]
    for index, name in enumerate(names):
        picture(faces / "real" / "plain.jpg", seed=7000 + index, quality=90)
        (faces / "real" / "plain.jpg").rename(faces / "real" / name)
    deep = faces / "fake" / "/".join(["d" * 200] * 18)  # a path of some 4,000 characters
    deep.mkdir(parents=True)
    shutil.copy(faces / "fake" / "0.jpg", deep / "0.jpg")
    picture(faces / "fake" / "fresh.jpg", seed=7999, quality=90)
    (faces / "fake" / "fresh.jpg").rename(deep / "0.jpg")
    assert len(str(deep)) > 3600
    ingest.run(prepare())
    table = read(MANIFEST)
    assert len(table) == 60 + len(names) + 1 and not quarantined()
    assert {f"data/raw/faces/real/{name}" for name in names if len(name) < 200} <= set(table["path"])
    assert table["path"].str.contains("long-names/").sum() == 2
    for path in table["path"]:
        assert read_image(Path(path)).rgb.size == (64, 64)


def test_links_are_followed_but_not_in_circles(faces: Path, prepare: Callable[..., Params], tmp_path: Path):
    picture(tmp_path / "elsewhere" / "linked.jpg", seed=8000, quality=90)
    (faces / "real" / "folder").symlink_to(tmp_path / "elsewhere")
    (faces / "real" / "circle").symlink_to(faces / "real")
    (faces / "real" / "itself").symlink_to("itself")
    ingest.run(prepare())
    assert quarantined() == {"itself": "unreadable"}
    assert "data/raw/faces/real/folder/linked.jpg" in set(read(MANIFEST)["path"]) and len(read(MANIFEST)) == 61


def test_folders_that_are_not_read_are_named(faces: Path, prepare: Callable[..., Params], caplog: pytest.LogCaptureFixture):
    (faces / "fake_swap").mkdir()
    (faces / ".cache").mkdir()
    params = prepare()
    ingest.run(params)
    assert "only real/ and fake/ are read, not 'fake_swap'; " in caplog.text
    (faces / "real").rename(faces / "Real")
    (faces / "fake").rename(faces / "Fake")
    with pytest.raises(StageError, match=r"nor images under real/ and fake/; there is 'Fake', 'Real', 'fake_swap'"):
        ingest.run(params)


def test_a_folder_inside_fake_names_the_generator_and_hidden_files_are_no_images(faces: Path, prepare: Callable[..., Params]):
    picture(faces / "fake" / "gan" / "deep" / "0.jpg", seed=8000, quality=90)
    picture(faces / "real" / "studio" / "0.jpg", seed=8001, quality=90)
    for name in ("real/.DS_Store", "fake/gan/._0.jpg"):  # as macOS leaves them
        (faces / name).write_bytes(b"no image")
    assert ingest.run(prepare())["by_generator"] == {"gan": 1, "none": 31, "unknown": 30} and not quarantined()


def test_columns_tell_how_good_a_picture_is_and_how_it_was_stored(faces: Path, prepare: Callable[..., Params]):
    with Image.open(faces / "real" / "0.jpg") as image:
        image.save(faces / "real" / "0.png")
        image.resize((16, 16)).resize((64, 64)).save(faces / "real" / "1.jpg", quality=55, subsampling="4:4:4", comment=b"x" * 50)
        Image.eval(image, lambda value: value // 4).save(faces / "real" / "2.jpg", quality=90)
    (faces / "real" / "0.jpg").unlink()
    (faces / "real" / "noise.png").write_bytes(encoded("PNG"))
    ingest.run(prepare())
    table = read(MANIFEST).set_index("path")
    assert list(COLUMNS) == list(table.reset_index()[list(COLUMNS)]) and len(table.columns) == len(COLUMNS) - 1
    png, soft, dark = (table.loc[f"data/raw/faces/real/{name}"] for name in ("0.png", "1.jpg", "2.jpg"))
    assert (soft["jpeg_quality"], soft["subsampling"], soft["metadata_bytes"]) == (55, "4:4:4", 50)
    assert (dark["jpeg_quality"], dark["subsampling"], dark["metadata_bytes"]) == (90, "4:2:0", 0)
    assert pd.isna(png["jpeg_quality"]) and png["subsampling"] == "" == png["quantisation"] and soft["quantisation"]
    assert table.loc["data/raw/faces/real/noise.png", "blur"] > 50 * png["blur"] and dark["brightness"] < png["brightness"] / 3
    assert table["faces"].isna().all()  # no detector was set, and none is guessed


def test_a_source_without_an_image_is_no_error_beside_another(faces: Path, prepare: Callable[..., Params], tmp_path: Path):
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled" / "manifest.csv").write_text("path,label\n")
    folders = [{"kind": "folder", "name": folder.name, "path": str(folder)} for folder in (faces, tmp_path / "labelled")]
    assert ingest.run(prepare(data__sources=folders))["by_source"] == {"faces": 60}


def test_a_picture_under_both_labels_is_a_conflict_and_a_double_is_one_row(faces: Path, prepare: Callable[..., Params]):
    with Image.open(faces / "real" / "0.jpg") as image:
        image.save(faces / "fake" / "same.png")
    with Image.open(faces / "real" / "1.jpg") as image:
        image.save(faces / "real" / "again.bmp")
    shutil.copy(faces / "real" / "2.jpg", faces / "fake" / "copy.jpg")
    shutil.copy(faces / "real" / "3.jpg", faces / "real" / "copy of 3.jpg")
    report = ingest.run(prepare())
    assert quarantined() == dict.fromkeys(("0.jpg", "same.png", "2.jpg", "copy.jpg"), "conflict")
    assert report["duplicates"] == 2 and report["images"] == 58


def test_one_person_in_two_folders_is_one_group_and_equal_names_in_two_sources_are_not(faces: Path, prepare, tmp_path: Path):
    rows = [f"{label}/{i}.jpg,{label},p{i // 3}" for label in ("real", "fake") for i in range(30)]
    (faces / "manifest.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    other = tmp_path / "other"
    shutil.copytree(faces, other)
    for index, path in enumerate(sorted(other.rglob("*.jpg"))):
        picture(path, seed=4000 + index, quality=90)
    sources = [{"kind": "folder", "name": folder.name, "path": str(folder)} for folder in (faces, other)]
    ingest.run(prepare(data__sources=sources))
    table = read(MANIFEST)
    assert set(table.groupby("group").size()) == {6} and table["group"].nunique() == 20
    assert set(table["source"]) == {"faces", "other"}


def test_a_face_detector_that_is_missing_is_named(faces: Path, prepare: Callable[..., Params]):
    with pytest.raises(StageError, match=r"absent.onnx does not exist; it should be YuNet's ONNX file"):
        ingest.run(prepare(ingest__face_detector="absent.onnx"))


def test_settings_that_exclude_each_other_are_named(faces: Path, prepare: Callable[..., Params]):
    prepare()
    source = {"kind": "folder", "name": "faces", "path": str(faces), "in_place": True}
    for wrong, message in (
        ({"data.sources": [source], "data.shard": True}, "cannot be packed into shards"),
        ({"data.sources": [source], "ingest.normalise": {"size": 64, "jpeg_quality": 90}}, "a source that is read in place stay"),
        ({"ingest.face_margin": 0.1}, "face_detector, which finds them, is not set"),
        ({"data.forge": {"sources": ["web"], "methods": {"swap": 1}}}, "no source is called web; there are: faces"),
        ({"data.forge": {"methods": {"swap": 0.5}}}, "the shares of `methods` sum to 0.5, not to 1"),
        ({"data.sources": [source | {"name": "../up"}]}, "should match pattern"),
        ({"data.sources": [source, source | {"path": "elsewhere"}]}, "two sources have the same name"),
        ({"data.sources": [source | {"name": "forge"}], "data.forge": {"methods": {"swap": 1}}}, "cannot be called 'forge'"),
    ):
        with pytest.raises(ValueError, match=message):
            apply(wrong, Path("params.yaml"))


def test_the_listing_of_a_folder_is_the_same_whatever_order_the_disk_has(faces: Path, prepare: Callable[..., Params]):
    table = list_folder(prepare().data.sources[0])  # type: ignore[arg-type]
    assert list(table["path"]) == sorted(table["path"], key=lambda path: (path.split("/")[0] != "real", path))
    json.dumps(table.to_dict("records"))


def test_a_space_in_the_table_makes_no_other_person(faces: Path, prepare: Callable[..., Params]):
    rows = ["real/0.jpg,real,,007", "fake/0.jpg, fake , gan, 007 "]
    (faces / "manifest.csv").write_text("path,label,generator,group\n" + "\n".join(rows) + "\n")
    table = list_folder(prepare().data.sources[0])  # type: ignore[arg-type]
    assert set(table["group"]) == {"007"} and set(table["generator"]) == {"", "gan"}


def test_only_fakes_have_a_generator_and_every_fake_has_one(faces: Path, prepare: Callable[..., Params]):
    rows = ["real/0.jpg,real,gan", "fake/0.jpg,fake,none", "fake/1.jpg,fake,", "fake/2.jpg,fake,gan"]
    (faces / "manifest.csv").write_text("path,label,generator\n" + "\n".join(rows) + "\n")
    table = listing(prepare().data.sources[0], Path("staging")).set_index("path")
    assert table["generator"].to_dict() == {"real/0.jpg": "none", "fake/0.jpg": "unknown", "fake/1.jpg": "unknown", "fake/2.jpg": "gan"}
