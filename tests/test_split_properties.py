"""Properties of every split of every table."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import StageError
from pipeline.manifest import PARTS, UNSEEN
from pipeline.split import Division, divide
from pipeline.splitting.places import NOTHING, Earlier
from tests.split_helpers import SETTINGS, image, table

settings.register_profile("split", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("split")

HOLDOUT = SETTINGS.model_copy(update={"holdout_generators": ["gan"]})


@st.composite
def tables(draw: st.DrawFn, prefix: str = "", least: int = 20) -> list[dict[str, Any]]:
    """Rows in groups of 1 to 4; near-duplicates, equal images and parents tie some groups together."""
    rows: list[dict[str, Any]] = []
    for group in range(draw(st.integers(least, 60))):
        for kind in draw(st.lists(st.sampled_from(["none", "swap", "gan"]), min_size=1, max_size=4)):
            label = "real" if kind == "none" else "fake"
            rows.append(image(f"{prefix}{len(rows)}", label=label, generator=kind, group=f"{prefix}g{group:02}"))
    tie(draw, rows, rows)
    return rows


def tie(draw: st.DrawFn, rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Make some rows relatives of others."""
    ties = st.tuples(
        st.sampled_from(rows), st.sampled_from(others), st.sampled_from(["phash", "mirrored_phash", "pixel_hash", "parents", "group"])
    )
    for row, other, kind in draw(st.lists(ties, max_size=8)):
        if kind in ("phash", "mirrored_phash"):
            flips = sum(1 << bit for bit in draw(st.sets(st.integers(0, 63), max_size=4)))
            row[kind] = f"{int(other['phash'], 16) ^ flips:016x}"
        elif kind == "parents":
            row["parents"] = " ".join([*row["parents"].split(), other["image_id"], "absent"])
        else:
            row[kind] = other[kind]


def attempt(rows: list[dict[str, Any]], earlier: Earlier = NOTHING, wanted: Any = SETTINGS) -> Division:
    try:
        return divide(table(rows), wanted, earlier)
    except StageError:
        assume(False)
        raise


def places(division: Division) -> pd.Series:
    """image_id -> index in PARTS."""
    return pd.Series({image_id: PARTS.index(name) for name in PARTS for image_id in division.part(name)["image_id"]})


def held(division: Division) -> pd.Series:
    """image_id -> index in PARTS, the unseen fakes in test."""
    unseen = division.part(UNSEEN)["image_id"] if UNSEEN in division.rows else []
    return places(division).combine_first(pd.Series(PARTS.index("test"), index=unseen, dtype="int64")).astype(int)


def memory(division: Division) -> Earlier:
    place = held(division)
    return Earlier(pd.Series(place.index), place.to_numpy(), np.zeros(len(place), bool))


