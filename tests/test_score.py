"""Batch scoring from the command line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detector import Detector
from pipeline.images import read
from tests.conftest import ROOT
from tests.package_helpers import tiny_package

SCORE = (sys.executable, "-m", "pipeline.score")


def score(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCORE, *arguments], cwd=ROOT, text=True, capture_output=True)


def test_one_row_an_input_and_an_unreadable_file_is_a_row(tmp_path: Path, package: Path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "in" / "子 folder"
    folder.mkdir(parents=True)
    for index in range(20):
        Image.fromarray(rng.integers(0, 255, (64 + index, 80, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "20.jpg").write_bytes(b"no picture")
    (folder / "21.png").write_bytes((folder / "00.png").read_bytes()[:100])
    (folder / ".hidden.png").write_bytes(b"")
    out = tmp_path / "new" / "scores.csv"
    done = score(str(tmp_path / "in"), str(tmp_path / "absent.jpg"), "--package", str(package), "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert list(rows[0]) == ["path", "probability_fake", "verdict", "warnings", "error"]
    assert [Path(row["path"]).name for row in rows] == [*(f"{index:02d}.png" for index in range(20)), "20.jpg", "21.png", "absent.jpg"]
    assert [row["error"].partition(":")[0] for row in rows[20:]] == ["not_an_image", "truncated", "unreadable"]
    assert all(row["verdict"] == row["probability_fake"] == "" for row in rows[20:])
    assert all(row["verdict"] in ("real", "fake", "uncertain") and not row["error"] for row in rows[:20])
    alone = Detector.load(package).predict([read(folder / "07.png")])[0]
    assert float(rows[7]["probability_fake"]) == pytest.approx(alone.probability_fake, abs=2e-6)


def test_odd_names_and_links_are_rows_like_any_other(tmp_path: Path, package: Path):
    for place in ("in", "elsewhere"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / place / f"{place}.png")
    (tmp_path / "in" / "in.png").rename(tmp_path / "in" / os.fsdecode(b"\xff.png"))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to("self")
    command = (*SCORE, str(tmp_path / "in"), "--package", str(package))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.decode(errors="surrogateescape").splitlines()))
    assert [os.fsencode(Path(row["path"]).name) for row in rows] == [b"self", b"\xff.png", b"elsewhere.png"]
    assert [bool(row["error"]) for row in rows] == [True, False, False]


def test_a_table_in_the_folder_that_is_scored_is_no_input(tmp_path: Path, package: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    for _ in range(2):
        done = score(f"{tmp_path}/../{tmp_path.name}", "--package", str(package), "--out", str(tmp_path / "scores.csv"))
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8")))
        assert [Path(row["path"]).name for row in rows] == ["0.png"]


def test_a_file_name_is_no_formula_for_a_spreadsheet(tmp_path: Path, package: Path):
    for name in ("=HYPERLINK(1).png", "@SUM(1).png", "0.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    command = (*SCORE, ".", "--package", str(package))
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    paths = [row["path"] for row in csv.DictReader(done.stdout.splitlines())]
    assert paths == ["0.png", "./=HYPERLINK(1).png", "./@SUM(1).png"] and all((tmp_path / path).is_file() for path in paths)


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, package: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    command = (*SCORE, str(tmp_path), "--package", str(package))
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert "score:" in said and "error" not in said.lower() and "broken pipe" not in said.lower()


def test_without_a_package_it_says_what_makes_one(tmp_path: Path):
    done = score(str(tmp_path), "--package", str(tmp_path / "none"))
    assert done.returncode == 1 and "error:" in done.stderr and "dvc repro" in done.stderr and "Traceback" not in done.stderr


def test_a_changed_byte_in_the_package_is_refused(tmp_path: Path):
    package = tiny_package(tmp_path / "package")
    graph = package / "graph" / "openvino.bin"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x7f")
    done = score(str(tmp_path), "--package", str(package))
    assert done.returncode == 1 and "openvino.bin was changed" in done.stderr
