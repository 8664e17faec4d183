"""Near-duplicates and the split at a million images: `python -m benchmarks.data_scale near-duplicates|split --rows N`.

Prints JSON lines with seconds and the peak memory of the process that did the work, which is a new one for each line.
The hashes are simulated after real ones: see `simulate`.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm

from pipeline import manifest, split
from pipeline.duplicates import clusters, near_duplicates
from pipeline.params import Params, load_params

PEER_ROWS = 20_000
"""Where brute force over all pairs is the peer."""

COPIES = 0.3
"""Share of the images that are copies of another one."""

NOISE = 0.35

SCENES, ALIKE = 100, 0.4
"""Pictures share a pose and a light with others: how many of these there are, and their share of the variance."""


def real_hashes(folder: Path, limit: int) -> np.ndarray:
    """Perceptual hashes, bool (images, 64), of a sample of the pictures under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    chosen = np.random.default_rng(0).permutation(len(paths))[:limit]
    return np.stack([imagehash.phash(Image.open(paths[index])).hash.ravel() for index in chosen])


def simulate(real: np.ndarray, rows: int, seed: int = 0) -> np.ndarray:
    """Hashes that cluster as real ones do, uint64 (rows,).

    A Gaussian copula with the frequencies and correlations of the real bits, of which the 32 highest are set in each row, as the
    perceptual hash cuts at the median. Rows share scenes, without which pairs at 10 to 16 bits would be rarer than they are. COPIES of
    the rows are the row before them with noise of up to NOISE standard deviations on the Gaussian: as scaling, JPEG and a swapped face
    do, it flips the bits that are near the cut.

    Args:
        real: bool (images, 64).
        rows: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    varies = real.any(axis=0) & ~real.all(axis=0)
    correlation = np.eye(64)
    correlation[np.ix_(varies, varies)] = np.corrcoef(real[:, varies].T.astype(float))
    values, vectors = np.linalg.eigh(np.sin(correlation * np.pi / 2))  # bits cut at the median of a Gaussian correlate by 2/pi asin(r)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    height = norm.ppf(np.clip(real.mean(axis=0), 1e-4, 1 - 1e-4)).astype(np.float32)
    scenes = rng.standard_normal((SCENES, 64), np.float32) @ root.T
    blocks = []
    for start in range(0, rows, 100_000):
        size = min(100_000, rows - start)
        latent = rng.standard_normal((size, 64), np.float32) @ root.T
        latent = np.sqrt(1 - ALIKE) * latent + np.sqrt(ALIKE) * scenes[rng.integers(0, len(scenes), size)]
        copies = np.flatnonzero(rng.random(size) < COPIES)
        own = np.arange(size)
        own[copies] = 0
        origin = np.maximum.accumulate(own)[copies]
        noise = rng.uniform(0, NOISE, (len(copies), 1)).astype(np.float32)
        latent[copies] = latent[origin] + noise * rng.standard_normal((len(copies), 64), np.float32)
        latent += height
        middle = np.partition(latent, 32, axis=1)[:, 32:33]
        blocks.append(np.packbits(latent >= middle, axis=1).view(">u8").ravel().astype(np.uint64))
    return np.concatenate(blocks)


def people(hashes: np.ndarray) -> pd.DataFrame:
    """A manifest with these hashes: a third reals, fakes of eight generators made from them, persons of 1 to 3 pictures."""
    rng = np.random.default_rng(1)
    rows = len(hashes)
    ids = [f"{number:064x}" for number in rng.permutation(rows)]
    real = np.arange(rows) % 3 == 0
    origin = np.arange(rows) // 3 * 3
    person = np.repeat(np.arange(rows), rng.integers(1, 4, rows))[: -(-rows // 3)][np.arange(rows) // 3]
    generators = np.array([f"generator{number}" for number in range(8)])[rng.integers(0, 8, rows)]
    columns = {
        "image_id": ids,
        "path": [f"data/raw/faces/{number // 1000:04}/{number:07}.jpg" for number in range(rows)],
        "label": np.where(real, "real", "fake"),
        "generator": np.where(real, manifest.NO_GENERATOR, generators),
        "group": [f"faces/person{number:07}" for number in person],
        "source": "faces",
        "parents": [("" if own else ids[parent]) for own, parent in zip(real, origin, strict=True)],
        "phash": [f"{value:016x}" for value in hashes.tolist()],
        "pixel_hash": [f"{value:016x}" for value in rng.integers(0, 2**62, rows).tolist()],
    }
    rest = {name: "" if kind == "str" else rng.random(rows) * 100 for name, kind in manifest.COLUMNS.items() if name not in columns}
    whole = {name: np.floor(values) for name, values in rest.items() if manifest.COLUMNS[name] in ("int64", "Int64")}
    return manifest.check(pd.DataFrame(columns | rest | whole), "the benchmark")


def brute_force(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """Every pair within the radius, by comparing all."""
    found: set[tuple[int, int]] = set()
    for index in range(len(hashes) - 1):
        near = np.flatnonzero(np.bitwise_count(hashes[index + 1 :] ^ hashes[index]) <= radius)
        found.update((index, index + 1 + int(other)) for other in near)
    return found


def all_pairs(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    """Every pair within the radius, as the pipeline finds them."""
    return {(min(pair), max(pair)) for block in near_duplicates(hashes, radius) for pair in block.tolist()}


def find_clusters(hashes: np.ndarray, radius: int) -> dict[str, int]:
    """What the pipeline does with the hashes."""
    sizes = clusters(pd.DataFrame({"phash": [f"{value:016x}" for value in hashes.tolist()]}), radius).value_counts()
    return {"clusters": len(sizes), "largest_cluster": int(sizes.iloc[0]), "in_clusters": int(sizes[sizes > 1].sum())}


def run_split(folder: Path, params: Params) -> dict[str, Any]:
    """The whole stage in a folder that holds data/manifest.parquet."""
    os.chdir(folder)
    report = split.run(params)
    return {name: report[name] for name in ("groups", "largest_group", "kept_in_place")} | {
        "shares": [report["parts"][part]["share"] for part in manifest.PARTS]
    }


def write_manifest(source: Path, target: Path) -> dict[str, Any]:
    """Read a manifest and write it."""
    start = time.perf_counter()
    table = manifest.read(source)
    read = time.perf_counter() - start
    manifest.write(table, target)
    return {"of_which_reading": round(read, 2)}


def measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The function's result, its seconds and the peak memory in MB of a new process that runs it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, function, arguments).result()


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, dict[str, float]]:
    start, busy = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return result, {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2), "peak_mb": _peak()}


def _peak() -> int:
    """MB. From Linux's own count: the one of `resource` begins with the memory of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["near-duplicates", "split"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--images", type=Path, default=Path("../shared/data"), help="folder of real pictures whose hashes are imitated")
    parser.add_argument("--sample", type=int, default=3000, help="how many of them are hashed")
    arguments = parser.parse_args()
    real = real_hashes(arguments.images, arguments.sample)
    hashes = simulate(real, arguments.rows)

    def show(what: str, rows: int, figures: dict[str, Any]) -> None:
        print(json.dumps({"what": what, "rows": rows, "radius": arguments.radius} | figures), flush=True)

    if arguments.what == "near-duplicates":
        found, cost = measured(find_clusters, hashes, arguments.radius)
        show("clusters", arguments.rows, cost | found)
        few = simulate(real, PEER_ROWS)
        pairs, cost = measured(all_pairs, few, arguments.radius)
        expected, peer = measured(brute_force, few, arguments.radius)
        show("near_duplicates", len(few), cost | {"pairs": len(pairs)})
        show(
            "brute force",
            len(few),
            peer | {"pairs": len(expected), "same_pairs": pairs == expected, "ratio": peer["seconds"] / cost["seconds"]},
        )
        return
    settings = load_params()
    settings = settings.model_copy(
        update={"split": settings.split.model_copy(update={"holdout_generators": ["generator7"], "duplicate_radius": arguments.radius})}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = people(hashes)
        manifest.write(table, folder / manifest.MANIFEST)
        del table, hashes
        for what in ("split, first", "split, again"):
            found, cost = measured(run_split, folder, settings)
            show(what, arguments.rows, cost | found)
        found, cost = measured(write_manifest, folder / manifest.MANIFEST, folder / "copy.parquet")
        show("manifest read and written", arguments.rows, cost | found)


if __name__ == "__main__":
    main()
