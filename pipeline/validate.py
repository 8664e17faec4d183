"""Stage validate: Great Expectations on the manifest, and the shortcut audit. Critical failures stop the pipeline, others warn."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import manifest
from pipeline.errors import StageError
from pipeline.manifest import COLUMNS, LABELS
from pipeline.params import Params
from pipeline.shortcut import audit

REPORT = Path("reports/validation.json")
log = logging.getLogger(__name__)


def run(params: Params) -> dict[str, Any]:
    """Write reports/validation.json, whether the data passes or not.

    Raises:
        StageError: naming each critical expectation that failed.
    """
    table = manifest.read(manifest.MANIFEST)
    results = expectations(table, params)
    shortcut = audit(table) if table["label"].nunique() == len(LABELS) else None
    critical = [result["detail"] for result in results if not result["success"] and result["severity"] == "critical"]
    warnings = [result["detail"] for result in results if not result["success"] and result["severity"] == "warning"]
    if shortcut and shortcut["auc"]["value"] is not None:
        message = _shortcut_message(shortcut)
        bounds = params.validate_.shortcut
        if shortcut["auc"]["value"] > bounds.refuse:
            critical.append(f"{message} It is over validate.shortcut.refuse = {bounds.refuse:g}.")
        elif shortcut["auc"]["value"] > bounds.warn:
            warnings.append(f"{message} It is over validate.shortcut.warn = {bounds.warn:g}.")
    report = {"passed": not critical, "critical": critical, "warnings": warnings, "expectations": results, "shortcut": shortcut}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    for warning in warnings:
        log.warning("warning: %s", warning)
    if critical:
        raise StageError(
            "the data is not fit for training:\n" + "\n".join(f"  - {line}" for line in critical) + f"\nAll of it is in {REPORT}."
        )
    return report


def expectations(table: pd.DataFrame, params: Params) -> list[dict[str, Any]]:
    """Check the manifest with Great Expectations.

    Returns:
        One item an expectation: name, severity ("critical" or "warning"), success, detail.
    """
    import great_expectations as gx
    import great_expectations.expectations as gxe

    settings = params.validate_
    counts = table["label"].value_counts()
    # What an expectation cannot see from one row becomes a column.
    frame = table.assign(
        labels_of_picture=table.groupby("phash")["label"].transform("nunique") if "phash" in table else 1,
        images_of_label=table["label"].map(counts),
        imbalance=counts.max() / max(counts.min(), 1) if len(counts) else 0.0,
        shorter_side=table[["width", "height"]].min(axis=1),
    )
    suite: list[tuple[str, str, Any]] = [
        ("critical", "a column is missing or misplaced", gxe.ExpectTableColumnsToMatchSet(column_set=list(COLUMNS), exact_match=False)),
        ("critical", "there are no images", gxe.ExpectTableRowCountToBeBetween(min_value=1)),
        ("critical", "a label is neither real nor fake", gxe.ExpectColumnValuesToBeInSet(column="label", value_set=list(LABELS))),
        (
            "critical",
            "a class is missing: both real and fake are needed",
            gxe.ExpectColumnDistinctValuesToContainSet(column="label", value_set=list(LABELS)),
        ),
        ("critical", "the same file stands in two rows", gxe.ExpectColumnValuesToBeUnique(column="image_id")),
        ("critical", "the same path stands in two rows", gxe.ExpectColumnValuesToBeUnique(column="path")),
        *[("critical", f"column {name} has empty values", gxe.ExpectColumnValuesToNotBeNull(column=name)) for name in COLUMNS],
        (
            "critical",
            f"a class has fewer than validate.min_images = {settings.min_images} images",
            gxe.ExpectColumnValuesToBeBetween(column="images_of_label", min_value=settings.min_images),
        ),
        (
            "warning",
            f"one class has over {settings.max_imbalance:g} times the images of the other",
            gxe.ExpectColumnMaxToBeBetween(column="imbalance", max_value=settings.max_imbalance),
        ),
        (
            "warning",
            "some images are below ingest.min_side",
            gxe.ExpectColumnValuesToBeBetween(column="shorter_side", min_value=params.ingest.min_side),
        ),
        ("warning", "images are of several formats", gxe.ExpectColumnUniqueValueCountToBeBetween(column="format", max_value=1)),
    ]
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("images")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
    results = []
    for severity, failure, expectation in suite:
        outcome = batch.validate(expectation)
        seen = {key: outcome.result[key] for key in ("observed_value", "unexpected_count") if key in outcome.result}
        detail = "" if outcome.success else f"{failure} ({', '.join(f'{key} {value}' for key, value in seen.items())})"
        name = f"{expectation.expectation_type}({getattr(expectation, 'column', '')})"
        results.append({"name": name, "severity": severity, "success": bool(outcome.success), "detail": detail})
    return results


def _shortcut_message(shortcut: dict[str, Any]) -> str:
    auc, worst = shortcut["auc"], shortcut["columns"][:3]
    columns = ", ".join(f"{column['name']} (alone {column['auc']:.2f})" for column in worst)
    return (
        f"Metadata alone tells real from fake with AUC {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}), "
        f"most of it by {columns}: a detector trained on this would learn the files, not the faces. "
        "Store both classes in the same format, quality and size."
    )


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