def alike(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether one picture, or its mirror image, is a near-duplicate of the other or its mirror image."""
    hashes = [(int(row["phash"], 16), int(row["mirrored_phash"], 16)) for row in (one, two)]
    return any((left ^ right).bit_count() <= SETTINGS.duplicate_radius for left, right in itertools.product(*hashes))


def related(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return (
        one["group"] == two["group"]
        or one["pixel_hash"] == two["pixel_hash"]
        or alike(one, two)
        or one["image_id"] in two["parents"].split()
        or two["image_id"] in one["parents"].split()
    )


def apart(rows: list[dict[str, Any]], place: pd.Series) -> list[tuple[str, str]]:
    """Pairs of relatives that are in different parts."""
    known = [row for row in rows if row["image_id"] in place.index]
    return [
        (one["path"], two["path"])
        for one, two in itertools.combinations(known, 2)
        if place[one["image_id"]] != place[two["image_id"]] and related(one, two)
    ]


@given(tables())
def test_each_image_is_in_one_part_and_no_relatives_are_in_two(rows):
    division = attempt(rows)
    ids = pd.concat([division.part(part)["image_id"] for part in PARTS])
    assert sorted(ids) == sorted(row["image_id"] for row in rows)
    assert apart(rows, places(division)) == []
    groups = [set(division.part(part)["group"]) for part in PARTS]
    assert len(set.union(*groups)) == sum(map(len, groups)) == division.table["group"].nunique()


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, two = attempt(rows), attempt(shuffled)
    for part in PARTS:
        pd.testing.assert_frame_equal(*(split.part(part).sort_values("path", ignore_index=True) for split in (one, two)))


def strata(groups: pd.DataFrame) -> pd.DataFrame:
    """Counts of each group: columns for pairs of label and generator, for labels, and for all."""
    by = [groups.groupby(["group", *keys]).size().unstack(keys, fill_value=0) for keys in (["label", "generator"], ["label"])]
    return pd.concat([*by, groups.groupby("group").size()], axis=1)


@given(tables())
def test_no_exchange_of_groups_would_bring_the_parts_nearer_to_their_shares(rows):
    division = attempt(rows)
    whole = pd.concat([division.part(part).assign(part=number) for number, part in enumerate(PARTS)])
    counts = strata(whole)
    part = whole.groupby("group")["part"].first().loc[counts.index].to_numpy()
    wanted = np.outer([0.7, 0.15, 0.15], counts.sum().to_numpy())
    held = np.stack([counts[part == number].sum().to_numpy(float) for number in range(3)])
    distance = ((held - wanted) ** 2).sum()
    groups = [(np.zeros(counts.shape[1]), number) for number in range(3)] + list(zip(counts.to_numpy(), part, strict=True))
    for (out, one), (back, two) in itertools.combinations(groups, 2):  # the first three are empty: exchanged with one, a group moves
        if one != two:
            moved = held.copy()
            moved[one] += back - out
            moved[two] += out - back
            assert ((moved - wanted) ** 2).sum() > distance - 1e-5
    largest = counts.iloc[:, -1].max()
    assert (abs(held - wanted) <= largest).all()


@given(tables(), st.data())
def test_new_images_never_move_old_ones(rows, data):
    old = attempt(rows)
    new = data.draw(tables(prefix="new", least=1))
    tie(data.draw, new, rows + new)
    both = attempt(rows + new, memory(old))
    before, after = places(old), places(both)
    assert before.to_dict().items() <= after.to_dict().items()
    assert set(both.bridges["image_id"]) | set(after.index) == {row["image_id"] for row in rows + new}
    assert not set(both.bridges["image_id"]) & set(after.index)
    assert apart(rows + new, after) == []
    again = attempt(rows + new, memory(both))
    assert places(again).to_dict() == after.to_dict()


@given(tables(least=30), st.data())
def test_images_that_were_away_come_back_to_their_places_or_are_left_out(rows, data):
    old = attempt(rows)
    away = data.draw(st.sets(st.sampled_from([row["image_id"] for row in rows]), max_size=15))
    new = data.draw(tables(prefix="new", least=1))
    tie(data.draw, new, rows)
    remaining = [row for row in rows if row["image_id"] not in away] + new
    meanwhile = attempt(remaining, memory(old))
    place = places(meanwhile).combine_first(places(old)).astype(int)
    remembered = Earlier(pd.Series(place.index), place.to_numpy(), ~place.index.isin(places(meanwhile).index))
    both = attempt(rows + new, remembered)
    after, left_out = places(both), set(both.bridges["image_id"])
    assert places(meanwhile).to_dict().items() <= after.to_dict().items()
    assert {image_id: after[image_id] for image_id in away - left_out} == places(old)[sorted(away - left_out)].to_dict()
    assert apart(rows + new, after) == []
    assert set(after.index) | left_out == {row["image_id"] for row in rows + new}


@given(tables())
def test_held_out_generators_are_unseen_or_left_out(rows):
    assume(any(row["generator"] == "gan" for row in rows))
    division = attempt(rows, wanted=HOLDOUT)
    place, unseen = places(division), division.part(UNSEEN)
    by_id = {row["image_id"]: row for row in rows}
    assert all(by_id[image_id]["generator"] != "gan" for image_id in place.index)
    fakes = unseen[unseen["label"] == "fake"]
    assert set(fakes["generator"]) == {"gan"}
    held = {row["image_id"] for row in rows if row["generator"] == "gan"}
    assert set(fakes["image_id"]) | set(division.table.loc[division.left_out, "image_id"]) == held
    assert not set(fakes["image_id"]) & set(division.table.loc[division.left_out, "image_id"])
    seen = [by_id[image_id] for image_id in place.index[place < 2]]
    assert not any(related(by_id[fake], row) for fake in fakes["image_id"] for row in seen)
    kept = set(division.part("test")["image_id"])
    assert set(unseen.loc[unseen["label"] == "real", "image_id"]) == {i for i in kept if by_id[i]["label"] == "real"}


@given(tables(), st.data())
def test_new_images_never_bring_an_unseen_fake_into_training(rows, data):
    assume(any(row["generator"] == "gan" for row in rows))
    old = attempt(rows, wanted=HOLDOUT)
    new = data.draw(tables(prefix="new", least=1))
    tie(data.draw, new, rows + new)
    both = attempt(rows + new, memory(old), HOLDOUT)
    assert places(old).to_dict().items() <= places(both).to_dict().items()
    assert set(old.part(UNSEEN)["image_id"]) <= set(both.part(UNSEEN)["image_id"])
    assert apart(rows + new, held(both)) == []


@given(st.integers(3, 40), st.integers(1, 100))
def test_a_group_is_refused_where_no_part_can_hold_it(people, size):
    rows = [
        image(f"{n}{label}", label=label, generator="none" if label == "real" else "swap", group=f"g{n}")
        for n in range(people)
        for label in ("real", "fake")
    ]
    rows += [image(f"big{number}", group="big") for number in range(size)]
    try:
        divide(table(rows), SETTINGS)
    except StageError as error:
        assert ("'big' holds" in str(error)) == (size > 0.7 * len(rows))
    else:
        assert size <= 0.7 * len(rows)
