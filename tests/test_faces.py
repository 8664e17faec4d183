"""Faces: detected, judged one by one; and the warnings if there are none or many."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detector import Detector, verdict
from pipeline.errors import StageError
from pipeline.face_weights import NONE
from pipeline.faces import FaceBox, FaceDetector, framing, surroundings
from pipeline.images import Picture, decode, read
from pipeline.ingestion.batch import Batch, bring_batch
from pipeline.package import FACES, GOLDEN, GRAPH, Thresholds, seal, verify
from pipeline.params import load_params
from pipeline.params_data import Normalise
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime
from pipeline.sources import forged
from tests.data_helpers import noise
from tests.face_helpers import PHOTOS, YUNET, needs_photos, needs_yunet
from tests.package_helpers import META, tiny_package
from tests.service_helpers import ROOT, served, wait_for

SURE = META["thresholds"] | {"real_below": 0.0, "fake_above": 0.001}  # whatever the network says, it is fake


@dataclass
class Found:
    """A face detector that finds the same faces in every image."""

    boxes: list[FaceBox]

    def find(self, pixels: np.ndarray) -> list[FaceBox]:
        return self.boxes


def with_faces(package: Path, *boxes: FaceBox) -> Detector:
    """A detector whose threads use a face detector that finds these faces."""
    detector = Detector.load(package, device="cpu")
    detector._faces = YUNET
    detector._finder.found = Found(list(boxes))  # type: ignore[assignment]
    return detector


def test_the_images_probability_is_that_of_its_most_suspicious_face(package):
    image = noise()
    boxes = [FaceBox(20, 20, 100, 120, 0.9), FaceBox(180, 60, 70, 80, 0.8)]
    found = with_faces(package, *boxes).predict([Picture(image, "PNG")])[0]
    assert [(face.x, face.y, face.width, face.height, face.score) for face in found.faces] == [
        (20, 20, 100, 120, 0.9),
        (180, 60, 70, 80, 0.8),
    ]
    crops = [Picture(image.crop(surroundings(box, image.size)), "PNG") for box in boxes]
    alone = [answer.probability_fake for answer in Detector.load(package, device="cpu").predict(crops)]
    assert [face.probability_fake for face in found.faces] == pytest.approx(alone, abs=1e-5)
    assert found.probability_fake == pytest.approx(max(alone), abs=1e-5)
    worst = crops[int(np.argmax(alone))].rgb
    assert found.statistics["width"] == worst.width


def test_pictures_with_and_without_faces_go_in_one_batch(package):
    images = [noise(seed=seed) for seed in range(3)]
    detector = with_faces(package)
    prepared = [detector.prepare(Picture(image, "PNG")) for image in images]
    detector._finder.found.boxes = [FaceBox(10, 10, 90, 90, 0.9), FaceBox(150, 20, 80, 80, 0.9)]
    prepared.insert(1, detector.prepare(Picture(images[0], "PNG")))
    assert [len(answer.faces) for answer in detector.judge(prepared)] == [0, 2, 0, 0]


@pytest.mark.parametrize("turned", [False, True])
def test_the_map_lies_over_the_most_suspicious_face(package, turned):
    image = noise()
    boxes = [FaceBox(20, 20, 100, 120, 0.9), FaceBox(180, 60, 70, 80, 0.8)][:: -1 if turned else 1]
    detector = with_faces(package, *boxes)
    prepared = detector.prepare(Picture(image, "PNG"))
    shares = [face.probability_fake for face in detector.judge([prepared])[0].faces]
    left, top, right, bottom = surroundings(boxes[int(np.argmax(shares))], image.size)
    _, seen = detector.explain(prepared)
    assert seen == pytest.approx({"left": left / 300, "top": top / 200, "width": (right - left) / 300, "height": (bottom - top) / 200})


def sideways(box: FaceBox, width: int) -> FaceBox:
    """The same face in a picture of this width after a quarter turn counterclockwise."""
    return FaceBox(box.y, width - box.x - box.width, box.height, box.width, box.score, math.remainder(box.tilt - 90, 360))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_tilted_face_is_judged_as_if_it_were_upright_and_its_map_lies_as_it_does(package, quarters):
    picture, boxes = noise(), [FaceBox(60, 40, 90, 90, 0.9), FaceBox(200, 80, 60, 70, 0.8)]
    detector = with_faces(package, *boxes)
    prepared = detector.prepare(Picture(picture, "PNG"))
    shares = [face.probability_fake for face in detector.judge([prepared])[0].faces]
    heat = detector.explain(prepared)[0].heat
    for quarter in range(quarters):
        boxes = [sideways(box, picture.width) for box in boxes]
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        assert abs(boxes[0].tilt) == (90, 180, 90)[quarter]
    detector._finder.found.boxes = boxes
    prepared = detector.prepare(Picture(picture, "PNG"))
    assert [face.probability_fake for face in detector.judge([prepared])[0].faces] == pytest.approx(shares, abs=1e-4)
    assert detector.explain(prepared)[0].heat == pytest.approx(np.rot90(heat, quarters), abs=1e-3)
    detector._finder.found.boxes = [replace(box, tilt=0) for box in boxes]
    assert detector.predict([Picture(picture, "PNG")])[0].faces[0].probability_fake != pytest.approx(shares[0], abs=1e-4)


def test_a_face_that_is_hardly_tilted_is_judged_as_it_is(package):
    straight, tilted = (
        with_faces(package, FaceBox(60, 40, 90, 90, 0.9, tilt)).predict([Picture(noise(), "PNG")])[0].probability_fake for tilt in (0, 8)
    )
    assert straight == tilted


@pytest.mark.parametrize("trained_on", ["whole", "faces"])
def test_without_a_face_the_verdict_depends_on_what_was_trained_on(tmp_path, trained_on):
    package = tiny_package(tmp_path / "package", thresholds=SURE, trained_on=trained_on)
    answer = with_faces(package).predict([Picture(noise(), "PNG")])[0]
    assert answer.warnings == ["no_face"] and answer.faces == []
    assert answer.verdict == ("fake" if trained_on == "whole" else "uncertain")
    unasked = Detector.load(package, device="cpu", faces=NONE).predict([Picture(noise(), "PNG")])[0]
    assert unasked.warnings == [] and unasked.verdict == "fake" and unasked.probability_fake == answer.probability_fake


def test_a_crowd_is_warned_of_and_bounded(package):
    boxes = [FaceBox(10 + index, 10, 80, 80, 0.9) for index in range(50)]
    answer = with_faces(package, *boxes).predict([Picture(noise(), "PNG")])[0]
    assert "many_faces" in answer.warnings and len(answer.faces) == 32
    for number in (4, 5):  # from the fifth on
        answer = with_faces(package, *boxes[:number]).predict([Picture(noise(), "PNG")])[0]
        assert ("many_faces" in answer.warnings) == (number == 5)


def test_surroundings_are_a_square_inside_the_picture():
    assert surroundings(FaceBox(100, 100, 50, 60, 1), (400, 300)) == (77, 82, 173, 178)
    for box in (FaceBox(-20, -10, 90, 90, 1), FaceBox(280, 150, 60, 80, 1), FaceBox(0, 0, 300, 200, 1), FaceBox(299, 199, 0.1, 0.1, 1)):
        left, top, right, bottom = surroundings(box, (300, 200))
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200 and right - left == bottom - top


def test_the_box_of_a_face_ends_where_the_picture_does(package):
    boxes = [FaceBox(-20, -10, 90, 90, 0.9), FaceBox(250, 150, 80, 90, 0.8)]
    found = with_faces(package, *boxes).predict([Picture(noise(300, 200), "PNG")])[0].faces
    assert [(face.x, face.y, face.width, face.height) for face in found] == [(0, 0, 70, 80), (250, 150, 50, 50)]


def test_at_a_threshold_a_verdict_is_what_the_reports_count():
    thresholds = Thresholds.model_validate(META["thresholds"])  # .4 and .6
    expected = {0.3999: "real", 0.4: "uncertain", 0.5999: "uncertain", 0.6: "fake"}
    assert {probability: verdict(probability, thresholds) for probability in expected} == expected


def test_a_wrong_face_detector_is_named(tmp_path, package):
    with pytest.raises(StageError, match=r"missing\.onnx does not exist"):
        Detector.load(package, device="cpu", faces=tmp_path / "missing.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"hello")
    with pytest.raises(StageError, match=r"wrong\.onnx cannot be loaded"):
        Detector.load(package, device="cpu", faces=tmp_path / "wrong.onnx")


@needs_yunet
@needs_photos
def test_a_real_detector_finds_a_face_where_it_is(package, tmp_path):
    face = Image.open(next(path for path in sorted(PHOTOS.rglob("*")) if path.suffix in (".jpg", ".png"))).convert("RGB").resize((200, 200))
    scene = noise(640, 480)
    scene.paste(face, (380, 60))
    file = io.BytesIO()
    scene.save(file, "PNG")
    with served(tmp_path, UNMASK_PACKAGE=str(package), UNMASK_FACE_DETECTOR=str(YUNET)) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        answer = client.post("/predict", files={"image": file.getvalue()}).json()
        box = answer["faces"][0]["box"]
        assert len(answer["faces"]) == 1 and box["x"] >= 380 and box["x"] + box["width"] <= 580 and box["y"] < 200
        assert answer["probability_fake"] == answer["faces"][0]["probability_fake"] and "no_face" not in answer["warnings"]
        file = io.BytesIO()
        noise().save(file, "PNG")
        assert client.post("/predict", files={"image": file.getvalue()}).json()["warnings"] == ["no_face"]
        for size in ((1, 1), (15, 400), (20, 20), (3000, 17)):
            file = io.BytesIO()
            Image.new("RGB", size).save(file, "PNG")
            assert client.post("/predict", files={"image": file.getvalue()}).is_success, size
        assert client.get("/model").json()["face_detector"] is True


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_a_face_is_cut_out_as_the_package_says(tmp_path, margin):
    box, picture = FaceBox(100, 40, 80, 90, 0.9), Picture(noise(), "PNG")
    detector = with_faces(tiny_package(tmp_path / "package", face_margin=margin), box)
    assert detector.prepare(picture).parts[0].crop == surroundings(box, picture.rgb.size, margin)


@needs_yunet
@needs_photos
def test_the_margin_of_a_package_that_names_none_is_that_of_its_golden_examples(tmp_path):
    photos = [Image.open(path).convert("RGB").resize((160, 160)) for path in sorted(PHOTOS.rglob("*.jpg"))[:5]]
    finder = FaceDetector(YUNET)
    margin = framing(finder, map(np.asarray, photos))
    assert margin is not None
    assert framing(finder, [*map(np.asarray, photos), *[np.asarray(noise())] * 2]) is None  # too few show a face
    folder = tiny_package(tmp_path / "package")
    shutil.rmtree(folder / GOLDEN)
    (folder / GOLDEN).mkdir()
    for index, photo in enumerate(photos):
        photo.save(folder / GOLDEN / f"{index}.png")
    listed = {f"{index}.png": {"label": "real", "probability_fake": 0.5} for index in range(len(photos))}
    (folder / GOLDEN / "golden.json").write_text(json.dumps(listed))
    detector = Detector(seal(folder, META), OpenVinoRuntime(folder / GRAPH), YUNET)
    scene = noise(640, 480)
    scene.paste(photos[0].resize((200, 200)), (380, 60))
    (part,) = detector.prepare(Picture(scene, "PNG")).parts
    assert part.face is not None and part.crop == surroundings(part.face, scene.size, margin)


@needs_yunet
@needs_photos
def test_with_a_detector_it_is_the_face_that_is_forged_and_nothing_where_there_is_none(tmp_path):
    scene = noise(400, 300)
    scene.save(tmp_path / "empty.png")
    scene.paste(Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB").resize((200, 200)), (180, 60))
    scene.save(tmp_path / "face.png")
    empty, face = (str(tmp_path / name) for name in ("empty.png", "face.png"))
    detector = FaceDetector(YUNET)
    (box,) = detector.find(np.asarray(scene))
    for seed in range(4):
        data = forged._forge(forged.Task(face, face, "self_blend", seed, tmp_path), lossless=True, detector=detector)
        rows, columns = np.nonzero((decode(data).pixels != np.asarray(scene)).any(-1))
        assert abs(columns.mean() - box.x - box.width / 2) < box.width / 4 and abs(rows.mean() - box.y - box.height / 2) < box.height / 4
    lying = forged._face(Picture(scene.transpose(Image.Transpose.ROTATE_90), "PNG"), detector)
    assert lying is not None and lying.tilt == pytest.approx(-90, abs=10) and lying.half_height > lying.half_width
    assert forged._forge(forged.Task(empty, empty, "self_blend", 0, tmp_path), lossless=True, detector=detector) is None


@needs_yunet
@needs_photos
@pytest.mark.parametrize("normalise", [None, Normalise(size=160, jpeg_quality=90)])
def test_ingest_counts_the_faces_of_what_it_stores(tmp_path, normalise):
    settings = load_params(ROOT / "params.yaml").ingest.model_copy(update={"face_detector": YUNET, "normalise": normalise})
    (row,) = bring_batch(Batch(((str(min(PHOTOS.rglob("*.jpg"))), "face.jpg", ""),)), tmp_path, settings, in_place=False)
    assert row["reason"] is None and row["faces"] == 1 and 0.1 < row["face_share"] < 0.9


@needs_yunet
@needs_photos
def test_ingest_cuts_the_largest_face_out_of_a_photograph_as_the_service_does(tmp_path):
    scene = noise(900, 700)
    face = Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB")
    scene.paste(face.resize((120, 120)), (700, 50))
    scene.paste(face.resize((300, 300)).rotate(30, fillcolor=(128, 128, 128)), (200, 250))
    scene.save(tmp_path / "group.jpg", quality=80)
    noise(900, 700, seed=1).save(tmp_path / "nobody.png")
    settings = load_params(ROOT / "params.yaml").ingest.model_copy(update={"face_detector": YUNET, "face_margin": 0.2})
    batch = Batch(tuple((str(tmp_path / name), name, "") for name in ("group.jpg", "nobody.png")))
    group, nobody = bring_batch(batch, tmp_path, settings, in_place=False)
    assert group["faces"] == 1 and 0.2 < group["face_share"] < 0.7 and (group["format"], group["jpeg_quality"]) == ("JPEG", 80)
    assert (nobody["width"], nobody["height"], nobody["faces"]) == (900, 700, 0)  # whole
    package = tiny_package(tmp_path / "package", face_margin=0.2)
    seen = Detector(verify(package), OpenVinoRuntime(package / GRAPH), YUNET).prepare(read(tmp_path / "group.jpg")).parts[0]
    stored = Preprocess.load(package).pixels(read(Path(group["stored"])).rgb)
    assert np.array_equal(seen.pixels, stored)


@needs_yunet
def test_batch_scoring_looks_for_faces_as_the_service_does(package, tmp_path):
    noise().save(tmp_path / "noise.png")

    def scored(faces: Path) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "pipeline.score", str(tmp_path / "noise.png"), "--package", str(package))
        environment = os.environ | {"UNMASK_FACE_DETECTOR": str(faces)}
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment)

    assert ",no_face," in scored(YUNET).stdout
    assert "missing.onnx does not exist" in scored(tmp_path / "missing.onnx").stderr.splitlines()[-1]


@needs_yunet
def test_a_package_brings_its_own_face_detector(tmp_path):
    folder = tiny_package(tmp_path / "package")
    shutil.copy(YUNET, folder / FACES)
    seal(folder, META | {"trained_on": "faces"})
    assert Detector.load(folder, device="cpu").finds_faces
    assert FaceDetector(folder / FACES).find(np.zeros((64, 64, 3), np.uint8)) == []
