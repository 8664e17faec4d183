"""Promotion: two packages on the same images, who takes the champion's place, what is refused, the record, and the way back."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.testing.utilities import prefect_test_harness

from flows import notifications, promotion, registry
from flows.comparison import MOST, description
from pipeline import compare
from pipeline.package import Package, seal, verify
from pipeline.params import Promotion
from pipeline.settings import apply
from tests.conftest import ROOT, run
from tests.package_helpers import tiny_package
from tests.service_helpers import promote, register, served, wait_for

RUN = (sys.executable, "-m", "flows.run")


def scored(rng: np.random.Generator, labels: np.ndarray, skill: float) -> tuple[np.ndarray, float]:
    return 1 / (1 + np.exp(-(skill * (2 * labels - 1) + rng.normal(size=len(labels))))), 0.5


def test_a_better_detector_is_found_to_be_better_and_a_copy_is_not():
    rng = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 400), np.repeat(np.arange(200), 4)
    weak, strong = scored(rng, labels, 0.3), scored(rng, labels, 1.5)
    better = compare.difference(labels, groups, strong, weak, 300, 7)
    for name in ("f1", "auc"):
        gap = better[name]["difference"]
        assert gap["value"] == pytest.approx(better[name]["challenger"] - better[name]["champion"], abs=2e-5)
        assert 0 < gap["low"] < gap["value"] < gap["high"]
        assert compare.difference(labels, groups, weak, strong, 300, 7)[name]["difference"]["high"] < 0
        assert compare.difference(labels, groups, weak, weak, 300, 7)[name]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_the_interval_is_paired_and_drawn_by_groups():
    rng = np.random.default_rng(1)
    labels, groups = np.tile([0, 1], 400), np.repeat(np.arange(40), 20)
    hard = np.repeat(rng.normal(size=40), 20) * (1 - 2 * labels)  # what is hard in a group is hard for both
    one, other = ((1 / (1 + np.exp(-((2 * labels - 1) + hard + 0.2 * rng.normal(size=800)))), 0.5) for _ in range(2))
    gap = compare.difference(labels, groups, one, other, 500, 7)["auc"]["difference"]
    for side in (one, other):
        alone = compare.difference(labels, groups, side, (labels * 1.0, 0.5), 500, 7)["auc"]["difference"]
        assert gap["high"] - gap["low"] < 0.5 * (alone["high"] - alone["low"])
    # The same images twice, in the same groups, say nothing more.
    twice = [(np.repeat(side[0], 2), 0.5) for side in (one, other)]
    again = compare.difference(np.repeat(labels, 2), np.repeat(groups, 2), twice[0], twice[1], 500, 7)
    assert again["auc"]["difference"] == pytest.approx(gap, abs=2e-5)


def test_of_one_class_there_is_no_difference_in_auc():
    labels = np.ones(20, int)
    side = (np.linspace(0, 1, 20), 0.5)
    found = compare.difference(labels, np.arange(20), side, side, 100, 7)
    assert found["auc"] == {"challenger": None, "champion": None, "difference": {"value": None, "low": None, "high": None}}
    assert found["f1"]["difference"]["value"] == 0


def comparison(f1: float | None, auc: float | None) -> dict:
    """One whose intervals begin at these values."""
    figures = {"f1": f1, "auc": auc}
    part = {
        name: {"challenger": 0.9, "champion": 0.8, "difference": {"value": 0.1, "low": low, "high": 0.2}} for name, low in figures.items()
    }
    return {"champion": {"version": "3"}, "parts": {"test": {"n": 10, "groups": 5, **part}}}


@pytest.mark.parametrize(
    ("auto", "lows", "promoted"),
    [
        ("never", (0.1, 0.1), False),
        ("if_better", (0.001, 0.001), True),
        ("if_better", (0.001, 0.0), False),
        ("if_better", (-0.01, 0.1), False),
        ("if_better", (0.1, None), False),
        ("if_not_worse", (-0.01, -0.01), True),
        ("if_not_worse", (-0.01, -0.02), False),
    ],
)
def test_the_policy_asks_for_the_lower_bounds_of_both_figures(auto, lows, promoted):
    why = promotion.earned(Promotion(auto=auto, margin=0.02), comparison(*lows))
    assert (why is not None) == promoted
    assert not promoted or (auto in why and "version 3" in why)
    assert promotion.earned(Promotion(auto=auto, margin=0.02), None) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return Path(tiny_package(tmp_path_factory.mktemp("packages") / "tiny"))


@pytest.fixture
def store(tmp_path, monkeypatch) -> str:
    """An empty MLflow of the test's own, in its folder."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("UNMASK_VAR", str(tmp_path / "var"))
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return uri


