"""A challenger beside the champion: clients never see a shadow; a canary answers a share, until it goes wrong."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.champion import Challenger, Champion
from pipeline.champion_source import STOPPED, Registry
from pipeline.errors import StageError
from pipeline.monitoring import predictions, shadow
from pipeline.package import GOLDEN, seal, verify
from serving.guard import Guard
from serving.settings import Settings
from tests.package_helpers import META, tiny_package
from tests.service_helpers import promote, register, served, wait_for

CANARY = {"UNMASK_CHALLENGER": "canary", "UNMASK_CHALLENGER_SHARE": "0.3", "UNMASK_CANARY_LEAST": "20"}
ALWAYS = {"real": {"real_below": 1.0, "fake_above": 1.0}, "fake": {"real_below": 0.0, "fake_above": 0.0}}


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> dict[str, Path]:
    """Networks that call every image `real` or `fake`, and one that loads but fails on every image."""
    folder = tmp_path_factory.mktemp("packages")
    made = {name: tiny_package(folder / name / "package", thresholds=META["thresholds"] | bounds) for name, bounds in ALWAYS.items()}
    made["broken"] = folder / "broken" / "package"
    shutil.copytree(made["real"], made["broken"])
    (made["broken"] / GOLDEN / "golden.json").write_text("{}")
    preprocess = json.loads((made["broken"] / "preprocess.json").read_text())
    (made["broken"] / "preprocess.json").write_text(json.dumps(preprocess | {"size": 48}))
    seal(made["broken"], META)
    return made


def challenge(store: str, package: Path) -> str:
    """Register a package as the challenger. Returns its version."""
    version = register(store, package, champion=False)
    mlflow.MlflowClient(store, store).set_registered_model_alias("unmask", "challenger", version)
    return version


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def predict(client: httpx.Client, number: int) -> dict:
    return dict(client.post("/predict", files={"image": picture(number)}).raise_for_status().json())


def metric(client: httpx.Client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


@contextmanager
def service(folder: Path, **environment: str) -> Iterator[httpx.Client]:
    with served(folder, **environment) as client:
        wait_for(lambda: client.get("/readyz").is_success and client.get("/model").json()["challenger"]["version"])
        yield client


def challenger(client: httpx.Client) -> dict:
    return dict(client.get("/model").json()["challenger"])


def test_in_the_shadow_the_challenger_is_recorded_and_never_heard(tmp_path, packages, new_store):
    store = new_store()
    register(store, packages["real"])
    challenge(store, packages["fake"])
    with service(tmp_path, UNMASK_CHALLENGER="shadow", UNMASK_CHALLENGER_SHARE="0.5") as client:
        answers = [predict(client, number) for number in range(40)]
        assert {(answer["model"]["version"], answer["verdict"]) for answer in answers} == {("1", "real")}
        log, digest = tmp_path / "var" / predictions.FILE, verify(packages["real"]).digest
        judged = 'unmask_shadow_total{outcome="judged"}'  # on a busy machine some are dropped
        wait_for(lambda: metric(client, judged) == len(predictions.shadow_pairs(log, digest, 100)) > 3)
        both, ids = predictions.shadow_pairs(log, digest, 100), {answer["id"] for answer in answers}
        assert set(both["id"]) < ids
        assert set(both["challenger_verdict"]) == {"fake"} and set(both["version"]) == {"2"}
        assert len(predictions.newest(log, digest, 100)) == 40  # the drift check's window has the champion's answers alone
        assert challenger(client) == {"version": "2", "mode": "shadow", "share": 0.5, "ended": None, "trouble": None}

        challenge(store, packages["broken"])
        wait_for(lambda: challenger(client)["version"] == "3")
        assert {predict(client, number)["model"]["version"] for number in range(20)} == {"1"}
        wait_for(lambda: metric(client, 'unmask_shadow_total{outcome="failed"}') > 0)
    predictions.forget(log, ids)
    assert predictions.shadow_pairs(log, digest, 100).empty


def test_a_canary_answers_its_share_and_ends_when_it_goes_wrong(tmp_path, packages, new_store):
    store = new_store()
    register(store, packages["real"])
    challenge(store, packages["real"])
    (tmp_path / "var").mkdir()
    # Of another registry, whose version 2 was another one.
    (tmp_path / "var" / STOPPED).write_text(json.dumps({"version": "2", "made": "elsewhere", "why": "it failed"}))
    with service(tmp_path, **CANARY) as client:
        answers = [predict(client, number) for number in range(60)]
        versions = [answer["model"]["version"] for answer in answers]
        assert 5 < versions.count("2") < 30 and versions.count("1") + versions.count("2") == 60
        assert [predict(client, number)["model"]["version"] for number in range(10)] == versions[:10]
        files = [("images", picture(number)) for number in range(10)]
        batch = client.post("/predict/batch", files=files).json()["results"]
        assert [item["result"]["model"]["version"] for item in batch] == versions[:10]
        seen = [client.post("/explain", files={"image": picture(number)}).json()["model"]["version"] for number in range(4)]
        assert seen == versions[:4]
        for number in range(20):  # what cannot be read is the client's mistake, not the challenger's
            assert client.post("/predict", files={"image": b"no picture %d" % number}).is_client_error
        assert challenger(client)["share"] == 0.3 and metric(client, "unmask_challenger_share") == 0.3

        challenge(store, packages["fake"])
        wait_for(lambda: challenger(client)["version"] == "3")
        assert until_it_ends(client) >= 20
        assert "version 3 calls" in challenger(client)["ended"] and challenger(client)["share"] == 0
        assert {predict(client, number)["model"]["version"] for number in range(20)} == {"1"}
        assert client.get("/readyz").json() == {"ready": True, "version": "1", "trouble": None}
        assert metric(client, "unmask_canaries_ended_total") == 1 and metric(client, "unmask_challenger_share") == 0
        assert "the canary has ended" in (tmp_path / "service.log").read_text()

        (tmp_path / "var" / STOPPED).unlink()
        assert challenger(client)["ended"] is None
        assert until_it_ends(client) >= 20  # its old counts are cleared

        challenge(store, packages["broken"])
        wait_for(lambda: challenger(client)["version"] == "4")
        assert challenger(client)["ended"] is None
        assert {predict(client, number)["model"]["version"] for number in range(20)} == {"1"}
        assert challenger(client)["ended"] == "version 4 failed on 3 of 3 pictures"
        assert metric(client, "unmask_canary_failures_total") == 3


@pytest.mark.long
def test_a_canary_that_ended_does_not_begin_again_with_the_service(tmp_path, packages, new_store):
    store = new_store()
    register(store, packages["real"])
    challenge(store, packages["fake"])
    with service(tmp_path, **CANARY) as client:
        until_it_ends(client)
        why = challenger(client)["ended"]
    with service(tmp_path, **CANARY) as client:
        assert challenger(client)["ended"] == why
        assert {predict(client, number)["verdict"] for number in range(20)} == {"real"}
        (tmp_path / "var" / STOPPED).unlink()
        assert {predict(client, number)["verdict"] for number in range(20)} == {"real", "fake"}


def until_it_ends(client: httpx.Client) -> int:
    """Send images until the canary has ended. Returns how many were called fake."""
    seen: list[str] = []
    while challenger(client)["ended"] is None:
        seen.append(predict(client, 1000 + len(seen))["verdict"])
        assert len(seen) < 200
    return seen.count("fake")


def test_the_challenger_is_followed_until_it_is_the_champion(tmp_path, packages, new_store, monkeypatch):
    store = new_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    register(store, packages["real"])
    champion = Champion(Registry(store, tmp_path / "served"))
    other = Challenger(champion, tmp_path)

    def look() -> tuple[str | None, str | None]:
        champion.refresh()
        other.refresh()
        return champion.served and champion.served.version, other.served and other.served.version

    assert look() == ("1", None) and other.trouble is None
    version = challenge(store, packages["fake"])
    assert look() == ("1", version)
    promote(store, version)
    assert look() == (version, None)
    promote(store, "1")
    assert look() == ("1", version)
    mlflow.MlflowClient(store, store).set_registered_model_alias("unmask", "challenger", "1")
    assert look() == ("1", None)


def test_the_guard_keeps_its_word_about_false_alarms_and_finds_a_shift():
    def ended_after(ours: float, theirs: float, shift: float, rng: np.random.Generator, pictures: int = 4000) -> int | None:
        guard = Guard(shift=shift, alpha=0.05, least=50)
        for number, (draw, lot) in enumerate(rng.random((pictures, 2))):
            guard.note(lot, bool(lot < 0.5), "fake" if draw < (ours if lot < 0.5 else theirs) else "real")
            if guard.check():
                return number
        return None

    rng = np.random.default_rng(0)
    assert sum(ended_after(0.3, 0.3, 0.0, rng) is not None for _ in range(100)) <= 10  # at most 5 expected; more than 10 once in 100 runs
    assert all(ended_after(0.39, 0.3, 0.1, rng) is None for _ in range(10))
    assert all((ended_after(0.8, 0.3, 0.1, rng) or 4000) < 300 for _ in range(10))
    assert ended_after(0.5, 0.3, 0.1, rng, 20_000) is not None


def test_a_picture_that_is_sent_again_and_again_ends_no_canary():
    guard = Guard(shift=0.0, alpha=0.05, least=20)
    for _ in range(1000):
        guard.note(0.1, True, "fake")
        guard.note(0.9, False, "real")
    assert guard.check() is None


def test_a_few_failures_among_many_pictures_end_no_canary():
    guard = Guard(shift=1.0, alpha=0.05, least=20)
    for lot in range(297):
        guard.note(lot / 297, True, "real")
    for _ in range(3):
        guard.failed()
    assert guard.check() is None  # exactly 1%
    guard.failed()
    assert guard.check() == "failed on 4 of 301 pictures"


def test_a_canary_needs_a_champion_to_compare_with():
    with pytest.raises(StageError, match=r"UNMASK_CHALLENGER_SHARE.*compared with the champion on the rest"):
        Settings.from_environment({"UNMASK_CHALLENGER": "canary", "UNMASK_CHALLENGER_SHARE": "1"})
    assert Settings.from_environment({"UNMASK_CHALLENGER": "shadow", "UNMASK_CHALLENGER_SHARE": "1"}).challenger_share == 1


def test_the_shadow_is_summed_up_with_what_users_said():
    rows = [("a", "real", "fake"), ("b", "real", "fake"), ("c", "fake", "fake"), ("d", "real", "uncertain"), ("e", "fake", "fake")]
    both = pd.DataFrame(
        [(id, "7", ours, place / 8, theirs, place / 8 + 0.25) for place, (id, ours, theirs) in enumerate(rows)],
        columns=["id", "version", "verdict", "probability_fake", "challenger_verdict", "challenger_probability_fake"],
    )
    found = shadow.compared(both, {"a": 1, "b": 1, "c": 1, "d": 0, "somebody else's": 1})
    assert found is not None and (found["version"], found["n"], found["agreement"], found["difference"]) == ("7", 5, 0.4, 0.25)
    assert found["verdicts"]["real"] == {"real": 0, "fake": 2, "uncertain": 1}
    assert found["labelled"] == {"n": 4, "champion": 2, "challenger": 3, "p_value": 1.0}
    often = pd.concat([both.iloc[[0]].assign(id=f"again {time}") for time in range(20)])  # one picture that 20 users asked about
    found = shadow.compared(often, dict.fromkeys(often["id"], 1))
    assert found is not None and found["labelled"] == {"n": 20, "champion": 0, "challenger": 20, "p_value": 1.0}
    assert shadow.compared(both.head(0), {}) is None
