"""Flow `deploy`: packs the champion into a bento, which serves without MLflow."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bentoml
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows import registry
from flows.process import environment, stream
from flows.registry import MODEL, Version
from flows.store import find_champion, retried
from pipeline import package
from pipeline.errors import StageError
from pipeline.package import PackageError

PACKED = Path("models/champion")
"""Where bentofile.yaml takes the package from."""

BENTO = "bento"
"""Tag of a version: the bento it was packed into."""


@flow(name="deploy", log_prints=False)
def deploy() -> State[Any]:
    """Build the champion's bento, unless it is there.

    Ends as Completed (with the name Cached if there was nothing to do), as Refused if the champion failed its gate, or StageFailed.
    """
    try:
        version = find_champion()
        if version is None:
            return Failed(name="StageFailed", message=f"no version of {MODEL} has the alias {registry.CHAMPION}: move it to one in MLflow")
        if not version.passed:
            return Failed(
                name="Refused", message=f"version {version.number} did not pass its gate: {version.tags.get('gate', 'it has none')}"
            )
        if is_built(version):
            return Completed(name="Cached", message=version.tags[BENTO])
        fetch(version)
        return Completed(message=build(version))
    except (StageError, PackageError) as error:
        return Failed(name="StageFailed", message=str(error))


def is_built(version: Version) -> bool:
    """Whether the version's bento is in this machine's store."""
    try:
        bentoml.get(version.tags[BENTO])
    except (KeyError, bentoml.exceptions.NotFound):
        return False
    return True


@task(name="fetch the package", **retried)
def fetch(version: Version) -> None:
    """Put the version's package into models/champion.

    Raises:
        PackageError: if what was downloaded is not whole; models/champion stays as it was.
    """
    PACKED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".champion-", dir=PACKED.parent) as folder:
        found = package.verify(registry.download(version, Path(folder)))
        shutil.rmtree(PACKED, ignore_errors=True)
        found.path.rename(PACKED)


@task(name="bentoml build", cache_policy=NO_CACHE)
def build(version: Version) -> str:
    """Build the bento and note its tag on the version. Returns the tag.

    Raises:
        StageError: with what BentoML said.
    """
    lineage = package.verify(PACKED).meta.lineage
    labels = {
        "model_version": str(version.number),
        "run_id": version.run_id,
        "git_commit": lineage["git_commit"],
        "data_md5": lineage["data_md5"],
    }
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    for name, value in labels.items():
        command += ["--label", f"{name}={value or 'unknown'}"]
    ended = stream(command, get_run_logger().info, environment())
    tag = next((line.removeprefix("__tag__:") for line in ended.tail if line.startswith("__tag__:")), None)
    if ended.returncode or tag is None:
        raise StageError(f"`bentoml build` failed: {ended.message()}")
    registry.tag(version, BENTO, tag)
    return tag
