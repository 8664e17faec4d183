"""HTTP in, verdict out: what `bentoml serve` starts. The routes are in serving/, what they say in pipeline/.

The routes are a Starlette application that BentoML mounts, and not `@bentoml.api` methods: those parse the whole upload, of any
size, before a method sees it, and answer a bad file or a wrong field with bodies of their own.
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
from serving import app
from serving.access import is_loopback
from serving.connections import bound
from serving.context import Context
from serving.front import Front
from serving.settings import Settings

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = {
    # More seconds than the settings allow for an upload and its answer: this limit's error has no body of ours.
    "traffic": {"timeout": 250},
    # BentoML counts by the path as it was asked for, so that whoever asks for many paths fills the memory. Ours are in serving/metrics.py.
    "metrics": {"enabled": False},
    # A type that is not UTF-8 makes the access log fail, which then has a traceback in the place of a line.
    "logging": {"access": {"request_content_type": False}},
    # A span for each request, which goes nowhere unless somebody sets an exporter, costs half a millisecond.
    "tracing": {"excluded_urls": ".*"},
}
"""What BentoML does around the routes; BENTOML_CONFIG_OPTIONS="services.unmask.tracing.excluded_urls=none" and the like change it."""

COUNTERS = "UNMASK_COUNTERS"
"""Variable with the folder of this service's counters, which its workers share. BentoML would take one for all services of a user, and
empty it whenever one of them starts, even one that does not come up."""

log = logging.getLogger("pipeline.service")
routes = app.make()
bound()


def _champion() -> Champion:
    """Inside a bento, whose sources lie in a folder beside bento.yaml, the package that was packed with them."""
    bento = HERE.parent / "bento.yaml"
    if not bento.is_file():
        return champion()
    labels = yaml.safe_load(bento.read_text()).get("labels") or {}
    return champion(HERE / "models" / "champion", labels.get("model_version", ""))


def _host() -> str | None:
    """Where `bentoml serve` will listen, of which BentoML tells the service nothing; None where something else starts it."""
    command = click.get_current_context(silent=True)
    if command is None or "host" not in command.params:
        return None
    host = command.params["host"]
    return str(BentoMLContainer.http.host.get() if host is None else host)  # where the flag is missing, BentoML fills it in later


def _one_line(record: logging.LogRecord) -> bool:
    """A filter that lets everything through, with control characters escaped: no path of a request writes a line of its own."""
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
        """Before any worker: wrong settings, or a door that is open to everybody, end the start here."""
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
        os.environ[COUNTERS] = tempfile.mkdtemp(prefix="unmask-counters-")
        atexit.register(shutil.rmtree, os.environ[COUNTERS], ignore_errors=True)

    def __init__(self) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        logging.getLogger("bentoml.access").addFilter(_one_line)
        give_back_large()
        cv2.setNumThreads(1)  # requests run side by side: threads of their own would only wait for each other
        settings = Settings.from_environment()
        if COUNTERS in os.environ:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[COUNTERS]
        if not settings.api_keys:
            log.warning("UNMASK_API_KEYS is not set: only this machine is answered")
        self.context = routes.state.context = Context(settings, _champion())
        self.context.champion.start()
        self.context.trial.start()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop following, and write what is not written yet."""
        self.context.champion.stop()
        self.context.trial.stop()
        self.context.log.close()


Unmask.add_asgi_middleware(Front, state=routes.state)  # type: ignore[attr-defined]
