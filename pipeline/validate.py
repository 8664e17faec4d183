"""Stage validate: expectations on the manifest, and the shortcut audit. Critical failures stop the pipeline, others warn."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import data_card, manifest
from pipeline.errors import StageError
from pipeline.manifest import COLUMNS, ManifestError
from pipeline.params import Params
from pipeline.validation import page as validation_page
from pipeline.validation import shortcut, suites, versions

REPORT = Path("reports/validation.json")
PAGE = Path("reports/validation.html")
log = logging.getLogger(__name__)


def run(params: Params) -> dict[str, Any]:
    """Write reports/validation.json, validation.html, data_card.md and data_docs/, whether the data passes or not.

    A manifest that passes is kept as data/accepted.parquet, to compare the next one with.

    Raises:
        StageError: naming each critical failure.
    """
    table = _read()
    accepted = versions.last_accepted()
    suite = suites.manifest(table, params.validate_, accepted)
    findings = suites.check(suite, suites.manifest_frame(table, params.validate_))
    whole = table.reindex(columns=[*COLUMNS, *manifest.attributes(table)])
    audit = shortcut.audit(whole)
    failures = [finding for finding in findings if not finding["success"]]
    critical = [finding["detail"] for finding in failures if finding["severity"] == "critical"]
    warnings = [finding["detail"] for finding in failures if finding["severity"] == "warning"]
    value, bounds = audit["auc"]["value"], params.validate_.shortcut
    if value is None:
        warnings.append(f"Whether metadata gives the classes away could not be judged: {audit['unjudged']}.")
    elif value > bounds.refuse:
        critical.append(f"{shortcut.message(audit, whole, params.ingest)} (It is over validate.shortcut.refuse = {bounds.refuse:g}.)")
    elif value > bounds.warn:
        warnings.append(f"{shortcut.message(audit, whole, params.ingest)} (It is over validate.shortcut.warn = {bounds.warn:g}.)")
    report = {
        "passed": not critical,
        "critical": critical,
        "warnings": warnings,
        "images": len(table),
        "expectations": findings,
        "shortcut": audit,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    PAGE.write_text(validation_page.page(report, whole, bounds), encoding="utf-8")
    data_card.write(whole, accepted, report)
    for warning in warnings:
        log.warning("warning: %s", warning)
    if critical:
        lines = "\n".join(f"  - {line}" for line in critical)
        raise StageError(f"the data is not fit for training:\n{lines}\n{PAGE} shows the pictures; {REPORT} has all the details.")
    versions.accept()
    return report


def _read() -> pd.DataFrame:
    """The manifest, unchecked: the expectations report what is wrong with it."""
    if not manifest.MANIFEST.is_file():
        raise ManifestError(f"{manifest.MANIFEST}: no such file; `dvc repro` makes it")
    return pd.read_parquet(manifest.MANIFEST)


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
