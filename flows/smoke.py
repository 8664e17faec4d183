"""Smoke test of a bento: served once on a free port, it must give the golden examples their recorded answers."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from flows.ports import HOST
from flows.process import Ended, environment, leash
from pipeline.face_weights import NONE
from pipeline.package import Package

READY_SECONDS = 180.0


def smoke(bento: Path, package: Package) -> str | None:
    """What is wrong with a bento; None if it gives the package's own answers to the golden examples.

    Args:
        bento: its folder in BentoML's store.
        package: the package inside it.
    """
    with socket.socket() as spare:
        spare.bind((HOST, 0))
        port = spare.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="unmask-smoke-") as folder:
        # BentoML empties a metrics folder in its home, which another service of this user may be using.
        own = {"BENTOML_HOME": folder, "UNMASK_VAR": folder}
        own |= {"UNMASK_FACE_DETECTOR": str(NONE)}  # the recorded answers are those to whole images
        env = {name: value for name, value in environment().items() if not name.startswith(("UNMASK_", "PROMETHEUS_"))} | own
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", HOST, "--port", str(port)]
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )
        try:
            with leash(-process.pid), httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60) as client:
                answer = _ready(client, process)
                if answer is None:
                    return f"it does not start: {Ended(process.returncode or 0, log.read_text().splitlines()).message()}"
                # It checks its package before it listens, so an error is final.
                return _differs(client, package) if answer.is_success else f"it serves nothing: {answer.json()['error']['message']}"
        except httpx.HTTPError as error:
            return f"it stopped answering: {error}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _ready(client: httpx.Client, process: "subprocess.Popen[bytes]") -> httpx.Response | None:
    """Its first answer; None if it exited or took too long."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            return client.get("/readyz")
        except httpx.TransportError:
            time.sleep(0.2)
    return None


def _differs(client: httpx.Client, package: Package) -> str | None:
    for path, golden in package.golden.items():
        answer = client.post("/predict", files={"image": path.read_bytes()})
        if not answer.is_success:
            return f"{path.name}: it answers {answer.status_code}: {answer.text[:200]}"
        found = answer.json()["probability_fake"]
        if min(abs(found - golden.expected(precision)) for precision in ("f32", "int8")) > package.meta.golden_tolerance:
            return f"{path.name}: it answers {found:.4f}; {golden.probability_fake:.4f} was recorded"
    return None
