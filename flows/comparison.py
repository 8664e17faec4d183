"""Compares a new version with the champion on the same images, and shows the result on the version's page in MLflow."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import get_run_logger, task

from flows import registry
from flows.process import environment, stream
from flows.registry import Version
from flows.store import find_champion, retried
from pipeline import compare, package
from pipeline.errors import StageError
from pipeline.evaluation.metrics import figure_text
from pipeline.lineage import lineage
from pipeline.package import PACKAGE, Package, PackageError

COMPARED_WITH = "compared_with"
"""Tag of a version: the champion that it was compared with."""

DIFFERENCE = "difference."
"""Prefix of the tags that hold the differences."""

MOST = 5000
"""Characters that fit into a description in MLflow's database."""


@task(name="compare with the champion", **retried)
def compare_with_champion() -> dict[str, Any] | None:
    """Compare the package of this run with the champion's, unless that was done already. Call it with `workspace_lock` held.

    A failed comparison is only logged: the version is registered without one, and not promoted automatically.

    Returns:
        Content of reports/comparison.json; None if there is no champion, this is its package, or the comparison failed.
    """
    challenger, champion = package.verify(PACKAGE), find_champion.fn()
    if champion is not None and champion.digest != challenger.digest:
        try:
            return _known(challenger, champion) or _compare(champion)
        except (StageError, PackageError) as error:
            get_run_logger().warning("not compared with the champion, version %s: %s", champion.number, error)
    for stale in (compare.REPORT, compare.TABLE):
        stale.unlink(missing_ok=True)  # all of reports/ is logged to MLflow
    return None


def note(version: Version, found: Package, comparison: dict[str, Any] | None) -> None:
    """Document a version in MLflow: the comparison as tags and a table, where the reports are, and the model card.

    Without a new comparison the description stays as it is: an earlier one is kept, and what a person wrote there.
    """
    if comparison is None:
        if not version.description:
            registry.describe(version, description(version, found))
        return
    differences = {
        f"{DIFFERENCE}{part}.{name}": figure_text(values[name]["difference"], digits=4, sign="+")
        for part, values in comparison["parts"].items()
        for name in compare.COMPARED
    }
    tags = differences | {COMPARED_WITH: str(comparison["champion"]["version"])}
    if tags == {key: value for key, value in version.tags.items() if key == COMPARED_WITH or key.startswith(DIFFERENCE)}:
        return
    registry.describe(version, description(version, found, compare.table(comparison)), compare.REPORT, compare.TABLE)
    # After the description, so that they say that it was written.
    for key in {key for key in version.tags if key.startswith(DIFFERENCE)} - set(differences):
        registry.untag(version, key)
    for key, value in tags.items():
        registry.tag(version, key, value)


def description(version: Version, found: Package, table: str | None = None) -> str:
    """Markdown that a person reads in MLflow before moving the alias, cut to MOST characters."""
    where = [f"Reports: artifacts of run `{version.run_id}`, `reports/evaluation.html` and"]
    where.append("`reports/comparison.json`." if table else "`reports/validation.json`.")
    card = (found.path / "card.md").read_text() if (found.path / "card.md").is_file() else ""
    text = "\n\n".join([*(["## Against the champion, on the same images", table] if table else []), " ".join(where), card]).strip()
    if len(text) <= MOST:
        return text
    rest = "\n\nThe rest: artifact `package/card.md`."
    return text[: MOST - len(rest)].rpartition("\n")[0] + rest


def _known(challenger: Package, champion: Version) -> dict[str, Any] | None:
    """The existing comparison, if it is of these two packages on the current images."""
    if not compare.REPORT.is_file():
        return None
    found: dict[str, Any] = json.loads(compare.REPORT.read_text())
    was = (found["challenger"]["package"], found["champion"]["package"], found["champion"]["version"], found["splits_md5"])
    now = (challenger.digest, champion.digest, str(champion.number), lineage()["splits_md5"])
    return found if was == now else None


def _compare(champion: Version) -> dict[str, Any]:
    """Compare in a subprocess, because flows do no machine learning. Raises StageError with its message."""
    with tempfile.TemporaryDirectory(prefix="unmask-champion-") as folder:
        try:
            there = registry.download(champion, Path(folder))
        except (MlflowException, OSError) as error:
            first, _, _ = str(error).partition("\n")
            raise StageError(f"its package cannot be downloaded: {first}") from None
        command = [sys.executable, "-m", "pipeline.compare", str(there), "--version", str(champion.number)]
        ended = stream(command, get_run_logger().info, environment())
    if ended.returncode:
        raise StageError(ended.message())
    result: dict[str, Any] = json.loads(compare.REPORT.read_text())
    return result
