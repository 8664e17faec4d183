"""Compares champion and shadow challenger on the same images, for the drift report."""

from collections import Counter
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from pipeline.labels import ID2LABEL
from pipeline.monitoring.drift import VERDICTS


def compared(both: pd.DataFrame, labels: dict[str, int]) -> dict[str, Any] | None:
    """Compare how two versions answered the same images.

    Args:
        both: from `pipeline.monitoring.predictions.shadow_pairs`.
        labels: id of an answer -> 1 for fake, from users.

    Returns:
        version: the challenger's. n: number of images. agreement: share with the same verdict. difference: mean probability of fake,
        challenger minus champion. verdicts: champion's verdict -> challenger's verdict -> number of images. labelled: `n`, how many each
        of the two got right (`uncertain` counts as wrong), and the p-value of the sign test on the pictures that only one got right.
        None if there are no images.
    """
    if both.empty:
        return None
    pairs = Counter(zip(both["verdict"], both["challenger_verdict"], strict=True))
    known = both[both["id"].isin(labels.keys())]
    truth = known["id"].map(labels).map(ID2LABEL)
    champion, challenger = known["verdict"] == truth, known["challenger_verdict"] == truth
    # Many users may ask about one picture: all its answers have the same probabilities, and are one trial of the sign test.
    first = ~known.duplicated(["probability_fake", "challenger_probability_fake"])
    won, lost = int((challenger & ~champion & first).sum()), int((champion & ~challenger & first).sum())
    return {
        "version": str(both["version"].iloc[0]),
        "n": len(both),
        "agreement": float((both["verdict"] == both["challenger_verdict"]).mean()),
        "difference": float((both["challenger_probability_fake"] - both["probability_fake"]).mean()),
        "verdicts": {ours: {theirs: pairs[ours, theirs] for theirs in VERDICTS} for ours in VERDICTS},
        "labelled": {
            "n": len(known),
            "champion": int(champion.sum()),
            "challenger": int(challenger.sum()),
            "p_value": float(binomtest(won, won + lost).pvalue) if won + lost else None,
        },
    }
