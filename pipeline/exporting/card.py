"""The model card (Mitchell et al., FAT* 2019): what a person should know before trusting a package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import pages
from pipeline.labels import LABELS
from pipeline.manifest import NO_GENERATOR
from pipeline.params import Params
from pipeline.params_data import FeedbackSource, FolderSource, HuggingFaceSource, LfwSource, ProceduralSource

UNKNOWN = "no licence file was found: ask the owners before redistributing the package"
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
WEAKEST = 3


def write(
    params: Params,
    parts: Mapping[str, pd.DataFrame],
    validation: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    meta: Mapping[str, Any],
    precision: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        params: what the model was made with.
        parts: the manifest's rows of each part.
        validation: reports/validation.json.
        evaluation: reports/evaluation.json.
        training: reports/train.json.
        meta: what goes into package.json: created, thresholds, lineage ...
        precision: what reduced precision costs, see pipeline.exporting.precision.reduced_precision.
    """
    counts = {
        name: {label: int((part["label"] == label).sum()) for label in LABELS} | {"groups": part["group"].nunique()}
        for name, part in parts.items()
    }
    judged = [part for part in evaluation.get("slices", []) if not part["small"] and part["auc"]["value"] is not None]
    return pages.render(
        "card.md",
        params=params,
        counts=counts,
        generators=sorted(set(parts["train"]["generator"]) - {NO_GENERATOR} | (forge.shown if (forge := params.train.forge) else set())),
        rendered=any(source.kind == "procedural" for source in params.data.sources),
        shortcut=validation["shortcut"],
        evaluation=evaluation,
        training=training,
        meta=meta,
        weakest=sorted(judged, key=lambda part: part["auc"]["value"])[:WEAKEST],
        licences=licences(params),
        precision=precision,
    )


def licences(params: Params) -> dict[str, str]:
    """Licence terms of the weights and of each source: the first line of the licence in its folder, or where to look."""
    name = params.model.name
    weights = "randomly initialised" if params.model.init == "scratch" else _beside(Path(name)) or f"see the page of {name}"
    found = {f"weights ({name})": weights}
    for source in params.data.sources:
        match source:
            case ProceduralSource():
                terms: str | None = "rendered by this program; no pictures of others"
            case FolderSource():
                terms = _beside(source.path)
            case HuggingFaceSource():
                terms = f"see the page of {source.dataset}"
            case LfwSource():
                terms = "news photographs, collected for research; the rights belong to their owners"
            case FeedbackSource():
                terms = "pictures that users sent in"
        found[f"data ({source.name})"] = terms or UNKNOWN
    return found


def _beside(folder: Path) -> str | None:
    """First line of the licence or origin note in a folder, UNKNOWN if it has none; None if this is not a folder."""
    if not folder.is_dir():
        return None
    for file in [*licence_files(folder), *sorted(folder.glob("SOURCE*"))]:
        if lines := file.read_text(errors="replace").strip().splitlines():
            return f"{file.name}: {lines[0].strip()}"
    return UNKNOWN


def licence_files(folder: Path) -> list[Path]:
    """Licences and notices in a folder; a package made from its content must include them."""
    return sorted(file for pattern in LICENCES for file in folder.glob(pattern) if file.is_file())
