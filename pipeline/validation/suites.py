"""Great Expectations suites as code: what the manifest, and the parts made from it, have to satisfy.

A condition that cannot be checked on a single value becomes a column of `manifest_frame` or `splits_frame`. It holds the offending value
(a label, a group, a hash) where something is wrong and null elsewhere, so that the expectation is "values are null" and a failure shows
what is wrong.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.errors import StageError
from pipeline.labels import LABELS
from pipeline.manifest import COLUMNS, NO_GENERATOR, PARTS, UNSEEN
from pipeline.params import Validate
from pipeline.validation import versions
from pipeline.validation.findings import check as check  # re-exported for callers that run a suite
from pipeline.validation.versions import NEW, WARNING

if TYPE_CHECKING:
    import great_expectations as gx

CRITICAL: Any = "critical"
AGAIN = "Run `dvc repro ingest` again: it makes the whole manifest."
MAY_BE_MISSING = ("seed", "jpeg_quality", "faces", "face_share", "pixel_hash")


def manifest_frame(table: pd.DataFrame, settings: Validate) -> pd.DataFrame:
    """Input of the suite `manifest`: the manifest's columns, numbers as floats, and a column for each kind of violation."""
    whole = table.reindex(columns=[*COLUMNS, *(name for name in table if name not in COLUMNS)])
    label, generator = whole["label"], whole["generator"]
    real, fake, made = label.eq("real"), label.eq("fake"), generator.ne(NO_GENERATOR)
    by = generator.where(fake & made)
    numeric = {*settings.ranges, *(name for name, kind in COLUMNS.items() if kind != "str")} & set(table)
    kept = [name for name in table if name in COLUMNS]
    return table[kept].assign(
        **{name: pd.to_numeric(table[name], errors="coerce").astype("float64") for name in numeric},
        pixel_hash=whole["pixel_hash"].replace("", None),
        scarce_class=label.where((real | fake) & (label.map(label.value_counts()) < settings.min_images)),
        scarce_generator=by.where(by.map(by.value_counts()) < settings.min_per_generator),
        generator_of_a_real=generator.where(real & made),
        nameless_fake=generator.where(fake & ~made),
        file_with_two_labels=_in_several(whole, "image_id", "label"),
        picture_with_two_labels=_in_several(whole, "pixel_hash", "label"),
    )


def manifest(table: pd.DataFrame, settings: Validate, accepted: pd.DataFrame | None = None) -> "gx.ExpectationSuite":
    """The suite for a manifest.

    Args:
        table: the manifest; a column that it lacks is reported by the first expectation only.
        settings: bounds.
        accepted: the manifest of the last accepted data version, to compare with; None compares nothing.

    Raises:
        StageError: if validate.ranges names a column that is not a number in the manifest.
    """
    import great_expectations as gx
    import great_expectations.expectations as gxe

    suite = [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=list(COLUMNS), exact_match=False, severity=CRITICAL, notes=f"A column is missing. {AGAIN}"
        ),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=1, severity=CRITICAL, notes="There are no images. Check data.sources and reports/quarantine.csv."
        ),
    ]
    if len(table):
        suite += _filled() + _classes(settings) + _pictures() + _generators(settings) + _ranges(table, settings)
        suite += [] if accepted is None else versions.drift(table, accepted, settings)
    # The first expectation reports a missing column; the others would raise an error inside Great Expectations.
    there = set(manifest_frame(table.head(0), settings).columns)
    return gx.ExpectationSuite(name="manifest", expectations=[item for item in suite if getattr(item, "column", None) in there | {None}])


def splits_frame(parts: Iterable[tuple[str, pd.DataFrame]], holdout: list[str]) -> pd.DataFrame:
    """Input of the suite `splits`: all rows of all parts with their `part`, and a column for each kind of violation.

    Args:
        parts: name and rows of train, val and test, and of `unseen` if there is one, which shares its reals with test. A column
            `cluster` (the near-duplicates that an image belongs to) is checked if there is one.
        holdout: generators that only `unseen` may contain.
    """
    whole = pd.concat([part.assign(part=name) for name, part in parts], ignore_index=True)
    whole = whole[(whole["part"] != UNSEEN) | ~whole["path"].isin(whole.loc[whole["part"] == "test", "path"])].reset_index(drop=True)
    side = whole.assign(part=whole["part"].replace(UNSEEN, "test"))  # both are used only once, at the end
    keys = [key for key in ("group", "cluster", "image_id", "pixel_hash") if key in whole]
    return whole[["path", "label", "generator", "part"]].assign(
        part_and_label=whole["part"] + " " + whole["label"],
        held_out_elsewhere=whole["generator"].where(whole["generator"].isin(holdout) & (whole["part"] != UNSEEN)),
        parent_elsewhere=_parent_elsewhere(side),
        **{f"{key}_in_several_parts": _in_several(side, key, "part") for key in keys},
    )


