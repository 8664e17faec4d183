"""Speed and memory of the data stages: `python -m benchmarks.data ingest|scale`. Results: benchmarks/results/data.json and data.png."""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.load import photograph
from benchmarks.measure import Measured, measured, record
from benchmarks.tables import mirrored, people, real_hashes, simulate
from pipeline import ingest, manifest, split, validate
from pipeline.ingestion.duplicates import clusters, near_duplicates
from pipeline.params import load_params
from pipeline.settings import apply, folder_source

SIDE, LABELS = 256, ("real", "fake")
PEER_ROWS = 20_000
"""Images for the comparison with brute force over all pairs."""


def make_images(folder: Path, count: int) -> None:
    """JPEG files of 256 px, about as large as photographs of faces (20 kB)."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(_make_image, folder), range(count), chunksize=500))


def _make_image(folder: Path, number: int) -> None:
    (folder / LABELS[number % 2] / f"{number:06d}.jpg").write_bytes(photograph(SIDE, number))


def plain_loop(folder: Path) -> int:
    """The obvious implementation: Pillow decodes each file, hashlib and imagehash hash it."""
    import imagehash

    rows = []
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            picture = image.convert("RGB")
        rows.append((path, picture.size, hashlib.sha256(path.read_bytes()).hexdigest(), str(imagehash.phash(picture))))
    return len(rows)


def ingest_stage(folder: Path, workspace: Path, in_place: bool) -> int:
    """The whole stage: hashes, quality columns, manifest and, unless the folder is read in place, copies."""
    root = Path.cwd()
    workspace.mkdir()
    shutil.copy(root / "params.yaml", workspace)
    values = folder_source(folder)
    values["data.sources"][0]["in_place"] = in_place
    apply(values, workspace / "params.yaml")
    os.chdir(workspace)
    return int(ingest.run(load_params())["images"])


def bench_ingest(counts: list[int]) -> dict[str, Any]:
    """The stage against the plain loop, and its memory as the number of images grows."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        everything = Path(name) / "images"
        make_images(everything, max(counts))
        for count in counts:
            folder = _first(everything, count, Path(name) / f"images-{count}")
            ours = measured(ingest_stage, folder, Path(name) / f"in-place-{count}", True)
            copied = measured(ingest_stage, folder, Path(name) / f"copied-{count}", False)
            rows[str(count)] = _figures(ours, count) | {"with_copies_seconds": round(copied.seconds, 2)}
            if count <= 10_000:
                peer = measured(plain_loop, folder)
                rows[str(count)] |= {
                    "plain_loop_seconds": round(peer.seconds, 2),
                    "ratio": round(peer.seconds / ours.seconds, 2),
                    "ratio_with_copies": round(peer.seconds / copied.seconds, 2),
                }
            print(count, rows[str(count)], flush=True)
            shutil.rmtree(folder)
    return {"ingest": rows}


def _first(images: Path, count: int, folder: Path) -> Path:
    """A folder with hard links to the first images."""
    for path in sorted(images.rglob("*.jpg"), key=lambda path: path.name)[:count]:
        link = folder / path.relative_to(images)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    return folder


def bench_scale(rows: list[int], images: Path, radius: int) -> dict[str, Any]:
    """Near-duplicates, split, validation and manifest as the number of images grows; near-duplicates also against brute force."""
    real = real_hashes(images, 3000)
    found: dict[str, Any] = {}
    few = simulate(real, PEER_ROWS)
    ours, peer = measured(all_pairs, few, radius), measured(brute_force, few, radius)
    found["near_duplicates_exact"] = {
        "images": PEER_ROWS,
        "pairs": len(peer.result),
        "same_pairs": ours.result == peer.result,
        "seconds": round(ours.seconds, 2),
        "brute_force_seconds": round(peer.seconds, 2),
        "ratio": round(peer.seconds / ours.seconds, 1),
    }
    print(found, flush=True)
    for count in rows:
        hashes = simulate(real, count)
        found[str(count)] = {"near_duplicates": _figures(measured(find_clusters, hashes, radius), count)}
        with tempfile.TemporaryDirectory() as name:
            workspace = Path(name)
            shutil.copy("params.yaml", workspace)
            measured(write_people, hashes, workspace)
            for what, work in (("manifest", manifest_again), ("validate", validate_stage), ("split", split_stage)):
                found[str(count)][what] = _figures(measured(work, workspace), count)
        print(count, found[str(count)], flush=True)
    return {"scale": found}


