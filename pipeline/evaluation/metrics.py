"""Metrics of a detector with 95% intervals. "fake" (label 1) is the positive class; probabilities are those of fake.

All metrics take weights, one row per bootstrap draw, so that a thousand draws are a few matrix products instead of a thousand passes.
"""

from collections.abc import Iterator
from typing import Literal, TypedDict

import numpy as np

BINS = 15
"""Bins of the calibration error."""
BLOCK = 2**21
"""Weights processed at a time: for a thousand draws of a hundred thousand images, all at once would take gigabytes."""


class Figure(TypedDict):
    """A metric with its 95% interval; null where undefined, e.g. the AUC if there is only one class."""

    value: float | None
    low: float | None
    high: float | None


def figures(labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All metrics, for each row of weights.

    Args:
        labels: int (n,), 1 for fake.
        probabilities: float (n,) of fake, in 0..1.
        threshold: at or above it an image is called fake.
        weights: (draws, n), how often each image counts; once if left out.

    Returns:
        precision, recall, f1, accuracy, balanced_accuracy, fpr, auc, ap, eer, ece, brier, nll, each float (draws,), NaN where undefined.
        Without any fake the first three are undefined, even if a real is called fake.
    """
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    weights = np.ones((1, len(labels))) if weights is None else weights
    found = [_figures(labels, probabilities, threshold, block) for block in blocks(weights)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Weights (draws, n) as float in blocks of a few draws, at least one block, so that they are never copied as a whole."""
    rows = max(1, BLOCK // max(1, weights.shape[1]))
    for start in range(0, max(1, len(weights)), rows):
        yield weights[start : start + rows].astype(np.float64)


def _figures(labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    called = (probabilities >= threshold).astype(np.float64)
    tp, fp = weights @ (called * labels), weights @ (called * (1 - labels))
    fn, tn = weights @ ((1 - called) * labels), weights @ ((1 - called) * (1 - labels))
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(1)
        recall, fpr = tp / (tp + fn), fp / (fp + tn)
        return {
            "precision": np.where(tp + fn > 0, tp / np.maximum(tp + fp, 1e-12), np.nan),
            "recall": recall,
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "accuracy": (tp + tn) / total,
            "balanced_accuracy": (recall + 1 - fpr) / 2,
            "fpr": fpr,
            **_ranking(labels, probabilities, weights),
            "ece": _calibration_error(labels, probabilities, weights),
            "brier": weights @ (probabilities - labels) ** 2 / total,
            "nll": -(weights @ (labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))) / total,
        }


def group_weights(groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Bootstrap over groups: uint8 (draws, n), how often each image counts when whole groups are drawn with replacement.

    A single group gives no draws: all would be equal and make every metric look certain.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    # A byte is enough: the chance that a group occurs 256 times in a draw is at most 1 in 256!.
    counts = np.empty((draws if len(names) > 1 else 0, len(index)), np.uint8)
    for count in counts:
        count[:] = rng.multinomial(len(names), even)[index]
    return counts


def interval(value: np.ndarray, draws: np.ndarray) -> Figure:
    """A metric's value (1,) and its bootstrap draws -> value with the 2.5% and 97.5% percentiles, which are null without draws."""
    if not np.isfinite(value[0]):
        return {"value": None, "low": None, "high": None}
    kept, shown = draws[np.isfinite(draws)], round(float(value[0]), 5)
    if not len(kept):
        return {"value": shown, "low": None, "high": None}
    low, high = np.percentile(kept, [2.5, 97.5])
    return {"value": shown, "low": round(float(low), 5), "high": round(float(high), 5)}


def _centred(value: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draws of a calibration error without the bias of resampling: it adds up absolute gaps, so that noise can only increase it."""
    return np.maximum(0, draws - (np.nanmean(draws) - value)) if len(draws) else draws


def judge(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, threshold: float, draws: int, seed: int) -> dict[str, Figure]:
    """Every metric of `figures` with its 95% interval from a bootstrap over groups."""
    return judge_weighted(labels, probabilities, threshold, group_weights(groups, draws, seed))


def judge_weighted(labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, Figure]:
    """Every metric of `figures` with its 95% interval from existing draws, see `group_weights`."""
    weights, names = _of_several(weights)
    value, drawn = figures(labels, probabilities, threshold), figures(labels, probabilities, threshold, weights)
    drawn["ece"] = _centred(value["ece"], drawn["ece"])
    fake, called = np.asarray(labels) == 1, np.asarray(probabilities) >= threshold
    shares = {
        "precision": (fake, called),
        "recall": (called, fake),
        "fpr": (called, ~fake),
        "accuracy": (called == fake, np.full(len(fake), True)),
    }
    found = {name: interval(value[name], drawn[name]) for name in value}
    found |= {name: _exact(found[name], hits[of], names[of]) for name, (hits, of) in shares.items()}
    return found | _bounded(found, min(len(np.unique(names[of])) for of in (fake, ~fake)))


def mean(values: np.ndarray, weights: np.ndarray) -> Figure:
    """The mean of values, float or bool (n,), with its 95% interval from weights (draws, n); null without values."""
    values, (weights, names) = np.asarray(values), _of_several(weights)
    with np.errstate(invalid="ignore"):
        drawn = [block @ values.astype(np.float64) / block.sum(1) for block in blocks(weights)]
        found = interval(values.sum(keepdims=True) / np.float64(len(values)), np.concatenate(drawn))
    return _exact(found, values, names) if values.dtype == bool else found


def _of_several(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (draws, n), with no draws left if all images are of one group, as in a small slice; and group ids, see `_names`."""
    names = _names(weights)
    return weights if len(np.unique(names)) > 1 else weights[:0], names


def _names(weights: np.ndarray) -> np.ndarray:
    """Weights (draws, n) -> group ids, float (n,): equal for images that are always drawn together."""
    # A hash of each column: its dot product with random integers, which floats hold exactly. Sorting the columns would take long.
    rng, names = np.random.default_rng(0), np.zeros(weights.shape[1])
    for block in blocks(weights):
        names += rng.integers(1, 2**30, len(block)).astype(np.float64) @ block
    return names


def _exact(share: Figure, hits: np.ndarray, names: np.ndarray) -> Figure:
    """A share of hits, bool (n,), with an exact interval if it is 0 or 1: resampling would only repeat it and make it look certain.

    The interval is Clopper and Pearson's (Biometrika 1934) and counts groups, not images: the different ids in `names` (n,).
    """
    if share["low"] is None or not len(hits) or 0 < hits.sum() < len(hits):
        return share
    low = _all_of(len(np.unique(names)))
    return _with_end(share, low, 1 - low)


def _bounded(found: dict[str, Figure], fewest: int) -> dict[str, Figure]:
    """Intervals of composite metrics that are 0 or 1 in every draw: their other end follows from the exact intervals of shares.

    F1 lies between precision and recall; balanced accuracy is the mean of recall and specificity. A ranking that is entirely right or
    wrong (auc, ap, eer) is as certain as a share of the class with the fewest groups.
    """
    precision, recall, fpr = (np.array([found[name]["low"], found[name]["high"]], np.float64) for name in ("precision", "recall", "fpr"))
    ends = {
        "f1": (float(np.fmin(precision, recall)[0]), float(np.fmax(precision, recall)[1])),
        "balanced_accuracy": (float(recall[0] + 1 - fpr[1]) / 2, float(recall[1] + 1 - fpr[0]) / 2),
    }
    if found["auc"]["value"] is not None:
        share = _all_of(fewest)
        ends |= dict.fromkeys(("auc", "ap", "eer"), (share, 1 - share))
    return {
        name: _with_end(found[name], low, high)
        for name, (low, high) in ends.items()
        if found[name]["low"] is not None and found[name]["low"] == found[name]["high"]
    }


def _all_of(groups: int) -> float:
    """The lower bound of a share if all of so many groups are hits; 1 minus it is the upper bound if none is."""
    from scipy.stats import binomtest  # which a server does not have

    return float(binomtest(groups, groups).proportion_ci().low)


def _with_end(figure: Figure, low: float, high: float) -> Figure:
    """Replace the lower end of a metric of 1 or the upper end of a metric of 0; any other stays as it is."""
    if figure["value"] not in (0, 1):
        return figure
    ends = (low, 1.0) if figure["value"] else (0.0, high)
    return {"value": figure["value"], "low": round(ends[0], 5), "high": round(ends[1], 5)}


def reported(value: float) -> float | None:
    """A metric as the reports hold it: rounded to five digits, None if undefined."""
    return round(float(value), 5) if np.isfinite(value) else None


def figure_text(figure: Figure, digits: int = 3, sign: Literal["", "+"] = "") -> str:
    """A metric as text: its value with the interval in brackets; the sign `+` is for differences."""
    if figure["value"] is None:
        return "not defined"
    kind = f"{sign}.{digits}f"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:{kind}} (one group: no interval)"
    return f"{figure['value']:{kind}} ({figure['low']:{kind}} to {figure['high']:{kind}})"


def percent_text(figure: Figure) -> str:
    """A share as text: in percent, with the interval in brackets."""
    if figure["value"] is None:
        return "not defined"
    if figure["low"] is None or figure["high"] is None:
        return f"{100 * figure['value']:.1f}% (one group: no interval)"
    return f"{100 * figure['value']:.1f}% ({100 * figure['low']:.1f} to {100 * figure['high']:.1f}%)"


def judge_difference(
    labels: np.ndarray, one: tuple[np.ndarray, float], other: tuple[np.ndarray, float], weights: np.ndarray
) -> dict[str, Figure]:
    """Every metric of `figures` for one model minus that of another, on the same images and the same bootstrap draws.

    Args:
        labels: int (n,), 1 for fake.
        one, other: probabilities of fake, float (n,), and the threshold at or above which an image is called fake.
        weights: (draws, n), see `group_weights`.
    """
    value, drawn = ([figures(labels, *side, *drawing) for side in (one, other)] for drawing in ((), (weights,)))
    return {name: interval(value[0][name] - value[1][name], drawn[0][name] - drawn[1][name]) for name in value[0]}


def confusion(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, int]:
    """Counts tn, fp, fn, tp."""
    fake, called = np.asarray(labels) == 1, np.asarray(probabilities) >= threshold
    return {
        "tn": int((~fake & ~called).sum()),
        "fp": int((~fake & called).sum()),
        "fn": int((fake & ~called).sum()),
        "tp": int((fake & called).sum()),
    }


def _ranking(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """auc, ap and eer from one sort; equal scores count as one threshold."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    positive = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - labels[order]), starts, axis=1)
    tp, fp = positive.cumsum(1), negative.cumsum(1)
    p, n = tp[:, -1:], fp[:, -1:]
    auc = ((tp - positive / 2) * negative).sum(1) / (p * n)[:, 0]
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1e-12), 0)
    both = (p > 0) & (n > 0)  # without a real any ranking would be perfect
    ap = np.where(both[:, 0], (positive * precision).sum(1) / np.maximum(p[:, 0], 1e-12), np.nan)
    miss, alarm = 1 - tp / p, fp / n
    closest = np.argmin(np.where(np.isnan(miss - alarm), np.inf, np.abs(miss - alarm)), axis=1)[:, None]
    eer = (np.take_along_axis(miss, closest, 1) + np.take_along_axis(alarm, closest, 1))[:, 0] / 2
    return {"auc": auc, "ap": ap, "eer": eer}


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error over equally wide bins (Naeini et al., AAAI 2015)."""
    bins = np.eye(BINS)[np.minimum((probabilities * BINS).astype(int), BINS - 1)]
    gaps = np.abs((weights * (probabilities - labels)) @ bins)
    return gaps.sum(1) / weights.sum(1)
