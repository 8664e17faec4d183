"""Feedback: what is kept, what is forgotten, and what is exported for labelling."""

import csv
import json
import resource
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import retraining
from pipeline import sources
from pipeline.errors import StageError
from pipeline.monitoring import feedback, labelling
from pipeline.params_data import FolderSource
from pipeline.params_loop import Retrain
from tests.feedback_helpers import SAID, kept


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_VAR", "")  # as deploy/env.example leaves it
    return tmp_path


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
