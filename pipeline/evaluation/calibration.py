"""From scores to decisions: a temperature and thresholds, both from the validation part alone."""

from pathlib import Path

import numpy as np

from pipeline.package import Thresholds

CALIBRATION = Path("models/calibration.json")
"""Temperature and thresholds, written by evaluation for the package."""


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature (Guo et al., ICML 2017) that minimises the log loss, between 0.05 and 50.

    The labels are slightly smoothed (Platt, 1999): if the scores separate a few images perfectly, or nearly so, the best fit would be
    probabilities of 0 and 1, and later images could no longer be ranked.

    Args:
        scores: float (n,), logit of fake minus logit of real.
        labels: int (n,), 1 for fake.
    """
    from scipy.optimize import minimize_scalar  # not installed on a server

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - likely * scaled))

    fakes = int(np.sum(labels))
    likely = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (len(labels) - fakes + 2))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(50)), method="bounded").x))


def probability(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Difference of logits (n,) -> calibrated probability of fake (n,)."""
    probabilities: np.ndarray = np.exp(-np.logaddexp(0, -np.asarray(scores, np.float64) / temperature))
    return probabilities


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray, max_fpr: float, max_fnr: float) -> Thresholds:
    """Thresholds on the probability of fake.

    At most `max_fpr` of the reals reach `fake_above`, and at most `max_fnr` of the fakes are below `real_below`. If the detector is so
    good that the two cross, no `uncertain` is needed: both become the F1 threshold, clipped to the range in which both rates hold.
    """
    reals, fakes = np.sort(probabilities[labels == 0]), np.sort(probabilities[labels == 1])
    f1 = _best_f1(labels, probabilities)
    fake_above, real_below = _above(reals, max_fpr), float(fakes[int(np.floor(max_fnr * len(fakes)))])
    if real_below >= fake_above:
        real_below = fake_above = float(np.clip(f1, fake_above, real_below))
    return Thresholds(f1=f1, fpr1=_above(reals, 0.01), fpr5=_above(reals, 0.05), real_below=real_below, fake_above=fake_above)


def _above(reals: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most `rate` of the sorted reals reach; above 1 if it has to exclude a real with probability 1."""
    allowed = int(np.floor(rate * len(reals)))
    return float(np.nextafter(reals[-1 - allowed], 2))


def _best_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold with the highest F1: midway between the lowest probability that counts as fake and the next one below."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    tp = np.cumsum(labels[order])
    f1 = 2 * tp / (np.arange(1, len(labels) + 1) + labels.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # no threshold separates equal probabilities
    best = int(np.argmax(f1))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)