def versions(store: str, package: Path, *gates: str) -> None:
    """Register the package once for each gate."""
    for gate in gates:
        number = register(store, package, champion=False)
        client(store).set_model_version_tag("unmask", number, "gate", gate)
        client(store).set_model_version_tag("unmask", number, "package", f"digest {number}")


def client(store: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(store, store)


def aliases(store: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client(store).get_registered_model("unmask").aliases.items()}


def unmask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], text=True, capture_output=True, env=dict(os.environ))


def test_rollback_restores_the_version_before_and_says_so(store, tiny, tmp_path, monkeypatch):
    with served(tmp_path, MLFLOW_TRACKING_URI=store, PYTHONPATH=str(ROOT)) as service:
        monkeypatch.setenv("SERVICE_PORT", str(service.base_url.port))
        nothing = json.loads(unmask("status", "--json").stdout)
        assert nothing["served"]["version"] is None and nothing["champion"] is None and nothing["last_promotion"] is None

        versions(store, tiny, "passed", "passed", "failed")
        promote(store, "1")
        promotion.record(registry.known(1), "the test")
        alone = unmask("rollback")
        assert alone.returncode == 1 and alone.stderr.startswith("error: there is no version to go back to") and not alone.stdout

        promote(store, "2")  # in MLflow, and no flow has run since
        wait_for(lambda: service.get("/readyz").json().get("version") == "2")
        back = unmask("rollback", "--json")
        assert back.returncode == 0, back.stderr
        assert {name: json.loads(back.stdout)[name] for name in ("from", "to")} == {"from": 2, "to": 1}
        assert aliases(store) == {"champion": "1", "previous": "2"}
        wait_for(lambda: service.get("/readyz").json()["version"] == "1", seconds=10)

        assert [(line["version"], line["previous"]) for line in promotion.history()] == [(1, None), (2, 1), (1, 2)]
        assert [line["by"] for line in promotion.history()][:2] == ["the test", promotion.SOMEBODY]
        assert promotion.history()[-1]["by"].endswith(", unmask rollback")
        found = json.loads(unmask("status", "--json").stdout)
        assert found["champion"]["version"] == 1 and found["previous"]["version"] == 2 and found["served"]["version"] == "1"
        assert found["last_promotion"] == promotion.history()[-1] and found["last_run"]["gate"] == "failed"
        promote(store, "3")  # which failed its gate: the service says so, and goes on
        wait_for(lambda: "did not pass its gate" in (service.get("/readyz").json()["trouble"] or ""), seconds=10)
        assert service.get("/readyz").json()["version"] == "1"
        assert "REFUSED: version 3 did not pass its gate" in unmask("status").stdout
        promote(store, "1")
        screen = unmask("status").stdout
        for text in ("version 1, gate passed", "data version", "last drift check  none yet", "unmask rollback"):
            assert text in screen, screen


def test_rollback_leaves_a_refused_champion_and_never_goes_to_one(store, tiny):
    versions(store, tiny, "passed", "passed", "failed")
    for number in (1, 2):
        promote(store, str(number))
        promotion.record(registry.known(number))
    promote(store, "3")
    assert promotion.roll_back("me") == {"from": 3, "to": 2}
    assert aliases(store) == {"champion": "2", "previous": "1"}
    client(store).set_model_version_tag("unmask", "1", "gate", "failed")
    with pytest.raises(promotion.StageError, match="version 1 did not pass its gate"):
        promotion.roll_back("me")
    assert aliases(store)["champion"] == "2"
    client(store).delete_model_version("unmask", "1")
    with pytest.raises(promotion.StageError, match="no version to go back to"):
        promotion.roll_back("me")


