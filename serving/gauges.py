"""Metrics that are not counted but read when Prometheus scrapes: the last drift check, and the challenger."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from serving.trial import Trial


def drift(report: Path) -> list[Metric]:
    """The last report of the drift flow as metrics.

    Empty before the first check, and if the report is unreadable or from another release: the other metrics must not fail with it.
    """
    try:
        return list(_drift(json.loads(report.read_text()), report.stat().st_mtime))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _drift(found: dict[str, Any], checked: float) -> Iterator[Metric]:
    kind = found["kind"]["kind"] if found["drift"] else "none"
    yield _gauge(
        "unmask_drift", "Whether the last check found a drift", [(found["drift"], (str(found["version"]), kind))], "version", "kind"
    )
    for name, value, meaning in (
        ("checked_timestamp_seconds", checked, "When the last drift check ended, in seconds since 1970"),
        ("p_value", found["p_value"], "p-value of all statistics together; drift if it is at most unmask_drift_alpha"),
        ("alpha", found["alpha"], "False-alarm rate of one check"),
        ("window", found["window"], "Answers that the last check compared"),
        ("share_of_fakes", found["share_of_fakes"], "Estimated share of fakes among them"),
    ):
        yield _gauge(f"unmask_drift_{name}", meaning, [(value, ())])
    f1 = [(figure["value"], (name,)) for name, figure in found["f1"].items() if figure is not None]
    yield _gauge("unmask_drift_f1", "F1: expected without labels, measured on users' labels, tested on the test part", f1, "how")
    for name, key, meaning in (
        ("unmask_drift_statistic", "value", "Value of a statistic: how far the window is from the reference"),
        ("unmask_drift_statistic_p_value", "p_value", "p-value of a statistic, adjusted for the number of statistics"),
        ("unmask_drift_statistic_psi", "psi", "Population stability index"),
    ):
        yield _gauge(name, meaning, [(row[key], (row["name"], row["kind"])) for row in found["statistics"]], "statistic", "kind")


def challenger(trial: Trial) -> Iterator[Metric]:
    """The share of the images that the challenger judges now: 0 after its canary was stopped; nothing without a challenger."""
    served = trial.challenger.served
    if served is not None:
        share = 0.0 if trial.stop_reason() else trial.share
        meaning = "Share of the pictures that the challenger judges"
        yield _gauge("unmask_challenger_share", meaning, [(share, (served.version, trial.mode))], "version", "mode")


def _gauge(name: str, meaning: str, values: Iterable[tuple[float | None, tuple[str, ...]]], *labels: str) -> Metric:
    """A gauge with a value for each combination of labels; undefined values are left out."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for value, named in values:
        if value is not None:
            family.add_metric(named, value)
    return family
