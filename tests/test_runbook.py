"""Executes every block of docs/runbook.md, as it is, in a small workspace with all servers running.

The blocks run in the order of the document. Commands that cannot run here are replaced by STAND_INS (tests/runbook_helpers.py), and
placeholders (a version, an answer, an address) by real values.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from flows.monitoring import MONITORING
from pipeline.monitoring import feedback, predictions
from pipeline.package import verify
from tests.conftest import ROOT, SMALL
from tests.data_helpers import picture
from tests.drift_helpers import record
from tests.fault_helpers import Machine
from tests.runbook_helpers import Site
from tests.service_helpers import aliases, client, wait_for
from tests.webhook_helpers import received

pytestmark = pytest.mark.long

TEXT = (ROOT / "docs/runbook.md").read_text()
BLOCKS: dict[str, str] = {}
"""Heading -> its bash block; the second one in a section is `heading, 2`."""

for part in re.split(r"^#+ ", TEXT, flags=re.MULTILINE)[1:]:
    for number, found in enumerate(re.findall(r"^```bash\n(.*?)^```$", part, re.DOTALL | re.MULTILINE), 1):
        BLOCKS[part.partition("\n")[0] + (f", {number}" if number > 1 else "")] = found


@pytest.fixture(scope="module")
def site(finished, copy_workspace, tmp_path_factory) -> Iterator[Site]:
    machine = Machine(copy_workspace(finished), tmp_path_factory.mktemp("homes"))
    shutil.copy(ROOT / "Makefile", machine.folder)
    (machine.folder / ".venv").symlink_to(sys.prefix)
    with received() as (url, messages):
        site = Site(machine, url, messages)
        try:
            site.bash("make up")
            site.train()
            site.alias("champion", 1)
            site.bash("prefect deployment run deploy/default --watch")
            site.settings(export__golden=3)
            site.train()
            yield site
        finally:
            machine.power_off()


def before_drift(site: Site) -> None:
    reference = pd.read_parquet(site.folder / "models/package/reference.parquet")
    seen = reference.sample(150, replace=True, random_state=np.random.default_rng(1)).assign(brightness=np.linspace(9, 10, 150), blur=1.0)
    champion = client(site.machine.store).get_model_version_by_alias("unmask", "champion")
    record(site.var / predictions.FILE, champion.tags["package"], seen)


def before_poisoned(site: Site) -> None:
    site.settled()
    for version in (2, 1):  # the last one stands for the model that learned from the poisoned feedback
        promoted(site, version)
    site.settings(**{"data.sources": [*SMALL["data.sources"], {"kind": "feedback", "name": "users"}]})
    golden = site.folder / "models/package/golden"
    first, entry = next(iter(json.loads((golden / "golden.json").read_text()).items()))
    wrong = "fake" if entry["label"] == "real" else "real"
    say(site, "a", "key 9f2c51e0", wrong, (golden / first).read_bytes())
    for number, who in enumerate(("key 9f2c51e0", "key 9f2c51e0", "key 11aa22bb")):
        path = site.var / "upload.jpg"
        picture(path, seed=number, quality=95)
        say(site, f"b{number}", who, "fake", path.read_bytes())
    site.bash("dvc repro ingest")


def promoted(site: Site, version: int) -> None:
    site.alias("champion", version)
    site.bash("prefect deployment run deploy/default --watch")  # here only the test starts it
    assert last_promotion(site)["version"] == version


def say(site: Site, id: str, client: str, label: str, image: bytes) -> None:
    told = {"version": "1", "verdict": "real", "probability_fake": 0.4}
    feedback.record(site.var / feedback.FOLDER, id=id, label=label, image=image, client=client, **told)


def before_forgotten(site: Site) -> None:
    picture(site.var / "upload.jpg", seed=99, quality=95)
    image = {"image": (site.var / "upload.jpg").read_bytes()}
    site.answer = httpx.post(f"{site.service}/predict", files=image).json()["id"]
    wait_for(lambda: predictions.find(site.var / predictions.FILE, site.answer) is not None)
    say(site, site.answer, "key 11aa22bb", "fake", image["image"])
    site.bash("dvc repro ingest")


def before_gone(site: Site) -> None:
    store = client(site.machine.store)
    for run in store.search_runs([store.get_experiment_by_name(MONITORING).experiment_id]):
        store.delete_run(run.info.run_id)
    assert pages(site)


def pages(site: Site) -> list[Path]:
    experiment = client(site.machine.store).get_experiment_by_name(MONITORING).experiment_id
    return list((site.folder / "mlartifacts" / experiment).rglob("report.html"))


def before_lost_database(site: Site) -> None:
    site.bash("unmask backup /backups/today.tar.gz")
    site.lose("mlflow.db*", "mlartifacts", "var", "reports", ".dvc/cache", "data", "models")


def before_lost_without_backup(site: Site) -> None:
    site.lose("mlflow.db*", "mlartifacts")


def before_trial(site: Site) -> None:
    site.alias("challenger", 1)
    (site.var / "canary.json").write_text(json.dumps({"version": "1", "made": "then", "why": "it failed"}))


def before_gpu_machine(site: Site) -> None:
    site.bash(f"dvc remote add --force --default storage {site.folder.parent / 'storage'} && dvc push")
    site.bash("git add --all . && git -c user.name=test -c user.email=test@localhost commit --quiet --message 'what was made'")


def after_promote(site: Site) -> None:
    assert aliases(site.machine.store)["champion"] == "2" and last_promotion(site)["version"] == 2
    wait_for(lambda: site.served() == "2")


def after_trial(site: Site) -> None:
    site.bash("make up")
    wait_for(lambda: site.served() == "2")


def after_roll_back(site: Site) -> None:
    assert aliases(site.machine.store)["champion"] == "1" and last_promotion(site)["by"].endswith("unmask rollback")
    wait_for(lambda: site.served() == "1", seconds=30)


def after_drift(site: Site) -> None:
    assert json.loads((site.var / "drift/report.json").read_text())["drift"] is True
    site.settled()


def after_poisoned(site: Site) -> None:
    assert {said.client for said in feedback.read(site.var / feedback.FOLDER)} == {"key 11aa22bb"}
    assert aliases(site.machine.store)["champion"] == "2"


def after_forgotten(site: Site) -> None:
    assert predictions.find(site.var / predictions.FILE, site.answer) is None
    assert site.answer not in (site.var / feedback.FOLDER / feedback.FILE).read_text()
    assert len(list((site.var / feedback.FOLDER / feedback.IMAGES).iterdir())) == 1


def after_gone(site: Site) -> None:
    assert not pages(site)


def after_lost_database(site: Site) -> None:
    assert aliases(site.machine.store)["champion"] == "2" and last_promotion(site)["version"] == 2
    wait_for(lambda: site.served() == "2")


def after_lost_without_backup(site: Site) -> None:
    assert aliases(site.machine.store)["champion"] == "1"
    wait_for(lambda: site.served() == "1")


def after_notifications(site: Site) -> None:
    site.bash("python -c \"from flows.notifications import send; send('promotion', 'version 1')\"")
    assert [message["text"] for message in site.messages] == ["Unmask: promotion: version 1"]


def after_gpu_machine(site: Site) -> None:
    assert "Running stage" not in site.bash("cd FOLDER && dvc repro")  # everything was pulled, nothing is left to make
    assert verify(site.folder / "new/models/package").digest == verify(site.folder / "models/package").digest


BEFORE: dict[str, Callable[[Site], None]] = {
    "Try a version out first": before_trial,
    "Drift alarm": before_drift,
    "Poisoned feedback": before_poisoned,
    "A user wants to be forgotten": before_forgotten,
    "A user wants to be forgotten, 2": before_gone,
    "Lost database": before_lost_database,
    "Lost database, 2": before_lost_without_backup,
    "A new GPU machine": before_gpu_machine,
}
"""Heading -> the situation in which somebody reads that section."""

AFTER: dict[str, Callable[[Site], None]] = {
    "Promote a version": after_promote,
    "Try a version out first": after_trial,
    "Roll back": after_roll_back,
    "Drift alarm": after_drift,
    "Poisoned feedback": after_poisoned,
    "A user wants to be forgotten": after_forgotten,
    "A user wants to be forgotten, 2": after_gone,
    "Lost database": after_lost_database,
    "Lost database, 2": after_lost_without_backup,
    "Notifications": after_notifications,
    "A new GPU machine": after_gpu_machine,
}
"""Heading -> check of what the section promises."""


@pytest.mark.parametrize("heading", BLOCKS)
def test_the_runbook_does_what_it_says(site: Site, heading: str):
    BEFORE.get(heading, lambda _: None)(site)
    site.bash(BLOCKS[heading])
    AFTER.get(heading, lambda _: None)(site)


def test_every_section_is_there():
    assert set(BEFORE) | set(AFTER) <= set(BLOCKS)


def last_promotion(site: Site) -> dict[str, object]:
    return json.loads((site.var / "promotions.jsonl").read_text().splitlines()[-1])
