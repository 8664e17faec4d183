"""Engines: local processes, with results in order and few tasks ahead, and a Ray cluster of two nodes that makes the same data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipeline import ingest
from pipeline.cores import cores
from pipeline.ingestion import engine
from pipeline.params import Params
from tests.test_kill import digests


@pytest.mark.long
def test_a_ray_cluster_makes_the_same_bytes(faces: Path, prepare: Callable[..., Params], monkeypatch):
    forge = {"methods": {"self_blend": 0.4, "swap": 0.3, "resynthesis": 0.3}}
    ingest.run(prepare(data__forge=forge))
    local = digests(Path.cwd())
    for made in ("data", "reports", "var"):
        shutil.rmtree(made)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ingest.run(prepare(data__forge=forge, data__engine="ray"))
    finally:
        cluster.shutdown()
    assert digests(Path.cwd()) == local


def test_a_local_run_keeps_the_order_and_few_tasks_in_flight():
    started = []

    def tasks():
        for number in range(200):
            started.append(number)
            yield number

    results = engine.run(abs, tasks(), "local")
    assert next(results) == 0 and len(started) <= 1 + engine.AHEAD * cores()
    assert [0, *results] == list(range(200))
