"""Where work on many images runs: processes on this machine, or a Ray cluster. The results are the same, in the same order."""

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
"""Tasks that wait for each worker: enough to keep it busy, few enough that memory does not grow with the number of tasks."""


def run(function: Callable[[Task], Result], tasks: Iterable[Task], engine: Engine) -> Iterator[Result]:
    """Apply a function to each task in parallel; results come in the order of the tasks, and only a few are ever in flight.

    Args:
        function: at the top level of a module. What it writes has to be on a file system that all workers see.
        tasks: small and picklable.
        engine: `ray` connects to the cluster at RAY_ADDRESS, or starts one on this machine.

    Raises:
        StageError: if Ray is asked for and not installed.
    """
    return _ray(function, tasks) if engine == "ray" else _local(function, tasks)


def _local(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    workers = cores()
    # Not forks of this process, which may hold threads: a lock that one of them held would stay shut in the fork for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.ingestion.batch"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker, initargs=(os.getpid(),)) as pool:

        def submit(task: Task) -> Future[Result]:
            with _main_hidden():
                return pool.submit(function, task)

        yield from _in_order(submit, lambda future: future.result(), tasks, workers)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A new worker would import the stage's own module, and with it all that only the stage needs: seconds, for what it never calls."""
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
        raise StageError("data.engine is ray, and Ray is not installed: pip install -e '.[ray]', or set data.engine: local") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        home = os.getcwd()  # noqa: PTH109

        @ray.remote
        def there(task: Task) -> Result:
            os.chdir(home)  # a worker starts elsewhere, and paths are relative to the project's folder
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
    """End this worker when its stage ends, killed or not: it must not write beside the next run's.

    Nothing else would end it: a worker keeps its fork server alive, and waits for tasks at a pipe that its fellows hold open.
    """
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(stage)], [], [])
    os._exit(1)
