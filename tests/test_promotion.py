"""Promotion: which version becomes champion, the record, and the roll-back."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli, promotion, registry
from flows.run import verdict
from pipeline.params import Promotion
from tests.conftest import ROOT
from tests.service_helpers import aliases, client, promote, served, versions, wait_for


def comparison(f1: float | None, auc: float | None, champion: str = "3") -> dict:
    """A comparison with this version, whose intervals start at these values."""
    figures = {"f1": f1, "auc": auc}
    part = {
        name: {"challenger": 0.9, "champion": 0.8, "difference": {"value": 0.1, "low": low, "high": 0.2}} for name, low in figures.items()
    }
    return {"champion": {"version": champion}, "parts": {"test": {"n": 10, "groups": 5, **part}}}


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
def test_the_policy_asks_for_the_lower_bounds_of_both_figures(auto, lows, promoted, tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_VAR", str(tmp_path))
    monkeypatch.setattr(registry, "holder", {"champion": registry.Version(3, "run", {})}.get)
    challenger = registry.Version(4, "run", {"package": "digest 4", "gate": "passed"})
    why = promotion.auto_reason(Promotion(auto=auto, margin=0.02), comparison(*lows), challenger)
    assert (why is not None) == promoted
    assert not promoted or (auto in why and "version 3" in why)
    assert promotion.auto_reason(Promotion(auto=auto, margin=0.02), None, challenger) is None
    failed = registry.Version(4, "run", {"package": "digest 4", "gate": "failed"})
    assert promotion.auto_reason(Promotion(auto=auto, margin=0.02), comparison(*lows), failed) is None


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Output of `unmask status`, called in this process: another one would import for five seconds each time."""

    def show(*arguments: str) -> str:
        cli.main(["status", *arguments])
        return capsys.readouterr().out

    return show


def rollback(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "rollback", *arguments]
    return subprocess.run(command, text=True, capture_output=True, env=dict(os.environ))


def test_rollback_restores_the_version_before_and_says_so(store, package, tmp_path, monkeypatch, status):
    with served(tmp_path, MLFLOW_TRACKING_URI=store, PYTHONPATH=str(ROOT)) as service:
        monkeypatch.setenv("SERVICE_PORT", str(service.base_url.port))
        nothing = json.loads(status("--json"))
        assert nothing["served"]["version"] is None and nothing["champion"] is None and nothing["last_promotion"] is None

        versions(store, package, "passed", "passed", "failed")
        promote(store, "1")
        promotion.record(registry.known(1), "the test")
        with pytest.raises(SystemExit, match=r"^error: there is no version to roll back to"):
            cli.main(["rollback"])

        promote(store, "2")  # in MLflow, and no flow has run since
        wait_for(lambda: service.get("/readyz").json().get("version") == "2")
        back = rollback("--json")
        assert back.returncode == 0, back.stderr
        assert {name: json.loads(back.stdout)[name] for name in ("from", "to")} == {"from": 2, "to": 1}
        assert aliases(store) == {"champion": "1", "previous": "2"}
        wait_for(lambda: service.get("/readyz").json()["version"] == "1", seconds=10)

        assert [(line["version"], line["previous"]) for line in promotion.history()] == [(1, None), (2, 1), (1, 2)]
        assert [line["by"] for line in promotion.history()][:2] == ["the test", promotion.SOMEBODY]
        assert promotion.history()[-1]["by"].endswith(", unmask rollback")
        found = json.loads(status("--json"))
        assert found["champion"]["version"] == 1 and found["previous"]["version"] == 2 and found["served"]["version"] == "1"
        assert found["last_promotion"] == promotion.history()[-1] and found["last_run"]["gate"] == "failed"
        promote(store, "3")  # it failed its gate: the service says so, and keeps the old one
        wait_for(lambda: "did not pass its gate" in (service.get("/readyz").json()["trouble"] or ""), seconds=10)
        assert service.get("/readyz").json()["version"] == "1"
        assert "REFUSED: version 3 did not pass its gate" in status()
        promote(store, "1")
        screen = status()
        for text in ("version 1, gate passed", "data version", "last drift check  none yet", "unmask rollback"):
            assert text in screen, screen


@pytest.mark.parametrize("report", ['{"version": 1, "drift": true}', "[]", "cut o"])
def test_a_drift_report_that_this_release_does_not_know_hides_nothing_else(store, status, report):
    (Path("var") / "drift").mkdir(parents=True)
    (Path("var") / "drift/report.json").write_text(report)
    assert "last drift check  none yet" in status()


@pytest.mark.parametrize("answer", [b"[]", b'"well"', b"no JSON", b"{}"])
def test_another_program_on_the_services_port_is_told_from_the_service(monkeypatch, answer):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(answer))
    found = cli.served()
    assert found["version"] is None and "does not answer" in found["trouble"]


