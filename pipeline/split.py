"""Stage split: train, val and test, so that nothing in one part has a twin in another."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline import manifest, strata
from pipeline.duplicates import Links, clusters, join, links
from pipeline.errors import StageError
from pipeline.manifest import LABELS, PARTS, SPLITS, UNSEEN
from pipeline.params import Params, Split

REPORT = Path("reports/split.json")
DRAWN = SPLITS / "drawn.json"
"""The settings that the parts beside it were drawn with."""

TEST = PARTS.index("test")
LISTED = 100
logger = logging.getLogger(__name__)


class Division(NamedTuple):
    """The parts of a table, and what stands in none of them."""

    parts: dict[str, pd.DataFrame]
    """Rows with `group` as the name of the joined group."""

    left_out: pd.DataFrame
    """Fakes of held-out generators whose groups are in train or val."""

    bridges: pd.DataFrame
    """New images that tie together what an earlier draw put into different parts."""

    groups: int
    largest_group: int
    joined_by_duplicates: int
    joined_by_parents: int


def run(params: Params) -> dict[str, Any]:
    """Write data/splits/*.parquet. Images that an earlier run with the same settings placed stay where they are.

    Raises:
        StageError: if a group is too large for every part, a part would lack a class, a held-out generator does not exist, or images
            that an earlier run put into different parts now belong together.
    """
    table = manifest.read(manifest.MANIFEST)
    earlier, drawn = _earlier(params.split)
    logger.info("split: %s", drawn)
    division = divide(table, params.split, earlier)
    _write(division.parts, params.split, keep=bool(len(earlier)))
    placed = pd.concat([part["image_id"] for part in division.parts.values()])
    report = {
        "drawn": drawn,
        "parts": {name: _summary(part, division.parts) for name, part in division.parts.items()},
        "groups": division.groups,
        "largest_group": division.largest_group,
        "groups_joined_by_near_duplicates": division.joined_by_duplicates,
        "groups_joined_by_parents": division.joined_by_parents,
        "kept_in_place": int(placed.drop_duplicates().isin(earlier.index).sum()),
        "left_out": len(division.left_out),
        "bridges": {"images": len(division.bridges), "paths": sorted(division.bridges["path"])[:LISTED]},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def divide(table: pd.DataFrame, settings: Split, earlier: pd.Series) -> Division:
    """Assign whole groups to parts, stratified by label and generator.

    What has to stay together is joined first: `group`, near-duplicates, equal pictures, a fake and its parents. Groups with an image
    that is placed already follow it. The others are shared out by `strata.assign`. All of it depends on the rows, not on their order.

    Fakes of held-out generators leave the three parts. Those whose group is in test, or holds nothing else, become the part `unseen`,
    beside the test part's reals; the others are left out, because training or validation sees what they were made from.

    Args:
        table: rows of the manifest.
        settings: shares, radius, held-out generators and seed.
        earlier: image_id -> index in PARTS of images that stay where they are; empty for a new draw.

    Raises:
        StageError: as `run` does.
    """
    _check_holdout(table, settings)
    table = table.sort_values("image_id", ignore_index=True)
    pinned = table["image_id"].map(earlier).fillna(-1).to_numpy(np.int64)
    linked = links(table, settings.duplicate_radius)
    bridge = _bridges(linked, pinned)
    bridges = table[bridge]
    if bridge.any():  # what they tied together falls apart without them
        table, pinned = table[~bridge].reset_index(drop=True), pinned[~bridge]
        linked = links(table, settings.duplicate_radius)
    group = linked.components()
    held_out = table["generator"].isin(settings.holdout_generators).to_numpy()
    _check_sizes(table, linked, group, held_out, settings)

    codes, values = pd.factorize(table["group"], sort=True)
    first = np.full(group.max() + 1, len(values))
    np.minimum.at(first, group, codes)
    names = values.to_numpy()[first]
    place = np.full(len(names), -1)
    place[group[pinned >= 0]] = pinned[pinned >= 0]
    place[np.bincount(group[~held_out], minlength=len(names)) == 0] = TEST  # nothing of them is in train: they are unseen as a whole
    shares = np.array([settings.shares[part] for part in PARTS])
    counted = np.bincount(group[~held_out], minlength=len(names)) > 0
    counts = strata.composition(group, table, ~held_out)
    place[counted] = strata.assign(counts[counted], names[counted], place[counted], shares, settings.seed)

    part = np.where(pinned >= 0, pinned, place[group])
    _check_apart(table, group, part)
    table["group"] = names[group]
    parts: dict[str, pd.DataFrame] = {name: table[(part == number) & ~held_out] for number, name in enumerate(PARTS)}
    if settings.holdout_generators:
        parts[UNSEEN] = table[(part == TEST) & (held_out | (table["label"] == "real").to_numpy())]
    for name, rows in parts.items():
        _check_classes(name, rows, table[~held_out])
    duplicates = int(linked.components("group", "pixel_hash", "near_duplicates").max()) + 1
    return Division(
        parts=parts,
        left_out=table[held_out & (part != TEST)],
        bridges=bridges,
        groups=len(names),
        largest_group=int(np.bincount(group).max()),
        joined_by_duplicates=len(values) - duplicates,
        joined_by_parents=duplicates - len(names),
    )


def _bridges(linked: Links, pinned: np.ndarray) -> np.ndarray:
    """Which images, bool (rows,), are new and tie together images that are pinned to different parts, alone or with other new ones."""
    if (pinned < 0).all():
        return np.zeros(linked.images, bool)
    edges = np.concatenate(list(linked.edges.values()))
    parts = np.zeros(linked.nodes, np.int64)  # of each node, as a set of bits
    parts[: linked.images] = np.where(pinned >= 0, 1 << np.maximum(pinned, 0), 0)
    shared = edges[:, 1] >= linked.images
    np.bitwise_or.at(parts, edges[shared, 1], parts[edges[shared, 0]])
    new = parts == 0
    component = join(edges[new[edges].all(axis=1)], linked.nodes)
    reached = np.zeros(linked.nodes, np.int64)
    for near, far in (edges.T, edges.T[::-1]):
        border = new[near] & ~new[far]
        np.bitwise_or.at(reached, component[near[border]], parts[far[border]])
    return (new & (np.bitwise_count(reached[component]) > 1))[: linked.images]


def _earlier(settings: Split) -> tuple[pd.Series, str]:
    """Where an earlier run placed each image_id, and what becomes of it: words for the log and the report."""
    nothing = pd.Series(dtype=np.int64, index=pd.Index([], dtype="str"))
    if not DRAWN.is_file():
        return nothing, "drawn anew: there was no earlier split"
    before, now = json.loads(DRAWN.read_text()), _drawn_with(settings)
    changed = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        return nothing, "drawn anew, images may have moved: " + "; ".join(changed)
    places = [
        pd.Series(
            PARTS.index(part) if part in PARTS else TEST, pd.read_parquet(SPLITS / f"{part}.parquet", columns=["image_id"])["image_id"]
        )
        for part in (*PARTS, *([UNSEEN] if settings.holdout_generators else []))
    ]
    earlier = pd.concat(places)
    return earlier[~earlier.index.duplicated()], "added to the earlier split: its images stay where they were"


def _drawn_with(settings: Split) -> dict[str, Any]:
    return settings.model_dump(mode="json") | {"holdout_generators": sorted(settings.holdout_generators)}


def _write(parts: dict[str, pd.DataFrame], settings: Split, keep: bool) -> None:
    """Replace the parts so that a run killed at any moment leaves a split that the next one can go on from, or none.

    Where images keep their places, a mixture of old and new files is one: each image in them stands in one place. Where all is drawn
    anew it is not, and without drawn.json nobody takes it for one.
    """
    new = SPLITS.with_name("splits.new")
    shutil.rmtree(new, ignore_errors=True)
    for name, part in parts.items():
        manifest.write(part, new / f"{name}.parquet")
    (new / DRAWN.name).write_text(json.dumps(_drawn_with(settings), indent=2) + "\n")
    SPLITS.mkdir(parents=True, exist_ok=True)
    if not keep:
        DRAWN.unlink(missing_ok=True)
        (SPLITS / f"{UNSEEN}.parquet").unlink(missing_ok=True)
    for name in (*(f"{name}.parquet" for name in parts), DRAWN.name):
        (new / name).replace(SPLITS / name)
    new.rmdir()


def _check_holdout(table: pd.DataFrame, settings: Split) -> None:
    there = set(table["generator"]) - {manifest.NO_GENERATOR}
    absent = sorted(set(settings.holdout_generators) - there)
    if absent:
        raise StageError(
            f"split.holdout_generators: no image is made by {', '.join(absent)}; the data has: {', '.join(sorted(there)) or 'no fakes'}"
        )


def _check_sizes(table: pd.DataFrame, linked: Links, group: np.ndarray, held_out: np.ndarray, settings: Split) -> None:
    sizes = np.bincount(group[~held_out])
    part = max(settings.shares, key=lambda name: settings.shares[name])
    if not len(sizes) or sizes.max() <= settings.shares[part] * sizes.sum():
        return
    rows = group == sizes.argmax()
    inside = table[rows]
    near = clusters(inside, settings.duplicate_radius).duplicated(keep=False).sum()
    made = np.unique(linked.edges["parents"][rows[linked.edges["parents"][:, 0]], 0])
    raise StageError(
        f"The group {inside['group'].min()!r} holds {sizes.max()} of {sizes.sum()} images, more than the largest part ({part}, "
        f"{settings.shares[part]:.0%}) may have, and a group is never cut. It was joined out of {inside['group'].nunique()} groups: "
        f"{near} of its images have a near-duplicate in it and {len(made)} a parent. Lower split.duplicate_radius "
        f"({settings.duplicate_radius}) if it joined pictures that differ, or correct the column `group`."
    )


def _check_apart(table: pd.DataFrame, group: np.ndarray, part: np.ndarray) -> None:
    """No group, near-duplicate, equal picture or parent in two parts. Only what an earlier run placed can break this."""
    low, high = np.full(group.max() + 1, len(PARTS)), np.full(group.max() + 1, -1)
    np.minimum.at(low, group, part)
    np.maximum.at(high, group, part)
    torn = np.flatnonzero(low != high)
    if not len(torn):
        return
    one, two = (table["path"][(group == torn[0]) & (part == place[torn[0]])].iloc[0] for place in (low, high))
    raise StageError(
        f"{len(torn)} groups stand in two parts: {one} is in {PARTS[low[torn[0]]]} and {two} in {PARTS[high[torn[0]]]} since an earlier "
        "split, but by now they belong together (same group, near-duplicates or a parent). Remove the folder data/splits to draw anew."
    )


def _check_classes(name: str, part: pd.DataFrame, table: pd.DataFrame) -> None:
    for label in LABELS:
        if not (part["label"] == label).any():
            raise StageError(
                f"Part {name} would have no image of class {label}: all images of this class are in "
                f"{table.loc[table['label'] == label, 'group'].nunique()} groups, which are never cut. "
                "Bring more groups with it, or give the part more of split.shares."
            )


def _summary(part: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> dict[str, Any]:
    return {
        "images": len(part),
        "share": round(len(part) / sum(len(parts[name]) for name in PARTS), 4),
        "groups": int(part["group"].nunique()),
        "by_label": part["label"].value_counts().to_dict(),
        "by_generator": part["generator"].value_counts().to_dict(),
    }


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
