"""Servers that die during a training: a rerun ends in one version with one run. With a real MLflow, Prefect and worker."""

import json
import sys
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.fault_helpers import Machine, registered_once
from tests.service_helpers import wait_for

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def machine(finished, copy_workspace, tmp_path_factory) -> Iterator[Machine]:
    machine = Machine(copy_workspace(finished), tmp_path_factory.mktemp("homes"))
    try:
        machine.start("mlflow", "prefect", "worker")
        yield machine
    finally:
        machine.power_off()


@pytest.fixture
def client(machine: Machine) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: machine.api}), get_client(sync_client=True) as client:
        yield client


def test_the_worker_is_killed_during_training(machine: Machine, client: SyncPrefectClient):
    before = machine.checkpoints()
    machine.trains(train__seed=1)
    run = machine.ask(client)
    machine.wait_for_training(before)
    machine.kill("worker")
    machine.start("worker")
    assert machine.ended(client, run).state_name == "Crashed"  # what a worker started dies with it
    again = machine.ended(client, machine.ask(client))
    assert again.state_name == "Completed", again.state
    assert resumed(machine)
    registered_once(machine.folder, machine.store)


def test_the_prefect_server_is_restarted_during_training(machine: Machine, client: SyncPrefectClient):
    before = machine.checkpoints()
    machine.trains(train__seed=2, train__epochs=6)
    run = machine.ask(client)
    machine.wait_for_training(before)
    state = client.read_flow_run(run).state
    machine.kill("prefect")
    machine.start("prefect")
    # A run renews its concurrency lease every few minutes, and is ended if the server does not know the lease.
    assert state is not None and state.state_details.deployment_concurrency_lease_id is not None
    client.renew_concurrency_lease(state.state_details.deployment_concurrency_lease_id, 300)
    assert machine.ended(client, run).state_name == "Completed"
    registered_once(machine.folder, machine.store)


def test_mlflow_is_down_when_a_model_is_to_be_registered(machine: Machine, client: SyncPrefectClient):
    exported = machine.folder / "reports/export.json"
    before = exported.stat().st_mtime_ns
    machine.trains(train__seed=3)
    run = machine.ask(client)
    wait_for(lambda: exported.is_file() and exported.stat().st_mtime_ns != before, seconds=900)
    machine.kill("mlflow")
    failed = machine.ended(client, run)
    assert failed.state is not None and failed.state_name == "StageFailed"
    for text in (f"MLflow at {machine.store} does not answer", "make up", "nothing is trained twice"):
        assert text in str(failed.state.message)
    for name in ("drift", "deploy"):
        asked = f"from flows.{name} import {name}; print({name}(return_state=True).name)"
        assert "StageFailed" in machine.run(sys.executable, "-c", asked).splitlines()
    machine.start("mlflow")
    made = exported.stat().st_mtime_ns
    assert machine.ended(client, machine.ask(client)).state_name == "Completed"
    assert exported.stat().st_mtime_ns == made
    registered_once(machine.folder, machine.store)


def test_mlflow_dies_in_the_middle_of_a_registration_and_comes_back(machine: Machine, client: SyncPrefectClient):
    machine.trains(train__seed=4)
    known = set((machine.folder / "mlartifacts").glob("*/*/artifacts/reports"))
    run = machine.ask(client)
    wait_for(lambda: bool(set((machine.folder / "mlartifacts").glob("*/*/artifacts/reports")) - known), seconds=900)
    machine.kill("mlflow")
    machine.start("mlflow")
    assert machine.ended(client, run).state_name == "Completed"
    registered_once(machine.folder, machine.store)


def test_after_a_power_cut_the_run_that_never_ended_does_not_block_the_next(machine: Machine, client: SyncPrefectClient):
    before = machine.checkpoints()
    machine.trains(train__seed=5)
    run = machine.ask(client)
    machine.wait_for_training(before)
    machine.power_off()
    machine.start("mlflow", "prefect", "worker")
    zombie = client.read_flow_run(run)
    assert zombie.state is not None and zombie.state.is_running()
    # A lease expires if it is not renewed for five minutes.
    assert machine.ended(client, machine.ask(client)).state_name == "Completed"
    assert resumed(machine)
    registered_once(machine.folder, machine.store)


def resumed(machine: Machine) -> bool:
    """Whether the training resumed one that was interrupted."""
    return json.loads((machine.folder / "reports/train.json").read_text())["resumed_from_step"] > 0