def test_an_override_names_who_and_why(store, tiny):
    versions(store, tiny, "failed")
    for override, may in ((None, False), ("yes", False), ("Ada:", False), (": because", False), ("Ada: the test set is wrong", True)):
        if override is not None:
            client(store).set_model_version_tag("unmask", "1", promotion.OVERRIDE, override)
        reason = promotion.obstacle(registry.known(1))
        assert (reason is None) == may
        assert may or override is None or "`who: why`" in reason


def test_the_record_survives_a_registry_that_was_made_anew(store, tiny):
    versions(store, tiny, "passed", "passed")
    promotion.record(registry.known(1))
    client(store).set_model_version_tag("unmask", "1", "package", "another")
    line = promotion.record(registry.known(2))
    assert line is not None and line["previous"] is None and "previous" not in aliases(store)
    with (Path("var") / "promotions.jsonl").open("a") as file:
        file.write('{"version": 2, "pa')
    assert promotion.record(registry.known(2)) is None


@pytest.fixture(scope="module")
def harness():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def messages(harness, store) -> Iterator[list[dict[str, str]]]:
    """What is sent through the block that params.yaml names."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = {"fact": "{{subject}}", "text": "{{body}}"}
    CustomWebhookNotificationBlock(name="team", url=f"http://127.0.0.1:{server.server_port}/", json_data=body).save("team", overwrite=True)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    apply({"notifications.block": "custom-webhook/team"}, Path("params.yaml"))
    yield received
    server.shutdown()
    server.server_close()


def test_deploy_refuses_once_and_packs_what_may_be_served(store, tiny, messages, tmp_path):
    from flows.deploy import deploy

    for name in ("serving", "web", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("service.py", "bentofile.yaml", ".bentoignore"):
        shutil.copy(ROOT / name, tmp_path)
    versions(store, tiny, "passed", "failed")
    client(store).set_model_version_tag("unmask", "2", "gate.test.f1.low", "failed: 0.1000, at least 0.75")
    promote(store, "1")
    first = deploy(by="the test", return_state=True)
    assert first.is_completed(), first.message
    (line,) = promotion.history()
    assert (line["version"], line["by"], line["gate"], line["bento"]) == (1, "the test", "passed", first.message)
    assert client(store).get_model_version("unmask", "1").tags["smoke_test"] == "passed"
    assert deploy(return_state=True).name == "Cached" and len(promotion.history()) == 1

    promote(store, "2")
    for _ in range(2):
        refused = deploy(return_state=True)
        assert refused.name == "Refused" and "test.f1.low failed: 0.1000, at least 0.75" in refused.message
    assert client(store).get_model_version("unmask", "2").tags["refused"] == refused.message
    assert aliases(store)["champion"] == "2" and len(promotion.history()) == 1

    client(store).set_model_version_tag("unmask", "2", promotion.OVERRIDE, "Ada: the gate is older than the test set")
    client(store).set_model_version_tag("unmask", "2", "bento", first.message)  # the same package
    allowed = deploy(return_state=True)
    assert allowed.is_completed(), allowed.message
    assert "refused" not in client(store).get_model_version("unmask", "2").tags
    assert aliases(store) == {"champion": "2", "previous": "1"}
    line = promotion.history()[-1]
    assert (line["version"], line["previous"], line["gate_override"]) == (2, 1, "Ada: the gate is older than the test set")

    wrong = shutil.copytree(tiny, tmp_path / "wrong")
    golden = json.loads((wrong / "golden/golden.json").read_text())
    golden["2.png"]["probability_fake"] = 1 - golden["2.png"]["probability_fake"] / 2
    (wrong / "golden/golden.json").write_text(json.dumps(golden))
    seal(wrong, verify(tiny).meta.model_dump(exclude={"format", "files"}))
    versions(store, wrong, "passed")
    promote(store, "3")
    for _ in range(2):  # the second time nothing is built
        refused = deploy(return_state=True)
        assert refused.name == "Refused" and "version 3 did not pass its smoke test: 2.png: it says" in refused.message
    assert "bento" not in client(store).get_model_version("unmask", "3").tags and len(promotion.history()) == 2
    facts = ["promotion", "refusal", "promotion", "refusal"]
    assert [message["fact"] for message in messages] == [f"Unmask: {fact}" for fact in facts]
    assert "2.png" in messages[-1]["text"] and "by the test" in messages[0]["text"]


def test_a_message_that_cannot_be_sent_holds_nothing_up(messages, caplog):
    apply({"notifications.block": "custom-webhook/nobody"}, Path("params.yaml"))
    notifications.send("roll-back", "to version 1")
    assert not messages and "notifications.block of params.yaml" in caplog.text


def test_a_long_card_is_cut_where_mlflow_has_no_more_room(tiny, tmp_path):
    (tmp_path / "card.md").write_text("a line of the card\n" * 1000)
    text = description(registry.Version(1, "run", {}), Package(tmp_path, verify(tiny).meta), "| a table |")
    assert len(text) <= MOST and "| a table |" in text and text.endswith("The rest: artifact `package/card.md`.")


@pytest.fixture(scope="module")
def workspace(finished: Path, copy_workspace, tmp_path_factory) -> Iterator[Path]:
    """A workspace whose version 1 is the champion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        patch.delenv("PREFECT_API_URL", raising=False)
        folder = copy_workspace(finished)
        run(folder, *RUN)
        yield folder


