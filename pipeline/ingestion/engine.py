"""Runs work on many images in processes on this machine or on a Ray cluster, with the same results in the same order."""

import multiprocessing
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Literal, TypeVar

from pipeline.cores import cores
from pipeline.errors import StageError

Engine = Literal["local", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4
"""Tasks queued per worker: enough to keep it busy, few enough that memory does not grow with the number of tasks."""


def run(function: Callable[[Task], Result], tasks: Iterable[Task], engine: Engine) -> Iterator[Result]:
    """Apply a function to each task in parallel; results come in the order of the tasks, and only a few are ever in flight.

    Args:
        function: defined at the top level of a module. It may write only to a file system that all workers share.
        tasks: small and picklable.
        engine: `ray` connects to the cluster at RAY_ADDRESS, or starts one on this machine.

    Raises:
        StageError: if Ray is requested but not installed.
    """
    return _ray(function, tasks) if engine == "ray" else _local(function, tasks)


def _local(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    workers = cores()
    # Not forks of this process, which may have threads: a lock that one of them holds would stay locked in the fork forever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.ingestion.batch"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker, initargs=(os.getpid(),)) as pool:

        def submit(task: Task) -> Future[Result]:
            with _main_hidden():
                return pool.submit(function, task)

        yield from _in_order(submit, lambda future: future.result(), tasks, workers)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Hide __main__: a new worker would import the stage's module and all its dependencies, which takes seconds, and never use them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ray(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise StageError("data.engine is ray, but Ray is not installed: pip install -e '.[ray]', or set data.engine: local") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        home = os.getcwd()  # noqa: PTH109

        @ray.remote
        def there(task: Task) -> Result:
            os.chdir(home)  # a worker starts in another folder, and paths are relative to the project's
            return function(task)

        workers = int(ray.cluster_resources().get("CPU", 1))
        yield from _in_order(there.remote, ray.get, tasks, workers)
    finally:
        if started:
            ray.shutdown()


def _in_order(submit: Callable[[Any], Any], result: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    waiting: deque[Any] = deque()
    for task in tasks:
        if len(waiting) >= AHEAD * workers:
            yield result(waiting.popleft())
        waiting.append(submit(task))
    while waiting:
        yield result(waiting.popleft())


def _prepare_worker(stage: int) -> None:
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    if sys.platform == "linux":
        threading.Thread(target=_end_with, args=(stage,), daemon=True).start()


def _end_with(stage: int) -> None:
    """End this worker when its stage ends, killed or not: it must not write at the same time as the next run's workers.

    Nothing else would end it: a worker keeps its fork server alive, and waits for tasks on a pipe that its siblings hold open.
    """
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(stage)], [], [])
    os._exit(1)
