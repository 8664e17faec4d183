"""Speed and size of the data side: `python -m benchmarks.data ingest|scale|growth`. Results go to benchmarks/results/data.json."""

import argparse
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Measured, measured, record

SIDE = 256


def make_images(folder: Path, count: int) -> None:
    """JPEG files of 256 px with edges, texture and noise, about as large as photographs of faces are (20 kB)."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse, np.int16) + rng.normal(0, 6, (SIDE, SIDE, 1)).astype(np.int16)
        label = folder / ("real", "fake")[index % 2]
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(label / f"{index:06d}.jpg", quality=90)


def plain_loop(folder: Path) -> int:
    """What one would write first: Pillow decodes, hashlib and imagehash name each file."""
    import imagehash

    rows = []
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            picture = image.convert("RGB")
        rows.append((path, picture.size, hashlib.sha256(path.read_bytes()).hexdigest(), str(imagehash.phash(picture))))
    return len(rows)


def ingest(folder: Path, workspace: Path) -> int:
    """The stage, with everything it does: copy, hashes, quality columns, manifest."""
    from pipeline import ingest
    from pipeline.params import load_params
    from pipeline.settings import apply, folder_source

    root = Path.cwd()
    workspace.mkdir()
    shutil.copy(root / "params.yaml", workspace)
    apply(folder_source(folder), workspace / "params.yaml")
    os.chdir(workspace)
    return int(ingest.run(load_params())["images"])


def bench_ingest(counts: list[int]) -> dict[str, Any]:
    """Against the plain loop, and memory while the number of images grows."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in counts:
            folder = Path(name) / f"images-{count}"
            make_images(folder, count)
            ours = measured(ingest, folder, Path(name) / f"workspace-{count}")
            rows[str(count)] = _figures(ours, count)
            if count <= 10_000:
                peer = measured(plain_loop, folder)
                rows[str(count)] |= {"plain_loop_seconds": round(peer.seconds, 2), "ratio": round(peer.seconds / ours.seconds, 2)}
            print(count, rows[str(count)], flush=True)
            shutil.rmtree(folder)
    return {"ingest": rows}


def _figures(found: Measured, count: int) -> dict[str, float]:
    return {"seconds": round(found.seconds, 2), "images_per_second": round(count / found.seconds), "peak_mb": round(found.peak_mb)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("ingest", help="the stage against a plain loop")
    command.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 50_000])
    command.set_defaults(run=lambda arguments: bench_ingest(arguments.counts))
    arguments = parser.parse_args()
    print(record("data", arguments.run(arguments)))


if __name__ == "__main__":
    main()
