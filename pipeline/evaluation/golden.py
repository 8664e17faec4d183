"""What a new model says of the golden examples of the one before it: each answer that changed is listed."""

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
    """The package that a new one would replace: the champion, or else what the last export left. None if there is no whole one."""
    for folder in (CHAMPION, PACKAGE):
        try:
            return verify(folder)
        except PackageError:
            continue
    return None


def flips(subject: Subject, package: Package | None) -> dict[str, Any]:
    """Judge a package's golden examples anew; without a package there are none.

    Returns:
        package: its digest, or None. n: of its examples. flips: those that get another verdict, each with name, label, and verdict and
        probability before and now. broken: how many of all were right (the verdict is the label) and are not any more.
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
