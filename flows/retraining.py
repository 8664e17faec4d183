"""Automatic trainings: whether one may start, and what to label if there is nothing new to learn from."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows import journal, registry
from flows.drift import fetch_package
from pipeline.champion_source import CHAMPION
from pipeline.lineage import lineage
from pipeline.monitoring import feedback, labelling, predictions
from pipeline.monitoring.diagnosis import outlier_scores
from pipeline.monitoring.drift import nearest, references
from pipeline.params import Params
from pipeline.params_loop import Retrain
from pipeline.var import var_folder

AUTOMATIC = ("drift",)
"""Reasons of automatic runs, which `retrain` in params.yaml limits."""


def held_back(settings: Retrain) -> str | None:
    """Why no automatic training may start now; None if one may."""
    now = datetime.now(UTC)
    # Times in the future were recorded while the clock was ahead; they would block trainings until then.
    begun = [time for line in history() if (time := datetime.fromisoformat(line["time"])) <= now]
    if begun and now < (free := max(begun) + timedelta(hours=settings.cooldown_hours)):
        return f"the last one began {max(begun):%Y-%m-%d %H:%M} UTC, retrain.cooldown_hours ends {free:%Y-%m-%d %H:%M}"
    recent = [time for time in begun if now - time < timedelta(days=1)]
    if len(recent) >= settings.a_day:
        return f"{len(recent)} began within 24 hours, retrain.a_day allows {settings.a_day}"
    return None


def begin(reason: str, evidence: Mapping[str, Any] | None) -> None:
    """Record that an automatic training starts."""
    journal.append(_file(), {"reason": reason, "evidence": evidence})


def history() -> list[dict[str, Any]]:
    """The automatic trainings so far, oldest first."""
    return journal.read(_file())


def nothing_new() -> registry.Version | None:
    """The newest version, if it was trained on exactly the current data."""
    newest = registry.newest()
    return newest if newest and newest.tags.get("data_md5") == lineage()["data_md5"] else None


def label_next(params: Params) -> Path | None:
    """Export the images that are best labelled next to var/labelling, a folder a day. Returns it; None if there is nothing to label."""
    folder = var_folder() / labelling.FOLDER / f"{datetime.now(UTC):%Y-%m-%d}"
    if folder.is_dir():
        return folder  # somebody may be labelling in it
    kept = var_folder() / feedback.FOLDER
    statements, distances = feedback.newest(feedback.read(kept)), {}
    champion = registry.holder(CHAMPION)
    if champion is not None and champion.digest and statements:
        window = predictions.newest(var_folder() / predictions.FILE, champion.digest, params.drift.max_window)
        if len(window):
            reference, _ = nearest(references(fetch_package.fn(champion).path), window, params.drift)
            distances = dict(zip(window["id"], outlier_scores(reference, window).tolist(), strict=True))
    put = labelling.export(folder, statements, kept / feedback.IMAGES, distances, params.retrain.label_next)
    return folder if put else None


def _file() -> Path:
    return var_folder() / "retrainings.jsonl"
