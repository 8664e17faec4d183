"""`kill -9` at any moment: ingest and forging resume, and end with the same bytes."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.settings import apply, folder_source
from tests.conftest import ROOT, at_work_in
from tests.data_helpers import picture
from tests.service_helpers import wait_for

KILLS = 10


def digests(folder: Path) -> dict[str, str]:
    """Hash of each file under data/, of the report and of the quarantine list."""
    files = [*folder.glob("data/**/*"), folder / "reports/ingest.json", folder / "reports/quarantine.csv"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


@pytest.mark.parametrize(("times", "said"), [(1, "resumes where it was"), pytest.param(2, "", marks=pytest.mark.long)])
def test_ctrl_c_ends_a_run_and_all_that_it_started(make_workspace, prefect_home, tmp_path: Path, monkeypatch, times: int, said: str):
    folder, log = make_workspace(tmp_path / "run"), tmp_path / "log"
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home()))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with log.open("w") as file:
        # In a session of its own, as in a terminal: ctrl-C reaches its whole process group, the server that it starts included.
        process = subprocess.Popen([sys.executable, "-m", "flows.run"], cwd=folder, stdout=file, stderr=file, start_new_session=True)
        wait_for(lambda: "Running stage 'ingest'" in log.read_text(), process, str(log))
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(60) == 130
    assert said in log.read_text() and "Traceback" not in log.read_text()
    wait_for(lambda: not at_work_in(folder))


@pytest.mark.long
@pytest.mark.parametrize("shard", [False, True])
def test_a_killed_ingest_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path, shard: bool):
    faces = tmp_path / "faces"
    for index in range(240):
        picture(faces / "real" / f"{index}.jpg", seed=index, quality=90)
    (faces / "real" / "broken.jpg").write_bytes(b"broken")
    folder = tmp_path / "workspace"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    forge = {"methods": {"self_blend": 0.4, "swap": 0.3, "resynthesis": 0.3}}
    apply(folder_source(faces) | {"data.forge": forge, "data.shard": shard}, folder / "params.yaml")
    # Small shards and frequent progress notes, so that a kill often hits a write.
    small = "import sys; sys.path.insert(0, sys.argv.pop()); from pipeline import shards; from pipeline.ingestion import ledger; "
    small += "ledger.FLUSH, shards.MEMBERS = 32, 32\n"
    program = small + "from pipeline.cli import stage; from pipeline.ingest import run; stage(run)"
    command = [sys.executable, "-c", program, str(ROOT)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begin = time.monotonic()
    assert start().wait() == 0
    undisturbed, seconds = digests(folder), time.monotonic() - begin
    assert len(undisturbed) > 15
    for made in ("data", "reports", "var"):
        shutil.rmtree(folder / made)
    draw = random.Random(7)
    killed = 0
    while killed < KILLS:
        process = start()
        try:
            assert process.wait(draw.uniform(0.3, 1) * seconds) == 0
            for made in ("data", "reports", "var"):  # it finished: start over
                shutil.rmtree(folder / made)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += process.wait() == -signal.SIGKILL  # it may have finished just before
            wait_for(lambda: not any(str(folder) in " ".join(found.info["cmdline"] or ()) for found in psutil.process_iter(["cmdline"])))
    assert start().wait() == 0
    assert digests(folder) == undisturbed
