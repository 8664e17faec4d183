"""Counters on a disk that fills up."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import counters

COUNT = """
import os
from pathlib import Path
from serving import counters
folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
assert counters.reserve(folder)
from serving.metrics import Metrics
metrics = Metrics()
with (folder / "filler").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
for number in range(100):
    metrics.predicted("real", str(number), 0.1)
print(metrics.text().decode().count("unmask_predictions_total{"))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_they_go_on_when_the_disk_is_full(disk: Path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(disk), counters.FOLDER: str(disk)}
    counted = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True)
    assert (counted.returncode, counted.stdout.strip()) == (0, "100"), counted.stderr


def test_on_a_full_disk_none_are_begun(disk: Path):
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3_000_000)
    assert not counters.reserve(disk)
    assert [path.name for path in disk.iterdir()] == ["filler"]
