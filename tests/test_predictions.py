"""The prediction log is bounded, its disk may be full, and clients notice neither."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detector import Prediction
from pipeline.images import mean_saturation
from pipeline.monitoring.predictions import FILE, STATISTICS, PredictionLog, find, forget, newest, shadow_pairs

ANSWER = Prediction(0.7, "fake", [], np.zeros(768, np.float32), dict.fromkeys(STATISTICS, 1.0))


def write(log: PredictionLog, first: int, last: int) -> None:
    for number in range(first, last):
        log.record(id=str(number), package="one", version="1", prediction=ANSWER)
    log.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files this process writes, to mimic a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_oldest_rows_go(tmp_path: Path):
    path = tmp_path / FILE
    for first in range(0, 60, 20):
        write(PredictionLog(path, most=30), first, first + 20)
    with closing(sqlite3.connect(path)) as database:
        kept = [int(row[0]) for row in database.execute("SELECT id FROM predictions")]
    assert sorted(kept) == list(range(30, 60))


def test_what_is_forgotten_can_no_longer_be_found_in_the_bytes_of_the_file(tmp_path: Path):
    path, gone, kept = tmp_path / FILE, "4792c59c-2378-40f5-b3ad-b5dab02126ad", "483e69c7-2378-40f5-b3ad-b5dab02126ad"
    log = PredictionLog(path)
    for id in (gone, kept):
        log.record(id=id, package="one", version="1", prediction=ANSWER)
        log.shadow(id=id, package="two", version="2", prediction=ANSWER)
    log.close()
    assert forget(path, {gone}) == 1
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert gone.encode() not in left and kept.encode() in left
    assert shadow_pairs(path, "one", 10)["id"].tolist() == [kept]


def test_of_several_challengers_it_is_the_newest_that_is_compared(tmp_path: Path):
    path = tmp_path / FILE
    log = PredictionLog(path)
    for id, challenger in {"1": "2", "2": "3", "3": "3"}.items():
        log.record(id=id, package="one", version="1", prediction=ANSWER)
        log.shadow(id=id, package=f"package {challenger}", version=challenger, prediction=ANSWER)
    log.close()
    found = shadow_pairs(path, "one", 10)
    assert found["id"].tolist() == ["3", "2"] and set(found["version"]) == {"3"}
    assert shadow_pairs(path, "one", 1)["id"].tolist() == ["3"] and shadow_pairs(path, "another", 10).empty


def test_a_full_disk_loses_rows_and_says_how_many_and_writes_on_when_there_is_room(tmp_path: Path):
    path, lost = tmp_path / FILE, []
    write(PredictionLog(path), 0, 10)
    with files_of_at_most(path.stat().st_size + 20_000):
        full = PredictionLog(path, lost=lost.append)
        write(full, 10, 110)
    assert lost == [100] and full.dropped == 100 and find(path, "50") is None
    write(PredictionLog(path), 110, 120)
    assert find(path, "5") is not None and find(path, "115") is not None


def test_a_file_without_a_first_row_has_no_answers(tmp_path: Path):
    path = tmp_path / FILE
    path.touch()  # as a full disk leaves it
    assert find(path, "1") is None and newest(path, "one", 10).empty and shadow_pairs(path, "one", 10).empty
    write(PredictionLog(path), 0, 1)
    assert find(path, "0") is not None and len(newest(path, "one", 10)) == 1


def test_saturation_is_that_of_pillow_for_every_colour():
    """References of older packages were measured with Pillow."""
    most, least = np.mgrid[:256, :256].astype(np.uint8)
    every = np.stack([most, np.minimum(most, least), np.minimum(most, least)], -1)
    for pixels in (every, every[:, ::-1, ::-1], np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)):
        expected = np.asarray(Image.fromarray(pixels).convert("HSV"))[..., 1].mean()
        assert mean_saturation(np.ascontiguousarray(pixels)) == pytest.approx(expected, abs=1e-9)
