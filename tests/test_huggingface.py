"""Hugging Face datasets as a source."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import ingest
from pipeline.errors import StageError
from pipeline.manifest import MANIFEST, read
from pipeline.params import Params
from tests.data_helpers import picture


def hub_dataset(folder: Path, rows: int) -> None:
    """A dataset folder in the hub's format: images inside Parquet files, classes as named numbers."""
    import datasets

    items: dict[str, list[object]] = {"picture": [], "kind": [], "person": [], "tool": []}
    for index in range(rows):
        buffer = io.BytesIO()
        coarse = np.random.default_rng(index).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        items["picture"].append({"bytes": buffer.getvalue(), "path": f"{index}.jpg"})
        items["kind"].append(index % 3)
        items["person"].append(f"p{index // 4}" if index % 10 else None)
        items["tool"].append("gan" if index % 6 == 0 else -1)
    features = datasets.Features(
        picture=datasets.Image(),
        kind=datasets.ClassLabel(names=["Fake", "Real", "Unsure"]),
        person=datasets.Value("string"),
        tool=datasets.ClassLabel(names=["diffusion", "gan"]),
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(items, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def hub_source(folder: Path) -> dict[str, object]:
    return {
        "kind": "huggingface",
        "name": "hub",
        "dataset": str(folder),
        "image": "picture",
        "label": "kind",
        "labels": {"Fake": "fake", "Real": "real"},
        "group": "person",
        "generator": "tool",
        "attributes": ["person"],
    }


def test_a_hub_dataset_is_read_as_a_stream_and_grows(tmp_path: Path, prepare: Callable[..., Params]):
    hub_dataset(tmp_path / "hub", 60)
    settings = prepare(data__sources=[hub_source(tmp_path / "hub")])
    assert ingest.run(settings)["by_label"] == {"real": 20, "fake": 20}
    table = read(MANIFEST)
    assert table["generator"].value_counts().to_dict() == {"none": 20, "gan": 10, "unknown": 10}
    assert table["person"].nunique() == 15 + 1  # kept as an attribute, empty where it is missing
    assert table["group"].nunique() == 15 + 4  # an image of an unnamed person is a group of its own
    kept = {path: path.stat().st_mtime_ns for path in Path("data/raw/hub").rglob("*.jpg")}
    assert len(kept) == 40
    hub_dataset(tmp_path / "hub", 90)
    assert ingest.run(settings)["images"] == 60
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_hub_download_that_was_cut_short_goes_on(tmp_path: Path, prepare: Callable[..., Params]):
    hub_dataset(tmp_path / "hub", 60)
    settings = prepare(data__sources=[hub_source(tmp_path / "hub")])
    ingest.run(settings)
    whole = MANIFEST.read_bytes()
    record = next(Path("var/sources/hub").glob("*.jsonl"))
    record.with_suffix(".done").unlink()
    record.write_bytes(record.read_bytes()[:3000])  # in the middle of a line
    shutil.rmtree("data/raw")
    ingest.run(settings)
    assert MANIFEST.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "class"}, "has no column class; it has: picture, kind, person, tool"),
        ({"dataset": "absent-folder/dataset"}, "dataset absent-folder/dataset, split train cannot be opened"),
        ({"labels": {"Genuine": "real"}}, r"no row of .* has a label in \['Genuine'\]"),
    ],
)
def test_a_wrong_hub_setting_is_named(tmp_path: Path, prepare: Callable[..., Params], monkeypatch, change: dict[str, object], message: str):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_dataset(tmp_path / "hub", 12)
    with pytest.raises(StageError, match=message):
        ingest.run(prepare(data__sources=[hub_source(tmp_path / "hub") | change]))


def test_a_hub_dataset_takes_no_file_from_outside_its_folder(tmp_path: Path, prepare: Callable[..., Params]):
    import datasets

    picture(tmp_path / "hub" / "inside.jpg", seed=1, quality=90)
    picture(tmp_path / "outside.jpg", seed=2, quality=90)

    def named(*paths: Path) -> None:
        rows = {"image": [{"bytes": None, "path": str(path)} for path in paths], "label": ["real"] * len(paths)}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
        plain = datasets.Dataset.from_dict(
            rows,
            features=datasets.Features(
                image=dict(bytes=datasets.Value("binary"), path=datasets.Value("string")), label=datasets.Value("string")
            ),
        )
        plain.cast(features).to_parquet(tmp_path / "hub" / "train.parquet")

    source = {"kind": "huggingface", "name": "hub", "dataset": str(tmp_path / "hub"), "labels": {"real": "real"}}
    settings = prepare(data__sources=[source], data__forge={"methods": {"self_blend": 1.0}})
    named(tmp_path / "hub" / "inside.jpg", tmp_path / "hub" / ".." / "outside.jpg")
    with pytest.raises(StageError, match=r"a row of .*hub names a file outside the dataset: .*outside\.jpg"):
        ingest.run(settings)
    named(tmp_path / "hub" / "inside.jpg")
    assert ingest.run(settings)["by_label"]["real"] == 1