@pytest.mark.long
def test_a_new_version_is_compared_with_the_champion_and_its_page_shows_it(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    assert json.loads((workspace / "var/promotions.jsonl").read_text())["by"].startswith("make run")
    assert "model card" in client(store).get_model_version("unmask", "1").description
    assert not (workspace / "reports/comparison.json").exists()

    apply({"export.golden": 3}, workspace / "params.yaml")
    run(workspace, *RUN)
    version = client(store).get_model_version("unmask", "2")
    report = json.loads((workspace / "reports/comparison.json").read_text())
    assert report["champion"]["version"] == "1" and set(report["parts"]) == {"test", "unseen", "golden"}
    assert report["challenger"]["package"] == verify(workspace / "models/package").digest
    evaluation = json.loads((workspace / "reports/evaluation.json").read_text())
    assert report["parts"]["test"]["n"] == evaluation["n"]
    # The detector that serves judges as evaluation did.
    assert report["parts"]["test"]["auc"]["challenger"] == pytest.approx(evaluation["test"]["auc"]["value"], abs=1e-4)
    assert report["parts"]["golden"]["n"] in range(6, 11)
    assert version.tags["compared_with"] == "1" and version.tags["difference.test.f1"] == "+0.0000 (+0.0000 to +0.0000)"
    for text in ("champion, version 1", "| golden, ", "reports/evaluation.html", version.run_id, "model card"):
        assert text in version.description, text
    artifacts = {artifact.path for artifact in client(store).list_artifacts(version.run_id, "reports")}
    assert {"reports/comparison.json", "reports/comparison.md"} <= artifacts
    assert aliases(store) == {"champion": "1", "challenger": "2"}
    assert "compare: package of" not in run(workspace, *RUN)  # nothing is judged twice


@pytest.mark.long
def test_where_the_settings_say_so_a_version_that_is_not_worse_takes_over(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    apply({"promotion.auto": "if_not_worse", "promotion.margin": 0.1, "export.golden": 4}, workspace / "params.yaml")
    printed = run(workspace, *RUN)
    assert "promotion.auto: if_not_worse" in printed
    assert aliases(store) == {"champion": "3", "challenger": "3", "previous": "1"}
    line = json.loads((workspace / "var/promotions.jsonl").read_text().splitlines()[-1])
    assert (line["version"], line["previous"], line["gate"]) == (3, 1, "passed") and line["by"].startswith("the flow train, promotion.auto")
    assert line["bento"] == client(store).get_model_version("unmask", "3").tags["bento"]


@pytest.mark.long
def test_a_champion_that_cannot_be_compared_with_holds_nothing_up(workspace: Path):
    store = f"sqlite:///{workspace / 'mlflow.db'}"
    shutil.rmtree(next((workspace / "mlartifacts").glob(f"{client(store).get_model_version('unmask', '3').run_id}/artifacts/package")))
    apply({"export.golden": 5}, workspace / "params.yaml")
    printed = run(workspace, *RUN)
    assert "not compared with the champion, version 3" in printed
    assert client(store).get_model_version("unmask", "4").tags["gate"] == "passed"
    assert aliases(store)["champion"] == "3" and not (workspace / "reports/comparison.json").exists()
