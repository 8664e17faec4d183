"""Diagnoses drift: its kind, its effect on F1, and the images behind it."""

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
"""Drift comes from a broken client if the share of one repeated image, or of images without a face, has risen by this much."""

PICTURE = list(STATISTICS)
"""Equal in all answers on one picture, and as good as never for two."""

QUALITY = tuple(f"warning_{name}" for name in ("too_small", "too_blurry", "too_dark", "heavily_compressed", "upscaled"))
EMBEDDING = ("embedding", "embedding_auc")
DIRECTIONS = 32


class Kind(TypedDict):
    """The kind of drift, by the first rule that applies, and why the rule applies."""

    kind: str
    why: str


def pictures(reference: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The answers to compare with the reference: the newest one on each picture, because many people may ask about the same one.

    All of them, if one picture is repeated so often that a client must be broken: that is drift.
    """
    if _most_repeated(answers) - _most_repeated(reference) >= REPEATED:
        return answers
    return answers[~answers.duplicated(PICTURE, keep="last")]


def kind(reference: pd.DataFrame, window: pd.DataFrame, report: dict[str, Any], settings: params_loop.Drift, known: float) -> Kind:
    """Classify the drift that a report shows. The first rule that applies decides:

    1. `broken client`: one repeated image, or images without a face, have a share higher by REPEATED in the window than in the reference.
    2. `share of fakes`: a subsample of the reference with the window's estimated share of fakes does not differ from the window.
    3. `camera or compression`: an image statistic or a quality warning shifted.
    4. `new generator`: the embedding shifted, but no image statistic and no quality warning did.
    5. `unknown`: none of these.

    Args:
        reference, window, settings: as for `compare`; `window` is from `pictures`.
        report: its result, with `drift` true.
        known: the share of fakes that the probabilities are calibrated for (Calibration.fake_share).
    """
    names = shifted(report)
    repeats = [_most_repeated(part) for part in (reference, window)]
    faceless = [_share(part, "no_face") for part in (reference, window)]
    for what, (before, now) in (("are for the same picture", repeats), ("found no face", faceless)):
        if now - before >= REPEATED:
            return {"kind": "broken client", "why": f"{now:.0%} of the answers {what} ({before:.0%} in the reference)"}
    before, now = (share_of_fakes(part, known) for part in (reference, window))
    alike = _with_share(reference, now, known)
    if len(alike) >= settings.min_window // 2 and not compare(alike, window, settings)["drift"]:
        return {"kind": "share of fakes", "why": f"about {now:.0%} are fakes ({before:.0%} in the reference), and nothing else differs"}
    measures = [name for name in names if name in STATISTICS or name in QUALITY]
    if measures:
        return {"kind": "camera or compression", "why": f"the pictures themselves differ: {', '.join(measures)}"}
    if set(names) & set(EMBEDDING):
        return {"kind": "new generator", "why": "the embeddings differ, but the pictures' statistics do not"}
    return {"kind": "unknown", "why": f"only {', '.join(names)} differ"}


def share_of_fakes(answers: pd.DataFrame, known: float) -> float:
    """Estimate the share of fakes among answers by expectation maximisation (Saerens et al., Neural Computation 2002).

    Assumes that fakes and reals each look as they do in validation, and probabilities calibrated for the share `known` of fakes.
    """
    probabilities, share = answers["probability_fake"].to_numpy(np.float64), known
    for _ in range(200):
        share = float(np.clip(adjust_prior(probabilities, known, share).mean(), 1e-3, 1 - 1e-3))
    return share


def adjust_prior(probabilities: np.ndarray, known: float, share: float) -> np.ndarray:
    """Convert probabilities calibrated for the share `known` of fakes to another `share` (Saerens et al., 2002)."""
    known = float(np.clip(known, 1e-3, 1 - 1e-3))
    fake, real = probabilities * share / known, (1 - probabilities) * (1 - share) / (1 - known)
    return fake / np.maximum(fake + real, 1e-12)


def expected_f1(probabilities: np.ndarray, threshold: float, chances: np.ndarray | None = None) -> Figure:
    """Estimate F1 without labels, from calibrated probabilities: an image with probability p counts as p fakes and 1 - p reals.

    Correct as long as the calibration holds: for harder or easier images, but not for a generator that fools the network
    (confidence-based performance estimation: Bialek et al., 2024). For another share of fakes than in validation, `chances` corrects.

    Args:
        probabilities: float (n,) of fake, as the network gave them.
        threshold: at or above it an image is called fake.
        chances: float (n,), corrected probabilities of being fake, if they differ from `probabilities` (see `adjust_prior`).

    Returns:
        F1 with its 95% interval, by a bootstrap over images and their unknown labels.
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
    """F1 on the answers that users labelled: n, value, low, high; None if there are none. Not a random sample: users label what they doubt.

    Args:
        window: id, probability_fake.
        labels: id of an answer -> 1 for fake.
        threshold: at or above it an image is called fake.
    """
    known = window[window["id"].isin(labels.keys())]
    if known.empty:
        return None
    truth = known["id"].map(labels).to_numpy(int)
    probabilities = known["probability_fake"].to_numpy(np.float64)
    # Answers to one picture, which many users may ask about, have one probability: as a group they count as one draw.
    figure = judge(truth, probabilities, probabilities, threshold, DRAWS, 0)["f1"]
    return {"n": len(known), **figure}


def outlier_scores(reference: pd.DataFrame, window: pd.DataFrame) -> np.ndarray:
    """Distance of each image of the window from the reference: float (n,), about 1 for a typical one.

    The mean squared distance from the reference's centre along its principal components, each scaled by the reference's standard deviation.
    """
    known, asked = (np.stack(part["embedding"].tolist()).astype(np.float64) for part in (reference, window))
    centre = known.mean(0)
    _, spreads, directions = np.linalg.svd(known - centre, full_matrices=False)
    kept = spreads[:DIRECTIONS] > 1e-9 * max(spreads[0], 1e-30)
    scaled = (asked - centre) @ directions[:DIRECTIONS][kept].T / (spreads[:DIRECTIONS][kept] / np.sqrt(len(known)))
    return (scaled**2).mean(1) if kept.any() else np.ones(len(asked))


def _f1(called: np.ndarray, fake: np.ndarray) -> float:
    """F1, where `fake` holds labels (0 or 1) or probabilities; nan without a fake, as in pipeline.evaluation.metrics."""
    both = float(fake[called].sum())
    return 2 * both / (called.sum() + fake.sum()) if fake.any() else float("nan")


def _with_share(reference: pd.DataFrame, share: float, known: float) -> pd.DataFrame:
    """A subsample of the reference with another share of fakes, as large as possible without replacement."""
    own = share_of_fakes(reference, known)
    probabilities = adjust_prior(reference["probability_fake"].to_numpy(np.float64), known, own)
    weights = probabilities * share / own + (1 - probabilities) * (1 - share) / (1 - own)
    return reference[np.random.default_rng(0).random(len(reference)) < weights / weights.max()]


def _most_repeated(part: pd.DataFrame) -> float:
    most = part.groupby(PICTURE).size().max()
    return float(most / len(part)) if most > 1 else 0.0


def _share(part: pd.DataFrame, warning: str) -> float:
    return float(np.mean([warning in names for names in part["warnings"]])) if "warnings" in part else 0.0
