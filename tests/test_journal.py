"""Append-only records survive a write that a full disk truncated."""

from pathlib import Path

from flows import journal


def test_an_entry_behind_a_torn_line_is_not_lost(tmp_path: Path):
    file = tmp_path / "new" / "journal.jsonl"
    assert journal.read(file) == []
    first = journal.append(file, {"version": 1})
    with file.open("a") as out:
        out.write('{"version": 2, "bent')
    last = journal.append(file, {"version": 3})
    assert journal.read(file) == [first, last] and [first["version"], last["version"]] == [1, 3]