def all_pairs(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """Every pair within the radius, as the pipeline finds them."""
    return {(min(pair), max(pair)) for block in near_duplicates(hashes, radius) for pair in block.tolist()}


def brute_force(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """Every pair within the radius, by comparing all pairs."""
    found: set[tuple[int, int]] = set()
    for index in range(len(hashes) - 1):
        near = np.flatnonzero(np.bitwise_count(hashes[index + 1 :] ^ hashes[index]) <= radius)
        found.update((index, index + 1 + int(other)) for other in near)
    return found


def find_clusters(hashes: np.ndarray, radius: int) -> int:
    """Number of clusters that the pipeline finds in the hashes."""
    columns = {"phash": hashes, "mirrored_phash": mirrored(hashes)}
    table = pd.DataFrame({name: [f"{value:016x}" for value in values.tolist()] for name, values in columns.items()})
    return clusters(table, radius).nunique()


def write_people(hashes: np.ndarray, workspace: Path) -> None:
    """Write a manifest into the workspace, and its first nine tenths as the last accepted version."""
    table = people(hashes)
    manifest.write(table, workspace / manifest.MANIFEST)
    manifest.write(table.head(len(table) * 9 // 10), workspace / manifest.ACCEPTED)


def manifest_again(workspace: Path) -> None:
    """Read the manifest and write it."""
    manifest.write(manifest.read(workspace / manifest.MANIFEST), workspace / "copy.parquet")


def validate_stage(workspace: Path) -> None:
    """The stage with its page, its Data Docs and the data card."""
    os.chdir(workspace)
    validate.run(load_params())


def split_stage(workspace: Path) -> None:
    """The stage with its check by Great Expectations."""
    os.chdir(workspace)
    params = load_params()
    held = params.split.model_copy(update={"holdout_generators": ["generator7"]})
    split.run(params.model_copy(update={"split": held}))


def plot(results: dict[str, Any], path: Path) -> None:
    """Seconds and memory against the number of images, both axes logarithmic."""
    figure = Figure(figsize=(10, 4), layout="tight")
    left, right = figure.subplots(1, 2)
    lines = {"ingest": {int(count): row for count, row in results.get("ingest", {}).items()}}
    for count, row in results.get("scale", {}).items():
        if count.isdigit():
            for what, figures in row.items():
                lines.setdefault(what, {})[int(count)] = figures
    for what, points in lines.items():
        counts = sorted(points)
        left.loglog(counts, [points[count]["seconds"] for count in counts], "o-", label=what)
        right.loglog(counts, [points[count]["peak_mb"] for count in counts], "o-", label=what)
    for axes, title in ((left, "seconds"), (right, "peak memory, MB")):
        axes.set(xlabel="images", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def _figures(found: Measured, count: int) -> dict[str, float]:
    return {"seconds": round(found.seconds, 2), "images_per_second": round(count / found.seconds), "peak_mb": round(found.peak_mb)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("ingest", help="the stage against a plain loop")
    command.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 50_000])
    command.set_defaults(run=lambda arguments: bench_ingest(arguments.counts))
    command = commands.add_parser("scale", help="near-duplicates, split, validation and manifest on made-up manifests")
    command.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    command.add_argument("--images", type=Path, required=True, help="folder of real pictures whose hashes are imitated")
    command.add_argument("--radius", type=int, default=4)
    command.set_defaults(run=lambda arguments: bench_scale(arguments.rows, arguments.images, arguments.radius))
    arguments = parser.parse_args()
    path = record("data", arguments.run(arguments))
    plot(json.loads(path.read_text()), path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
