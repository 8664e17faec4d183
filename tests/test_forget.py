"""Forgetting an answer, and images that are no longer kept."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows import cli, drift
from flows.materialise import workspace_lock
from pipeline import shards, sources
from pipeline.ingestion import copies
from pipeline.monitoring import feedback, labelling, predictions
from pipeline.monitoring.predictions import FILE, newest
from pipeline.params_data import FeedbackSource, FolderSource
from tests.drift_helpers import record, sample
from tests.feedback_helpers import SAID, kept
from tests.service_helpers import wait_for


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_VAR", "")  # as deploy/env.example leaves it
    return tmp_path


def test_forget_removes_an_answer_everywhere(workspace, monkeypatch, capsys):
    kept(workspace, "a", "b", "c", "d", same="cd")
    record(workspace / "var" / FILE, "package", sample(np.random.default_rng(0), 2).assign(id=["a", "b"]))
    folder = workspace / "var/feedback"
    statements = {statement.id: statement for statement in feedback.read(folder)}
    image = statements["a"].image
    labelling.export(workspace / "var/labelling/day", list(statements.values()), folder / "images", {}, 10)
    copy = workspace / f"data/raw/feedback/fake/{image}"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a copy")

    monkeypatch.setattr(sys, "argv", ["unmask", "forget", "a", "--json"])
    cli.main()
    assert json.loads(capsys.readouterr().out) == {"statements": 1, "images": 1, "predictions": 1, "copies": 2}
    assert image not in "".join(str(path) for path in workspace.rglob("*"))
    assert b"a" not in {line.split(b'"')[3] for line in (folder / "feedback.jsonl").read_bytes().splitlines()}
    assert image not in (workspace / "var/labelling/day/manifest.csv").read_text()
    assert newest(workspace / "var" / FILE, "package", 10)["id"].tolist() == ["b"]
    assert feedback.forget(folder, "c") == set()  # another user let us keep the same image
    assert [statement.id for statement in feedback.read(folder)] == ["b", "d"]
    with pytest.raises(SystemExit, match="nothing is stored about an answer with the id 'a'"):
        cli.main()


def test_what_was_forged_from_a_forgotten_face_goes_with_it(workspace):
    kept(workspace, "a", "b")
    one, other = (statement.image for statement in feedback.read(workspace / "var/feedback"))
    fakes = {
        "1aa": f"{other}",
        "2aa": f"{other} stored-as",
        "3aa": "",
    }  # the image was re-encoded when it was ingested, so it has another id
    rows = [{"image_id": "stored-as", "path": f"data/raw/users/real/{one}.png.jpg", "source": "users", "parents": ""}]
    rows += [
        {"image_id": name, "path": f"data/raw/forge/swap/{name}.png.jpg", "source": "forge", "parents": parents}
        for name, parents in fakes.items()
    ]
    made = [*(row["path"] for row in rows), *(f"var/sources/forge/x/{name}.png" for name in fakes), "var/cache/0.npy"]
    for path in map(Path, made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"pixels")
    pd.DataFrame(rows).to_parquet("data/manifest.parquet")
    assert cli.forget("a")["copies"] == 3
    assert [path for path in made if Path(path).exists()] == [path for path in made if "1aa" in path or "3aa" in path]


def test_forget_waits_for_a_run_that_may_read_the_image(workspace, capsys):
    kept(workspace, "a")
    with ThreadPoolExecutor() as pool:
        with workspace_lock(say=print):
            forgotten = pool.submit(cli.forget, "a")
            wait_for(lambda: "waiting until it ends" in capsys.readouterr().err)
            assert list((workspace / "var/feedback/images").iterdir())
        assert forgotten.result()["images"] == 1
    assert not list((workspace / "var/feedback/images").iterdir())


def test_forget_takes_what_lies_in_a_shard_and_goes_on_after_a_kill(workspace, monkeypatch):
    kept(workspace, "a", "b")
    one, other = (statement.image for statement in feedback.read(workspace / "var/feedback"))
    shard = workspace / "data/raw/users/000000.tar"
    shard.parent.mkdir(parents=True)
    shards.pack(shard, [(f"{one}.png.jpg", b"a copy"), (f"fake/{other}", b"another")])
    shards.pack(shard.with_name("000001.tar"), [(f"fake/{other}", b"another")])
    (shard.parent.with_name("web") / "crops.tar").mkdir(parents=True)  # a folder
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "forget", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cli.forget("a")
    assert cli.forget("a") == {"copies": 0, "predictions": 0, "statements": 1, "images": 1}
    assert [path.name for path in shard.parent.iterdir()] == ["000001.tar"]  # ingest repacks the other images of the first shard
    assert [statement.id for statement in feedback.read(workspace / "var/feedback")] == ["b"]


def test_the_list_of_what_does_not_count_forgets_too(workspace):
    folder = workspace / "var/feedback"
    for id, label in (("a", "real"), ("b", "fake")):
        feedback.record(folder, id=id, label=label, client=id, image=b"one picture", **SAID)
    source = FeedbackSource(kind="feedback", path=folder)
    assert sources.listing(source, workspace).empty and "\nb," in (workspace / "set_aside.csv").read_text()
    feedback.forget(folder, "b")
    assert len(sources.listing(source, workspace)) == 1 and not (workspace / "set_aside.csv").exists()


def test_images_are_kept_as_long_as_the_settings_say(workspace):
    kept(workspace, "a", "b")
    folder = workspace / "var/feedback"
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert feedback.expire(folder, yesterday) == set()
    old, new = feedback.read(folder)
    lines = [old.model_copy(update={"time": old.time - timedelta(days=2)}), new]
    (folder / "feedback.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    assert feedback.expired(folder, yesterday) == {old.image} == feedback.expire(folder, yesterday)
    assert [path.name for path in (folder / "images").iterdir()] == [new.image]
    assert [statement.label for statement in feedback.read(folder)] == ["fake", "fake"]
    assert len(sources.feedback.listing(FeedbackSource(kind="feedback", path=folder), workspace)) == 1


def test_what_a_killed_process_left_goes_with_the_next_that_is_forgotten(workspace):
    kept(workspace, "a", "b")
    folder = workspace / "var/feedback"
    one, other = (statement.image for statement in feedback.read(folder))
    unfinished = workspace / f"var/labelling/.labelling-x/day/{one}.png"
    unfinished.parent.mkdir(parents=True)
    for left in (folder / "images/nobodys", folder / "images/half.part", folder / "half.part", unfinished):
        left.write_bytes(b"a face")
    cli.forget("a")
    assert [path.name for path in (folder / "images").iterdir()] == [other]
    assert not unfinished.exists() and not (folder / "half.part").exists()


def test_copies_of_what_has_expired_go_even_if_a_kill_comes_between(workspace, monkeypatch):
    kept(workspace, "a")
    folder = workspace / "var/feedback"
    (said,) = feedback.read(folder)
    (folder / "feedback.jsonl").write_text(said.model_copy(update={"time": said.time - timedelta(days=2)}).model_dump_json() + "\n")
    copy = workspace / f"data/raw/users/{said.label}/{said.image}.jpg"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a copy")
    with monkeypatch.context() as patch:
        patch.setattr(copies, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drift.let_expire(1)
    drift.let_expire(None)
    assert copy.exists()
    drift.let_expire(1)
    assert not copy.exists() and not list((folder / "images").iterdir())


def test_what_a_spreadsheet_saved_is_forgotten_too(workspace):
    kept(workspace, "a", "b")
    one, other = feedback.read(workspace / "var/feedback")
    folder = workspace / "var/labelling/day"
    labelling.export(folder, [one, other], workspace / "var/feedback/images", {}, 2)
    labels, about = (folder / "manifest.csv", folder / "about.csv")
    labels.write_text(labels.read_text().replace(".png,", ".png,fake"), encoding="utf-8-sig")
    about.write_bytes(about.read_text().replace(",", ";").replace("uncertain", "zu nah an der Grenze, für mich").encode("cp1252"))
    assert labelling.forget(workspace / "var", {str(one.image)}) == 1
    assert sources.listing(FolderSource(kind="folder", path=folder), workspace)["path"].tolist() == [f"{other.image}.png"]
    assert str(one.image).encode() not in about.read_bytes() and "für mich".encode("cp1252") in about.read_bytes()
