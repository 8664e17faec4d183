"""Remembers which part each image was assigned to, so that no later split moves it to another."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.manifest import PARTS, SPLITS, UNSEEN
from pipeline.params import Split

DRAWN = SPLITS / "drawn.json"
"""The settings that the parts next to it were drawn with."""

PLACES = SPLITS / "places.parquet"
"""The part of every image that was ever assigned, so that one that was removed returns to the same part."""

TEST = PARTS.index("test")


class Earlier(NamedTuple):
    """Where earlier runs placed images; empty for a new draw."""

    image_id: pd.Series
    place: np.ndarray
    """Index in PARTS."""

    away: np.ndarray
    """bool: whether the image was missing from the last split."""


NOTHING = Earlier(pd.Series(dtype="str"), np.empty(0, np.int64), np.empty(0, bool))


def read(settings: Split) -> tuple[Earlier, str]:
    """Where earlier runs placed images, and whether that is kept, as text for the log and the report."""
    if not DRAWN.is_file():
        return NOTHING, "newly drawn: there was no earlier split"
    before, now = json.loads(DRAWN.read_text()), drawn_with(settings)
    changed = [f"{name} was {before.get(name)}, is now {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        return NOTHING, "drawn again, images may have moved: " + "; ".join(changed)
    there = (*PARTS, UNSEEN) if settings.holdout_generators else PARTS
    last = placed({part: pd.read_parquet(SPLITS / f"{part}.parquet", columns=["image_id"]) for part in there})
    ever = pd.concat([last, pd.read_parquet(PLACES)]).drop_duplicates("image_id") if PLACES.is_file() else last
    earlier = Earlier(ever["image_id"], ever["place"].to_numpy(), ~ever["image_id"].isin(last["image_id"]).to_numpy())
    return earlier, "added to the earlier split: its images stay where they were"


def write(earlier: Earlier, parts: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the updated memory into a folder, under the name of PLACES; equal content gives equal bytes."""
    before = pd.DataFrame({"image_id": earlier.image_id, "place": earlier.place})
    ever = pd.concat([before, placed(parts)]).drop_duplicates("image_id")
    ever.sort_values("image_id").to_parquet(folder / PLACES.name, index=False)


def placed(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Columns image_id and place, the index in PARTS, for each image of the parts; `unseen` counts as test."""
    places = {part: number for number, part in enumerate(PARTS)} | {UNSEEN: TEST}
    return pd.concat([part[["image_id"]].assign(place=places[name]) for name, part in parts.items()]).drop_duplicates("image_id")


def drawn_with(settings: Split) -> dict[str, Any]:
    """The settings of a draw, as stored in DRAWN."""
    return settings.model_dump(mode="json") | {"holdout_generators": sorted(settings.holdout_generators)}
