"""Batch scoring: `python -m pipeline.score PATH... --package models/package --out scores.csv`."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from pipeline.detector import Detector, Prediction, Prepared
from pipeline.errors import StageError
from pipeline.face_weights import chosen_detector
from pipeline.images import OWN, ImageError, read
from pipeline.package import PACKAGE, STARTER, PackageError

COLUMNS = ("path", "probability_fake", "verdict", "warnings", "error")
BATCH = 16


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files to score: each given file, and every file below each given folder, in alphabetical order; hidden ones are left out.

    Links to folders are followed, but not back into a folder that contains them. A path that does not exist and a folder that cannot be
    read are yielded as they are, so that they become rows with an error.
    """
    for path in paths:
        if path.is_dir():
            yield from _below(path, frozenset())
        else:
            yield path


def _below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - a million Paths take seconds
    except OSError:
        yield folder
        return
    folders = [name for name in names if os.path.isdir(folder / name)]  # noqa: PTH112 - pathlib raises if access is denied
    inner = set(folders)
    yield from (folder / name for name in names if name not in inner)
    for name in folders:
        yield from _below(folder / name, above | {here})


def _inputs(paths: Iterable[Path], made: Set[Path]) -> Iterator[Path]:
    """The files to score, except those that this command writes, which may lie in a scored folder."""
    names = {path.name for path in made}
    return (path for path in find(paths) if path.name not in names or path.resolve() not in made)


def score(detector: Detector, paths: Iterable[Path]) -> Iterator[dict[str, str]]:
    """One row per input, with the keys of COLUMNS; a file that cannot be judged has an `error` and no verdict. Memory stays constant."""
    with ThreadPoolExecutor() as pool:
        remaining = iter(paths)
        while batch := list(islice(remaining, BATCH)):
            prepared = list(pool.map(partial(_prepare, detector), batch))
            answers = iter(detector.judge([found for found in prepared if isinstance(found, Prepared)]))
            for path, found in zip(batch, prepared, strict=True):
                row = dict.fromkeys(COLUMNS, "") | {"path": _no_formula(str(path))}
                if isinstance(found, Prepared):
                    answer = next(answers)
                    row |= {
                        "probability_fake": f"{answer.probability_fake:.6f}",
                        "verdict": answer.verdict,
                        "warnings": " ".join(answer.warnings),
                    }
                else:
                    row["error"] = found
                yield row


def _no_formula(path: str) -> str:
    """The same path, written so that a spreadsheet does not run it: file names may come from strangers."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


def predict(detector: Detector, paths: Sequence[str], title: str) -> list[Prediction]:
    """Judge images that ingest has accepted, with a progress bar. One is decoded at a time: they may have many megapixels."""
    found = []
    for start in tqdm(range(0, len(paths), BATCH), desc=title, unit="batch"):
        found += detector.judge([detector.prepare(read(Path(path), OWN)) for path in paths[start : start + BATCH]])
    return found


def _prepare(detector: Detector, path: Path) -> Prepared | str:
    """The picture reduced to what is judged, or an error message."""
    try:
        return detector.prepare(read(path))
    except ImageError as error:
        return f"{error.code}: {error.message}"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"


def _write(rows: Iterable[dict[str, str]], file: TextIO) -> None:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.score",
        description="Score images as the service does, with UNMASK_FACE_DETECTOR if it is set: one row per input.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image, or folder of images")
    there = PACKAGE if PACKAGE.is_dir() else STARTER
    parser.add_argument("--package", type=Path, default=there, help=f"model package (default {PACKAGE}, and {STARTER} before it is made)")
    parser.add_argument("--out", type=Path, help="CSV file to write (default: the terminal)")
    arguments = parser.parse_args()
    try:
        detector = Detector.load(arguments.package, faces=chosen_detector())
        detector.check()
        part = arguments.out and arguments.out.with_name(arguments.out.name + ".part")
        made = {path.resolve() for path in (arguments.out, part) if path}
        total = sum(1 for _ in _inputs(arguments.paths, made))
        rows = tqdm(score(detector, _inputs(arguments.paths, made)), total=total, desc="score", unit="image")
        if part is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # for names that are not UTF-8
            _write(rows, sys.stdout)
            sys.stdout.flush()
            return
        part.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until complete: half a table must not look like a whole one.
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            _write(rows, file)
        part.replace(arguments.out)
    except (PackageError, StageError) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. Flushing the rest of the buffer at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {arguments.out}: {error.strerror}")


if __name__ == "__main__":
    main()
