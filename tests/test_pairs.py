"""Training data: pairs, forgeries made on the fly, and rehearsal of old sources."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ConvNextImageProcessorPil, EfficientNetImageProcessorPil, MobileViTImageProcessorPil, ViTImageProcessorPil

from pipeline.errors import StageError
from pipeline.params import ParamsError, check_params, load_params
from pipeline.params_train import Forging
from pipeline.preprocess import Preprocess
from pipeline.settings import preset
from pipeline.training.dataset import CACHE, Pairs, collate, pixels, rehearsed
from tests.conftest import ROOT
from tests.data_helpers import picture

SIDE = 32


@pytest.mark.parametrize("flip_channels", [False, True])
def test_a_training_sees_the_pixels_that_a_service_sees(flip_channels: bool):
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    preprocess = Preprocess(size=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), flip_channels=flip_channels)
    seen = preprocess.normalise(pixels)
    assert np.array_equal(preprocess.normalise_tensor(torch.from_numpy(pixels)).numpy(), seen) and seen.flags.c_contiguous
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    np.testing.assert_allclose(preprocess.standardise(unit).numpy(), seen, atol=1e-6)


PROCESSORS = [
    MobileViTImageProcessorPil(),
    ViTImageProcessorPil(),
    ConvNextImageProcessorPil(),
    EfficientNetImageProcessorPil(size={"height": 224, "width": 224}, image_mean=[0.485, 0.456, 0.406], image_std=[0.479, 0.473, 0.474]),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_a_network_is_given_what_its_own_processor_would_give_it(processor: Any):
    colour = np.full((300, 300, 3), (250, 100, 10), np.uint8)
    expected = np.asarray(processor(Image.fromarray(colour), return_tensors="np")["pixel_values"])
    preprocess = Preprocess.from_processor(processor)
    found = preprocess.normalise(preprocess.pixels(Image.fromarray(colour))[None])
    assert found.shape == expected.shape
    middle = (slice(None), expected.shape[-1] // 2, expected.shape[-1] // 2)
    np.testing.assert_allclose(found[0][middle], expected[0][middle], atol=1e-6)


def test_a_package_from_before_the_order_of_channels_was_said_is_read_as_rgb(tmp_path: Path):
    Preprocess(size=SIDE).save(tmp_path)
    file = tmp_path / "preprocess.json"
    content = json.loads(file.read_text())
    del content["flip_channels"]
    file.write_text(json.dumps(content))
    assert Preprocess.load(tmp_path) == Preprocess(size=SIDE, flip_channels=False)


def test_images_that_two_want_at_once_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoding, release, asked = threading.Semaphore(0), threading.Event(), []

    class Slow(Preprocess):
        def pixels(self, image: Image.Image) -> np.ndarray:
            asked.append(image)
            decoding.release()
            release.wait(10)
            return super().pixels(image)

    monkeypatch.chdir(tmp_path)
    for index in range(3):
        picture(tmp_path / f"{index}.png", seed=index)
    table = pd.DataFrame({"image_id": list("abc"), "path": [f"{index}.png" for index in range(3)]})
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(pixels, table, Slow(size=SIDE))
        decoding.acquire(timeout=10)
        other = pool.submit(pixels, table, Slow(size=SIDE))
        other_is_done, _ = wait([other], timeout=0.5)  # enough to start writing where the first one writes
        release.set()
        assert not other_is_done and np.array_equal(one.result(), other.result())
    assert len(asked) == 3 and one.result().any(axis=(1, 2, 3)).all()


def test_images_are_decoded_anew_when_the_code_of_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "0.png", seed=0)
    table = pd.DataFrame({"image_id": ["a"], "path": ["0.png"]})
    for name in ("images.py", "preprocess.py"):
        shutil.copy(ROOT / "pipeline" / name, tmp_path)
    monkeypatch.setattr("pipeline.fingerprint.PACKAGE", tmp_path)
    for files, more in ((1, ""), (2, "# another resampling")):
        (tmp_path / "preprocess.py").write_text((tmp_path / "preprocess.py").read_text() + more)
        for _ in range(2):
            pixels(table, Preprocess(size=SIDE))
        assert len(list(CACHE.glob("*.npy"))) == files


def test_processes_that_prepare_batches_follow_the_epoch():
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    pairs = pairs_of(images, None)
    pairs.settings = pairs.settings.model_copy(update={"brightness": 0.5})
    loader = DataLoader(pairs, batch_size=8, collate_fn=collate, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in range(2):
        pairs.epoch = epoch
        seen.append(next(iter(loader))["pixel_values"])
        assert torch.equal(seen[-1], collate([pairs[index] for index in range(8)])["pixel_values"])
    assert not torch.equal(*seen)


@pytest.mark.parametrize("swap", [False, True])
def test_an_epoch_shows_images_whose_group_has_none_of_the_other_class(swap: bool):
    real, fake = ("fake", "real") if swap else ("real", "fake")
    stems = ((real, "a"), (fake, "b"), (fake, "c"), (fake, "d"))
    rows = [{"label": label, "group": f"v{video}", "path": f"{video}/{stem}.jpg"} for video in range(5) for label, stem in stems]
    rows += [{"label": real, "group": f"camera{index}", "path": f"camera/{index}.jpg"} for index in range(3)]
    # One of this person's two reals has the fake's name, so the other is never its partner; two fakes of one real are both made from it.
    rows += [{"label": label, "group": "person", "path": f"{label}/{stem}.jpg"} for label, stem in ((fake, "x"), (real, "x"), (real, "y"))]
    table = pd.DataFrame(rows)
    pairs = pairs_of(np.zeros((len(table), SIDE, SIDE, 3), np.uint8), None, table)
    assert len(pairs) == 16 + 3 + (not swap)
    partners = []
    for pairs.epoch in range(3):
        chosen = [pairs.choose(index, pairs.draw(index)) for index in range(len(pairs))]
        assert {image for pair in chosen for image in pair} | (set(table.index[-2:]) if swap else set()) == set(table.index)
        assert all(table["label"][real] == "real" and table["label"][fake] == "fake" for real, fake in chosen)
        alone = [pair for pair in chosen if any(table["group"][image].startswith("camera") for image in pair)]
        assert len(alone) == 3 and len(chosen) - len(alone) == sum(table["group"][real] == table["group"][fake] for real, fake in chosen)
        partners.append(alone)
    assert partners[0] != partners[1] != partners[2]


def test_an_image_meets_every_one_of_its_group_in_time():
    rows = [{"label": label, "group": "video", "path": f"{label}/{index}.jpg"} for label, index in [("fake", 0), ("real", 1), ("real", 2)]]
    rows.append({"label": "fake", "group": "video", "path": "fake/3.jpg"})
    pairs = pairs_of(np.zeros((4, SIDE, SIDE, 3), np.uint8), None, pd.DataFrame(rows))
    met = set()
    for pairs.epoch in range(20):
        met |= {pairs.choose(index, pairs.draw(index)) for index in range(len(pairs))}
    assert met == {(real, fake) for real in (1, 2) for fake in (0, 3)}


@pytest.mark.parametrize("ingested", ["as it is", "re-encoded", "forged"])
def test_a_fake_meets_the_real_that_it_was_made_from(ingested: str):
    rows = []
    for index in range(60):  # all of one person
        fake = {"as it is": f"fake/{index}.png", "re-encoded": f"fake/{index}.png.jpg", "forged": f"swap/{index:x}aa.jpg"}[ingested]
        parents = f"{index} {59 - index}" if ingested == "forged" else ""
        real = f"real/{index}.jpg" + (".jpg" if ingested == "re-encoded" else "")
        rows.append({"label": "real", "group": "person", "path": real, "image_id": str(index), "parents": ""})
        rows.append({"label": "fake", "group": "person", "path": fake, "image_id": f"fake {index}", "parents": parents})
    pairs = pairs_of(np.zeros((120, SIDE, SIDE, 3), np.uint8), None, pd.DataFrame(rows))
    assert {pairs.choose(index, pairs.draw(index)) for index in range(len(pairs))} == {(2 * index, 2 * index + 1) for index in range(60)}


def pairs_of(images: np.ndarray, forging: Forging | None, table: pd.DataFrame | None = None) -> Pairs:
    rows = [{"path": f"{label}/{index}.jpg", "label": label, "group": f"g{index}"} for label in ("real", "fake") for index in range(8)]
    still = {key.removeprefix("augment."): value for key, value in preset("probe", ROOT / "params.yaml").items() if "augment." in key}
    augment = load_params(ROOT / "params.yaml").augment.model_copy(update=still)
    table = pd.DataFrame(rows) if table is None else table
    if "parents" not in table:
        table = table.assign(image_id=table["path"], parents="")
    return Pairs(table, images, augment, pairing=True, seed=1, forging=forging)


def test_fakes_are_forged_from_reals_on_the_spot():
    images = np.random.default_rng(0).integers(0, 255, (16, SIDE, SIDE, 3), dtype=np.uint8)
    forging = Forging(share=0.5, methods={"self_blend": 0.3, "swap": 0.3, "resynthesis": 0.4})
    plain, forged = pairs_of(images, None), pairs_of(images, forging)
    count = 0
    for epoch in range(4):
        plain.epoch = forged.epoch = epoch
        for index in range(8):
            one, other = plain[index]["pixel_values"], forged[index]["pixel_values"]
            assert torch.equal(other, forged[index]["pixel_values"])
            if (pair := forged.forge(index, index)) is None:
                assert torch.equal(one, other)
            else:
                count += 1
                assert [part.dtype for part in pair] == [np.uint8] * 2 and torch.equal(other, torch.from_numpy(np.stack(pair)))
                assert not np.array_equal(*pair)
    assert 8 < count < 24


def test_a_fake_is_forged_from_reals_alone():
    images = np.random.default_rng(0).integers(0, 255, (16, SIDE, SIDE, 3), dtype=np.uint8)
    darkened = np.concatenate([images[:8], images[8:] // 4])  # the fakes of the data set
    one, other = (pairs_of(shown, Forging(share=1.0, methods={"swap": 1.0})) for shown in (images, darkened))
    for index in range(8):
        np.testing.assert_array_equal(one.forge(index, index), other.forge(index, index))


def test_the_forgery_alone_tells_a_forged_fake_from_its_real():
    gray = np.full((16, SIDE, SIDE, 3), 128, np.uint8)
    gray += np.random.default_rng(0).integers(0, 40, (16, SIDE, SIDE, 1), dtype=np.uint8)
    pairs = pairs_of(gray, Forging(share=1.0, methods={"self_blend": 1.0}))
    reals, distances = [], []
    for epoch in range(16):
        pairs.epoch = epoch
        for index in range(8):
            real, fake = pairs.forge(index, index) or pytest.fail("no forgery")
            reals.append(real.astype(int).mean(axis=(0, 1)))
            # Both were stored as JPEG of the same quality, so even the edge, which no forgery changes, differs from the original.
            distances.append([np.abs(picture[0].astype(int) - gray[index][0]).mean() for picture in (real, fake)])
    own = gray[:8].mean(axis=(0, 1, 2)).mean()
    moved = (np.abs(np.array(reals) - own).max(axis=1) > 3).mean()
    assert 0.3 < moved < 0.6  # colour or light of half of the reals is changed, too
    assert (np.array(distances) > 0.5).all()


def test_a_source_is_shown_by_its_share_and_the_rest_in_full():
    groups = [f"old/{index // 4}" for index in range(400)] + [f"new/{index // 4}" for index in range(40)]
    part = pd.DataFrame({"group": groups, "label": ["real", "fake"] * 220, "source": ["old"] * 400 + ["new"] * 40})
    half, some = (rehearsed(part, {"old": share}) for share in (0.5, 0.3))
    assert 30 < half.loc[half["source"] == "old", "group"].nunique() < 70
    for shown in (half, some):
        assert (shown["source"] == "new").sum() == 40 and set(shown["group"].value_counts()) == {4}
    assert set(some["group"]) < set(half["group"])  # a smaller share is a subset of a larger one
    assert set(rehearsed(part[:400], {"old": 0.5})["group"]) == set(half.loc[half["source"] == "old", "group"])
    assert set(rehearsed(part, {"old": 0.0})["source"]) == {"new"} and len(rehearsed(part, {})) == 440
    with pytest.raises(StageError, match=r"train.rehearsal: .*no real image is left"):
        rehearsed(part[:400], {"old": 0.0})


def test_rehearsal_names_a_source_that_is_not_there():
    content = load_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["train"] |= {"rehearsal": {"old": 0.5}}
    with pytest.raises(ParamsError, match=r"train.rehearsal: no source is called old; there are: procedural"):
        check_params(content, Path("params.yaml"))


def test_what_is_held_out_as_never_seen_is_not_forged_in_training():
    content = load_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    methods = {"self_blend": 0.5, "resynthesis": 0.5}
    content["train"]["forge"] = {"share": 0.3, "methods": methods}
    content["split"]["holdout_generators"] = ["resynthesis", "swap"]
    with pytest.raises(ParamsError, match=r"holdout_generators and train.forge.methods both name resynthesis: .*\[\]'$") as found:
        check_params(content, Path("params.yaml"))
    assert len(str(found.value)) < 500  # it does not quote the whole file
    content["split"]["holdout_generators"] = ["swap"]
    forge = check_params(content, Path("params.yaml")).train.forge
    assert forge and forge.shown == set(methods)
    left = forge.without("resynthesis")
    assert left and left.methods == {"self_blend": 1.0} and left.share == 0.3
    assert left.without("self_blend") is None and forge.without("stylegan") == forge
    content["train"]["forge"]["methods"] = methods | {"self_blend": 1.0, "resynthesis": 0.0}
    content["split"]["holdout_generators"] = ["resynthesis"]
    assert check_params(content, Path("params.yaml"))
