"""What a drift means: which kind it is, what it does to F1, and which pictures are behind it."""

from typing import Any, TypedDict

import numpy as np
import pandas as pd

from pipeline import params_loop
from pipeline.evaluation.metrics import Figure, interval, judge
from pipeline.monitoring.drift import compare, shifted
from pipeline.monitoring.predictions import STATISTICS

DRAWS = 300
"""Bootstrap draws of the estimated F1."""

REPEATED = 0.3
"""A client is broken if its requests repeat one picture, or show no face, in this share more of the window than of the reference."""

QUALITY = tuple(f"warning_{name}" for name in ("too_small", "too_blurry", "too_dark", "heavily_compressed", "upscaled"))
EMBEDDING = ("embedding", "embedding_auc")
DIRECTIONS = 32


class Kind(TypedDict):
    """Which kind of drift, by the first rule that holds, and what the rule saw."""

    kind: str
    why: str


def kind(reference: pd.DataFrame, window: pd.DataFrame, report: dict[str, Any], settings: params_loop.Drift) -> Kind:
    """Which kind of drift a report shows. The rules, of which the first that holds is given:

    1. `broken client`: one picture again and again, or pictures without a face, in REPEATED more of the window than of the reference.
    2. `share of fakes`: a part of the reference with the window's share of fakes, as the probabilities estimate it, does not differ.
    3. `camera or compression`: a statistic of the picture, or a warning of its quality, is among what shifted.
    4. `new generator`: the embedding is, while the pictures look the same in every statistic.
    5. `unknown`: none of these.

    Args:
        reference, window, settings: as for `compare`.
        report: what that gave, with `drift`.
    """
    names = shifted(report)
    repeats = [_most_repeated(part) for part in (reference, window)]
    faceless = [_share(part, "no_face") for part in (reference, window)]
    for what, (before, now) in (("are one picture again and again", repeats), ("show no face", faceless)):
        if now - before >= REPEATED:
            return {"kind": "broken client", "why": f"{now:.0%} of the answers {what} ({before:.0%} in the reference)"}
    before, now = float(reference["probability_fake"].mean()), share_of_fakes(reference, window)
    alike = _with_share(reference, now)
    if len(alike) >= settings.min_window // 2 and not compare(alike, window, settings)["drift"]:
        return {"kind": "share of fakes", "why": f"about {now:.0%} are fakes ({before:.0%} in the reference), and nothing else differs"}
    pictures = [name for name in names if name in STATISTICS or name in QUALITY]
    if pictures:
        return {"kind": "camera or compression", "why": f"the pictures themselves differ: {', '.join(pictures)}"}
    if set(names) & set(EMBEDDING):
        return {"kind": "new generator", "why": "the network sees something else, while the pictures' statistics are as they were"}
    return {"kind": "unknown", "why": f"only {', '.join(names)} differ"}


def share_of_fakes(reference: pd.DataFrame, window: pd.DataFrame) -> float:
    """The share of fakes in the window by expectation maximisation (Saerens et al., Neural Computation 2002).

    It holds if fakes look as fakes in the reference do, and reals as reals; the probabilities are calibrated for the reference's share.
    """
    known = float(np.clip(reference["probability_fake"].mean(), 1e-3, 1 - 1e-3))
    probabilities, share = window["probability_fake"].to_numpy(np.float64), known
    for _ in range(200):
        share = float(np.clip(for_share(probabilities, known, share).mean(), 1e-3, 1 - 1e-3))
    return share


def for_share(probabilities: np.ndarray, known: float, share: float) -> np.ndarray:
    """Probabilities that are calibrated for the share `known` of fakes -> those for another share (Saerens et al., 2002)."""
    known = float(np.clip(known, 1e-3, 1 - 1e-3))
    fake, real = probabilities * share / known, (1 - probabilities) * (1 - share) / (1 - known)
    return fake / np.maximum(fake + real, 1e-12)


def expected_f1(probabilities: np.ndarray, threshold: float, chances: np.ndarray | None = None) -> Figure:
    """F1 without labels, from calibrated probabilities: a picture with probability p counts as p fakes and 1 - p reals.

    Right as far as the calibration still holds: for harder or easier pictures, not for a generator that fools the network
    (confidence-based performance estimation: Bialek et al., 2024). Where only the share of fakes changed, `chances` put it right.

    Args:
        probabilities: float (n,) of fake, as the network gave them.
        threshold: at or above it a picture is called fake.
        chances: float (n,), how likely each is a fake, if that is another number (see `for_share`).

    Returns:
        With its 95% interval, by a bootstrap over pictures and their unknown labels.
    """
    called, chances = probabilities >= threshold, probabilities if chances is None else chances
    value = _f1(called, chances)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        rows = rng.integers(0, len(probabilities), len(probabilities))
        draws.append(_f1(called[rows], (rng.random(len(rows)) < chances[rows]).astype(np.float64)))
    return interval(np.array([value]), np.array(draws))


def measured_f1(window: pd.DataFrame, labels: dict[str, int], threshold: float) -> dict[str, Any] | None:
    """F1 on the answers that users labelled: n, value, low, high; None if there are none. No random sample: users label what they doubt.

    Args:
        window: id, probability_fake.
        labels: id of an answer -> 1 for fake.
        threshold: at or above it a picture is called fake.
    """
    known = window[window["id"].isin(labels.keys())]
    if known.empty:
        return None
    truth = known["id"].map(labels).to_numpy(int)
    figure = judge(truth, known["probability_fake"].to_numpy(np.float64), np.arange(len(known)), threshold, DRAWS, 0)["f1"]
    return {"n": len(known), **figure}


def foreignness(reference: pd.DataFrame, window: pd.DataFrame) -> np.ndarray:
    """How far each picture of the window lies from the reference: float (n,), about 1 for a typical one.

    The mean squared distance from the reference's centre in its principal directions, each in units of the reference's own spread.
    """
    known, asked = (np.stack(part["embedding"].tolist()).astype(np.float64) for part in (reference, window))
    centre = known.mean(0)
    _, spreads, directions = np.linalg.svd(known - centre, full_matrices=False)
    kept = spreads[:DIRECTIONS] > 1e-9 * max(spreads[0], 1e-30)
    scaled = (asked - centre) @ directions[:DIRECTIONS][kept].T / (spreads[:DIRECTIONS][kept] / np.sqrt(len(known)))
    return (scaled**2).mean(1) if kept.any() else np.ones(len(asked))


def _f1(called: np.ndarray, fake: np.ndarray) -> float:
    """`fake` is 0 or 1, or how likely each is; not defined without a fake, as in pipeline.evaluation.metrics."""
    both = float(fake[called].sum())
    return 2 * both / (called.sum() + fake.sum()) if fake.any() else float("nan")


def _with_share(reference: pd.DataFrame, share: float) -> pd.DataFrame:
    """Rows of the reference with another share of fakes: as many as can be had without taking one twice."""
    probabilities = reference["probability_fake"].to_numpy(np.float64)
    known = float(np.clip(probabilities.mean(), 1e-3, 1 - 1e-3))
    weights = probabilities * share / known + (1 - probabilities) * (1 - share) / (1 - known)
    return reference[np.random.default_rng(0).random(len(reference)) < weights / weights.max()]


def _most_repeated(part: pd.DataFrame) -> float:
    _, counts = np.unique(np.stack(part["embedding"].tolist()), axis=0, return_counts=True)
    return float(counts.max() / len(part)) if counts.max() > 1 else 0.0


def _share(part: pd.DataFrame, warning: str) -> float:
    return float(np.mean([warning in names for names in part["warnings"]])) if "warnings" in part else 0.0
