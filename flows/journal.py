"""Append-only records: files of JSON lines."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def append(file: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Append an entry, with its `time` (UTC, ISO 8601) first. Returns what was written."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
    file.parent.mkdir(parents=True, exist_ok=True)
    # A line truncated by a full disk has no newline: the next one must not be glued to it.
    torn = file.is_file() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as out:
        out.write("\n" * torn + json.dumps(line) + "\n")
    return line


def read(file: Path) -> list[dict[str, Any]]:
    """The entries, oldest first; none without a file. Truncated lines are skipped."""
    found: list[dict[str, Any]] = []
    if file.is_file():
        for line in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found
