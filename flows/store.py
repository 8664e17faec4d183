"""Tasks that ask MLflow, tried again only where MLflow itself is the trouble."""

from typing import Any

from mlflow.exceptions import MlflowException
from prefect import State, task
from prefect.cache_policies import NO_CACHE

from flows import registry
from flows.registry import Version

RETRY_SECONDS = [5.0, 15.0, 30.0]
UNREACHABLE = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def infrastructure_failed(_: Any, __: Any, state: State[Any]) -> bool:
    """Whether a task failed because MLflow did not answer, so that trying again may help."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, MlflowException) and error.error_code in UNREACHABLE


retried: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": infrastructure_failed,
}
"""Settings of a task that asks MLflow."""


@task(name="find the store", **retried)
def find_store() -> None:
    """Fail before the work, not after it, where MLflow does not answer."""
    registry.connect()


@task(name="find the champion", **retried)
def find_champion() -> Version | None:
    """The version that is served, or should be."""
    return registry.holder(registry.CHAMPION)
