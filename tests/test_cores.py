"""How many cores are used: in a container, no more than its share."""

import os
from pathlib import Path

import pytest

from pipeline import cores
from pipeline.package import GRAPH
from pipeline.runtime import compiled, read
from serving.threads import Threads


@pytest.mark.parametrize(("quota", "share"), [("50000 100000", 1), ("150000 100000", 2), ("6400000 100000", 64), ("max 100000", None)])
def test_a_container_has_as_many_processors_as_its_share_of_time(quota: str, share: int | None, tmp_path: Path, monkeypatch):
    allowed = len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    assert cores.cores() == (allowed if share is None else min(share, allowed))


def test_threads_and_the_network_keep_to_that_share(package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    assert compiled(read(package / GRAPH)).get_property("INFERENCE_NUM_THREADS") == 1
    assert Threads()._short._max_workers == 1
