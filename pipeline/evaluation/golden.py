"""Runs a new model on the golden examples of the previous one and lists each verdict that changed."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.detector import verdict
from pipeline.evaluation.scoring import Subject
from pipeline.images import read
from pipeline.package import PACKAGE, Package, PackageError, verify

CHAMPION = Path("models/champion")
"""The package that was deployed last."""


def previous() -> Package | None:
    """The package that a new one would replace: the champion, or else that of the last export. None if neither is intact."""
    for folder in (CHAMPION, PACKAGE):
        try:
            return verify(folder)
        except PackageError:
            continue
    return None


def flips(subject: Subject, package: Package | None) -> dict[str, Any]:
    """Judge a package's golden examples with the new model; without a package there are none.

    Returns:
        package: its digest, or None. n: number of its examples. flips: those with another verdict, each with name, label, and verdict and
        probability before and now. broken: how many were right (verdict equals label) and no longer are.
    """
    if package is None:
        return {"package": None, "n": 0, "broken": 0, "flips": []}
    golden = package.golden
    images = np.stack([subject.preprocess.pixels(read(path).rgb) for path in golden])
    found, broken = [], 0
    for (path, example), now in zip(golden.items(), subject.probabilities(images).tolist(), strict=True):
        was, is_now = verdict(example.probability_fake, package.meta.thresholds), verdict(now, subject.thresholds)
        if was != is_now:
            broken += was == example.label
            entry = {"name": path.name, "label": example.label, "before": was, "now": is_now}
            found.append(entry | {"probability_before": round(example.probability_fake, 5), "probability_now": round(now, 5)})
    return {"package": package.digest, "n": len(golden), "broken": broken, "flips": found}
