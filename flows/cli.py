"""`unmask`: status on one screen, rollback, forget, backup and restore. Everything else is done in MLflow, Prefect or with `make`."""

import argparse
import getpass
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from dotenv import load_dotenv
from mlflow.exceptions import MlflowException

from flows import notifications, promotion, registry
from flows.materialise import workspace_lock
from flows.ports import HOST, PORTS
from flows.state.backup import backup
from flows.state.restore import ROOM, restore
from pipeline import lineage
from pipeline.champion_source import CHALLENGER, CHAMPION
from pipeline.errors import StageError
from pipeline.ingestion import copies
from pipeline.monitoring import feedback, labelling, predictions
from pipeline.tracking import tracking_uri, without_secrets
from pipeline.var import DRIFT_REPORT, var_folder

ALIASES = (CHAMPION, CHALLENGER, registry.PREVIOUS)

VERBS = {
    "status": "show data, last run, model versions, what is served, and the last drift check",
    "rollback": "make the previous champion the champion again",
    "forget": "delete what is stored about an answer",
    "backup": "write the whole state to one file",
    "restore": "put back the state from a backup",
}
HISTORY = "Older versions of the data in DVC's cache and remote still have the image: docs/runbook.md says how to delete them."


def status() -> dict[str, Any]:
    """The state of the project, as reported by its folder, MLflow and the service."""
    newest, lines = registry.newest(), promotion.history()
    return {
        "data_version": lineage.lineage()["data_md5"],
        "last_run": registry.last_run()
        | {"version": newest.number if newest else None, "gate": newest.tags.get("gate") if newest else None},
        **{alias: _version(registry.holder(alias)) for alias in ALIASES},
        "served": served(),
        "last_drift_check": _drift(),
        "last_promotion": lines[-1] if lines else None,
        "unfinished_restore": [str(room) for room in sorted(Path.cwd().glob(f"{ROOM}*"))],
    }


def served() -> dict[str, Any]:
    """What the service on SERVICE_PORT, or at SERVICE_URL, reports: `version` (None if it serves nothing) and `trouble`."""
    here = f"http://{HOST}:{os.environ.get('SERVICE_PORT') or PORTS['SERVICE_PORT']}"
    url = f"{os.environ.get('SERVICE_URL') or here}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - the address is the operator's own setting
            answer = json.load(response)
        return {"version": answer["version"], "trouble": answer["trouble"]}
    except urllib.error.HTTPError as error:
        with error:
            return {"version": None, "trouble": f"{url} answers {error.code}: it has no model"}
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return {"version": None, "trouble": f"{url} does not answer: start it with `make up` or `make serve`"}


def show(found: dict[str, Any]) -> str:
    """`status` as a table for people."""
    run, now, check, last = (found[name] for name in ("last_run", "served", "last_drift_check", "last_promotion"))
    rows = {
        "data version": found["data_version"] or "none yet",
        "last run": f"{run['run_id']}, {run['status'].lower()}, {run['started']}" if run["run_id"] else "none yet",
        "newest version": f"{run['version']}, gate {run['gate'] or 'unknown'}" if run["version"] else "none yet",
        **{alias: _line(found[alias]) for alias in ALIASES},
        "served": "; ".join(filter(None, [now["version"] and f"version {now['version']}", now["trouble"]])),
        "last drift check": "none yet by this release",
        "last promotion": "none recorded",
    }
    if check:
        said = "drift" if check["drift"] else "no drift"
        rows["last drift check"] = f"{check['time']}, {said} of version {check['version']}, p = {check['p_value']:.2g}"
    if last:
        rows["last promotion"] = f"{last['time']}, version {last['version']} (before: {last['previous'] or 'none'}), by {last['by']}"
    if found["unfinished_restore"]:
        what = "interrupted or still running; such folders, here and in or beside the parts of the state, hold the previous state"
        rows["restore"] = f"{', '.join(found['unfinished_restore'])}: {what}"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def rollback() -> dict[str, Any]:
    """Move `champion` back to the previous version; the service follows within seconds. Raises StageError if there is none."""
    with promotion.lock():
        moved = promotion.roll_back(by := f"{_user()}, unmask rollback")
    notifications.send(
        "roll-back", f"version {moved['to']} of {registry.MODEL} is the champion again (was {moved['from'] or 'none'}), by {by}"
    )
    return {**moved, "served": served()}


