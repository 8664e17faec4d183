"""What makes a verdict less reliable is named."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline import quality
from pipeline.images import Picture, decode, statistics
from tests.data_helpers import noise


def picture(image: Image.Image, kind: str = "PNG", **options) -> Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return decode(file.getvalue())


def warned(image: Image.Image, kind: str = "PNG", **options) -> list[str]:
    found = picture(image, kind, **options)
    return quality.warnings(statistics(found), found, None)


def test_a_good_picture_is_not_warned_of():
    assert warned(noise()) == [] and warned(noise(), "JPEG", quality=90) == []


def test_each_flaw_is_named():
    assert warned(noise().resize((60, 40))) == warned(noise(300, 40)) == ["too_small"]
    assert warned(noise().point(lambda value: value // 8)) == ["too_dark"]
    assert "too_blurry" in warned(noise().filter(ImageFilter.GaussianBlur(6)))
    assert warned(noise(), "JPEG", quality=30) == ["heavily_compressed"] and warned(noise(), "JPEG", quality=60) == []


def test_a_warning_begins_where_the_documentation_says():
    shown = picture(noise())
    fine = {"width": 64.0, "height": 64.0, "blur": 8.0, "brightness": 30.0}
    assert quality.warnings(fine, shown, None) == []
    for name, warning in {"width": "too_small", "height": "too_small", "blur": "too_blurry", "brightness": "too_dark"}.items():
        assert quality.warnings(fine | {name: fine[name] - 0.1}, shown, None) == [warning]
    for kept, expected in ((41, []), (40, ["heavily_compressed"])):
        assert quality.warnings(fine, picture(noise(), "JPEG", quality=kept), None) == expected


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_verdict_on_the_first_frame_alone_says_so(kind):
    assert "several_frames" in warned(noise(), kind, save_all=True, append_images=[noise(seed=1), noise(seed=2)])
    assert "several_frames" not in warned(noise(), kind)


def test_what_a_phone_appends_to_a_photo_is_no_frame():
    assert warned(noise(), "MPO", save_all=True, append_images=[noise(seed=1)]) == []


@pytest.mark.parametrize("kernel", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("factor", [2, 4])
def test_an_enlarged_picture_is_noticed(kernel, factor):
    for seed in range(3):
        small = noise(seed=seed)
        assert warned(small.resize((300 * factor, 200 * factor), kernel)) == ["upscaled"]
        assert warned(small.resize((200, 133), kernel)) == []


@pytest.mark.parametrize("size", [(100, 75), (75, 81), (64, 90), (300, 200)])
def test_fineness_is_the_power_of_fine_detail_by_that_of_coarse_detail(size):
    picture = Picture(noise().resize(size), "PNG")
    luma = np.asarray(picture.rgb.convert("L"), float)
    window = np.outer(*(np.hanning(side) for side in luma.shape))
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2 - (window**2).sum() / 12
    rows, columns = np.abs(np.fft.fftfreq(luma.shape[0])) * 2, np.fft.rfftfreq(luma.shape[1]) * 2
    radius = np.maximum(rows[:, None], columns[None])
    expected = power[radius > 0.6].mean() / power[(radius > 0.2) & (radius < 0.4)].mean()
    assert quality.fineness(picture) == pytest.approx(max(expected, 0), rel=1e-3, abs=1e-6)
