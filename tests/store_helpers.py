"""A real Postgres server for the tests, as packaged by Debian."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from tests.service_helpers import free_port

FOUND = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(found).parent] if (found := shutil.which("initdb")) else [])]
BIN = FOUND[0] if FOUND and shutil.which("pg_dump") else None
"""Folder of the server's programs, which Debian does not put on PATH; None if they are not installed."""

PASSWORD = "correct:horse@battery/staple"
QUOTED = "correct%3Ahorse%40battery%2Fstaple"


@contextmanager
def postgres(*databases: str) -> Iterator[str]:
    """Run a server until the block ends, with these databases of the user `unmask`. Yields `unmask:PASSWORD@HOST:PORT`, for a URL."""
    assert BIN
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder, port = Path(tempfile.mkdtemp(prefix="unmask-postgres-")), str(free_port())
    (folder / "password").write_text(PASSWORD)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)

    def call(*command: str | Path, **more: str) -> None:
        done = subprocess.run(command, user=user, cwd=folder, env=os.environ | more, text=True, stdout=log, stderr=log)
        assert done.returncode == 0, (folder / "log").read_text()

    with (folder / "log").open("w") as log:
        try:
            call(BIN / "initdb", "--username=owner", "--auth=scram-sha-256", f"--pwfile={folder}/password", f"--pgdata={folder}/data")
            options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
            call(BIN / "pg_ctl", "start", "--wait", f"--pgdata={folder}/data", f"--options={options}")
            admin = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "owner", "PGPASSWORD": PASSWORD}
            call("psql", "--command", f"CREATE ROLE unmask LOGIN PASSWORD '{PASSWORD}'", "postgres", **admin)
            for database in databases:
                call("createdb", "--owner=unmask", database, **admin)
            yield f"unmask:{QUOTED}@127.0.0.1:{port}"
        finally:
            subprocess.run([BIN / "pg_ctl", "stop", "--mode=immediate", f"--pgdata={folder}/data"], user=user, cwd=folder, stdout=log)
            shutil.rmtree(folder)


def sql(url: URL, *statements: str) -> None:
    """Run statements in one transaction."""
    with create_engine(url).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
