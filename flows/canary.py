"""Announces that the service stopped a canary: as a tag of its version in MLflow, and as a notification."""

import json
from typing import Any

from prefect import get_run_logger, task

from flows import registry
from flows.notifications import send
from flows.store import retried
from pipeline.champion_source import STOPPED
from pipeline.var import var_folder

CANARY = "canary"
"""Tag of a version: why its canary was stopped automatically."""


@task(name="canary ended", **retried)
def announce(ended: dict[str, Any]) -> None:
    """Tag the version and send the notification, unless that was done already.

    Args:
        ended: content of the file STOPPED, written by the service (serving/trial.py).
    """
    version = registry.known(int(ended["version"]))
    of_this_registry = version is not None and ended["made"].startswith(version.run_id)  # a recreated registry counts from 1 again
    if version is None or not of_this_registry or version.tags.get(CANARY) == ended["why"]:
        return
    get_run_logger().error("the canary has ended: %s", ended["why"])
    send("canary ended", f"the champion answers everything again: {ended['why']}")
    registry.tag(version, CANARY, ended["why"])


def last() -> dict[str, Any] | None:
    """What the service wrote when it last stopped a canary, if it ever did."""
    file = var_folder() / STOPPED
    return json.loads(file.read_text()) if file.is_file() else None
