"""Tasks that use MLflow, retried only if MLflow itself is the problem."""

from typing import Any

from mlflow.exceptions import MlflowException
from prefect import State, task
from prefect.cache_policies import NO_CACHE
from sqlalchemy.exc import SQLAlchemyError

from flows import disk, registry
from flows.registry import Version
from pipeline.champion_source import CHAMPION
from pipeline.tracking import tracking_uri, without_secrets

RETRY_SECONDS = [5.0, 15.0, 30.0]
UNREACHABLE = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


TROUBLE = (MlflowException, OSError, SQLAlchemyError)
"""What MLflow raises if the server, the disk or its database (while it creates its tables) is the problem."""


def trouble(error: Exception) -> str:
    """Message for the user if the disk is full or MLflow did not answer; raises any other error again."""
    said = without_secrets(str(error).partition("\n")[0])
    if (full := disk.full()) is not None:
        return f"{full} ({said})"
    if not isinstance(error, MlflowException) or error.error_code not in UNREACHABLE:
        raise error
    return (
        f"MLflow at {without_secrets(tracking_uri())} does not answer: {said} "
        "Start it (make up) and run again: what was trained is kept, and nothing is trained twice."
    )


def infrastructure_failed(_: Any, __: Any, state: State[Any]) -> bool:
    """Whether a task failed because MLflow did not answer, so that a retry may help."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, MlflowException) and error.error_code in UNREACHABLE


retried: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": infrastructure_failed,
}
"""Settings of a task that uses MLflow."""


@task(name="find the store", **retried)
def find_store() -> None:
    """Fail before the work, not after it, if MLflow does not answer."""
    registry.connect()


@task(name="find the champion", **retried)
def find_champion() -> Version | None:
    """The version that is served, or should be."""
    return registry.holder(CHAMPION)
