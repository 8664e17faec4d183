"""Data versions: the last accepted one, and how another differs from it."""

import filecmp
from typing import Any

import numpy as np
import pandas as pd

from pipeline.manifest import ACCEPTED, MANIFEST
from pipeline.params import Validate
from pipeline.staging import write

QUALITY = ("width", "height", "bytes", "blur", "brightness", "contrast", "jpeg_quality", "face_share")
"""Numbers that describe how a picture was taken and stored."""

SHARES = ("label", "generator", "source", "format")
"""Categories whose shares are compared."""

WARNING: Any = "warning"  # Any: the type that great_expectations has for it takes seconds to import
NEW = 0.01
"""Share that the accepted version is assumed to have of values new to it: otherwise one new image makes the divergence infinite."""


def last_accepted() -> pd.DataFrame | None:
    """The last accepted version, only columns that are compared; None if there is none or it is the current manifest."""
    if not ACCEPTED.is_file() or filecmp.cmp(MANIFEST, ACCEPTED, shallow=False):
        return None
    return pd.read_parquet(ACCEPTED, columns=["image_id", "path", *SHARES, *QUALITY])


def accept() -> None:
    """Keep the manifest as the last accepted version."""
    write(ACCEPTED, MANIFEST.read_bytes())  # replaced, not overwritten: it may be a link into DVC's cache


def drift(table: pd.DataFrame, accepted: pd.DataFrame, settings: Validate) -> list[Any]:
    """Expectations, all warnings, that a manifest is distributed like the last accepted one.

    Kullback-Leibler divergence of categories, and of numbers in bins between the accepted version's quantiles; and no generator or source
    may have disappeared.
    """
    import great_expectations.expectations as gxe

    meant = "If the change is intended, there is nothing to do: reports/data_card.md shows it."
    suite: list[Any] = [
        gxe.ExpectColumnDistinctValuesToContainSet(
            column=column,
            value_set=sorted(accepted[column].dropna().unique()),
            severity=WARNING,
            notes=f"A {column} of the last accepted data version no longer has any images. {meant}",
        )
        for column in ("generator", "source")
    ]
    partitions = {}
    for column in SHARES:
        shares = accepted[column].value_counts(normalize=True).sort_index()
        partitions[column] = {"values": list(shares.index), "weights": shares.tolist()}
    for column in QUALITY:
        before, now = accepted[column].dropna().to_numpy(np.float64), int(table[column].notna().sum()) if column in table else 0
        if len(before) and now:
            partitions[column] = _between_quantiles(before, min(len(before), now))
    return suite + [
        gxe.ExpectColumnKLDivergenceToBeLessThan(
            column=column,
            partition_object=partition,
            threshold=settings.max_divergence,
            tail_weight_holdout=NEW,
            severity=WARNING,
            notes=f"The distribution of {column} differs from that of the last accepted data version. {meant}",
        )
        for column, partition in partitions.items()
    ]


def changes(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, list[str]]:
    """Paths of the images that are new, removed or relabelled, sorted. Equal content (image_id) is one image, whatever its path."""
    before, now = (table[["image_id", "path", "label"]].drop_duplicates("image_id") for table in (old, new))
    place = pd.Index(before["image_id"]).get_indexer(pd.Index(now["image_id"]))  # -1 where there was no such image
    stayed = place >= 0
    relabelled = now["label"].to_numpy()[stayed] != before["label"].to_numpy()[place[stayed]]
    return {
        "new": sorted(now["path"][~stayed]),
        "removed": sorted(np.delete(before["path"].to_numpy(), place[stayed])),
        "relabelled": sorted(now["path"][stayed][relabelled]),
    }


def _between_quantiles(values: np.ndarray, smaller: int) -> dict[str, list[Any]]:
    """Bins with about equal shares of the values: ten, or fewer if the smaller version has under 500 images.

    Two samples of one distribution diverge by about bins / images, so that ten bins would warn of every small sample.
    """
    number = int(np.clip(smaller // 50, 2, 10))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, number + 1), method="lower"))  # edges are values, so that no bin is empty
    if len(edges) == 1:
        edges = np.append(edges, np.nextafter(edges[0], np.inf))
    counts, _ = np.histogram(values, edges)
    return {"bins": edges.tolist(), "weights": (counts / counts.sum()).tolist()}
