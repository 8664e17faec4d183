"""The model card (Mitchell et al., FAT* 2019): what a person should know before trusting a package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pipeline.params import Params

TEMPLATE = Path(__file__).parent / "templates" / "card.md"


def write(
    params: Params,
    parts: Mapping[str, pd.DataFrame],
    validation: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        params: what the model was made with.
        parts: the manifest's rows of each part.
        validation: reports/validation.json.
        evaluation: reports/evaluation.json.
        training: reports/train.json.
        meta: what goes into package.json: created, thresholds, lineage ...
    """
    counts = {
        name: {label: int((part["label"] == label).sum()) for label in ("real", "fake")} | {"groups": part["group"].nunique()}
        for name, part in parts.items()
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701 - Markdown
    return environment.from_string(TEMPLATE.read_text()).render(
        params=params,
        counts=counts,
        generators=sorted(set(parts["train"]["generator"]) - {"none"}),
        rendered=any(source.kind == "procedural" for source in params.data.sources),
        shortcut=validation["shortcut"],
        evaluation=evaluation,
        training=training,
        meta=meta,
    )
