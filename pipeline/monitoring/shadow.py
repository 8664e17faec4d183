"""Champion and challenger on the same pictures: what the service's shadow recorded, summed up for the drift report."""

from collections import Counter
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from pipeline.labels import ID2LABEL
from pipeline.monitoring.drift import VERDICTS


def compared(both: pd.DataFrame, labels: dict[str, int]) -> dict[str, Any] | None:
    """How two versions answered the same pictures.

    Args:
        both: from `pipeline.monitoring.predictions.beside`.
        labels: id of an answer -> 1 for fake, where users said so.

    Returns:
        version: the challenger's. n: pictures. agreement: share with the same verdict. difference: mean of the probabilities of fake,
        challenger less champion. verdicts: champion's verdict -> challenger's verdict -> pictures. labelled: `n`, how many each of the two
        got right (an `uncertain` is not), and the p-value of the sign test on those that one of them alone got right.
        None if there are no pictures.
    """
    if both.empty:
        return None
    pairs = Counter(zip(both["verdict"], both["challenger_verdict"], strict=True))
    known = both[both["id"].isin(labels.keys())]
    truth = known["id"].map(labels).map(ID2LABEL)
    champion, challenger = known["verdict"] == truth, known["challenger_verdict"] == truth
    won, lost = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
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
