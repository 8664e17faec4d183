"""Brings the files up to date with `dvc repro`, one Prefect task run per DVC stage, in the order that DVC says."""

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path

import psutil
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows import disk
from flows.process import Ended, environment, stream
from pipeline.errors import StageError
from pipeline.lineage import lineage
from pipeline.var import var_folder

DVC = [sys.executable, "-m", "dvc"]
CACHED = ("Stage '{}' didn't change, skipping", "Stage '{}' is cached - skipping run, checking out outputs")
NOTE = Path(".dvc/tmp/rwlock")
"""DVC's lock file: which processes read or write which files."""

WORKSPACE = "materialise"
"""Name of the lock that is held while stages run and their results are registered."""

NODE = re.compile(r'^"(?P<stage>[^"]+)"(?: -> "(?P<after>[^"]+)")?;$', re.MULTILINE)


def materialise(last: str | None = None, again: str | None = None) -> None:
    """Run every stage of dvc.yaml that is out of date. Call it in a flow, with `workspace_lock` held.

    Args:
        last: stop after this stage.
        again: a stage to run even if DVC sees no change.

    Raises:
        StageError: if a stage fails, with its name and message.
    """
    remove_stale_lock()
    states: dict[str, State] = {}
    graph = stages()
    for stage in TopologicalSorter(graph).static_order():
        before = [states[needed] for needed in graph[stage]]
        states[stage] = reproduce(stage, force=stage == again, return_state=True, wait_for=before)
        if states[stage].is_failed():
            raise StageError(f"stage {states[stage].message}")
        if stage == last:
            return


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE)
def reproduce(stage: str, force: bool) -> State:
    """Bring one stage up to date, or run it anyway with `force`.

    Ends as Completed, as Cached if DVC found nothing to do, or as Failed with the stage's message.
    """
    logger = get_run_logger()
    now = lineage()
    tags = {"prefect_flow_run": str(flow_run.id), "git_commit": str(now["git_commit"]), "git_dirty": str(now["git_dirty"])}
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), stage]
    ended = stream(command, logger.info, environment(UNMASK_RUN_TAGS=json.dumps(tags)))
    if ended.returncode:
        return Failed(message=f"{stage} failed: {_complaint(ended)}")
    if set(ended.tail) & {text.format(stage) for text in CACHED}:
        return Completed(name="Cached", message="DVC: nothing that the stage depends on changed")
    return Completed()


def stages() -> dict[str, list[str]]:
    """Each stage of dvc.yaml -> the stages it depends on.

    Raises:
        StageError: if DVC cannot read its graph.
    """
    found = subprocess.run([*DVC, "dag", "--dot"], capture_output=True, text=True)
    if found.returncode:
        message = Ended(found.returncode, found.stderr.splitlines()).message()
        hint = ": clone the project, or make one here with `git init`" if message.endswith("not a git repository") else ""  # a download
        raise StageError(f"`dvc dag` failed: {message}{hint}")
    graph: dict[str, list[str]] = {}
    for match in NODE.finditer(found.stdout):
        if match["after"]:
            graph.setdefault(match["after"], []).append(match["stage"])
        else:
            graph.setdefault(match["stage"], [])
    return graph


def remove_stale_lock() -> None:
    """Remove DVC's lock file if none of the processes in it is alive.

    DVC goes by the process id alone. After a restart of the machine, and even more so of a container, another process may have the
    id of a killed one, and DVC would refuse to work.
    """
    try:
        written, noted = NOTE.stat().st_mtime, json.loads(NOTE.read_text())
    except FileNotFoundError:
        return
    except ValueError:  # truncated by a kill
        noted = {}
    holders = [holder for held in noted.values() for found in held.values() for holder in (found if isinstance(found, list) else [found])]
    if not any(_lived(holder["pid"], written) for holder in holders):
        NOTE.unlink(missing_ok=True)


def _lived(pid: int, time: float) -> bool:
    """Whether the process that has this id now existed at that time."""
    try:
        return psutil.Process(pid).create_time() <= time + 1  # the times come from different clocks
    except psutil.NoSuchProcess:
        return False


@contextmanager
def workspace_lock(name: str = WORKSPACE, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Reserve this folder's files for one flow at a time, from the first stage to the registration of the results.

    The lock is the operating system's and ends with the process, even by `kill -9`.

    Args:
        name: locks with other names are for other files.
        say: gets a message if there is a wait; by default the run's log.
    """
    path = var_folder() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (say or get_run_logger().info)(f"another run is active in this folder ({name}); waiting until it ends")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def at_work() -> list[str]:
    """Names of the locks that are held in this folder now."""
    held = []
    for path in sorted(var_folder().glob("*.lock")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.stem)
    return held


def _complaint(ended: Ended) -> str:
    """The stage's own message, or DVC's if the stage did not start; and a note if the disk is full."""
    own = [line for line in ended.tail if not re.match("ERROR: failed to reproduce .*: failed to run:", line)]
    return " ".join(filter(None, [Ended(ended.returncode, own).message(), disk.full()]))
