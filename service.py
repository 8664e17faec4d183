"""The service that `bentoml serve` starts. The routes are in serving/, the model behind them in pipeline/.

The routes are a Starlette application that BentoML mounts, not `@bentoml.api` methods: those parse the whole upload, of any size,
before a method sees it, and answer a bad file or a wrong field with error bodies of their own.
"""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import bentoml
import click
import cv2
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException

from pipeline.champion import Champion, champion
from pipeline.errors import StageError
from pipeline.memory import give_back_large
from pipeline.tracking import MODEL
from serving import app, counters
from serving.accepting import install_loop
from serving.access import is_loopback
from serving.connections import install_protocol
from serving.context import Context
from serving.front import Front
from serving.settings import Settings

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = {
    # Seconds, more than the settings allow for an upload and its answer: BentoML's own timeout does not answer with our error body.
    "traffic": {"timeout": 250},
    # BentoML labels its metrics with the requested path, so a client that requests many paths fills the memory. See serving/metrics.py.
    "metrics": {"enabled": False},
    # A Content-Type that is not UTF-8 makes the access log write a traceback instead of a line.
    "logging": {"access": {"request_content_type": False}},
    # A span per request costs half a millisecond, and goes nowhere unless an exporter is set.
    "tracing": {"excluded_urls": ".*"},
}
"""BentoML's settings for this service; BENTOML_CONFIG_OPTIONS overrides them, e.g. "services.unmask.tracing.excluded_urls=none"."""

log = logging.getLogger("pipeline.service")
routes = app.make()
install_protocol()


def _champion() -> Champion:
    """What is served: inside a bento, whose sources are in a folder next to bento.yaml, the package that it contains."""
    bento = HERE.parent / "bento.yaml"
    if not bento.is_file():
        return champion()
    labels = yaml.safe_load(bento.read_text()).get("labels") or {}
    return champion(HERE / "models" / "champion", labels.get("model_version", ""))


def _workers() -> int | str:
    """How many BentoML will start, by its configuration: a number or `cpu_count`."""
    workers: int | str = BentoMLContainer.config.get().get("services", {}).get(MODEL, {}).get("workers", 1)
    return workers


def _host() -> str | None:
    """The host that `bentoml serve` will listen on, which BentoML does not pass on; None if something else starts the service."""
    command = click.get_current_context(silent=True)
    if command is None or "host" not in command.params:
        return None
    host = command.params["host"]
    return str(BentoMLContainer.http.host.get() if host is None else host)  # without the flag, BentoML fills it in later


def _one_line(record: logging.LogRecord) -> bool:
    """Log filter that drops nothing but escapes control characters, so that a request's path cannot forge a log line."""
    message = record.getMessage()
    if not message.isprintable():
        message = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
        record.msg, record.args = message, ()
    return True


@bentoml.service(name=MODEL, workers=1, **CONFIG)
@bentoml.asgi_app(routes, path="/")
class Unmask:
    """The detector behind HTTP: the champion of MLflow, or the package inside the bento."""

    @bentoml.on_deployment
    def may_start() -> None:
        """Runs before any worker: refuse to start with invalid settings, or on a public address without API keys."""
        try:
            settings = Settings.from_environment()
        except StageError as error:
            raise BentoMLConfigException(str(error)) from None
        host = _host()
        if host is not None and not settings.api_keys and not is_loopback(host):
            raise BentoMLConfigException(
                f"without UNMASK_API_KEYS the service listens only on this machine, and not on {host}. "
                "Start it with --host 127.0.0.1, or make a key: export UNMASK_API_KEYS=$(openssl rand -hex 24); echo $UNMASK_API_KEYS"
            )
        os.environ[counters.FOLDER] = tempfile.mkdtemp(prefix="unmask-counters-")
        atexit.register(shutil.rmtree, os.environ[counters.FOLDER], ignore_errors=True)

    def __init__(self) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        logging.getLogger("bentoml.access").addFilter(_one_line)
        give_back_large()
        cv2.setNumThreads(1)  # requests already run in parallel: OpenCV's own threads would only compete
        settings = Settings.from_environment()
        if folder := os.environ.get(counters.FOLDER):
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            if not counters.reserve(Path(folder)):
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]
                log.warning("no room for counters in %s: /metrics will lack those of this worker", folder)
        if not settings.api_keys:
            log.warning("UNMASK_API_KEYS is not set: only this machine is answered")
        self.context = routes.state.context = Context(settings, _champion())
        self.context.champion.start()
        self.context.trial.start()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop following MLflow, and write the rest of the prediction log."""
        self.context.champion.stop()
        self.context.trial.stop()
        self.context.log.close()


Unmask.add_asgi_middleware(Front, state=routes.state)  # type: ignore[attr-defined]
if _workers() != 1:
    install_loop()
