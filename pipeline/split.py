"""Stage split: train, val and test, so that nothing in one part has a twin in another."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.manifest import LABELS, PARTS, UNSEEN
from pipeline.params import Params, Split

REPORT = Path("reports/split.json")


def run(params: Params) -> dict[str, Any]:
    """Write data/splits/*.parquet.

    Raises:
        StageError: if a part would lack a class, or a held-out generator does not exist.
    """
    table = manifest.read(manifest.MANIFEST)
    absent = sorted(set(params.split.holdout_generators) - set(table["generator"]))
    if absent:
        there = ", ".join(sorted(set(table["generator"]) - {manifest.NO_GENERATOR}))
        raise StageError(f"split.holdout_generators: no image is made by {', '.join(absent)}; the data has: {there}")
    groups, joined = join_groups(table, params.split.duplicate_radius)
    parts, left_out = divide(table.assign(group=groups), params.split)
    for name, part in parts.items():
        _check(name, part)
        manifest.write(part, manifest.SPLITS / f"{name}.parquet")
    report = {
        "parts": {name: _summary(part) for name, part in parts.items()},
        "groups": int(groups.nunique()),
        "largest_group": int(groups.value_counts().iloc[0]),
        "groups_joined_by_near_duplicates": joined,
        "left_out": left_out,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def divide(table: pd.DataFrame, settings: Split) -> tuple[dict[str, pd.DataFrame], int]:
    """Assign whole groups to parts by a hash of their name.

    A group's place depends on its name and the seed alone: new images never move old ones between parts. The price is that the shares
    are met on average, not to the image (within 2 points for 400 groups); labels and generators follow, as a hash knows neither.

    Fakes of held-out generators leave the three parts. Those from groups of the test part become the part `unseen`, beside the
    test part's reals; the others are left out, because training has seen their parents.

    Returns:
        The parts, and the number of images left out.
    """
    place = table["group"].map({group: _place(group, settings.seed) for group in table["group"].unique()})
    edges = np.cumsum([settings.shares[part] for part in PARTS])[:-1]
    index = np.searchsorted(edges, place.to_numpy(), side="right")
    held_out = table["generator"].isin(settings.holdout_generators).to_numpy()
    parts: dict[str, pd.DataFrame] = {part: table[(index == number) & ~held_out] for number, part in enumerate(PARTS)}
    if settings.holdout_generators:
        in_test = index == PARTS.index("test")
        parts[UNSEEN] = table[in_test & (held_out | (table["label"] == "real").to_numpy())]
    return parts, int((held_out & (index != PARTS.index("test"))).sum())


def join_groups(table: pd.DataFrame, radius: int) -> tuple[pd.Series, int]:
    """Join groups that share a near-duplicate picture.

    Args:
        table: rows of the manifest.
        radius: perceptual hashes that differ in at most this many of their 64 bits are one picture.

    Returns:
        The group of each row, named after the first of the joined ones in the alphabet, and how many groups were joined to another.
    """
    codes, names = pd.factorize(table["group"], sort=True)
    pairs = near_duplicates(np.array([int(value, 16) for value in table["phash"]], np.uint64), radius)
    links = coo_array((np.ones(len(pairs)), (codes[pairs[:, 0]], codes[pairs[:, 1]])), shape=(len(names), len(names)))
    _, component = connected_components(links, directed=False)
    first = pd.Series(names).groupby(component).min()
    return pd.Series(first.loc[component[codes]].to_numpy(), index=table.index), len(names) - len(first)


def near_duplicates(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Links between near-duplicates, exact: every two different hashes within the radius, and a chain through equal ones.

    Two hashes that differ in at most `radius` bits agree on one of `radius + 1` bands of their bits, so that only those with a band in
    common are compared (Norouzi et al., CVPR 2012, "Fast search in Hamming space with multi-index hashing").

    Args:
        hashes: uint64 (n,).
        radius: largest number of differing bits.

    Returns:
        int (links, 2) of indices.
    """
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    links = [np.stack([order[equal], order[equal + 1]], axis=1)]
    distinct, first = np.unique(hashes, return_index=True)
    edges = np.linspace(0, 64, radius + 2).astype(int)
    masks = [np.uint64((1 << int(end)) - (1 << int(start))) for start, end in itertools.pairwise(edges)]
    for number, mask in enumerate(masks):
        by_band = np.argsort(distinct & mask, kind="stable")
        values = distinct[by_band]
        shares = (values[1:] ^ values[:-1]) & mask == 0
        run = np.flatnonzero(shares)  # positions whose neighbour `step` further on has the same band
        for step in itertools.count(1):
            if not len(run):
                break
            difference = values[run] ^ values[run + step]
            near = np.bitwise_count(difference) <= radius
            for earlier in masks[:number]:  # those with an earlier band in common were found there
                near &= difference & earlier != 0
            links.append(first[np.stack([by_band[run[near]], by_band[run[near] + step]], axis=1)])
            run = run[run + step < len(shares)]
            run = run[shares[run + step]]
    return np.concatenate(links)


def _place(group: str, seed: int) -> float:
    """A number in 0..1 that a group keeps for ever."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64


def _check(name: str, part: pd.DataFrame) -> None:
    for label in LABELS:
        if not (part["label"] == label).any():
            raise StageError(
                f"part {name} would have no image of class {label} (it has {part['group'].nunique()} groups). "
                "Bring more groups, change split.shares or split.seed, or look at reports/split.json for one group that holds most images."
            )


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    return {
        "images": len(part),
        "groups": int(part["group"].nunique()),
        "by_label": part["label"].value_counts().to_dict(),
        "by_generator": part["generator"].value_counts().to_dict(),
    }


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
