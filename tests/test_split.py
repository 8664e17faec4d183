"""The split: whole groups, exact shares, old images keep their part, and no twin of a training image in another part."""

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import pandas as pd
import pytest
from PIL import Image, ImageOps

from pipeline import manifest, split
from pipeline.errors import StageError
from pipeline.manifest import PARTS, UNSEEN, read_parts
from tests.data_helpers import picture
from tests.split_helpers import image, params, table

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def people(count: int, start: int = 0, generator: str = "swap", **columns: Any) -> list[dict[str, Any]]:
    """A real image and a fake for each of `count` people, no two alike."""
    return [
        image(
            f"{generator}{number}{label}", label=label, generator=generator if label == "fake" else "none", group=f"a/p{number}", **columns
        )
        for number in range(start, start + count)
        for label in ("real", "fake")
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that runs the stage on rows, with changed settings, and returns its report."""
    monkeypatch.chdir(tmp_path)

    def stage(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
        manifest.write(table(rows), manifest.MANIFEST)
        return split.run(params(**values))

    return stage


def where(name: str) -> list[str]:
    return [part for part, rows in read_parts().items() if name in set(rows["path"])]


def test_shares_are_met_to_the_image_where_groups_allow(run):
    report = run(people(100) + people(200, 100, "morph") + people(100, 300, "gan"))
    assert [report["parts"][part]["images"] for part in PARTS] == [560, 120, 120]
    for part, share in SHARES.items():
        assert report["parts"][part]["by_generator"] == {"none": 400 * share, "swap": 100 * share, "morph": 200 * share, "gan": 100 * share}
    assert report["parts"]["train"]["share"] == 0.7


def test_many_rare_generators_reach_every_part(run):
    report = run([row for number in range(100) for row in people(1, number, f"gan{number}")])
    assert [report["parts"][part]["by_label"]["fake"] for part in PARTS] == [70, 15, 15]


def described(path: Path, **columns: Any) -> dict[str, Any]:
    with Image.open(path) as file:
        rgb = file.convert("RGB")
        hashes = {"phash": str(imagehash.phash(rgb)), "mirrored_phash": str(imagehash.phash(ImageOps.mirror(rgb)))}
        hashes["pixel_hash"] = hashlib.sha256(rgb.tobytes()).hexdigest()[:16]
    return image(path.as_posix(), **hashes, **columns)


def test_planted_twins_stay_together(run, tmp_path: Path):
    rows = []
    for number in range(40):
        kind = {"label": "fake", "generator": "swap"} if number % 2 else {}
        one, copy = Path(f"one/{number}.png"), Path(f"two/{number}.png")
        picture(one, number)
        copy.parent.mkdir(exist_ok=True)
        with Image.open(one) as original:
            if number < 20:
                original.save(copy, compress_level=1)  # the same pixels in another file
            else:
                turned = original if number < 30 else ImageOps.mirror(original)
                turned.resize((48, 48)).save(copy := copy.with_suffix(".jpg"), quality=75)
        rows += [described(one, group=f"one/{number}", **kind), described(copy, group=f"two/{number}", **kind)]
    report = run(rows)
    assert report["groups_joined_by_near_duplicates"] == 40 and report["groups"] == 40
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert where(first["path"]) == where(second["path"])
    assert set(pd.concat(read_parts().values())["group"]) == {f"one/{number}" for number in range(40)}  # the alphabetically first


def test_equal_pictures_stay_together_whatever_their_perceptual_hash(run):
    rows = people(30)
    rows[0]["pixel_hash"] = rows[20]["pixel_hash"] = rows[41]["pixel_hash"] = "feedfeedfeedfeed"
    run(rows)
    assert where(rows[0]["path"]) == where(rows[20]["path"]) == where(rows[41]["path"])


def test_one_identity_in_two_folders_of_one_source_is_one_group(run):
    rows = people(30)
    rows += [image(f"folder{folder}/{number}", group="a/anna") for folder in range(2) for number in range(3)]
    rows += [image("other", group="b/anna")]  # the same name in another source is another person
    report = run(rows)
    assert len({place for row in rows[60:66] for place in where(row["path"])}) == 1
    assert report["groups"] == 32 and report["largest_group"] == 6


def test_a_fake_joins_the_groups_of_all_its_parents(run):
    rows = people(30)
    parents = [rows[0]["image_id"], rows[10]["image_id"], "0" * 64]  # the last one does not exist
    rows.append(image("swapped", label="fake", generator="swap", group="forged/1", parents=" ".join(parents)))
    report = run(rows)
    assert where("swapped") == where(rows[0]["path"]) == where(rows[10]["path"])
    assert report["groups"] == 29 and report["groups_joined_by_parents"] == 2 and report["groups_joined_by_near_duplicates"] == 0


def test_new_images_never_move_old_ones_and_the_shares_hold(run):
    run(people(40))
    before = {path: where(path) for path in (row["path"] for row in people(40))}
    report = run(people(100))
    assert {path: where(path) for path in before} == before
    assert [report["parts"][part]["images"] for part in PARTS] == [140, 30, 30]
    assert report["kept_in_place"] == 80 and "stay" in report["drawn"]


def test_images_that_were_away_come_back_to_where_they_were(run):
    rows = people(60)
    run(rows)
    before = {row["path"]: where(row["path"]) for row in rows}
    for there in (people(50), people(30) + people(20, 60), rows + people(20, 60)):
        report = run(there)
    assert {path: where(path) for path in before} == before and report["bridges"]["images"] == 0 and report["kept_in_place"] == 160


def test_an_image_that_was_away_and_whose_group_went_elsewhere_meanwhile_is_left_out_and_listed(run):
    rows = people(40)
    run(rows)
    gone = read_parts()["train"].iloc[0]
    others = [row for row in rows if row["group"] != gone["group"]]
    home = read_parts()["test"].iloc[0]["phash"]
    new = image("new", group=gone["group"], phash=home)  # a near-duplicate takes it to test, and with it its group
    run([*others, new])
    assert where("new") == ["test"]
    report = run([*rows, new, image("newer", group=gone["group"])])
    assert report["bridges"] == {"images": 2, "paths": sorted(row["path"] for row in rows if row["group"] == gone["group"])}
    assert where("new") == where("newer") == ["test"]


def test_a_new_image_goes_where_its_group_is(run):
    run(people(40))
    rows = people(40)
    run([*rows, image("again", group=rows[7]["group"]), image("alike", group="b/1", phash=rows[9]["phash"])])
    assert where("again") == where(rows[7]["path"]) and where("alike") == where(rows[9]["path"])


def test_a_new_image_between_two_parts_is_left_out_and_listed(run):
    rows = people(40)
    run(rows)
    train, test = (read_parts()[part].iloc[0] for part in ("train", "test"))
    between = image("between", label="fake", generator="swap", group="forged/1", parents=f"{train['image_id']} {test['image_id']}")
    chain = [image("left", group=train["group"], pixel_hash="feed" * 4), image("right", group=test["group"], pixel_hash="feed" * 4)]
    report = run([*rows, between, *chain, image("free", group=train["group"])])
    assert report["bridges"] == {"images": 3, "paths": ["between", "left", "right"]}
    assert where("between") == where("left") == where("right") == [] and where("free") == ["train"]
    assert report["kept_in_place"] == 80


def test_old_images_that_belong_together_by_now_are_named(run):
    rows = people(40)
    run(rows)
    train, test = (read_parts()[part].iloc[0]["path"] for part in ("train", "test"))
    for row in rows:
        if row["path"] in (train, test):
            row["group"] = "a/same"
    with pytest.raises(StageError, match=f"{train} is in train and {test} in test since an earlier split.*Remove the folder data/splits"):
        run(rows)


@pytest.mark.parametrize(
    "values", [{"seed": 8}, {"duplicate_radius": 2}, {"shares": {"train": 0.6, "val": 0.2, "test": 0.2}}, {"holdout_generators": ["swap"]}]
)
def test_other_settings_draw_anew_and_say_so(run, values: dict[str, Any]):
    rows = people(60) + people(60, 60, "gan")
    run(rows)
    before = {name: set(part["image_id"]) for name, part in read_parts().items()}
    name = next(iter(values))
    assert f"drawn again, images may have moved: {name} was" in run(rows, **values)["drawn"]
    fresh = {name: set(part["image_id"]) for name, part in read_parts().items()}
    assert (fresh != before) == (name != "duplicate_radius")  # no picture here is near another
    assert "stay" in run(rows, **values)["drawn"]
    assert {name: set(part["image_id"]) for name, part in read_parts().items()} == fresh
    assert not (Path("data/splits") / "unseen.parquet").exists() or values == {"holdout_generators": ["swap"]}


def test_the_order_in_which_held_out_generators_are_named_moves_nothing(run):
    rows = people(60) + people(60, 60, "gan") + people(60, 120, "morph")
    run(rows, holdout_generators=["gan", "morph"])
    assert "stay" in run(rows, holdout_generators=["morph", "gan"])["drawn"]


def test_no_unseen_part_stays_behind(run):
    rows = people(60) + people(60, 60, "gan")
    run(rows, holdout_generators=["gan"])
    run(rows)
    assert set(read_parts()) == set(PARTS)


def test_held_out_generators(run):
    own = [image(f"own{number}", label="fake", generator="gan", group=f"g/{number}") for number in range(7)]
    rows = people(40) + people(40, 40, "gan") + own
    report = run(rows, holdout_generators=["gan"])
    parts = read_parts()
    assert {generator for name in PARTS for generator in parts[name]["generator"]} == {"none", "swap"}
    unseen = parts[UNSEEN]
    assert {row["path"] for row in own} <= set(unseen["path"])  # none of them was seen in training
    assert set(unseen.loc[unseen["label"] == "real", "path"]) == set(parts["test"].loc[parts["test"]["label"] == "real", "path"])
    fakes = unseen[(unseen["label"] == "fake") & ~unseen["path"].str.startswith("own")]
    assert set(fakes["group"]) <= set(parts["test"]["group"]) and len(fakes) == 6 == 40 * 0.15
    assert report["left_out"] == 34 and report["parts"][UNSEEN]["images"] == 6 + 7 + 12

    joined = [*rows, image("real0", group="g/0")]  # a real in the group of an unseen fake may not be trained on
    run(joined, holdout_generators=["gan"])
    assert where("real0") == ["test", UNSEEN] and where("own0") == [UNSEEN]


def test_fakes_of_a_held_out_generator_may_be_one_group_of_any_size(run):
    own = [image(f"own{number}", label="fake", generator="gan", group="g/one folder") for number in range(200)]
    report = run(people(30) + own, holdout_generators=["gan"])
    assert {row["path"] for row in own} <= set(read_parts()[UNSEEN]["path"]) and report["left_out"] == 0


def test_a_group_too_large_for_every_part_is_named(run):
    rows = people(60)
    for row in rows[:90]:
        row["phash"] = "00000000000000ff"
    rows[95]["parents"] = rows[0]["image_id"]
    expected = (
        r"The group 'a/p0' holds 92 of 120 images, more than the largest part \(train, 70%\).*joined from 46 groups: "
        r"90 of its images have a near-duplicate in it and 1 a parent\. Lower split.duplicate_radius \(4\)"
    )
    with pytest.raises(StageError, match=expected):
        run(rows)


def test_a_class_missing_from_a_part_is_named(run):
    rows = [image(f"r{number}", group=f"a/{number}") for number in range(60)]
    rows += [image(f"f{number}", label="fake", generator="swap", group=f"f/{number % 2}") for number in range(10)]
    with pytest.raises(StageError, match=r"Part .*(val|test) would have no image of class fake: all images of this class are in 2 groups"):
        run(rows)


def test_an_unknown_generator_is_named(run):
    with pytest.raises(StageError, match="no image has the generator nobody; there are: swap"):
        run(people(30), holdout_generators=["nobody", "swap"])


def killed(seed: int, moves: int) -> None:
    """A split that is killed after it has moved this many files into place."""
    replace, moved = Path.replace, itertools.count()

    def mortal(source: Path, target: Path) -> Path:
        if next(moved) == moves:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target)

    Path.replace = mortal  # type: ignore[method-assign]
    split.run(params(seed=seed))


@pytest.mark.parametrize(
    ("seed", "moves"), [(7, 1), (7, 3), pytest.param(8, 0, marks=pytest.mark.long), pytest.param(8, 3, marks=pytest.mark.long)]
)
def test_a_killed_run_leaves_no_wrong_memory(run, seed: int, moves: int):
    """With the old settings the old places are kept, whichever files were replaced. With others the mixed files are ignored."""
    run(people(40))
    before = {path: where(path) for path in (row["path"] for row in people(40))}
    manifest.write(table(people(60)), manifest.MANIFEST)
    process = multiprocessing.get_context("fork").Process(target=killed, args=(seed, moves))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    report = run(people(60))  # the settings of the first run, in either case
    if seed == 7:
        assert {path: where(path) for path in before} == before
    else:
        expected = split.divide(table(people(60)), params().split)
        assert all(set(part["path"]) == set(expected.part(name)["path"]) for name, part in read_parts().items())
    assert sum(report["parts"][part]["images"] for part in PARTS) == 120
    assert sorted(path.name for path in Path("data").iterdir()) == ["manifest.parquet", "splits"]
    assert json.loads(Path("data/splits/drawn.json").read_text())["seed"] == 7
