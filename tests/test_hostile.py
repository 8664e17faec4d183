"""Files that were made to break a decoder: each ends in a verdict or in an error that says why, never in anything else."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from pipeline.images import FORMATS, ImageError, decode

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file cut off, with bytes changed anywhere or in its header, or with another file behind it."""
    changed = bytearray(data)
    kind = rng.choice(("cut", "flip", "header", "appended"))
    if kind == "cut":
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == "appended":
        return data + data[: rng.randrange(len(data))]
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed) if kind == "flip" else min(200, len(changed)))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_an_image_or_an_image_error(kind):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind)
    rng, codes = random.Random(7), set()
    for _ in range(150):
        try:
            assert decode(mutated(file.getvalue(), rng)).rgb.mode == "RGB"
        except ImageError as error:
            codes.add(error.code)
    assert codes


def test_only_the_first_of_many_frames_is_decoded():
    file = io.BytesIO()
    frames = [Image.new("P", (8, 8), index % 2) for index in range(3000)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).rgb.size == (8, 8)


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "quality": 40}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("size", [(90, 120), (33, 47)])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(options, size):
    file = io.BytesIO()
    Image.fromarray(PIXELS[: size[0], : size[1]]).save(file, "JPEG", **options)
    assert np.array_equal(decode(file.getvalue()).pixels, np.asarray(Image.open(file)))
