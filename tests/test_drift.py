"""Drift: the statistics and their false-alarm rate, the record they read, and the chain from an answer to a new training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from scipy.stats import binom, ks_2samp

from flows import automation, registry
from flows.train import train
from pipeline.detector import Prediction
from pipeline.drift import SCALARS, compare, psi
from pipeline.package import Package, seal
from pipeline.params import Drift, ParamsError, check_params, load_params
from pipeline.predictions import FILE, STATISTICS, PredictionLog, newest
from tests.service_helpers import ROOT, _free_port, promote, register, wait_for

DIMENSIONS = 16
SETTINGS = Drift(min_window=50, max_window=1000, alpha=0.01, permutations=199, cron="0 * * * *")


def sample(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """What `measures` gives of pictures of one source: some columns are continuous, some have ties, one is constant."""
    return pd.DataFrame(
        {
            "probability_fake": rng.beta(0.5, 0.5, rows),
            "embedding": list(rng.normal(size=(rows, DIMENSIONS)).astype(np.float32)),
            "brightness": rng.normal(120, 30, rows),
            "contrast": rng.normal(50, 10, rows).round(),
            "blur": rng.lognormal(5, 1, rows),
            "saturation": rng.normal(90, 20, rows),
            "width": rng.choice([96.0, 128.0], rows),
            "height": np.full(rows, 96.0),
        }
    )


def found_first(report: dict) -> str:
    assert report["drift"] and report["p_value"] <= report["alpha"]
    return report["statistics"][0]["name"]


def test_clean_windows_raise_alarms_at_the_set_rate():
    rng, settings, windows = np.random.default_rng(0), SETTINGS.model_copy(update={"alpha": 0.1, "permutations": 99}), 200
    alarms = sum(compare(sample(rng, 60), sample(rng, 50), settings, seed=number)["drift"] for number in range(windows))
    low, high = binom.interval(0.999, windows, settings.alpha)
    assert low <= alarms <= high


def test_a_shift_of_one_statistic_is_found_by_its_name():
    rng = np.random.default_rng(1)
    for name, change in (("brightness", lambda x: x - 20), ("blur", lambda x: x / 2), ("width", lambda x: x * 2)):
        window = sample(rng, 300)
        window[name] = change(window[name])
        assert found_first(compare(sample(rng, 300), window, SETTINGS)) == name


def test_a_shift_of_the_scores_is_found():
    rng = np.random.default_rng(2)
    window = sample(rng, 300)
    window["probability_fake"] **= 2
    assert found_first(compare(sample(rng, 300), window, SETTINGS)) == "probability_fake"


def test_a_shift_of_the_embedding_alone_is_found():
    rng = np.random.default_rng(3)
    mixing = np.linalg.cholesky(np.full((DIMENSIONS, DIMENSIONS), 0.5) + 0.5 * np.eye(DIMENSIONS))
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mean": lambda x: x + 0.3,
        "correlation": lambda x: mixing @ x,  # each dimension keeps its mean and variance
    }
    for name, change in changes.items():
        window = sample(rng, 300)
        window["embedding"] = [change(row).astype(np.float32) for row in window["embedding"]]
        assert found_first(compare(sample(rng, 300), window, SETTINGS)) == "embedding", name


def test_constant_columns_are_no_drift():
    rows = {name: np.full(100, 0.1) for name in SCALARS} | {"embedding": [np.full(DIMENSIONS, 0.1, np.float32)] * 100}
    report = compare(pd.DataFrame(rows), pd.DataFrame(rows).iloc[:70], SETTINGS)
    assert not report["drift"] and report["p_value"] == 1
    assert all(found["p_value"] == 1 and found["value"] == 0 and not found["psi"] for found in report["statistics"])


def test_a_constant_that_changes_is_drift():
    rng = np.random.default_rng(4)
    assert found_first(compare(sample(rng, 100), sample(rng, 100).assign(height=128.0), SETTINGS)) == "height"


def test_the_report_says_what_was_compared():
    rng = np.random.default_rng(5)
    reference, window = sample(rng, 80), sample(rng, 60).assign(verdict=["real"] * 45 + ["fake"] * 15)
    report = compare(reference, window, SETTINGS)
    assert json.loads(json.dumps(report)) == report == compare(reference, window, SETTINGS)
    assert (report["window"], report["reference"], report["alpha"]) == (60, 80, 0.01)
    assert report["verdicts"] == {"real": 0.75, "fake": 0.25}
    found = {statistic.pop("name"): statistic for statistic in report["statistics"]}
    assert set(found) == {"embedding", *SCALARS} and found["embedding"]["kind"] == "mmd"
    for name in SCALARS:
        assert found[name]["value"] == pytest.approx(ks_2samp(reference[name], window[name]).statistic)  # ties included
        assert found[name]["window_mean"] == pytest.approx(window[name].mean())
    for statistic in found.values():
        deals = statistic["p_value"] * (SETTINGS.permutations + 1)
        assert deals >= 1 and deals == pytest.approx(round(deals))


def test_the_smallest_p_value_is_reached_however_many_statistics_there_are():
    rng = np.random.default_rng(6)
    report = compare(sample(rng, 300), sample(rng, 300).assign(brightness=0.0), SETTINGS)
    assert report["p_value"] == pytest.approx(1 / (SETTINGS.permutations + 1))


def test_psi_counts_what_lies_outside_the_reference():
    values = np.arange(1000.0)
    assert psi(values, values) == 0
    assert psi(values, values + 100) > 0.25 and psi(values, values - 100) > 0.25
    assert psi(np.ones(100), np.zeros(100)) > 0.25


@pytest.mark.parametrize(("change", "problem"), [({"alpha": 0.001}, "smallest p-value"), ({"max_window": 60}, "below min_window")])
def test_settings_that_could_never_find_drift_are_refused(change, problem):
    content = load_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["drift"] |= {"permutations": 500, "alpha": 0.01, "min_window": 100} | change
    with pytest.raises(ParamsError, match=problem):
        check_params(content, Path("params.yaml"))
    check_params(content | {"drift": content["drift"] | {"alpha": 1 / 501, "max_window": 100}}, Path("params.yaml"))


def record(path: Path, package: str, rows: pd.DataFrame) -> PredictionLog:
    """Write rows as the service does."""
    log = PredictionLog(path)
    for row in rows.to_dict("records"):
        statistics = {name: row[name] for name in STATISTICS}
        prediction = Prediction(row["probability_fake"], "uncertain", ["too_dark"], row["embedding"], statistics)
        log.record(id=str(uuid.uuid4()), package=package, version="1", prediction=prediction)
    log.close()
    return log


def test_what_was_recorded_is_read_back(tmp_path):
    path, rows = tmp_path / "var" / FILE, sample(np.random.default_rng(7), 30)
    assert newest(path, "one", 10).empty
    for part in (rows[:20], rows[20:]):
        assert record(path, "one", part).dropped == 0
    record(path, "other", rows[:5])
    read = newest(path, "one", 1000)
    pd.testing.assert_frame_equal(read[rows.columns.tolist()].drop(columns="embedding"), rows.drop(columns="embedding"))
    np.testing.assert_array_equal(np.stack(read["embedding"]), np.stack(rows["embedding"]))
    assert read["embedding"].iloc[0].dtype == np.float32
    assert set(read["verdict"]) == {"uncertain"} and read["id"].is_unique and read["time"].is_monotonic_increasing
    assert newest(path, "one", 3)["id"].tolist() == read["id"].tolist()[-3:]
    assert len(newest(path, "other", 1000)) == 5


def test_a_record_that_cannot_be_written_drops_and_counts(tmp_path):
    (tmp_path / "file").write_text("not a database, and no folder either" * 100)
    for path in (tmp_path / "file", tmp_path / "file" / FILE):
        assert record(path, "one", sample(np.random.default_rng(8), 3)).dropped == 3


CHECKS = """
import sys
from flows.drift import drift
for _ in sys.stdin:
    state = drift(return_state=True)
    print(f"{state.name}: {state.message}", flush=True)
