"""From scores to decisions: a calibration and thresholds, both from the validation part alone."""

from pathlib import Path

import numpy as np

from pipeline.package import Calibration, Thresholds

CALIBRATION = Path("models/calibration.json")
"""Calibration and thresholds, written by evaluation for the package."""


def fit(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit the temperature, between 0.05 and 50, and the bias that minimise the log loss (Platt, 1999).

    A temperature alone (Guo et al., ICML 2017) cannot correct scores that are off to one side: with one, a ViT-tiny whose mean
    probability was .43 where half of the images are fakes had twice the calibration error.

    The labels are slightly smoothed, as by Platt: if the scores separate a few images perfectly, or nearly so, the best fit would be
    probabilities of 0 and 1, and later images could no longer be ranked.

    Args:
        scores: float (n,), logit of fake minus logit of real.
        labels: int (n,), 1 for fake.
    """
    from scipy.optimize import minimize  # not installed on a server
    from scipy.special import expit

    fakes = int(np.sum(labels))
    likely = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (len(labels) - fakes + 2))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = weights[0] * scores + weights[1]
        residual = expit(scaled) - likely
        return float(np.mean(np.logaddexp(0, scaled) - likely * scaled)), np.array([np.mean(residual * scores), np.mean(residual)])

    slope, bias = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((1 / 50, 1 / 0.05), (None, None))).x
    return Calibration(temperature=float(1 / slope), bias=float(bias), fake_share=fakes / len(labels))


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
