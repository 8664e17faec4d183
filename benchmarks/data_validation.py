"""Seconds and peak memory of validating a made-up manifest against a last accepted one: `python -m benchmarks.data_validation`."""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import manifest, telemetry, validate, versions
from pipeline.params import load_params


def made_up(rows: int, seed: int) -> pd.DataFrame:
    """A manifest as a source of JPEGs gives it: pairs of a real and its fake, five images a group."""
    rng = np.random.default_rng(seed)
    fake = np.arange(rows) % 2 == 1
    quality = rng.integers(70, 98, rows)
    side = rng.choice([224, 256, 512], rows)
    hashes = pd.Series(rng.integers(0, 2**63, rows)).map("{:016x}".format)
    ids = hashes + "".join(f"{index:x}" for index in range(16)) * 3
    return pd.DataFrame(
        {
            "image_id": ids,
            "path": [f"data/raw/faces/{index // 1000:04d}/{index:08d}.jpg" for index in range(rows)],
            "label": np.where(fake, "fake", "real"),
            "generator": np.where(fake, rng.choice(["self_blend", "swap", "resynthesis"], rows), manifest.NO_GENERATOR),
            "group": [f"faces/person{index // 5}" for index in range(rows)],
            "source": "faces",
            "parents": ids.shift(1).where(fake, ""),
            "seed": pd.Series(rng.integers(0, 2**31, rows), dtype="Int64").where(fake),
            "width": side,
            "height": side,
            "format": "JPEG",
            "bytes": (side**2 * rng.uniform(0.1, 0.3, rows)).astype(int),
            "phash": hashes,
            "pixel_hash": hashes,
            **{name: rng.normal(120, 20, rows).clip(0, 255) for name in ("brightness", "contrast", "red", "green", "blue")},
            "blur": rng.lognormal(4, 1, rows),
            "jpeg_quality": quality.astype(float),
            "quantisation": pd.Series(quality).map("{:08x}".format),
            "subsampling": "4:2:0",
            "metadata_bytes": rng.integers(0, 2, rows) * 120,
            "faces": 1,
            "face_share": rng.uniform(0.2, 0.6, rows),
        }
    )


def main() -> None:
    """Validate, with the page and the data card, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    telemetry.off()
    params = load_params()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if os.fork() == 0:  # the table is made in a process of its own, so that making it is no part of the peak
            manifest.write(made_up(arguments.rows, 0), manifest.MANIFEST)
            manifest.write(made_up(arguments.rows - arguments.rows // 10, 0), versions.ACCEPTED)
            os._exit(0)
        os.wait()
        started, worked = time.perf_counter(), time.process_time()
        report = validate.run(params)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        page = Path(validate.PAGE).stat().st_size
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu_seconds, 1),  # on a machine with other work this is the figure that can be trusted
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "expectations": len(report["expectations"]),
                "warnings": len(report["warnings"]),
                "page_mb": round(page / 1e6, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
