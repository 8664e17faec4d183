"""False alarms, power, F1 estimates and run time of drift checks: `python -m benchmarks.drift alarms|power|f1|time`.

Results go to benchmarks/results/drift.json, the power curves also to docs/drift.svg. The answers are simulated: embeddings whose variance
differs between directions, as in a real network; calibrated probabilities; and the six image statistics.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import binomtest

from benchmarks.measure import Measured, measured, record
from pipeline import plots
from pipeline.evaluation.metrics import figures
from pipeline.monitoring.diagnosis import adjust_prior, expected_f1, share_of_fakes
from pipeline.monitoring.drift import compare
from pipeline.monitoring.predictions import STATISTICS
from pipeline.params_loop import Drift

SETTINGS = Drift(min_window=100, max_window=10_000, alpha=0.01, permutations=199, cron="0 * * * *")
REFERENCE = 500
"""Images, as `export.reference` in params.yaml."""

WINDOWS = 1000
SIZES = (200, 1000, 5000)
REPEATS = 40
FOUND = 0.9
SHIFTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "brightness": ("standard deviations", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "embedding": ("standard deviations along one direction", (0.3, 0.6, 0.9, 1.2, 1.6, 2.0)),
    "fakes": ("share of fakes more than the reference's 50%", (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
    "no_face": ("share of pictures with the warning", (0.01, 0.02, 0.04, 0.06, 0.08, 0.1)),
}
"""Name -> unit, sizes to try."""

DIMENSIONS, SEPARATION = 128, 1.0


def answers(rng: np.random.Generator, rows: int, fakes: float = 0.5, dimensions: int = DIMENSIONS) -> tuple[pd.DataFrame, np.ndarray]:
    """Simulated answers of a calibrated model, and the labels."""
    labels = (rng.random(rows) < fakes).astype(int)
    scores = rng.normal(SEPARATION * (2 * labels - 1), 1)
    embeddings = rng.standard_normal((rows, dimensions), np.float32) / np.sqrt(1 + np.arange(dimensions, dtype=np.float32))
    embeddings[:, 0] += scores.astype(np.float32)
    probabilities = expit(2 * SEPARATION * scores)
    verdicts = np.where(probabilities > 0.6, "fake", np.where(probabilities < 0.4, "real", "uncertain"))
    table = {"verdict": verdicts, "warnings": [[]] * rows, "probability_fake": probabilities, "embedding": list(embeddings)}
    common = rng.normal(size=rows)  # the statistics of an image are correlated
    return pd.DataFrame(table | {name: 100 + 15 * (0.6 * common + 0.8 * rng.normal(size=rows)) for name in STATISTICS}), labels


def shift(table: pd.DataFrame, name: str, size: float, rng: np.random.Generator) -> pd.DataFrame:
    """The answers with a shift of the given kind and size."""
    if name == "brightness":
        return table.assign(brightness=table["brightness"] + 15 * size)
    if name == "embedding":
        embeddings = np.stack(table["embedding"].tolist())
        embeddings[:, 10] += size * embeddings[:, 10].std()
        return table.assign(embedding=list(embeddings))
    if name == "no_face":
        warnings: list[Any] = [["no_face"] if draw < size else [] for draw in rng.random(len(table))]
        return table.assign(warnings=warnings)
    return answers(rng, len(table), 0.5 + size)[0]


def alarms() -> dict[str, Any]:
    """False alarms in WINDOWS windows without drift, each with its own reference."""
    rng = np.random.default_rng(0)
    found = sum(compare(answers(rng, REFERENCE)[0], answers(rng, SIZES[0])[0], SETTINGS, seed=number)["drift"] for number in range(WINDOWS))
    interval = binomtest(found, WINDOWS, SETTINGS.alpha).proportion_ci(method="exact")
    return {"windows": WINDOWS, "rows": SIZES[0], "set": SETTINGS.alpha, "alarms": found, "low": interval.low, "high": interval.high}


def power() -> dict[str, Any]:
    """The share of windows in which drift is found, for each kind of shift, its size and the window's."""
    rng, curves = np.random.default_rng(1), {}
    for name, (unit, sizes) in SHIFTS.items():
        by_window = {}
        for rows in SIZES:
            shares: list[float] = []
            for size in sizes:
                done = len(shares) > 1 and shares[-1] == shares[-2] == 1  # larger shifts are found as well
                shares.append(1.0 if done else _share_found(rng, rows, name, size))
            by_window[str(rows)] = shares
            smallest = next((size for size, share in zip(sizes, shares, strict=True) if share >= FOUND), None)
            print(f"{name}, {rows} answers: found {FOUND:.0%} of the time from {smallest} on: {shares}", flush=True)
        curves[name] = {"unit": unit, "sizes": sizes, "found": by_window}
    draw(curves)
    return {"reference": REFERENCE, "repeats": REPEATS, "alpha": SETTINGS.alpha, "shifts": curves}


