"""Feedback: what is kept, what is forgotten, and what is exported for labelling."""

import csv
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from flows import cli, drift, retraining
from flows.materialise import workspace_lock
from pipeline import shards, sources
from pipeline.errors import StageError
from pipeline.ingestion import copies
from pipeline.monitoring import feedback, labelling, predictions
from pipeline.monitoring.predictions import FILE, newest
from pipeline.params_data import FeedbackSource, FolderSource
from pipeline.params_loop import Retrain
from tests.data_helpers import picture
from tests.drift_helpers import record, sample
from tests.service_helpers import wait_for

SAID = {"version": "1", "verdict": "fake", "probability_fake": 0.9}


def kept(folder: Path, *ids: str, same: str = "") -> None:
    """A statement with an image for each id; those in `same` share one."""
    for number, id in enumerate(ids):
        picture(folder / "upload.png", seed=99 if id in same else number)
        probability = {"probability_fake": 0.1 * (number + 1)}
        feedback.record(
            folder / "var/feedback", id=id, label="fake", image=(folder / "upload.png").read_bytes(), client="a", **SAID | probability
        )


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
    rows = [{"image_id": "stored-as", "path": f"data/raw/users/real/{one}.png.jpg", "parents": ""}]
    rows += [{"image_id": name, "path": f"data/raw/forge/swap/{name}.png.jpg", "parents": parents} for name, parents in fakes.items()]
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


