"""Dumps and restores a Postgres database with Postgres's own programs."""

import os
import subprocess
from pathlib import Path

from sqlalchemy.engine import URL

from pipeline.errors import StageError

WAIT = "-c lock_timeout=30s"
"""Limits the wait for other clients' locks: a server left running would block a restore for ever."""


def dump(url: URL, file: Path) -> None:
    """Write a consistent snapshot of the database, even while it is in use. Raises StageError."""
    _run(url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={file}")


def load(url: URL, file: Path) -> None:
    """Restore the database from a dump, in one transaction. Raises StageError."""
    script = file.with_suffix(".sql")
    _run(url, "pg_restore", "--clean", "--if-exists", "--no-owner", "--no-privileges", f"--file={script}", str(file), connect=False)
    # The schema is dropped first: tables of a newer release would otherwise stay and break that release's next migration.
    empty = "--command=DROP SCHEMA public CASCADE; CREATE SCHEMA public"
    _run(url, "psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", empty, f"--file={script}")
    script.unlink()


def tables(url: URL) -> int:
    """Number of tables. Raises StageError."""
    query = "--command=SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    return int(_run(url, "psql", "--no-psqlrc", "--tuples-only", "--no-align", query))


def _run(url: URL, program: str, *arguments: str, connect: bool = True) -> str:
    # Everybody on the machine can see a process's arguments, so the password goes through the environment.
    query = {("sslmode" if name == "ssl" else name): value for name, value in url.query.items()}  # asyncpg's name for it
    place = URL.create("postgresql", url.username, None, url.host, url.port, url.database, query).render_as_string()
    environment = os.environ | {"PGOPTIONS": WAIT} | ({"PGPASSWORD": url.password} if url.password else {})
    command = [program, *([f"--dbname={place}"] if connect else []), *arguments]
    try:
        done = subprocess.run(command, env=environment, text=True, capture_output=True)
    except FileNotFoundError:
        raise StageError(f"{program} is not installed: apt-get install postgresql-client, of the server's release or newer") from None
    if done.returncode:
        raise StageError(f"{program} on the database {url.database} at {url.host}: {done.stderr.strip()}")
    return done.stdout