"""


@contextmanager
def running(folder: Path, name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in a folder; what it says goes to `<name>.out` and `<name>.log` there."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "UNMASK_", "PREFECT_API"))}
    with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Yields the address of its API."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    arguments = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(folder, "server", *arguments, PREFECT_HOME=str(folder / "prefect")) as process:
        wait_for(lambda: _healthy(url), process, str(folder / "server.log"), seconds=120)
        yield url


@contextmanager
def drift_checks(folder: Path, **environment: str) -> Iterator[Callable[[], str]]:
    """Yields a function that runs the flow `drift` in another process, and returns the name and message of its final state."""
    with running(folder, "checks", "-c", CHECKS, **environment) as process:
        states = folder / "checks.out"

        def check() -> str:
            before = states.read_text().count("\n")
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_for(lambda: states.read_text().count("\n") > before, process, str(folder / "checks.log"), seconds=120)
            return states.read_text().splitlines()[-1]

        yield check


def test_drifted_answers_start_a_training_once(tmp_path):
    rng = np.random.default_rng(9)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    package, store, var = (
        package_with_reference(tmp_path / "package", sample(rng, 300)),
        f"sqlite:///{tmp_path / 'mlflow.db'}",
        tmp_path / "var",
    )
    version = register(store, package.path, champion=False)

    with prefect_server(tmp_path) as url, temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="local", type="process"))
        deployment = train.to_deployment("train", work_pool_name="local").apply()
        automation.retrain_on_drift(uuid.uuid4())
        client.pause_automation(client.read_automations_by_name(automation.NAME)[0].id)
        automation.retrain_on_drift(deployment)
        (made,) = client.read_automations_by_name(automation.NAME)
        assert [action.deployment_id for action in made.actions] == [deployment] and not made.enabled
        client.resume_automation(made.id)

        environment = {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "MLFLOW_TRACKING_URI": store,
            "UNMASK_VAR": str(var),
        }
        with drift_checks(tmp_path, **environment) as check:
            assert check().startswith("NotEnoughData: no version of unmask is the champion")
            promote(store, version)
            assert check().startswith("StageFailed: version 1 of unmask has no tag `package`")
            mlflow.MlflowClient(store, store).set_model_version_tag("unmask", version, registry.DIGEST, package.digest)

            record(var / FILE, package.digest, sample(rng, 37))
            assert check() == "NotEnoughData: 37 of 100 answers needed: not enough data to say anything"
            record(var / FILE, package.digest, sample(rng, 100))
            assert check().startswith("NoDrift: the newest 137 answers of version 1 look like its reference")
            assert json.loads((var / "drift" / "report.json").read_text())["window"] == 137

            record(var / FILE, package.digest, sample(rng, 200).assign(brightness=10.0))
            assert check().startswith(
                "Drift: the newest 337 answers of version 1 differ from its reference (p = 0.002), above all in brightness"
            )
            wait_for(lambda: len(runs(client, deployment)) == 1)
            (run,) = runs(client, deployment)
            assert run.state is not None and run.state.is_scheduled()
            evidence = run.parameters["evidence"]
            assert run.parameters == {"reason": "drift", "evidence": evidence}
            assert evidence.pop("shifted")[0] == "brightness"
            assert evidence == {"version": 1, "window": 337, "p_value": pytest.approx(1 / 501)}
            assert {"drift", "drift-result"} <= {artifact.key for artifact in client.read_artifacts()}

            # The events come one after the other: if the second check had sent one, its run would be there before that of the third.
            assert check().startswith("Drift: the newest 337 answers")
            record(var / FILE, package.digest, sample(rng, 1))
            assert check().startswith("Drift: the newest 338 answers")
            wait_for(lambda: any(found.parameters["evidence"]["window"] == 338 for found in runs(client, deployment)))
            assert len(runs(client, deployment)) == 2


def package_with_reference(folder: Path, reference: pd.DataFrame) -> Package:
    """A package that holds nothing else."""
    folder.mkdir()
    reference.to_parquet(folder / "reference.parquet", index=False)
    thresholds = {"f1": 0.5, "fpr1": 0.9, "fpr5": 0.8, "real_below": 0.4, "fake_above": 0.6}
    about = {"created": "2026-01-01T00:00:00+00:00", "labels": {"0": "real", "1": "fake"}, "figures": {}, "lineage": {}}
    return seal(folder, {**about, "temperature": 1.0, "thresholds": thresholds})


def runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False
