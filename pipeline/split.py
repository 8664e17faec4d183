"""Stage split: divides the images into train, val and test, and keeps related images in one part."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.ingestion.duplicates import Links, clusters, join, links, positions
from pipeline.labels import LABELS
from pipeline.manifest import PARTS, SPLITS, UNSEEN
from pipeline.params import Params, Split
from pipeline.splitting import places, strata
from pipeline.splitting.places import DRAWN, NOTHING, PLACES, TEST, Earlier
from pipeline.validation import suites
from pipeline.validation.findings import Finding

REPORT = Path("reports/split.json")
LISTED = 100
CHECKED = ["path", "label", "generator", "group", "image_id", "pixel_hash", "parents"]
logger = logging.getLogger(__name__)


class Division(NamedTuple):
    """A table divided into parts, and what is in none of them."""

    table: pd.DataFrame
    """The rows without bridges; `group` is the name of the merged group."""

    rows: dict[str, np.ndarray]
    """Name of the part -> bool (rows,)."""

    cluster: np.ndarray
    """int (rows,): the near-duplicate cluster of each row."""

    left_out: np.ndarray
    """bool (rows,): fakes of held-out generators whose groups are in train or val."""

    bridges: pd.DataFrame
    """Images left out because they link images of different parts of an earlier split: new ones, and some that come back."""

    kept: int
    """Number of images that keep the part that an earlier run put them into."""

    largest_group: int
    joined_by_duplicates: int
    joined_by_parents: int

    def part(self, name: str) -> pd.DataFrame:
        """A copy of the rows of a part."""
        return self.table[self.rows[name]]


def run(params: Params) -> dict[str, Any]:
    """Write data/splits/*.parquet. Images that earlier runs with the same settings placed keep their part, also after an absence.

    Raises:
        StageError: if a group is too large for every part, a part would lack a class, a held-out generator does not exist, or images
            that an earlier run put into different parts now belong together.
    """
    earlier, drawn = places.read(params.split)
    logger.info("split: %s", drawn)
    division = divide(manifest.read(manifest.MANIFEST), params.split, earlier)
    checked = _check_parts(division, params.split)
    _write(division, params.split, earlier)
    report = {
        "drawn": drawn,
        "parts": {name: _summary(division, name) for name in division.rows},
        "groups": int(division.table["group"].nunique()),
        "largest_group": division.largest_group,
        "groups_joined_by_near_duplicates": division.joined_by_duplicates,
        "groups_joined_by_parents": division.joined_by_parents,
        "kept_in_place": division.kept,
        "left_out": int(division.left_out.sum()),
        "bridges": {"images": len(division.bridges), "paths": sorted(division.bridges["path"])[:LISTED]},
        "expectations": checked,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return report


def divide(table: pd.DataFrame, settings: Split, earlier: Earlier = NOTHING) -> Division:
    """Assign whole groups to parts, stratified by label and generator.

    First, whatever must stay together is merged into one group: equal `group`, near-duplicates, equal pictures, a fake and its parents.
    A group with an image that is already placed follows it; `strata.assign` distributes the others. The order of the rows is irrelevant.

    Fakes of held-out generators are in none of the three parts. Those whose group is in test, or holds nothing else, form the part
    `unseen`, beside the test part's reals; the others are left out, because training or validation sees what they were made from.

    Args:
        table: rows of the manifest.
        settings: shares, radius, held-out generators and seed.
        earlier: where earlier runs put images.

    Raises:
        StageError: as `run` does.
    """
    _check_holdout(table, settings)
    known = positions(table["image_id"], earlier.image_id)
    pinned = np.append(earlier.place, -1)[known]
    stray = _strays(table, pinned, np.append(earlier.away, False)[known], settings.duplicate_radius)
    strays, table, pinned = table[stray], table[~stray], pinned[~stray]
    linked = links(table, settings.duplicate_radius)
    bridge = _bridges(linked, pinned)
    bridges = pd.concat([strays, table[bridge]])
    if bridge.any():  # without them, the groups that they linked fall apart
        table, pinned = table[~bridge], pinned[~bridge]
        linked = links(table, settings.duplicate_radius)
    group = linked.components()
    held_out = table["generator"].isin(settings.holdout_generators).to_numpy()
    _check_sizes(table, linked, group, held_out, settings)

    codes, values = pd.factorize(table["group"], sort=True)
    first = np.full(group.max() + 1, len(values))
    np.minimum.at(first, group, codes)
    names = values.to_numpy()[first]
    place = np.full(len(names), TEST)  # stays so for groups of held-out fakes only: none of them is in train
    counted = np.bincount(group[~held_out], minlength=len(names)) > 0
    place[counted] = -1
    place[group[pinned >= 0]] = pinned[pinned >= 0]
    counts = strata.composition(group, table, ~held_out)[counted]
    shares = np.array([settings.shares[part] for part in PARTS])
    place[counted] = strata.assign(counts, names[counted], place[counted], shares, settings.seed)

    part = np.where(pinned >= 0, pinned, place[group])
    _check_apart(table, group, part)
    rows: dict[str, np.ndarray] = {name: (part == number) & ~held_out for number, name in enumerate(PARTS)}
    if settings.holdout_generators:
        rows[UNSEEN] = (part == TEST) & (held_out | (table["label"] == "real").to_numpy())
    table = table.assign(group=names[group])
    _check_classes(table, rows)
    duplicates = int(linked.components("group", "pixel_hash", "near_duplicates").max()) + 1
    return Division(
        table=table,
        rows=rows,
        cluster=linked.edges["near_duplicates"][:, 1],
        left_out=held_out & (part != TEST),
        bridges=bridges,
        kept=int((pinned >= 0).sum()),
        largest_group=int(np.bincount(group).max()),
        joined_by_duplicates=len(values) - duplicates,
        joined_by_parents=duplicates - len(names),
    )


def _strays(table: pd.DataFrame, pinned: np.ndarray, away: np.ndarray, radius: int) -> np.ndarray:
    """bool (rows,): images that come back after an absence and belong with images that are in another part by now."""
    stray = np.zeros(len(table), bool)
    if away.any():
        placed = pinned >= 0
        low, high = _range(links(table[placed], radius).components(), pinned[placed])
        stray[placed] = away[placed] & (low != high)
    return stray


def _bridges(linked: Links, pinned: np.ndarray) -> np.ndarray:
    """bool (rows,): new images that link images pinned to different parts, directly or through other new ones."""
    if (pinned < 0).all():
        return np.zeros(linked.images, bool)
    edges = np.concatenate(list(linked.edges.values()))
    parts = np.zeros(linked.nodes, np.int64)  # of each node, as a bit mask
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


def _write(division: Division, settings: Split, earlier: Earlier) -> None:
    """Replace the parts so that a run killed at any moment leaves a split that the next one can build on, or none.

    If images keep their places, a mixture of old and new files is a valid split: each image is in one part. If everything is redrawn it
    is not; drawn.json is removed first then, so that the mixture is not taken for a split.
    """
    new = SPLITS.with_name("splits.new")
    shutil.rmtree(new, ignore_errors=True)
    for name in division.rows:
        manifest.write(division.part(name), new / f"{name}.parquet")
    places.write(earlier, {name: division.part(name) for name in division.rows}, new)
    (new / DRAWN.name).write_text(json.dumps(places.drawn_with(settings), indent=2) + "\n")
    SPLITS.mkdir(parents=True, exist_ok=True)
    if earlier is NOTHING:
        DRAWN.unlink(missing_ok=True)
        (SPLITS / f"{UNSEEN}.parquet").unlink(missing_ok=True)
    for name in (*(f"{name}.parquet" for name in division.rows), PLACES.name, DRAWN.name):
        (new / name).replace(SPLITS / name)
    new.rmdir()


def _check_parts(division: Division, settings: Split) -> list[Finding]:
    """Check the result with Great Expectations, however it was made; reports/data_docs/splits shows the outcome."""
    table = division.table[CHECKED].assign(cluster=division.cluster)
    frame = suites.splits_frame(((name, table[rows]) for name, rows in division.rows.items()), settings.holdout_generators)
    findings = suites.check(suites.splits(frame), frame)
    failures = [finding["detail"] for finding in findings if not finding["success"]]
    if failures:
        raise StageError("the split is invalid; nothing was written:\n" + "\n".join(f"  - {line}" for line in failures))
    return findings


def _check_holdout(table: pd.DataFrame, settings: Split) -> None:
    there = set(table["generator"].unique()) - {manifest.NO_GENERATOR}
    absent = sorted(set(settings.holdout_generators) - there)
    if absent:
        raise StageError(
            f"split.holdout_generators: no image has the generator {', '.join(absent)}; there are: {', '.join(sorted(there)) or 'no fakes'}"
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
        f"{settings.shares[part]:.0%}) may have, and a group is never split. It was joined from {inside['group'].nunique()} groups: "
        f"{near} of its images have a near-duplicate in it and {len(made)} a parent. Lower split.duplicate_radius "
        f"({settings.duplicate_radius}) if it joined pictures that differ, or correct the column `group`."
    )


def _check_apart(table: pd.DataFrame, group: np.ndarray, part: np.ndarray) -> None:
    """Raise StageError if a group, near-duplicates, equal pictures or parents are in two parts; only earlier placements can cause that."""
    low, high = _range(group, part)
    torn = np.unique(group[low != high])
    if not len(torn):
        return
    rows = group == torn[0]
    first, last = low[rows][0], high[rows][0]
    one, two = (table["path"][rows & (part == place)].iloc[0] for place in (first, last))
    raise StageError(
        f"{len(torn)} groups are in two parts: {one} is in {PARTS[first]} and {two} in {PARTS[last]} since an earlier "
        "split, but now they belong together (same group, near-duplicates or a parent). Remove the folder data/splits to redraw the split."
    )


def _range(group: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest place in each row's group."""
    of_group = pd.Series(place).groupby(group)
    return of_group.transform("min").to_numpy(), of_group.transform("max").to_numpy()


def _check_classes(table: pd.DataFrame, rows: dict[str, np.ndarray]) -> None:
    for label in LABELS:
        of_class = (table["label"] == label).to_numpy()
        lacking = [name for name in rows if not (of_class & rows[name]).any()]
        if lacking:
            groups = table.loc[of_class & np.logical_or.reduce(list(rows.values())), "group"].nunique()
            raise StageError(
                f"Part {' and '.join(lacking)} would have no image of class {label}: all images of this class are in {groups} groups, "
                "which are never split. Add more groups with it, or change split.shares."
            )


def _summary(division: Division, name: str) -> dict[str, Any]:
    rows = division.rows[name]
    columns = division.table.loc[rows, ["label", "generator", "group"]]
    return {
        "images": len(columns),
        "share": round(len(columns) / sum(int(division.rows[part].sum()) for part in PARTS), 4),
        "groups": int(columns["group"].nunique()),
        "by_label": columns["label"].value_counts().to_dict(),
        "by_generator": columns["generator"].value_counts().to_dict(),
    }


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
