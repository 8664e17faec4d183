"""Remembers what ingest found out about each file, so that the next run, even after `kill -9`, processes only the others."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import shards
from pipeline.manifest import DESCRIBED
from pipeline.staging import stamp_of, write

FLUSH = 2000
"""Rows that a crash may lose: a few seconds of work."""

TYPES = dict.fromkeys(("name", "stamp", "stored", "stored_stamp", "reason", "detail"), "str") | {
    name: {"int64": "Int64"}.get(kind, kind)  # a broken file has no numbers
    for name, kind in DESCRIBED.items()
}


class Ledger:
    """Parquet files in a folder, each written as a whole; used as a context manager while rows are added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "Ledger":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows; they are written to disk after FLUSH rows, or at the end."""
        self._rows += rows
        if len(self._rows) >= FLUSH:
            self._flush()

    def compact(self, rows: pd.DataFrame) -> None:
        """Keep only these rows, in one file."""
        before = self._files()
        if len(before) == 1 and pq.read_metadata(before[0]).num_rows == len(rows):
            return
        self._write(rows)
        for file in before:
            file.unlink()

    def known(self, listed: pd.DataFrame) -> pd.DataFrame:
        """Rows of files that are listed, unchanged, and still stored as they were.

        A shard with a member that is no longer valid does not count as stored, so that it is packed again without it.

        Args:
            listed: columns path and stamp.
        """
        tables = [table for file in self._files() if (table := _read(file)) is not None]
        if not tables:
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in TYPES.items()})
        rows = pd.concat(tables, ignore_index=True).drop_duplicates("name", keep="last")
        wanted = dict(zip(listed["path"], listed["stamp"], strict=True))
        holders = rows["stored"].map(_holder)
        stamps = {holder: stamp_of(holder) for holder in holders[rows["stored_stamp"] != ""].unique()}
        valid = rows["name"].map(wanted).eq(rows["stamp"]) & (holders.map(stamps).eq(rows["stored_stamp"]) | (rows["stored_stamp"] == ""))
        return rows[valid.groupby([holders, rows["stored_stamp"]]).transform("all")].reset_index(drop=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _flush(self) -> None:
        if self._rows:
            self._write(pd.DataFrame(self._rows, columns=list(TYPES)))  # rows of broken files lack most columns
            self._rows = []

    def _write(self, rows: pd.DataFrame) -> None:
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 0
        buffer = io.BytesIO()
        rows.astype(TYPES)[list(TYPES)].to_parquet(buffer, index=False)
        write(self.folder / f"{number:09d}.parquet", buffer.getvalue())


def _read(file: Path) -> pd.DataFrame | None:
    """The rows of a file. If a power failure left it empty or truncated, it is deleted, and the result is None."""
    try:
        return pd.read_parquet(file)
    except pa.ArrowInvalid:
        file.unlink()
        return None


def _holder(stored: str) -> str:
    """The shard of a stored image, or the image itself: a plain folder may be called `crops.tar`, too."""
    shard = shards.of(Path(stored)) if f"{shards.SUFFIX}/" in stored else None
    return stored if shard is None else shard.as_posix()
