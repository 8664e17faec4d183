"""`make run`: the whole loop once, without a server: train, register, promote the very first version, pack it, print a summary.

Its arguments are those of `python -m pipeline.settings`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import httpx
from prefect.settings import PREFECT_API_URL

from flows import promotion, registry
from flows.deploy import deploy
from flows.materialise import workspace_lock
from flows.ports import PORTS
from flows.process import leash
from flows.promotion import BENTO
from flows.registry import Version
from flows.train import train
from pipeline import package, settings
from pipeline.champion_source import CHAMPION
from pipeline.evaluation.metrics import Figure, figure_text
from pipeline.lineage import lineage
from pipeline.package import PACKAGE
from pipeline.servable import failed_gates
from pipeline.tracking import without_secrets

INTERRUPTED = 130
"""Exit code after ctrl-C, as a shell gives it."""


def main() -> None:
    """Write the given settings and run the loop. Exits with 1 if a setting is not allowed, or a stage or the gate failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.run", description="Run the whole loop once.")
    settings.add_arguments(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, _stop)
    try:
        with workspace_lock("run", print):
            with workspace_lock(say=print):  # the settings of a run that is active stay as they are until it ends
                settings.write_given(arguments)
            with _server():  # two Prefect servers that create one database at once lock each other out
                run()
    except KeyboardInterrupt:
        print("stopped; the same command resumes where it was", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _stop(*_: object) -> None:
    """Ctrl-C ends the run in order, which takes seconds; a second one at once, and with it what the run started: it is on a leash."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


@contextmanager
def _server() -> Iterator[None]:
    """A Prefect server for this run alone, unless PREFECT_API_URL names one. It ends with the run, even by `kill -9`.

    Exits with 1 if the server there does not answer.
    """
    if url := PREFECT_API_URL.value():
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=30)
        except (httpx.HTTPError, httpx.InvalidURL):  # Prefect would end in a traceback
            sys.exit(
                f"error: no Prefect server answers at PREFECT_API_URL={without_secrets(url)}; start it (make up), or "
                "`unset PREFECT_API_URL`: without it, a run starts its own"
            )
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer  # takes seconds, which other runs need not wait

    server = SubprocessASGIServer()
    # The server inherits the mask: ctrl-C reaches all processes of a terminal, and without a server the run could not say how it ended.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    server.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert server.server_process is not None
    with leash(server.server_process.pid):
        yield


def run() -> None:
    """Run the loop in a folder with no other run; exits like `main`."""
    ended = train(reason="make run", return_state=True)
    if not ended.is_completed() and ended.name != "GateFailed":
        sys.exit(f"error: {ended.message}")
    version = registry.find(package.verify(PACKAGE).digest)
    assert version is not None, "the train flow registers what it does not fail on"
    with promotion.lock():
        promoted = promotion.is_first(version)
        if promoted:
            promotion.promote(version)
    champion = registry.holder(CHAMPION)
    if champion:
        packed = deploy(by="make run: the very first that passed" if promoted else None, return_state=True)
        if not packed.is_completed():
            sys.exit(f"error: {packed.message}")
        champion = registry.holder(CHAMPION)
    print(summary(version, champion, promoted))
    sys.exit(0 if version.passed else 1)


def summary(version: Version, champion: Version | None, promoted: bool) -> str:
    """The table at the end, and what to type next."""
    figures = cast(dict[str, Figure], package.verify(PACKAGE).meta.figures)
    rows = {
        "data version": lineage()["data_md5"] or "unknown",
        "test F1 (95% interval)": figure_text(figures["f1"]),
        "test AUC (95% interval)": figure_text(figures["auc"]),
        "gate": verdict(version),
        "model version": f"{version.number} of {registry.MODEL}{_role(version, champion, promoted)}",
        # Not packed yet: somebody moved the alias meanwhile.
        "bento": champion.tags.get(BENTO, "not packed yet") + ("" if champion.number == version.number else f" (version {champion.number})")
        if champion
        else "none: there is no champion",
    }
    width = max(map(len, rows))
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
    port = os.environ.get("SERVICE_PORT") or PORTS["SERVICE_PORT"]
    commands = {"make up": "everything: MLflow (to promote), Prefect, the page"}
    if champion:
        commands = {"make serve": f"the page and the API on http://localhost:{port}"} | commands
    listed = "\n".join(f"  {command:<{width}}  {what}" for command, what in commands.items())
    return f"\n{table}\n\nAll figures, with pictures: reports/evaluation.html\n\nNext:\n{listed}\n"


def verdict(version: Version) -> str:
    """`passed`, or what failed."""
    failed = failed_gates(version.tags)
    return "failed: " + "; ".join(line.replace(" failed:", "") for line in failed) if failed else version.tags["gate"]


def _role(version: Version, champion: Version | None, promoted: bool) -> str:
    if promoted:
        return ", champion: the first version that passed"
    if champion is not None and champion.number == version.number:
        return ", champion"
    if not version.passed:
        return ", not to be served"
    return ", challenger: promote it in MLflow (make up)"


if __name__ == "__main__":
    main()
