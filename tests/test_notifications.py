"""One message per fact, however often a flow runs; sent by the flows themselves to a real receiver."""

import sys

import numpy as np
import pandas as pd
import pytest

from flows.promotion import SOMEBODY
from pipeline.monitoring.predictions import FILE
from pipeline.package import verify
from pipeline.settings import apply
from tests.drift_helpers import record
from tests.fault_helpers import Machine
from tests.service_helpers import promote
from tests.webhook_helpers import received

pytestmark = pytest.mark.long

RUN = (sys.executable, "-m", "flows.run")
SAVE = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook
Hook(name="team", url={url!r}, json_data={{"fact": "{{{{subject}}}}", "text": "{{{{body}}}}"}}).save("team", overwrite=True)
"""


def flow(name: str) -> tuple[str, ...]:
    """A command that runs the flow twice."""
    text = f"from flows.{name} import {name}\nfor _ in range(2): print({name}(return_state=True).name)"
    return sys.executable, "-c", text


def test_each_fact_is_told_once(finished, copy_workspace, tmp_path):
    machine = Machine(copy_workspace(finished), tmp_path)
    params = machine.folder / "params.yaml"
    try:
        machine.start("mlflow", "prefect")
        with received() as (url, messages):
            machine.run(sys.executable, "-c", SAVE.format(url=url))
            apply({"notifications.block": "custom-webhook/team", "gates": {"test.f1.low": {"min": 0.999}}}, params)
            for _ in range(2):
                assert "GateFailed" in machine.run(*RUN, check=False)
            assert facts(messages) == ["gate failed"] and "test.f1.low failed: " in messages[0]["text"]

            apply({"gates": {"test.f1.value": {"min": 0.0}}}, params)
            machine.run(*RUN)
            machine.run(*flow("deploy"))
            assert facts(messages)[1:] == ["promotion"] and "version 1 of unmask is the champion" in messages[1]["text"]

            package = verify(machine.folder / "models/package")
            seen = pd.read_parquet(package.path / "reference.parquet").sample(150, replace=True, random_state=np.random.default_rng(1))
            record(machine.folder / "var" / FILE, package.digest, seen.assign(brightness=np.linspace(9, 10, 150), blur=1.0))
            assert machine.run(*flow("drift")).splitlines().count("Drift") == 2
            assert facts(messages)[2:] == ["drift found"] and "above all in" in messages[2]["text"]
            record(machine.folder / "var" / FILE, package.digest, seen.head(1).assign(brightness=11.0, blur=1.0))
            assert machine.run(*flow("drift")).splitlines().count("Drift") == 2 and len(messages) == 3  # the same drift, with new answers

            apply({"gates": {"test.f1.low": {"min": 0.999}}, "export.golden": 3}, params)
            machine.run(*RUN, check=False)
            assert facts(messages)[3:] == ["gate failed"]
            promote(machine.store, "2")
            assert machine.run(*flow("deploy")).splitlines().count("Refused") == 2
            assert facts(messages)[4:] == ["refusal"] and "version 2 did not pass its gate" in messages[4]["text"]

            assert "champion: version 1 (was 2)" in machine.run(sys.executable, "-m", "flows.cli", "rollback")
            machine.run(*flow("deploy"))
            assert facts(messages)[5:] == ["roll-back"] and SOMEBODY not in messages[5]["text"]
    finally:
        machine.power_off()


def facts(messages: list[dict[str, str]]) -> list[str]:
    """The facts in the messages, without the project's name."""
    return [message["fact"].removeprefix("Unmask: ") for message in messages]
