"""The prediction log: what the service answered, numbers only, never an image. Drift checks read it.

The same function makes the rows of the log and of a package's drift reference, so that the two can be compared.
What a shadow challenger said about the same image is in a table of its own, under the id of the answer.
"""

import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.detector import Prediction

STATISTICS = ("brightness", "contrast", "blur", "saturation", "width", "height")
"""Those of pipeline.images.statistics that are recorded and compared."""

FILE = Path("predictions.db")
"""Inside UNMASK_VAR."""

WAITING = 10_000
"""Rows that may wait to be written; more are dropped and counted, because a slow disk must not delay an answer."""

MOST = 200_000
"""Rows kept by default: 700 MB if an embedding has 768 numbers."""

FLUSH_SECONDS = 0.5
SCHEMA = f"""CREATE TABLE IF NOT EXISTS predictions (
    id TEXT PRIMARY KEY, time TEXT, package TEXT, version TEXT, verdict TEXT, warnings TEXT,
    probability_fake REAL, embedding BLOB, {", ".join(f"{name} REAL" for name in STATISTICS)});
CREATE INDEX IF NOT EXISTS arrival ON predictions (package);
CREATE TABLE IF NOT EXISTS shadows (id TEXT PRIMARY KEY, time TEXT, package TEXT, version TEXT, verdict TEXT, probability_fake REAL);"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """What the log says about an answer."""

    version: str
    verdict: str
    probability_fake: float


def measures(prediction: "Prediction") -> dict[str, Any]:
    """What drift compares: verdict, warnings (names), probability_fake, embedding (float32 array), and each of STATISTICS."""
    chosen = {name: prediction.statistics[name] for name in STATISTICS}
    said = {"verdict": prediction.verdict, "warnings": prediction.warnings, "probability_fake": prediction.probability_fake}
    return {**said, "embedding": prediction.embedding.astype(np.float32), **chosen}


class PredictionLog:
    """A SQLite file with its own writer thread. A full or read-only disk loses rows, never an answer.

    Attributes:
        dropped: rows lost so far.
    """

    def __init__(self, path: Path, most: int = MOST, lost: Callable[[int], None] = lambda _: None) -> None:
        """Start the writer thread.

        Args:
            path: created if it does not exist.
            most: rows to keep; beyond that the oldest are deleted.
            lost: called with the number of rows that were lost, from any thread.
        """
        self.path, self.most, self.dropped = path, most, 0
        self._lost = lost
        self._waiting: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(WAITING)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="predictions", daemon=True)
        self._thread.start()

    def record(self, *, id: str, package: str, version: str, prediction: "Prediction") -> None:
        """Record an answer. Returns at once and never raises; `package` is the digest of the package that answered."""
        found = measures(prediction)
        found |= {"embedding": found["embedding"].tobytes(), "warnings": json.dumps(found["warnings"])}
        self._put("predictions", (id, datetime.now(UTC).isoformat(), package, version, *found.values()))

    def shadow(self, *, id: str, package: str, version: str, prediction: "Prediction") -> None:
        """Record what a shadow challenger says about the image of an answer. Returns at once and never raises."""
        found = (prediction.verdict, prediction.probability_fake)
        self._put("shadows", (id, datetime.now(UTC).isoformat(), package, version, *found))

    def close(self) -> None:
        """Write the waiting rows, and end the thread."""
        self._end.set()
        self._thread.join(timeout=10)

    def _put(self, table: str, row: tuple[Any, ...]) -> None:
        try:
            self._waiting.put_nowait((table, row))
        except queue.Full:
            self._drop(1)

    def _drop(self, rows: int) -> None:
        self.dropped += rows
        self._lost(rows)

    def _write_on(self) -> None:
        while not self._end.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {}
        while not self._waiting.empty():
            table, row = self._waiting.get_nowait()
            rows.setdefault(table, []).append(row)
        if not rows:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Several workers write to one file; with WAL, readers and writers do not block each other.
            with closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(SCHEMA)
                for table, found in rows.items():
                    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(found[0]))})", found)  # noqa: S608 - no value in it
                    # rowid grows with each insert, so this reads no more rows than it deletes.
                    oldest = f"DELETE FROM {table} WHERE rowid <= (SELECT MAX(rowid) FROM {table}) - ?"  # noqa: S608 - no value in it
                    database.execute(oldest, (self.most,))
        except (sqlite3.Error, OSError) as error:
            lost = sum(map(len, rows.values()))
            self._drop(lost)
            log.warning("%d predictions were not recorded in %s: %s", lost, self.path, error)


def find(path: Path, id: str) -> Recorded | None:
    """The answer with this id, if it was recorded in the SQLite file."""
    with _reading(path, "predictions") as database:
        query = "SELECT version, verdict, probability_fake FROM predictions WHERE id = ?"
        row = database.execute(query, (id,)).fetchone() if database else None
    return Recorded(*row) if row else None


def forget(path: Path, ids: set[str]) -> int:
    """Delete the answers with these ids from the SQLite file. Returns how many there were."""
    if not path.is_file():
        return 0
    with closing(sqlite3.connect(path, timeout=10)) as database, database:
        database.execute("PRAGMA secure_delete=ON")
        database.executescript(SCHEMA)  # an older file has no table `shadows`
        shadowed = [(id,) for id in ids]
        database.executemany("DELETE FROM shadows WHERE id = ?", shadowed)
        return sum(database.execute("DELETE FROM predictions WHERE id = ?", (id,)).rowcount for id in ids)


def newest(path: Path, package: str, most: int) -> "pd.DataFrame":
    """The newest answers of one package, oldest first.

    Args:
        path: the SQLite file; there are no answers if it does not exist.
        package: the package's digest.
        most: largest number of answers.

    Returns:
        id, time (UTC, ISO 8601), and the columns of `measures`.
    """
    import pandas as pd

    columns = ["id", "time", "verdict", "warnings", "probability_fake", "embedding", *STATISTICS]
    # By arrival, not by time: rows written while the clock was ahead would stay the newest for ever.
    query = f"SELECT {', '.join(columns)} FROM predictions WHERE package = ? ORDER BY rowid DESC LIMIT ?"  # noqa: S608 - no value in it
    with _reading(path, "predictions") as database:
        if database is None:
            return pd.DataFrame(columns=columns)
        table = pd.read_sql_query(query, database, params=(package, most))
    table["embedding"] = table["embedding"].map(lambda value: np.frombuffer(value, np.float32))
    table["warnings"] = table["warnings"].map(json.loads)
    return table.iloc[::-1].reset_index(drop=True)


def shadow_pairs(path: Path, package: str, most: int) -> "pd.DataFrame":
    """The newest answers of one package that a shadow challenger judged too; with several challengers, those of the newest one.

    Args:
        path: the SQLite file.
        package: digest of the package that answered.
        most: largest number of answers.

    Returns:
        id, version (of the challenger), verdict, probability_fake, challenger_verdict, challenger_probability_fake.
    """
    import pandas as pd

    columns = ["id", "version", "verdict", "probability_fake", "challenger_verdict", "challenger_probability_fake"]
    query = """SELECT p.id, s.version, p.verdict, p.probability_fake, s.verdict, s.probability_fake
               FROM shadows s JOIN predictions p ON p.id = s.id WHERE p.package = ?
               AND s.package = (SELECT package FROM shadows ORDER BY rowid DESC LIMIT 1) ORDER BY s.rowid DESC LIMIT ?"""
    with _reading(path, "shadows") as database:
        rows = database.execute(query, (package, most)).fetchall() if database else []
    return pd.DataFrame(rows, columns=columns)


@contextmanager
def _reading(path: Path, table: str) -> Iterator[sqlite3.Connection | None]:
    """The SQLite file, opened read-only; None if it does not exist or has no such table.

    A new file has no tables until its first row is written; one of an older version has no `shadows`.
    """
    if not path.is_file():
        yield None
        return
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
        there = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        yield database if there else None
