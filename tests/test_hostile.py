"""Files made to break a decoder: each gets a verdict or an error that says why, nothing else."""

import asyncio
import io
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.hostile import damaged, png_of, special
from benchmarks.load import photograph
from pipeline.detector import Detector
from pipeline.images import FORMATS, ImageError, Limits, decode, identify
from serving.threads import Threads
from tests.service_helpers import served, wait_for

GROWTH = 1_000_000_000
"""Bytes: an image of 50 megapixels takes 150 MB, and twice that while it is rotated; two are decoded at a time."""


def outcome(detector: Detector, data: bytes) -> str:
    """The verdict, or the code of the error."""
    try:
        return detector.predict([decode(data)])[0].verdict
    except ImageError as error:
        return error.code


@pytest.mark.filterwarnings("ignore")
def test_every_damaged_file_gets_a_verdict_or_an_error_that_says_why(package):
    detector = Detector.load(package)
    found = {outcome(detector, data) for data in damaged(150 * len(FORMATS), seed=7)}
    assert found >= {"not_an_image", "truncated"} and found & {"real", "fake", "uncertain"}


@pytest.mark.filterwarnings("ignore")
def test_liars_bombs_and_double_files_cost_little_memory(package):
    detector = Detector.load(package)
    outcome(detector, photograph(96, 0))
    used = psutil.Process().memory_info().vms
    before = resource.getrlimit(resource.RLIMIT_AS)
    files = special()
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, before[1]))  # beyond that the decoder would raise MemoryError
    try:
        found = {what: outcome(detector, data) for what, data in files.items()}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found["bomb of 10,000 x 10,000 zeros"] == found["header that promises 60,000 x 60,000"] == "too_many_pixels"
    assert found["JPEG that promises 65,500 x 65,500"] == "too_many_pixels"
    assert found["JPEG of 1,000 scans"] == "not_an_image"  # it would take seconds, and one of 20 MB an hour
    assert found["TIFF of 16 x 16 in a tile of 16,384 x 16,384"] == "too_many_pixels"
    assert found["TIFF whose tile is hidden from Pillow"] == "not_an_image"
    verdicts = {"10,000 frames", "bomb within the limit", "ZIP behind a PNG", "EXIF of 60 kB"}
    assert {found[what] for what in verdicts} <= {"real", "fake", "uncertain"}, found
    assert {found[what] for what in ("SVG", "EPS", "PDF before a JPEG")} <= {"not_an_image"}, found


@pytest.mark.long
def test_the_service_answers_them_all_and_goes_on(package, tmp_path):
    files = [*special().values(), *damaged(40, seed=11)]
    with served(tmp_path, UNMASK_PACKAGE=str(package)) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda data: client.post("/predict", files={"image": ("../../etc/passwd", data)}), files))
        assert {answer.status_code for answer in answers} <= {200, 400, 413, 415, 422}
        assert all("verdict" in answer.json() or "error" in answer.json() for answer in answers)
        assert client.post("/predict", files={"image": photograph(96, 0)}).is_success
        log = (tmp_path / "service.log").read_text()
    assert "Traceback" not in log and "passwd" not in log


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "quality": 40}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("size", [(90, 120), (33, 47)])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(options, size):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **options)
    assert np.array_equal(decode(file.getvalue()).pixels, np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    ("mode", "value", "kind", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), "PNG", 255),
        ("RGBA", (0, 0, 0, 128), "WEBP", 127),
        ("LA", (0, 0), "PNG", 255),
        ("F", 0.5, "TIFF", 127),
        ("I;16", 32_896, "TIFF", 128),
    ],
)
def test_what_is_transparent_lies_on_white_and_deep_pixels_are_scaled(mode, value, kind, expected):
    file = io.BytesIO()
    Image.new(mode, (8, 8), value).save(file, kind)
    assert np.unique(decode(file.getvalue()).pixels).tolist() == pytest.approx([expected], abs=1)


def test_a_limit_above_pillows_own_holds():
    file = png_of(14_000, 14_000, b"")
    assert identify(file, Limits(max_pixels=200_000_000)).size == (14_000, 14_000)
    with pytest.raises(ImageError, match="14000 x 14000 pixels, more than 195,000,000"):
        identify(file, Limits(max_pixels=195_000_000))


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_strip_that_is_longer_than_any_jpeg_is_refused_however_few_its_pixels(size):
    with pytest.raises(ImageError, match="a side may have 65,535"):
        identify(png_of(*size, b""))
    assert identify(png_of(*(min(side, 65_535) for side in size), b""))


def test_a_jpeg_that_says_in_xmp_which_side_is_up_is_turned_whatever_lies_behind_it():
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, "JPEG", xmp=b'<rdf:Description tiff:Orientation="6"/>')
    assert decode(file.getvalue()).pixels.shape == decode(file.getvalue() + b"\0").pixels.shape == (64, 32, 3)


def test_large_pictures_that_nobody_waits_for_any_more_do_not_pile_up():
    threads = Threads()
    at_work, most, done, end = [0], [0], [0], threading.Event()

    def look() -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        end.wait(30)
        at_work[0] -= 1
        done[0] += 1

    async def clients() -> None:
        for _ in range(5):  # each gives up, as a client does after its timeout
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.gather(*(threads.run(look, long=True) for _ in range(4)))
        end.set()
        await threads.run(lambda: None, long=True)

    asyncio.run(clients())
    assert most[0] <= threads.long and done[0] <= 2 * threads.long  # those that waited were dropped
