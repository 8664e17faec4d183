"""Flow `train`: brings the files up to date, checks the gates, registers the model. By default a person decides whether it is served."""

import json
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import gates, promotion, registry, retraining
from flows.comparison import compare_with_champion, note
from flows.deploy import deploy
from flows.gates import Verdict
from flows.materialise import materialise, workspace_lock
from flows.notifications import send
from flows.registry import REPORTS, Version
from flows.store import TROUBLE, find_store, retried, trouble
from pipeline import package
from pipeline.compare import table
from pipeline.errors import StageError
from pipeline.package import PACKAGE, PackageError
from pipeline.params import Params, ParamsError, load_params

TOLD = "told"
"""Tag of a version: the last message that was sent about its gate. A run that ends in the same version again does not repeat it."""


@flow(name="train", log_prints=False)
def train(reason: str = "manual", evidence: dict[str, Any] | None = None) -> State[Any]:
    """Train if anything changed, compare the model with the champion, and register it.

    Promotes it only if `promotion` in params.yaml says so.
    Ends as Completed, as GateFailed (registered, but neither challenger nor champion), as StageFailed, or as Completed with the name
    Skipped: automatic runs are limited by `retrain` in params.yaml.

    Args:
        reason: why the run was started: free text, or `drift`. It becomes a tag of the run and the version.
        evidence: supports the reason, e.g. figures of a drift report; also a tag.
    """
    get_run_logger().info("started because: %s %s", reason, evidence or "")
    try:
        settings = load_params()
        find_store()
        with workspace_lock():
            if reason in retraining.AUTOMATIC:
                if (why := skipped(settings)) is not None:
                    return Completed(name="Skipped", message=f"skipped: {why}")
                retraining.begin(reason, evidence)
            materialise(again=_watched_by_nobody(settings))
            evaluation = json.loads((REPORTS / "evaluation.json").read_text())
            verdicts = gate(settings, evaluation)
            comparison = compare_with_champion()
            because = {"prefect_flow_run": str(flow_run.id), "reason": reason} | ({"evidence": json.dumps(evidence)} if evidence else {})
            version = register(settings, evaluation, verdicts, comparison, because)
        message = notify(version, verdicts, evaluation, comparison, reason)
        if (why := promotion.auto_reason(settings.promotion, comparison, version)) is not None:
            promote(version)
            deployed = deploy(by=f"the flow train, {why}", return_state=True)
            message += f"; promoted ({why}); deploy: {deployed.name}"
    except (StageError, ParamsError, PackageError) as error:
        return Failed(name="StageFailed", message=str(error))
    except TROUBLE as error:
        return Failed(name="StageFailed", message=trouble(error))
    return Completed(message=message) if version.passed else Failed(name="GateFailed", message=message)


def skipped(settings: Params) -> str | None:
    """Why an automatic run is skipped; None if it is not. May bring the data up to date to find out."""
    why = retraining.held_back(settings.retrain)
    if why is not None or settings.retrain.on == "always":
        return why
    materialise(last="split", again=_watched_by_nobody(settings))
    known = retraining.nothing_new()
    if known is None:
        return None
    folder = retraining.label_next(settings)
    none = "there are no unlabelled images that users let us keep"
    what = f"label the images in {folder}, and add it to data.sources" if folder else none
    return f"nothing new since version {known.number}; {what}"


def _watched_by_nobody(settings: Params) -> str | None:
    """The stage to run even if DVC sees no change: DVC does not watch users' feedback."""
    return "ingest" if any(source.kind == "feedback" for source in settings.data.sources) else None


@task(cache_policy=NO_CACHE)
def gate(settings: Params, evaluation: dict[str, Any]) -> list[Verdict]:
    """Judge the figures, and show the verdicts as an artifact."""
    verdicts = gates.judge(settings.gates, evaluation)
    for verdict in verdicts:
        get_run_logger().info("gate %s %s", verdict.name, verdict)
    create_table_artifact(
        key="gate",
        table=[{"gate": v.name, "verdict": str(v).partition(":")[0], "value": v.value, "min": v.min, "max": v.max} for v in verdicts],
        description=registry.figures_table(evaluation),
    )
    return verdicts


@task(**retried)
def register(
    settings: Params, evaluation: dict[str, Any], verdicts: list[Verdict], comparison: dict[str, Any] | None, because: dict[str, str]
) -> Version:
    """Register the package in MLflow, once, and add to its version what a person needs to decide."""
    found = package.verify(PACKAGE)
    version = registry.register(found, settings, evaluation, verdicts, because)
    note(version, found, comparison)
    return version


@task(**retried)
def promote(version: Version) -> None:
    """Move the alias `champion`, as `promotion` in params.yaml demands."""
    with promotion.lock():
        promotion.promote(version)


@task(cache_policy=NO_CACHE)
def notify(version: Version, verdicts: list[Verdict], evaluation: dict[str, Any], comparison: dict[str, Any] | None, reason: str) -> str:
    """Report the result in the log, as an artifact and, if the gate failed, as a notification. Returns the sentence."""
    failed = [f"{verdict.name} {verdict}" for verdict in verdicts if not verdict.passed]
    sentence = f"version {version.number} of {registry.MODEL} is registered; gate {'failed: ' + '; '.join(failed) if failed else 'passed'}"
    (get_run_logger().error if failed else get_run_logger().info)(sentence)
    lines = [f"# {sentence}", f"Reason: {reason}", registry.figures_table(evaluation)]
    if comparison:
        lines += ["## Against the champion, on the same images", table(comparison)]
    create_markdown_artifact(key="training", markdown="\n\n".join(lines))
    if failed and version.tags.get(TOLD) != sentence:
        send("gate failed", sentence)
        registry.tag(version, TOLD, sentence)
    return sentence