def splits(frame: pd.DataFrame) -> "gx.ExpectationSuite":
    """The suite for `splits_frame`: nothing in train, val or test may have a twin in another of them. All expectations are critical."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    again = "Remove data/splits and run `dvc repro split` again."
    failures = {
        "group_in_several_parts": f"A group (person, source picture or video) is in several parts. {again}",
        "cluster_in_several_parts": f"Near-duplicates are in several parts. {again}",
        "image_id_in_several_parts": f"The same file is in several parts. {again}",
        "pixel_hash_in_several_parts": f"The same picture, in two files, is in several parts. {again}",
        "parent_elsewhere": f"A forged fake and the picture that it was made from are in different parts. {again}",
        "held_out_elsewhere": f"A generator of split.holdout_generators is in train, val or test. {again}",
    }
    wanted = [f"{part} {label}" for part in PARTS for label in LABELS]
    suite = [
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="part_and_label",
            value_set=wanted,
            severity=CRITICAL,
            notes="A part lacks a class. Add more groups, or change split.shares or split.seed.",
        ),
        *[
            gxe.ExpectColumnValuesToBeNull(column=column, severity=CRITICAL, notes=text)
            for column, text in failures.items()
            if column in frame
        ],
    ]
    return gx.ExpectationSuite(name="splits", expectations=suite)


def _filled() -> list[Any]:
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToNotBeNull(column=name, severity=CRITICAL, notes=f"Column {name} has empty values. {AGAIN}")
        for name in COLUMNS
        if name not in MAY_BE_MISSING
    ]


def _classes(settings: Validate) -> list[Any]:
    import great_expectations.expectations as gxe

    most = settings.max_imbalance / (1 + settings.max_imbalance)
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="label",
            value_set=list(LABELS),
            severity=CRITICAL,
            notes="A label is neither real nor fake. Correct it in the source's manifest.csv, folder names or label map.",
        ),
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="label",
            value_set=list(LABELS),
            severity=CRITICAL,
            notes="A class is missing: both real and fake are needed. Add a source of it, or set data.forge to make fakes from reals.",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="scarce_class",
            severity=CRITICAL,
            notes=f"A class has fewer than validate.min_images = {settings.min_images} images. Add more of it, or lower the setting.",
        ),
        gxe.ExpectColumnKLDivergenceToBeLessThan(
            column="label",
            partition_object={"values": list(LABELS), "weights": [0.5, 0.5]},
            tail_weight_holdout=NEW,  # any other label has its own expectation
            # The divergence from 50:50 of two classes at exactly validate.max_imbalance.
            threshold=most * math.log(2 * most) + (1 - most) * math.log(2 * (1 - most)) + 1e-9,
            severity=WARNING,
            notes=f"One class has over validate.max_imbalance = {settings.max_imbalance:g} times the images of the other. "
            "Add more of the smaller one.",
        ),
    ]


def _pictures() -> list[Any]:
    import great_expectations.expectations as gxe

    correct = "Leave it out, or correct the wrong label in its source."
    return [
        gxe.ExpectColumnValuesToBeUnique(column="image_id", severity=CRITICAL, notes=f"The same file is in two rows. {AGAIN}"),
        gxe.ExpectColumnValuesToBeUnique(column="path", severity=CRITICAL, notes=f"The same path is in two rows. {AGAIN}"),
        gxe.ExpectColumnValuesToBeUnique(
            column="pixel_hash",
            severity=WARNING,
            notes="The same picture is in several files. They stay in one part, but count several times: leave the copies out.",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="file_with_two_labels", severity=CRITICAL, notes=f"The same file is labelled both real and fake. {correct}"
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="picture_with_two_labels", severity=CRITICAL, notes=f"The same picture is labelled both real and fake. {correct}"
        ),
        gxe.ExpectColumnUniqueValueCountToBeBetween(
            column="format",
            max_value=1,
            severity=WARNING,
            notes="The images have several formats. Set ingest.normalise to store all alike, or make sure that each class has each format.",
        ),
    ]


def _generators(settings: Validate) -> list[Any]:
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeNull(
            column="generator_of_a_real",
            severity=CRITICAL,
            notes="A real image names a generator: one of the two is wrong. Correct it in its source.",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="nameless_fake",
            severity=CRITICAL,
            notes=f"A fake has {NO_GENERATOR!r} as its generator, as reals have. Name what made it in its source, or `unknown`.",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="scarce_generator",
            severity=WARNING,
            notes=f"A generator has fewer than validate.min_per_generator = {settings.min_per_generator} fakes: its metrics are unreliable."
            " Add more of them, or leave it out.",
        ),
    ]


def _ranges(table: pd.DataFrame, settings: Validate) -> list[Any]:
    import great_expectations.expectations as gxe

    numbers = sorted({name for name, kind in COLUMNS.items() if kind != "str"} | set(table.select_dtypes("number").columns))
    unknown = sorted(set(settings.ranges) - set(numbers))
    if unknown:
        raise StageError(f"params.yaml: validate.ranges: {', '.join(unknown)} is not a numeric column; there are: {', '.join(numbers)}")
    suite = []
    for column, (low, high) in settings.ranges.items():
        bounds = {"at least": low, "at most": high}
        usual = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)
        failure = f"Over {1 - settings.usual:.3g} of the images have an unusual {column} (usual is {usual}). "
        suite.append(
            gxe.ExpectColumnValuesToBeBetween(
                column=column,
                min_value=low,
                max_value=high,
                mostly=settings.usual,
                severity=WARNING,
                notes=failure + "Leave them out of their source, or widen validate.ranges.",
            )
        )
    return suite


def _in_several(table: pd.DataFrame, key: str, of: str) -> pd.Series:
    """The key where it occurs with more than one value of `of`, null elsewhere."""
    repeated = table[key].duplicated(keep=False) & table[key].notna() & table[key].ne("")
    pairs = table.loc[repeated, [key, of]].drop_duplicates()
    return table[key].where(table[key].isin(pairs.loc[pairs[key].duplicated(), key]))


def _parent_elsewhere(table: pd.DataFrame) -> pd.Series:
    """The image_id of a parent that is in another part than its fake, null elsewhere. A parent in no part is not a leak."""
    parents = table.loc[table["parents"].fillna("") != "", "parents"].str.split().explode()
    part_of_parent = parents.map(table.drop_duplicates("image_id").set_index("image_id")["part"])
    wrong = parents[part_of_parent.notna() & part_of_parent.ne(table["part"].loc[parents.index])]
    return wrong[~wrong.index.duplicated()].reindex(table.index)
