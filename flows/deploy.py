"""Flow `deploy`: follows the alias `champion`. Packs its version into a bento and records the promotion, or refuses the version."""

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import bentoml
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows import canary, promotion, registry
from flows.materialise import workspace_lock
from flows.notifications import Fact, send
from flows.process import environment, stream
from flows.promotion import BENTO
from flows.registry import MODEL, Version
from flows.smoke import smoke
from flows.store import TROUBLE, find_champion, retried, trouble
from pipeline import package
from pipeline.champion_source import CHAMPION
from pipeline.errors import StageError
from pipeline.package import PackageError
from pipeline.servable import ADVICE, SMOKE_TEST

PACKED = Path("models/champion")
"""Where bentofile.yaml takes the package from."""

FRESH = ".champion-"
"""Prefix of the temporary folder, beside PACKED, that the next package is downloaded into."""

MOST = 400
"""Characters of a failed smoke test's reason that go into a tag."""


@flow(name="deploy", log_prints=False)
def deploy(by: str | None = None) -> State[Any]:
    """Build and smoke-test the champion's bento, unless that was done already, and record the promotion.

    Ends as Completed (named Cached if there was nothing to do, NoChampion if there is none, Superseded if the alias was moved
    meanwhile), as Refused if the champion may not be served, or as StageFailed. Also announces a canary that the service stopped.
    The alias is never moved back: it is a person's decision, and the tag `refused` says why it cannot be followed.

    Args:
        by: who moved the alias, if that is known.
    """
    try:
        with workspace_lock("deploy"):
            if (ended := canary.last()) is not None:
                canary.announce(ended)
            return _follow(by)
    except (StageError, PackageError) as error:
        return Failed(name="StageFailed", message=str(error))
    except TROUBLE as error:
        return Failed(name="StageFailed", message=trouble(error))


def _follow(by: str | None) -> State[Any]:
    version = find_champion()
    if version is None:
        message = f"no version of {MODEL} has the alias {CHAMPION}: move it to one in MLflow"
        return Completed(name="NoChampion", message=message)
    reason = promotion.obstacle(version)
    if reason is not None:
        reason = f"{reason}. {ADVICE}"
        refuse(version, reason)
        return Failed(name="Refused", message=reason)
    built = is_built(version)
    # After a roll-back its bento is there, and the package of the version that was rolled back from: models are compared with this folder.
    if not built or (version.digest and not package.is_at(PACKED, version.digest)):
        fetch(version)
    tag = version.tags[BENTO] if built else build(version)
    if not built and (wrong := try_out(version, tag)):
        reason = f"{promotion.obstacle(replace(version, tags=version.tags | {SMOKE_TEST: wrong}))}. {ADVICE}"
        refuse(version, reason)
        return Failed(name="Refused", message=reason)
    new = note(replace(version, tags=version.tags | {BENTO: tag}), by)
    if new is None:
        return Completed(name="Superseded", message=f"version {version.number} is no longer the champion; nothing was recorded")
    return Completed(name="Cached" if built and not new else None, message=tag)


@task(cache_policy=NO_CACHE)
def refuse(version: Version, reason: str) -> None:
    """Tag the version and notify, once, why the champion may not be served."""
    if version.tags.get(promotion.REFUSED) == reason:
        return
    registry.tag(version, promotion.REFUSED, reason)
    _notify("refusal", reason)


@task(name="record the promotion", **retried)
def note(version: Version, by: str | None) -> bool | None:
    """Record the promotion and notify, if it is new. Returns whether it is; None if the alias was moved meanwhile."""
    with promotion.lock():
        now = find_champion.fn()  # again: build and smoke test took minutes
        if now is None or now.number != version.number:
            return None
        registry.untag(version, promotion.REFUSED)
        line = promotion.record(version, by)
    if line is None:
        return False
    _notify("promotion", f"version {line['version']} of {MODEL} is the champion (before: {line['previous'] or 'none'}), by {line['by']}")
    return True


def _notify(fact: Fact, message: str) -> None:
    (get_run_logger().error if fact == "refusal" else get_run_logger().info)(message)
    create_markdown_artifact(key="promotion", markdown=f"# {fact.capitalize()}\n\n{message}")
    send(fact, message)


def is_built(version: Version) -> bool:
    """Whether the version's bento is in this machine's BentoML store."""
    try:
        bentoml.get(version.tags[BENTO])
    except (KeyError, ValueError, bentoml.exceptions.BentoMLException):  # no tag, an invalid one, or a bento that is not here
        return False
    return True


@task(name="fetch the package", **retried)
def fetch(version: Version) -> None:
    """Download the version's package to models/champion.

    Raises:
        PackageError: if the download is incomplete or damaged; models/champion stays as it was.
    """
    PACKED.parent.mkdir(parents=True, exist_ok=True)
    for left in PACKED.parent.glob(f"{FRESH}*"):  # by killed runs: hundreds of megabytes, untracked by git
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=FRESH, dir=PACKED.parent) as folder:
        found = package.verify(registry.download(version, Path(folder)))
        shutil.rmtree(PACKED, ignore_errors=True)
        found.path.rename(PACKED)


@task(name="bentoml build", cache_policy=NO_CACHE)
def build(version: Version) -> str:
    """Build the bento. Returns its tag.

    Raises:
        StageError: if BentoML fails, with its message.
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
    return tag


@task(name="smoke test", cache_policy=NO_CACHE)
def try_out(version: Version, tag: str) -> str | None:
    """Serve the bento on a free port and check its answers to the golden examples.

    The result becomes a tag of the version, and so does a bento that passed; one that failed is deleted.

    Returns:
        `failed: why`; None if it passed.
    """
    bento = bentoml.get(tag)
    wrong = smoke(Path(bento.path), package.verify(PACKED))
    if wrong is None:
        registry.tag(version, SMOKE_TEST, "passed")
        registry.tag(version, BENTO, tag)
        return None
    bentoml.delete(tag)
    found = f"failed: {wrong[:MOST]}"
    registry.tag(version, SMOKE_TEST, found)
    return found
