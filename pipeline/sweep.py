"""Hyperparameter search: many short trainings, of which poor ones are stopped early. Killed, it resumes on the next run.

Each trial is a training as in `pipeline.train`, and a nested run in MLflow. It is judged by its best validation AUC.
"""

import hashlib
import json
import logging
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformers import TrainerCallback

from pipeline import manifest, train
from pipeline.errors import DivergedError, StageError
from pipeline.fingerprint import fingerprint
from pipeline.params import PARAMS_FILE, Params, check_params
from pipeline.params_train import Choice
from pipeline.record import child_of, parent_run

if TYPE_CHECKING:
    import optuna

FOLDER = Path("var/tune")
REPORT = Path("reports/sweep.json")
log = logging.getLogger(__name__)


def run(settings: Params) -> dict[str, Any]:
    """Run trials until there are `tune.trials`, and write reports/sweep.json; params.yaml is not changed.

    Trials are pruned by asynchronous successive halving (Li et al., MLSys 2020): after 1, 3, 9 ... epochs the best third continues. The
    study is kept in var/tune, under a name that depends on all its inputs.

    Returns:
        run_id, trials, pruned, best: trial, run_id, val_auc, values, command.

    Raises:
        StageError: if a key of the space is not a setting, or no trial ran to its end.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parts = manifest.read_parts()
    _candidate(settings, {key: span.choices[0] if isinstance(span, Choice) else span.low for key, span in settings.tune.space.items()})
    FOLDER.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=_key(settings, parts),
        storage=f"sqlite:///{FOLDER / 'optuna.db'}",
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        load_if_exists=True,
    )
    _requeue_killed(study)
    # A new seed per start: a resumed search would otherwise draw again what it has tried.
    study.sampler = optuna.samplers.TPESampler(seed=settings.tune.seed + len(study.trials))
    owner = parent_run("tune", study.study_name)
    done = sum(trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED) for trial in study.trials)
    with child_of(owner):
        study.optimize(lambda trial: _judge(trial, settings, parts), n_trials=max(0, settings.tune.trials - done))
    return _report(study, owner)


class PruningCallback(TrainerCallback):
    """Reports each epoch to the study, and stops the training if the study prunes it."""

    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial, self.pruned = trial, False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an epoch."""
        self.trial.report(kwargs["metrics"]["eval_auc"], round(state.epoch))
        self.pruned = self.trial.should_prune()
        control.should_training_stop |= self.pruned


def _judge(trial: "optuna.Trial", settings: Params, parts: dict[str, pd.DataFrame]) -> float:
    import mlflow
    import optuna

    values = {key: _suggest(trial, key, settings) for key in settings.tune.space}
    log.info("trial %d: %s", trial.number, values)
    trial.set_user_attr("values", values)
    pruning, candidate = PruningCallback(trial), _candidate(settings, values)
    try:
        trained = train.fit(candidate, parts, callbacks=[pruning])
    except DivergedError as error:
        log.info("trial %d: %s", trial.number, error)
        mlflow.end_run("FAILED")
        shutil.rmtree(train.checkpoints(candidate, parts))
        raise optuna.TrialPruned from error
    assert trained is not None
    trial.set_user_attr("run_id", trained.report["run_id"])
    shutil.rmtree(train.checkpoints(candidate, parts))  # weights and optimizer states of many trainings fill a disk
    if pruning.pruned:
        raise optuna.TrialPruned
    return max(epoch["val_auc"] for epoch in trained.report["epochs"])


def _suggest(trial: "optuna.Trial", key: str, settings: Params) -> Any:
    span = settings.tune.space[key]
    if isinstance(span, Choice):
        # By index: Optuna stores only plain values, and a choice may be a list or a section.
        return span.choices[trial.suggest_categorical(key, list(range(len(span.choices))))]
    if span.whole:
        return trial.suggest_int(key, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def _candidate(settings: Params, values: dict[str, Any]) -> Params:
    content = settings.model_dump(by_alias=True, mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        section: Any = content
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or parents[:1] not in (["train"], ["augment"], ["model"]):
            raise StageError(f"tune.space: {key} is not a setting of train, augment or model")
        section[last] = value
    return check_params(content, PARAMS_FILE)


def _requeue_killed(study: "optuna.Study") -> None:
    """Mark a trial that was killed as failed, and queue its values again: its training resumes from its checkpoints."""
    import optuna

    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _report(study: "optuna.Study", owner: str) -> dict[str, Any]:
    import optuna
    from mlflow import MlflowClient

    states = [trial.state for trial in study.trials]
    if optuna.trial.TrialState.COMPLETE not in states:
        raise StageError("tune: every trial was ended early; widen tune.space or raise tune.trials")
    values = study.best_trial.user_attrs["values"]
    found: dict[str, Any] = {
        "run_id": owner,
        "trials": sum(state.is_finished() and state != optuna.trial.TrialState.FAIL for state in states),
        "pruned": states.count(optuna.trial.TrialState.PRUNED),
        "best": {
            "trial": study.best_trial.number,
            "run_id": study.best_trial.user_attrs["run_id"],
            "val_auc": study.best_value,
            "values": values,
            "command": "python -m pipeline.settings "
            + " ".join(f"-S {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in values.items()),
        },
    }
    client = MlflowClient()
    client.log_metric(owner, "val_auc", study.best_value)
    client.set_terminated(owner)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(found, indent=2) + "\n")
    log.info("best of %d trials: validation AUC %.4f; apply it with: %s", found["trials"], study.best_value, found["best"]["command"])
    return found


def _key(settings: Params, parts: dict[str, pd.DataFrame]) -> str:
    """Name of a search: the same space, training and code resume, anything else starts over. More trials extend the same search."""
    made = fingerprint(settings.tune, *train.CODE, exclude={"trials"})
    return hashlib.sha256(f"{train.checkpoints(settings, parts).name} {made}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    from pipeline.cli import stage

    stage(run)
