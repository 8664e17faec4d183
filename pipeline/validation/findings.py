"""Runs a Great Expectations suite and reports failures as sentences."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd

if TYPE_CHECKING:
    import great_expectations as gx

DOCS = Path("reports/data_docs")
"""Data Docs of Great Expectations, one folder per suite."""

EXAMPLES = 12
NAMING = ("expect_column_values_to_be_null", "expect_column_values_to_be_in_set")
"""Expectations whose unexpected values are names worth showing to a person."""

SAMPLED = 60
"""Rows fetched per failure: enough to show what they have in common."""


class Finding(TypedDict):
    """The outcome of one expectation.

    `severity` is "critical" or "warning"; `detail` is a sentence, empty on success; `examples` are paths of at most 12 images.
    """

    name: str
    severity: str
    success: bool
    detail: str
    unexpected_count: int | None
    examples: list[str]


def check(suite: "gx.ExpectationSuite", frame: pd.DataFrame, docs: Path = DOCS) -> list[Finding]:
    """Run a suite on a table that has a column `path`, and rebuild its Data Docs under `docs` / the suite's name."""
    import great_expectations as gx

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # importing it has set INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    folder = (docs / suite.name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    context.add_data_docs_site(suite.name, {"class_name": "SiteBuilder", "store_backend": store})  # type: ignore[typeddict-item]
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset(suite.name)
    definition = gx.ValidationDefinition(
        name=suite.name, data=asset.add_batch_definition_whole_dataframe("all"), suite=context.suites.add(suite)
    )
    # Rows, not lists of all indices, which are collected one by one: slow if a million images fail.
    shown = {"result_format": "BASIC", "partial_unexpected_count": SAMPLED, "include_unexpected_rows": True}
    context.validation_definitions.add(definition)
    outcome = definition.run(batch_parameters={"dataframe": frame}, result_format=shown)
    context.build_data_docs(site_names=[suite.name])  # not the temporary site that an ephemeral context also has
    return [_finding(result) for result in outcome.results]


def _finding(outcome: Any) -> Finding:
    config, result = outcome.expectation_config, outcome.result
    column = config.kwargs.get("column")
    rows = result.get("unexpected_rows")
    # Sorted by value, so that duplicates are next to each other.
    rows = None if outcome.success or rows is None or not len(rows) else rows.sort_values([column, "path"])
    return {
        "name": f"{config.type}({column or ''})",
        "severity": str(getattr(config.severity, "value", config.severity)),
        "success": bool(outcome.success),
        "detail": "" if outcome.success else f"{config.notes} ({_seen(outcome, rows)})",
        "unexpected_count": result.get("unexpected_count"),
        "examples": [] if rows is None else rows["path"].head(EXAMPLES).tolist(),
    }


def _seen(outcome: Any, rows: pd.DataFrame | None) -> str:
    """What was found instead, in a few words."""
    config, result = outcome.expectation_config, outcome.result
    if rows is not None:
        number = f"{result['unexpected_count']:,} image{'s' * (result['unexpected_count'] != 1)}"
        offenders = dict.fromkeys(rows[config.kwargs["column"]].dropna().astype(str))
        return f"{number}: {', '.join(list(offenders)[:EXAMPLES])}" if config.type in NAMING else number
    if config.type == "expect_column_kl_divergence_to_be_less_than":
        observed = result.get("observed_value")
        return f"divergence {'infinite' if observed is None else format(observed, '.3f')}, allowed {config.kwargs['threshold']:.3f}"
    missing = result.get("partial_missing_list") or result.get("details", {}).get("mismatched", {}).get("missing")
    return ", ".join(map(str, missing)) if missing else f"found {result.get('observed_value')}"