def _share_found(rng: np.random.Generator, rows: int, name: str, size: float) -> float:
    settings = SETTINGS.model_copy(update={"permutations": 99})
    found = 0
    for number in range(REPEATS):
        window = shift(answers(rng, rows)[0], name, size, rng)
        found += compare(answers(rng, REFERENCE)[0], window, settings, seed=number)["drift"]
    return found / REPEATS


def draw(curves: dict[str, Any], path: Path = Path("docs/drift.svg")) -> None:
    """The power curves, side by side."""
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(2, 2).ravel(), curves.items(), strict=True):
        for rows, colour in zip(SIZES, (plots.GUIDE, plots.REAL, plots.FAKE), strict=True):
            axes.plot(curve["sizes"], curve["found"][str(rows)], color=colour, marker="o", label=f"{rows:,} answers")
        axes.axhline(FOUND, color=plots.GUIDE, linestyle=":")
        axes.set(title=name, xlabel=curve["unit"], ylabel="share of windows with drift found", ylim=(0, 1.03))
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def f1() -> dict[str, Any]:
    """Estimated and true F1 of 20,000 answers under shifts that keep the calibration, and under two that break it."""
    rng, found = np.random.default_rng(2), {}
    for name in ("none", "harder pictures", "a tenth are fakes", "generator that fools the network"):
        table, labels = answers(rng, 20_000, 0.1 if name == "a tenth are fakes" else 0.5)
        probabilities = table["probability_fake"].to_numpy()
        if name == "harder pictures":
            kept = np.abs(probabilities - 0.5) < 0.35
            probabilities, labels = probabilities[kept], labels[kept]
        if name == "generator that fools the network":
            fooled = (labels == 1) & (rng.random(len(labels)) < 0.5)
            probabilities = np.where(fooled, answers(rng, len(labels), 0.0)[0]["probability_fake"], probabilities)
        chances = None
        if name == "a tenth are fakes":
            chances = adjust_prior(probabilities, 0.5, share_of_fakes(table, 0.5))
        estimate, truth = expected_f1(probabilities, 0.5, chances), float(figures(labels, probabilities, 0.5)["f1"][0])
        found[name] = {"estimated": estimate["value"], "true": round(truth, 4), "error": round((estimate["value"] or 0) - truth, 4)}
    return found


def check(window: int, reference: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a comparison, with as many permutations as in params.yaml."""
    rng = np.random.default_rng(3)
    before, now = (answers(rng, rows, dimensions=768)[0] for rows in (reference, window))
    started, worked = time.perf_counter(), time.process_time()
    compare(before, now, SETTINGS.model_copy(update={"permutations": 500}))
    return time.perf_counter() - started, time.process_time() - worked


def seconds() -> dict[str, Any]:
    """Cost of a check with 768 dimensions, and the machine's load: 10,000 answers against 100,000, and the sizes in params.yaml."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    for window, reference in ((10_000, 100_000), (5000, REFERENCE)):
        run: Measured = measured(check, window, reference)
        wall, worked = run.result
        of = {"seconds": round(wall, 2), "processor_seconds": round(worked, 2), "peak_mb": round(run.peak_mb)}
        found[f"{window} x 768 against {reference}"] = of
    return found


PARTS = {"alarms": alarms, "power": power, "f1": f1, "time": seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    for part in parser.parse_args().parts:
        result = PARTS[part]()
        print(part, result, flush=True)
        record("drift", {part: result})


if __name__ == "__main__":
    main()