def test_rollback_leaves_a_refused_champion_and_never_goes_to_one(store, package):
    versions(store, package, "passed", "passed", "failed")
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
    with pytest.raises(promotion.StageError, match="no version to roll back to"):
        promotion.roll_back("me")


def test_a_second_roll_back_goes_further_back_and_not_forth(store, package):
    versions(store, package, *["passed"] * 3)
    for number in (1, 2, 3):
        promote(store, str(number))
        promotion.record(registry.known(number))
    assert promotion.roll_back("me") == {"from": 3, "to": 2}
    assert promotion.roll_back("me") == {"from": 2, "to": 1}
    with pytest.raises(promotion.StageError, match="no version to roll back to"):
        promotion.roll_back("me")
    promote(store, "2")  # somebody wants it after all
    promotion.record(registry.known(2))
    promote(store, "3")
    assert promotion.roll_back("me") == {"from": 3, "to": 2}
    assert promotion.roll_back("me") == {"from": 2, "to": 1}
    assert [line["roll_back"] for line in promotion.history()] == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2


def test_a_roll_back_after_somebody_took_the_alias_away_goes_to_the_version_before(store, package):
    versions(store, package, "passed", "passed")
    for number in (1, 2):
        promote(store, str(number))
        promotion.record(registry.known(number))
    client(store).delete_registered_model_alias("unmask", "champion")
    assert promotion.roll_back("me") == {"from": None, "to": 1}
    client(store).delete_registered_model_alias("unmask", "champion")
    with pytest.raises(promotion.StageError, match="no version to roll back to"):
        promotion.roll_back("me")
    assert "champion" not in aliases(store)


def test_a_version_that_was_taken_back_is_not_promoted_again_by_itself(store, package):
    versions(store, package, "passed", "passed", "passed")
    for number in (1, 2):
        promote(store, str(number))
        promotion.record(registry.known(number))
    promotion.roll_back("me")
    better = Promotion(auto="if_better", margin=0.02)
    assert promotion.auto_reason(better, comparison(0.1, 0.1, "1"), registry.known(2)) is None
    assert promotion.auto_reason(better, comparison(0.1, 0.1, "1"), registry.known(3)) is not None


def test_no_run_gives_back_an_alias_that_somebody_took_away(store, package):
    versions(store, package, "failed", "passed", "passed")
    assert [promotion.is_first(registry.known(number)) for number in (1, 2)] == [False, True]
    promote(store, "2")
    assert not promotion.is_first(registry.known(3))
    promotion.record(registry.known(2))
    client(store).delete_registered_model_alias("unmask", "champion")
    assert not any(promotion.is_first(registry.known(number)) for number in (2, 3))


def test_an_override_names_who_and_why(store, package):
    versions(store, package, "failed")
    for override, may in ((None, False), ("yes", False), ("Ada:", False), (": because", False), ("Ada: the test set is wrong", True)):
        if override is not None:
            client(store).set_model_version_tag("unmask", "1", promotion.OVERRIDE, override)
        reason = promotion.obstacle(registry.known(1))
        assert (reason is None) == may
        assert may or override is None or "`who: why`" in reason


def test_what_failed_beside_the_gate_is_not_called_a_gate():
    tags = {"gate": "passed", "gate.test.f1.low": "passed: 0.8, at least 0.75", "smoke_test": "failed: it does not start"}
    assert verdict(registry.Version(1, "run", tags)) == "passed"
    failed = tags | {"gate": "failed", "gate.test.f1.low": "failed: 0.7, at least 0.75"}
    assert verdict(registry.Version(1, "run", failed)) == "failed: test.f1.low 0.7, at least 0.75"


def test_the_record_survives_a_registry_that_was_made_anew(store, package):
    versions(store, package, "passed", "passed")
    promotion.record(registry.known(1))
    client(store).set_model_version_tag("unmask", "1", "package", "another")
    line = promotion.record(registry.known(2))
    assert line is not None and line["previous"] is None and "previous" not in aliases(store)
    with (Path("var") / "promotions.jsonl").open("a") as file:
        file.write('{"version": 2, "pa')
    assert promotion.record(registry.known(2)) is None


def test_what_was_compared_with_one_champion_takes_the_place_of_no_other(store, package):
    better, compared = Promotion(auto="if_better", margin=0.02), comparison(0.1, 0.1)
    versions(store, package, *["passed"] * 4)
    challenger = registry.known(4)
    assert promotion.auto_reason(better, compared, challenger) is None
    promote(store, "3")
    assert promotion.auto_reason(better, compared, challenger) is not None
    promote(store, "2")  # somebody goes back during the comparison with version 3
    assert promotion.auto_reason(better, compared, challenger) is None
