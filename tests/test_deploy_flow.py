"""The flow `deploy`: what it refuses, packs, records and announces."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock

from flows import canary, cli, notifications, promotion, registry
from pipeline.detector import Detector
from pipeline.evaluation import golden
from pipeline.images import read
from pipeline.package import FACES, GOLDEN, GRAPH, Package, seal, verify
from pipeline.runtime import OpenVinoRuntime
from pipeline.settings import apply
from tests.conftest import ROOT
from tests.face_helpers import PHOTOS, YUNET, needs_photos, needs_yunet
from tests.package_helpers import META, tiny_package
from tests.service_helpers import aliases, client, promote, register, versions
from tests.webhook_helpers import received


@pytest.fixture
def messages(prefect_server, store) -> Iterator[list[dict[str, str]]]:
    """Messages sent through the block that params.yaml names."""
    with received() as (url, messages):
        body = {"fact": "{{subject}}", "text": "{{body}}"}
        CustomWebhookNotificationBlock(name="team", url=url, json_data=body).save("team", overwrite=True)
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        apply({"notifications.block": "custom-webhook/team"}, Path("params.yaml"))
        yield messages


def test_deploy_refuses_once_and_packs_what_may_be_served(store, package, messages, tmp_path):
    from flows.deploy import deploy

    for name in ("serving", "web", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("service.py", "bentofile.yaml", ".bentoignore"):
        shutil.copy(ROOT / name, tmp_path)
    versions(store, package, "passed", "failed")
    client(store).set_model_version_tag("unmask", "2", "gate.test.f1.low", "failed: 0.1000, at least 0.75")
    promote(store, "1")
    Path("models/.champion-of-a-run-that-was-killed").mkdir(parents=True)
    first = deploy(by="the test", return_state=True)
    assert first.is_completed(), first.message
    assert [path.name for path in Path("models").iterdir()] == ["champion"]
    (line,) = promotion.history()
    assert (line["version"], line["by"], line["gate"], line["bento"]) == (1, "the test", "passed", first.message)
    assert client(store).get_model_version("unmask", "1").tags["smoke_test"] == "passed"
    made = f"{client(store).get_model_version('unmask', '2').run_id} 1700000000000"  # as the service leaves it
    (Path("var") / "canary.json").write_text(json.dumps({"version": "2", "made": made, "why": "version 2 failed on 3 of 3 pictures"}))
    assert deploy(return_state=True).name == "Cached" and len(promotion.history()) == 1
    assert client(store).get_model_version("unmask", "2").tags["canary"] == "version 2 failed on 3 of 3 pictures"

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

    wrong = shutil.copytree(package, tmp_path / "wrong")
    recorded = json.loads((wrong / "golden/golden.json").read_text())
    recorded["2.png"]["probability_fake"] = 1 - recorded["2.png"]["probability_fake"] / 2
    (wrong / "golden/golden.json").write_text(json.dumps(recorded))
    seal(wrong, verify(package).meta.model_dump(exclude={"format", "files"}))
    versions(store, wrong, "passed")
    promote(store, "3")
    bentos = len(bentoml.list())
    for _ in range(2):  # the second time nothing is built
        refused = deploy(return_state=True)
        assert (
            refused.name == "Refused"
            and "version 3 did not pass its smoke test: it serves nothing" in refused.message
            and "2.png" in refused.message
        )
    assert "bento" not in client(store).get_model_version("unmask", "3").tags and len(promotion.history()) == 2
    assert len(bentoml.list()) == bentos  # what failed takes no room
    facts = ["promotion", "canary ended", "refusal", "promotion", "refusal"]
    assert [message["fact"] for message in messages] == [f"Unmask: {fact}" for fact in facts]
    assert "2.png" in messages[-1]["text"] and "by the test" in messages[0]["text"]


@needs_yunet
@needs_photos
def test_a_package_with_a_face_detector_is_deployed(store, prefect_server, tmp_path):
    from flows.deploy import deploy

    for name in ("serving", "web", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("service.py", "bentofile.yaml", ".bentoignore", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    folder = tiny_package(tmp_path / "faces")
    for number, photo in enumerate(sorted(PHOTOS.rglob("*.jpg"))[:4]):
        shutil.copy(photo, folder / GOLDEN / f"{number}.png")
    pictures = [read(path) for path in sorted((folder / GOLDEN).glob("*.png"))]
    answers = Detector(verify_as(folder, {}), OpenVinoRuntime(folder / GRAPH)).predict(pictures)
    listed = {f"{number}.png": {"label": "real", "probability_fake": answer.probability_fake} for number, answer in enumerate(answers)}
    (folder / GOLDEN / "golden.json").write_text(json.dumps(listed))
    shutil.copy(YUNET, folder / FACES)
    faces = {"trained_on": "faces", "face_margin": 0.0}
    cut_out = Detector(verify_as(folder, faces), OpenVinoRuntime(folder / GRAPH), folder / FACES).predict(pictures)
    off = max(abs(one.probability_fake - other.probability_fake) for one, other in zip(answers, cut_out, strict=True))
    assert off > 1e-4
    verify_as(folder, faces | {"golden_tolerance": off / 2})  # the faces alone do not get the recorded answers
    versions(store, folder, "passed")
    promote(store, "1")
    deployed = deploy(return_state=True)
    assert deployed.is_completed(), deployed.message


def verify_as(folder: Path, meta: dict[str, Any]) -> Package:
    """Seal a package with these values, and verify it."""
    seal(folder, META | meta)
    return verify(folder)


def test_a_roll_back_while_a_bento_is_built_is_what_stays_recorded(store, package, messages, monkeypatch):
    from flows.deploy import deploy

    def building(version: registry.Version) -> bool:
        promotion.roll_back("Ada")
        return True

    versions(store, package, "passed", "passed")
    promote(store, "1")
    promotion.record(registry.known(1))
    client(store).set_model_version_tag("unmask", "2", "bento", "unmask:two")
    promote(store, "2")
    with monkeypatch.context() as patch:
        patch.setattr("flows.deploy.is_built", building)
        assert deploy(return_state=True).name == "Superseded"
    assert aliases(store)["champion"] == "1" and messages == []
    assert [(line["version"], line["by"]) for line in promotion.history()][1:] == [(2, promotion.SOMEBODY), (1, "Ada")]


def test_after_a_roll_back_new_models_are_compared_with_the_version_that_serves_again(store, package, messages, monkeypatch, tmp_path):
    from flows.deploy import deploy

    other = shutil.copytree(package, tmp_path / "other")
    (other / "card.md").write_text("another version")
    digests = [verify(package).digest, verify_as(other, {}).digest]
    for folder, digest in zip((package, other), digests, strict=True):
        number = register(store, folder, champion=False)
        for name, value in (("gate", "passed"), ("package", digest), ("bento", "unmask:it")):
            client(store).set_model_version_tag("unmask", number, name, value)
    monkeypatch.setattr("flows.deploy.is_built", lambda _: True)
    for version in (1, 2, 1):
        promote(store, str(version))
        assert deploy(return_state=True).is_completed()
        assert golden.previous().digest == digests[version - 1]


def test_a_roll_back_while_a_promotion_is_recorded_comes_after_it(store, package, messages, monkeypatch):
    from flows.deploy import deploy

    versions(store, package, "passed", "passed")
    promote(store, "1")
    promotion.record(registry.known(1))
    client(store).set_model_version_tag("unmask", "2", "bento", "unmask:two")
    promote(store, "2")
    back = threading.Thread(target=cli.rollback)

    def meanwhile(*_: object) -> None:
        back.start()
        back.join(timeout=3)

    with monkeypatch.context() as patch:
        patch.setattr("flows.deploy.is_built", lambda _: True)
        patch.setattr(registry, "untag", meanwhile)
        assert deploy(by="Ada", return_state=True).is_completed()
    back.join()
    assert aliases(store) == {"champion": "1", "previous": "2"}
    assert [(line["version"], line["roll_back"]) for line in promotion.history()] == [(1, False), (2, False), (1, True)]


def test_a_canary_that_ended_is_announced_once(store, package, messages):
    from flows.deploy import deploy

    versions(store, package, "passed")
    made = f"{client(store).get_model_version('unmask', '1').run_id} 1700000000000"  # as the service leaves it
    Path("var").mkdir(exist_ok=True)
    (Path("var") / "canary.json").write_text(json.dumps({"version": "1", "made": made, "why": "version 1 failed on 3 of 3 pictures"}))
    canary.announce.fn({"version": "1", "made": "another run 1700000000000", "why": "of a registry that is no longer there"})
    for _ in range(2):
        assert deploy(return_state=True).name == "NoChampion"
    assert [message["fact"] for message in messages] == ["Unmask: canary ended"] and "3 of 3 pictures" in messages[0]["text"]
    assert client(store).get_model_version("unmask", "1").tags["canary"] == "version 1 failed on 3 of 3 pictures"


def test_a_message_that_cannot_be_sent_holds_nothing_up(messages, caplog):
    apply({"notifications.block": "custom-webhook/nobody"}, Path("params.yaml"))
    notifications.send("roll-back", "to version 1")
    assert not messages and "notifications.block of params.yaml" in caplog.text


@pytest.mark.parametrize("tag", ["", "no tag!", "a:b:c", "unmask:", "unmask:absent"])
def test_a_tag_that_names_no_bento_is_none_that_was_built(tag: str):
    from flows.deploy import is_built

    assert not is_built(registry.Version(1, "run", {promotion.BENTO: tag}))