def test_a_statement_that_a_full_disk_cuts_off_is_refused_and_spoils_nothing(workspace):
    kept(workspace, "a")
    folder = workspace / "var/feedback"
    before, limits = (folder / "feedback.jsonl").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="disk is full"):
            feedback.record(folder, id="b", label="fake", client="a", **SAID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "feedback.jsonl").read_bytes() == before
    (folder / "feedback.jsonl").write_bytes(before + b'{"id": "killed in the mid')
    feedback.record(folder, id="c", label="fake", client="a", **SAID)
    assert [statement.id for statement in feedback.read(folder)] == ["a", "c"]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_keeps_no_picture_that_its_user_was_told_is_not_kept(workspace, size):
    kept(workspace, "a")
    folder = workspace / "var/feedback"
    before, limits = sorted(folder.glob("images/*")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "feedback.jsonl").stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError):
            feedback.record(folder, id="b", label="fake", image=bytes(size), **SAID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(folder.glob("images/*")) == before


def test_other_users_of_the_machine_cannot_read_what_is_kept(tmp_path):
    kept(tmp_path, "a")
    assert (tmp_path / "var/feedback").stat().st_mode & 0o077 == 0


def test_kept_images_are_not_counted_again_for_each_statement(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(feedback, "time", SimpleNamespace(monotonic=lambda: now))
    room = feedback.Room(tmp_path, 100)
    room.take("a", 60)
    with pytest.raises(OSError, match="is full"):
        room.take("a", 60)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "another worker's").write_bytes(bytes(90))
    room.take("a", 40)
    now += 61
    with pytest.raises(OSError, match="is full"):
        room.take("a", 40)
    (tmp_path / "images" / "another worker's").unlink()
    now += 61
    room.take("a", 100)


def test_a_client_does_not_fill_the_room_of_the_others(tmp_path):
    for id, client, size in (("a", "loud", 400), ("b", "loud", 401), ("c", "quiet", 300), ("d", "quiet", 400)):
        feedback.record(tmp_path, id=id, label="fake", client=client, image=bytes(size), **SAID)
    (tmp_path / "feedback.jsonl").open("a").write("no statement\n")
    (tmp_path / "images" / "nobody's").write_bytes(bytes(50))
    lines = [len(line) for line in (tmp_path / "feedback.jsonl").read_bytes().splitlines(keepends=True)]
    counted = feedback.sizes(tmp_path)
    assert counted == {"loud": 801 + sum(lines[:2]), "quiet": 300 + sum(lines[2:4]), None: lines[4] + 50}
    room = feedback.Room(tmp_path, 2 * counted["loud"], share=0.5)
    with pytest.raises(OSError, match="loud has its share"):
        room.take("loud", 1)
    room.take("quiet", 1)


def test_a_time_without_a_zone_is_named_with_its_line(workspace):
    kept(workspace, "a", "b")
    file = workspace / "var/feedback/feedback.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text("\n".join([first, second.replace('Z","label', '","label')]) + "\n")
    with pytest.raises(StageError, match=r"feedback\.jsonl, line 2: Input should have timezone info \(time\)"):
        feedback.read(file.parent)


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


def test_what_is_put_out_for_labelling_is_read_back_as_a_source(workspace):
    kept(workspace, *"abcdefgh")  # d and e are the least certain
    statements, folder = feedback.read(workspace / "var/feedback"), workspace / "label"
    assert labelling.export(folder, statements, workspace / "var/feedback/images", {"a": 0.5, "h": 9.0, "b": 3.0}, 4) == 4
    with (folder / "about.csv").open() as file:
        about = {row["id"]: row["why"] for row in csv.DictReader(file)}
    assert about == {"e": "uncertain", "d": "uncertain", "h": "foreign", "b": "foreign"}
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text("\n".join(line + "fake" if line.endswith(",") else line for line in text.splitlines()))
    table = sources.listing(FolderSource(kind="folder", path=folder), workspace)
    assert len(table) == 4 and set(table["label"]) == {"fake"} and all(Path(file).suffix == ".png" for file in table["file"])
    assert labelling.export(workspace / "none", [], workspace, {}, 4) == 0 and not (workspace / "none").exists()


def test_what_has_no_label_yet_and_what_is_gone_from_a_folder_for_labelling_is_no_image(workspace, caplog):
    kept(workspace, "a", "b")
    said, folder = feedback.read(workspace / "var/feedback"), workspace / "var/labelling/day"
    labelling.export(folder, said, workspace / "var/feedback/images", {}, 2)
    first, *rows = (folder / "manifest.csv").read_text().splitlines()
    source = FolderSource(kind="folder", path=folder)
    (folder / "manifest.csv").write_text("\n".join([first, rows[0] + "fake", rows[1]]) + "\n")
    assert sources.listing(source, workspace)["path"].tolist() == [rows[0].rstrip(",")]
    assert "1 images have no label yet and are left out" in caplog.text
    assert labelling.forget(workspace / "var", {str(statement.image) for statement in said}) == 2
    assert (folder / "manifest.csv").read_text().split() == [first]
    assert sources.listing(source, workspace).empty


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


@pytest.mark.parametrize("comma", [",", ";"])
def test_what_people_labelled_is_not_put_out_again(workspace, comma: str):
    kept(workspace, *"abcd")
    statements, images = feedback.read(workspace / "var/feedback"), workspace / "var/feedback/images"
    first, second = workspace / "var/labelling/2026-01-30", workspace / "var/labelling/2026-01-31"
    assert labelling.export(first, statements, images, {}, 2) == 2
    header, one, two = (first / "manifest.csv").read_text().splitlines()
    (first / "manifest.csv").write_text(f"{header}\n{one}fake\n{two}\n".replace(",", comma), encoding="utf-8-sig")
    assert labelling.export(second, statements, images, {}, 4) == 3
    assert one.partition(".")[0] not in (second / "manifest.csv").read_text()


def test_trainings_by_themselves_have_a_cooldown_and_a_budget(workspace):
    settings = Retrain(on="new_data", cooldown_hours=1, a_day=2, label_next=10)
    assert retraining.held_back(settings) is None
    file, now = workspace / "var/retrainings.jsonl", datetime.now(UTC)
    retraining.begin("drift", {"p_value": 0.002})
    assert "cooldown_hours" in (retraining.held_back(settings) or "")

    def begun(*hours: float) -> None:
        file.write_text("".join(json.dumps({"time": (now - timedelta(hours=hour)).isoformat()}) + "\n" for hour in hours) + '{"ti')

    begun(2)
    assert retraining.held_back(settings) is None
    begun(5, 2)
    assert "retrain.a_day allows 2" in (retraining.held_back(settings) or "")
    begun(30, 2)
    assert retraining.held_back(settings) is None
