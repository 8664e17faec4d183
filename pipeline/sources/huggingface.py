"""A Hugging Face dataset, by hub name or local folder, read as a stream: only one row is in memory at a time."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.fingerprint import fingerprint
from pipeline.params_data import HuggingFaceSource
from pipeline.staging import keep


def listing(source: HuggingFaceSource, staging: Path) -> pd.DataFrame:
    """One row per image: file, path, label, generator, group, and the columns in `attributes`.

    Images are kept in `staging` under the hash of their bytes, next to the rows: an interrupted download resumes after its last row, and
    if a dataset grows, only new images are stored. A dataset on the hub that was read to its end is read again only if its settings
    change: `revision` selects its state.

    Raises:
        StageError: if the `datasets` package or the dataset is missing, a column does not exist, a row names a file outside the dataset,
            or no row has a known label.
    """
    record = staging / f"{fingerprint(source, exclude={'name'})}-{_state(source)}.jsonl"
    done = record.with_suffix(".done")
    if not done.is_file():
        _fetch(source, staging, record)
        done.touch()
    rows = [row for row in _rows(record) if row]
    table = pd.DataFrame(rows, columns=None if rows else ["file", "path", "label", "generator", "group"])
    if table.empty:
        raise StageError(f"data source {source.name}: no row of {source.dataset} has a label in {sorted(source.labels)} ({source.label})")
    return table.drop_duplicates("path", ignore_index=True)


def _fetch(source: HuggingFaceSource, staging: Path, record: Path) -> None:
    stream, names = _open(source)
    staging.mkdir(parents=True, exist_ok=True)
    there = _cut_to_whole_lines(record)
    with record.open("a") as file:
        for example in tqdm(stream.skip(there), initial=there, desc=f"fetch {source.name}", unit="image"):
            file.write(json.dumps(_row(source, example, names, staging)) + "\n")


def _open(source: HuggingFaceSource) -> tuple[Any, dict[str, list[str]]]:
    """The stream of rows with undecoded images, and the class names of each column that has them."""
    try:
        import datasets
    except ImportError:
        raise StageError(f"data source {source.name} needs the package datasets: pip install -e '.[huggingface]'") from None
    try:
        stream = datasets.load_dataset(source.dataset, name=source.config, split=source.split, revision=source.revision, streaming=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise StageError(f"data source {source.name}: dataset {source.dataset}, split {source.split} cannot be opened: {error}") from None
    features = stream.features or {}
    wanted = [source.image, source.label, source.generator, source.group, *source.attributes]
    absent = [column for column in wanted if column and column not in features]
    if absent:
        raise StageError(f"data source {source.name}: {source.dataset} has no column {', '.join(absent)}; it has: {', '.join(features)}")
    stream = stream.cast_column(source.image, datasets.Image(decode=False))
    return stream, {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def _row(source: HuggingFaceSource, example: dict[str, Any], names: dict[str, list[str]], staging: Path) -> dict[str, Any] | None:
    def text(column: str) -> str:
        """A cell as text, empty if missing: `None` would put all images of unknown people into one group."""
        value = example[column]
        if column in names and isinstance(value, int):  # -1 is an unknown class
            return names[column][value] if value >= 0 else ""
        return "" if value is None or value != value else str(value)

    label = source.labels.get(text(source.label)) or source.labels.get(str(example[source.label]))
    image = example[source.image]
    if label is None or image is None:
        return None
    file = keep(staging / "images", image["bytes"] or _bytes_of(image["path"], source), Path(image["path"] or "").suffix)
    row = {"file": file.as_posix(), "path": f"{label}/{file.name}", "label": label}
    row |= {name: text(column) if column else "" for name, column in (("generator", source.generator), ("group", source.group))}
    return row | {column: text(column) for column in source.attributes}


def _bytes_of(place: str, source: HuggingFaceSource) -> bytes:
    """The file that a row names instead of holding it. Raises StageError if it is a file of this machine outside the dataset's folder."""
    import fsspec

    outermost = place.rpartition("::")[2]  # of `zip://a.jpg::hf://...`, the archive
    if not outermost.startswith(("hf://", "https://")) and not Path(outermost).resolve().is_relative_to(Path(source.dataset).resolve()):
        raise StageError(f"data source {source.name}: a row of {source.dataset} names a file outside the dataset: {place[:200]}")
    with fsspec.open(place, "rb") as file:
        return bytes(file.read())


def _state(source: HuggingFaceSource) -> str:
    """For a local folder, a hash that changes with its files; for a dataset on the hub, its revision."""
    folder = Path(source.dataset)
    if not folder.is_dir():
        return source.revision or "hub"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:12]


def _rows(record: Path) -> Iterator[dict[str, Any] | None]:
    with record.open() as file:
        yield from map(json.loads, file)


def _cut_to_whole_lines(record: Path) -> int:
    """Number of whole lines in the record; a last line that a crash cut short is removed."""
    content = record.read_bytes() if record.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        record.write_bytes(whole)
    return whole.count(b"\n")
