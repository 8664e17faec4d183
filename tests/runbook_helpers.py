"""A workspace with all servers running, in which the runbook's code blocks are executed."""

import re
import shutil
import subprocess

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.ports import HOST
from pipeline.settings import apply
from tests.fault_helpers import Machine
from tests.service_helpers import client, wait_for

STAND_INS = r"""
set -eo pipefail
make() {  # an installation takes minutes, and servers that stay take the terminal: those that run are stopped, as ctrl-C does
    grep -q "^$1:" Makefile || return 1
    [ "$1" = up ] || return 0
    if [ -f "$UP" ]; then
        kill "$(cat "$UP")"
        while pgrep --pidfile "$UP" --runstates D,I,R,S > /dev/null; do sleep 0.2; done
    fi
    nohup python -m flows.up < /dev/null > "$UP.log" 2>&1 &
    echo $! > "$UP"
    until grep -q 'Worker .*started' "$UP.log" && curl -s "http://127.0.0.1:$SERVICE_PORT/livez"; do
        kill -0 $! || { cat "$UP.log"; return 1; }
        sleep 0.5
    done
}
xdg-open() { test -f "$1"; }  # there is no desktop
less() { cat; }
prefect() {  # a worker that stays takes the terminal too
    case "$1 $2" in "worker start") command prefect "$@" --run-once ;; *) command prefect "$@" ;; esac
}
"""


class Site:
    """The workspace with its servers, and its operator."""

    def __init__(self, machine: Machine, url: str, messages: list[dict[str, str]]) -> None:
        self.machine, self.folder, self.var, self.messages = machine, machine.folder, machine.folder / "var", messages
        self.service = f"http://{HOST}:{machine.ports['SERVICE_PORT']}"
        self.answer, self.up = "", machine.folder.parent / "up"
        self.backup = machine.folder.parent / "backups/today.tar.gz"
        self.own = {
            r":4200\b": f":{machine.ports['PREFECT_PORT']}",
            r":5000\b": f":{machine.ports['MLFLOW_PORT']}",
            r":3000\b": f":{machine.ports['SERVICE_PORT']}",
            r"/backups\b": str(self.backup.parent),
            r"\bFILE\b": str(self.backup),
            r"\bFOLDER\b": "new",
            r"\bSERVER\b": HOST,
            r"\bURL\b": str(self.folder),
            r"'7'": "'2'",
            r"https://chat\.example/hook": url,
        }

    def bash(self, block: str) -> str:
        """Run a block of the runbook."""
        for placeholder, real in {**self.own, r"\bID\b": self.answer}.items():
            block = re.sub(placeholder, real, block)
        done = subprocess.run(
            ["bash", "-c", STAND_INS + block],
            cwd=self.folder,
            env=self.machine.environment | {"UP": str(self.up)},
            input="y\n" * 20,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
        )
        assert done.returncode == 0, f"{block}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def train(self) -> None:
        """Train with the current settings, and register the result."""
        self.bash("prefect deployment run train/default --watch")

    def served(self) -> str | None:
        """The version that the service answers with."""
        try:
            return httpx.get(f"{self.service}/readyz").json().get("version")
        except httpx.TransportError:
            return None

    def settled(self) -> None:
        """Wait for the trainings that something else started."""
        with temporary_settings({PREFECT_API_URL: self.machine.api}), get_client(sync_client=True) as api:
            wait_for(lambda: all(run.state is not None and run.state.is_final() for run in api.read_flow_runs()), seconds=900)

    def settings(self, **values: object) -> None:
        """Change params.yaml."""
        apply({name.replace("__", "."): value for name, value in values.items()}, self.folder / "params.yaml")

    def stop(self) -> None:
        """End all servers."""
        self.machine.power_off()
        self.up.unlink(missing_ok=True)

    def alias(self, name: str, version: int) -> None:
        """Move an alias, as a person does."""
        client(self.machine.store).set_registered_model_alias("unmask", name, str(version))

    def lose(self, *names: str) -> None:
        """Stop the servers, and delete files, folders and Prefect's state."""
        self.stop()
        for name in names:
            for lost in self.folder.glob(name):
                shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        shutil.rmtree(self.machine.environment["PREFECT_HOME"])