def forget(id: str) -> dict[str, int]:
    """Delete what is stored about an answer: feedback and image, its row in the prediction log, copies in data/raw and for labelling.

    Waits until no run is active in this folder.

    Returns:
        How many of each were deleted.

    Raises:
        StageError: if nothing is stored about it, or the record of feedback cannot be read.
    """
    var = var_folder()
    record = var / feedback.FOLDER
    with workspace_lock(say=lambda line: print(line, file=sys.stderr)):  # a run that is active may read the images
        images = feedback.exclusive_images(record, id)
        # The record of feedback goes last: after a kill or an error, it still says which images have to be deleted.
        found = {
            "copies": copies.delete(images) + labelling.forget(var, images),
            "predictions": predictions.forget(var / predictions.FILE, {id}),
            "statements": sum(said.id == id for said in feedback.read(record)),
            "images": len(feedback.forget(record, id)),
        }
    if not any(found.values()):
        raise StageError(f"nothing is stored about an answer with the id {id!r}")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Command line. `words` are the arguments after `unmask`, by default those of this process."""
    load_dotenv(".env")  # as `make` does; variables that are set already stay as they are
    parser = argparse.ArgumentParser(prog="unmask", description="Show the state, roll back, forget an answer, back up and restore.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--json", action="store_true", help="print JSON, for programs")
        if name == "forget":
            verb.add_argument("id", metavar="ID", help="id of the answer, as the service gave it")
        if name in ("backup", "restore"):
            verb.add_argument("file", metavar="FILE", type=Path, help="a tar.gz archive")
        if name == "restore":
            verb.add_argument("--force", action="store_true", help="replace the existing state")
    arguments = parser.parse_args(words)
    found: dict[str, Any]
    try:
        if arguments.verb == "status":
            found = status()
            text = show(found)
        elif arguments.verb == "forget":
            found = forget(arguments.id)
            text = f"deleted: {', '.join(f'{number} {what}' for what, number in found.items() if number)}. {HISTORY}"
        elif arguments.verb == "backup":
            found = backup(arguments.file)
            text = f"{arguments.file}: {_kept(found)}"
        elif arguments.verb == "restore":
            found = restore(arguments.file, arguments.force)
            bring = "dvc pull" if "cache" in found["elsewhere"] else "dvc checkout"
            text = f"restored the state of {found['made']}: {_kept(found)}\nNext: {bring}, make up"
        else:
            found = rollback()
            text = f"champion: version {found['to']} (was {found['from'] or 'none'}). The service follows within seconds."
    except (StageError, OSError) as error:
        sys.exit(f"error: {error}")
    except MlflowException as error:
        first, _, _ = str(error).partition("\n")
        said = without_secrets(f"MLflow at {tracking_uri()}: {first}")
        sys.exit(f"error: {said}. Start it (make up), or check MLFLOW_TRACKING_URI.")
    print(json.dumps(found, indent=2) if arguments.json else text)


def _kept(found: dict[str, Any]) -> str:
    """What an archive holds, and what stays elsewhere."""
    held = ", ".join([*(f"database {name}" for name in found["databases"]), *found["files"]])
    return "; ".join([held, *(f"{name} stays at {place}" for name, place in found["elsewhere"].items())])


def _version(found: registry.Version | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"version": found.number, "gate": found.tags.get("gate"), "obstacle": promotion.obstacle(found)}


def _line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    refused = f"; REFUSED: {found['obstacle']}" if found["obstacle"] else ""
    return f"version {found['version']}, gate {found['gate'] or 'unknown'}{refused}"


def _drift() -> dict[str, Any] | None:
    """Result of the last check; None before the first, or if another release wrote the report (the next check replaces it)."""
    path = var_folder() / DRIFT_REPORT
    try:
        report, checked = json.loads(path.read_text()), datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return {"time": checked.isoformat(timespec="seconds")} | {name: report[name] for name in ("version", "drift", "p_value", "window")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user in a container may have no name
        return f"user {os.getuid()}"


if __name__ == "__main__":
    main()
