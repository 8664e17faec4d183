"""Finding faces: at any angle, of any size, in pictures of any shape."""

import math

import numpy as np
import pytest
from PIL import Image

from pipeline.faces import FaceBox, FaceDetector, upright
from tests.data_helpers import noise
from tests.face_helpers import PHOTOS, YUNET, needs_photos, needs_yunet


@needs_yunet
@needs_photos
def test_faces_in_a_large_picture_are_found_where_they_are_the_largest_first():
    face = Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB")
    scene = noise(1600, 1200)
    places = [(100, 700, 300), (900, 100, 600)]  # left, top, side
    for left, top, side in places:
        scene.paste(face.resize((side, side)), (left, top))
    found = FaceDetector(YUNET).find(np.asarray(scene))
    assert len(found) == 2
    for box, (left, top, side) in zip(found, reversed(places), strict=True):
        assert left < box.x + box.width / 2 < left + side and top < box.y + box.height / 2 < top + side
        assert side / 3 < box.width < side


@needs_yunet
@needs_photos
@pytest.mark.parametrize("degrees", [0, 35, 60, 90, 180, 215, 270])
def test_a_face_is_found_at_any_angle_once_and_with_its_tilt(degrees):
    scene = noise(480, 480)
    scene.paste(Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB").resize((180, 180)), (120, 180))
    (straight,) = FaceDetector(YUNET).find(np.asarray(scene))
    (box,) = FaceDetector(YUNET).find(np.asarray(scene.rotate(-degrees, Image.Resampling.BICUBIC)))
    assert abs(math.remainder(box.tilt - straight.tilt - degrees, 360)) < 10
    x, y = straight.centre - 240
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert np.abs(box.centre - [240 + x * cos - y * sin, 240 + x * sin + y * cos]).max() < 15
    assert box.sides == pytest.approx(straight.sides, rel=0.3)


@needs_yunet
@needs_photos
@pytest.mark.parametrize("degrees", [0, 30])
def test_the_tilt_of_a_face_is_measured_however_small_it_is_in_the_picture(degrees):
    scene = Image.new("RGB", (2400, 1800), (120, 120, 120))
    scene.paste(Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB").resize((220, 220)).rotate(-degrees), (900, 300))
    (box,) = FaceDetector(YUNET).find(np.asarray(scene))
    assert box.tilt == pytest.approx(degrees, abs=10) and box.turned == bool(degrees)


def test_faces_are_turned_in_pictures_wider_than_opencv_can_turn():
    part = np.asarray(noise(400, 300))
    wide = np.concatenate([np.zeros((300, 40_000, 3), np.uint8), part], axis=1)
    for left, top in ((150, 80), (300, 0)):  # inside, and at a corner, beyond which the picture is mirrored
        face = FaceBox(left, top, 100, 100, 1, tilt=30)
        there = (left + 40_000, top, left + 40_100, top + 100)
        assert np.array_equal(upright(wide, there, face), upright(part, (left, top, left + 100, top + 100), face))


@needs_yunet
@needs_photos
def test_upright_faces_keep_theirs_beside_one_that_lies_on_its_side():
    face = Image.open(min(PHOTOS.rglob("*.jpg"))).convert("RGB").resize((200, 200))
    scene = noise(640, 320)
    scene.paste(face, (60, 60))
    scene.paste(face.transpose(Image.Transpose.ROTATE_90), (380, 60))
    found = sorted(FaceDetector(YUNET).find(np.asarray(scene)), key=lambda box: box.x)
    assert [box.turned for box in found] == [False, True] and found[1].tilt == pytest.approx(-90, abs=10)


@needs_yunet
@pytest.mark.parametrize("size", [(30_000, 20), (20, 30_000), (65_535, 32)])
def test_a_strip_of_which_scaling_down_would_leave_nothing_is_looked_at(size):
    assert FaceDetector(YUNET).find(np.zeros((size[1], size[0], 3), np.uint8)) == []
