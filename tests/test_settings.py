"""params.yaml and the commands that change it: a mistake is named, and nothing is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params import ParamsError, load_params
from pipeline.settings import apply, folder_source, main, pairs
from tests.conftest import ROOT, run


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A copy of the project's settings for each test."""
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("drift:\n\tcron: x\n", r"params\.yaml, line \d+, column 1: found character that cannot start any token"),
        ("drift: 1\n", r"params\.yaml, line \d+, column 1: found duplicate key \"drift\""),
        ("gates: [1\n", r"params\.yaml, line \d+, column \d+: "),
    ],
)
def test_what_is_not_yaml_is_named_with_its_place(params: Path, lines: str, message: str):
    text = params.read_text() + lines
    params.write_text(text)
    for use in (load_params, lambda path: apply({"train.epochs": 3}, path)):
        with pytest.raises(ParamsError, match=message):
            use(params)
    assert params.read_text() == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.lr=[1", r"-S train\.lr=\[1, line \d+, column \d+: did not find expected"),
        ("train.epochs.x=1", r"there is no section `epochs` for train\.epochs\.x"),
        ("trian.epochs=1", r"there is no section `trian` for trian\.epochs"),
        ("train.epoch=1", r"train\.epoch: .*allowed here: .*epochs"),
        ("data.sources=[{kind: folder, path: x, pth: y}]", r"data\.sources\.0\.folder\.pth: .*allowed here: in_place, kind, name, path$"),
        ("train.forge={share: 1, method: {swap: 1}}", r"train\.forge\.method: .*allowed here: methods, share$"),
        ("ingest.normalise={side: 64}", r"ingest\.normalise\.side: .*allowed here: jpeg_quality, size$"),
        ("gates.test.f1={minimum: 1}", r"gates\.test\.f1\.minimum: .*allowed here: max, min$"),
        ("gates.test.f1={}", r"gates\.test\.f1: Value error, a gate needs `min`, `max` or both"),
        ("tune.space={train.lr: {low: 2, high: 1}}", r"low 2 must be below high 1"),
        ("tune.space={train.lr: {low: 0, high: 1, log: true}}", r"low 0 must be .* above 0 with `log`"),
        ("split.shares={train: 0.7, val: 0.2, test: 0.2}", r"split: Value error, `shares` needs train, val and test, which sum to 1"),
        ("augment.blur_sigma=[3, 1]", r"augment\.blur_sigma: Value error, the lowest value 3 is above the highest, 1"),
        ("augment.jpeg_quality=[30, 950]", r"augment\.jpeg_quality\.1: Input should be less than or equal to 100"),
        ("augment.cutout_side=[0.1, 40]", r"augment\.cutout_side\.1: Input should be less than or equal to 1"),
        ("train.epochs", "write it as key=value"),
        ("drift.cron=every hour", r"drift\.cron: Value error, .* a schedule has five fields.* \(it is 'every hour'\)"),
        ("drift.cron=61 * * * *", r"drift\.cron: Value error, Bad minute: a schedule has five fields"),
        ("drift.cron='0 * * * * *'", r"drift\.cron: Value error, a schedule has five fields"),
    ],
)
def test_a_wrong_value_is_named_and_not_written(params: Path, given: str, message: str):
    before = params.read_text()
    with pytest.raises(ParamsError, match=message):
        apply(pairs([given]), params)
    assert params.read_text() == before


def test_what_is_written_is_all_that_git_shows(params: Path):
    before = params.read_text().splitlines()
    apply({"train.lr": 0.25, "promotion.auto": "if_better"}, params)
    changed = [(old.split(), new.split()) for old, new in zip(before, params.read_text().splitlines(), strict=True) if old != new]
    assert [new[:2] for _, new in changed] == [["lr:", "0.25"], ["auto:", "if_better"]]


def settings(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run `python -m pipeline.settings` in a folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["settings", *arguments])
    main()


def test_a_preset_a_folder_a_model_and_single_values_are_written_together(params: Path, monkeypatch, capsys):
    (params.parent / "faces").mkdir()
    given = ("finetune", "robust", "--data", "faces", "--model", "org/network", "-S", "train.epochs=3")
    settings(monkeypatch, params.parent, *given)
    found = load_params(params)
    assert (found.model.name, found.model.init, found.model.config) == ("org/network", "pretrained", {})
    assert found.train.epochs == 3 and found.train.patch_dropout == 0.5 and found.train.ema == 0.999  # from the command, and the presets
    assert [source.name for source in found.data.sources] == ["faces"]
    assert "git diff params.yaml" in capsys.readouterr().out
    before = params.stat().st_mtime_ns
    settings(monkeypatch, params.parent, *given)
    assert params.stat().st_mtime_ns == before and not capsys.readouterr().out


def test_a_folder_of_weights_is_watched_and_a_hub_name_is_not(params: Path, monkeypatch):
    (params.parent / "network").mkdir()
    (params.parent / "network/config.json").touch()
    for name, watched in (("network", "network"), ("org/network", "pipeline/network")):
        settings(monkeypatch, params.parent, "--model", name)
        assert load_params(params).model.watch == Path(watched)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("finetoon",), r"^error: params\.yaml: no preset 'finetoon'; there are: finetune, "),
        (("--data", "nowhere"), r"^error: nowhere: no such folder; it should hold real/ and fake/, or a manifest\.csv"),
        (("--model", "./nowhere"), r"^error: \./nowhere: there is no config\.json; "),
        (("--model", "."), r"^error: \.: there is no config\.json; "),
    ],
)
def test_a_preset_or_folder_that_is_not_there_is_named_and_nothing_written(params: Path, arguments, message, monkeypatch):
    before = params.read_text()
    with pytest.raises(SystemExit, match=message):
        settings(monkeypatch, params.parent, *arguments)
    assert params.read_text() == before


@pytest.mark.parametrize("cron", ["*/5 9-17 * * MON-FRI", "30 4 1,15 * *"])
def test_schedules_are_those_of_crontab(params: Path, cron: str):
    apply({"drift.cron": cron}, params)
    assert load_params(params).drift.cron == cron


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("My Faces", "My-Faces"),
        ("gesichter-ü", "gesichter"),
        ("o'neil", "o-neil"),
        ("人脸", "folder"),
        ('$a;b`c"d', "a-b-c-d"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_folder_of_faces_may_be_called_anything(params: Path, called: str, name: str, monkeypatch: pytest.MonkeyPatch):
    folder = params.parent / called
    folder.mkdir()
    assert folder_source(folder)["data.sources"][0]["name"] == name
    given = f"DATA={str(folder).replace('$', '$$')}"  # make expands its variables
    shown = run(params.parent, "make", "--file", str(ROOT / "Makefile"), "--dry-run", "--old-file=.venv/.installed", "run", given)
    command = next(line for line in shown.splitlines() if "flows.run" in line).replace("flows.run", "pipeline.settings")  # same arguments
    monkeypatch.setenv("DATA", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run(params.parent, "bash", "-c", command)
    (source,) = load_params(params).data.sources
    assert source.name == name and Path(source.path) == folder == load_params(params).data.watch  # type: ignore[union-attr]


def test_a_full_disk_takes_no_settings(params: Path):
    before = params.read_text()
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); from pipeline.settings import main; main()"
    command = [sys.executable, "-c", full, "-S", "train.epochs=3"]
    ended = subprocess.run(command, cwd=params.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert ended.returncode and params.read_text() == before and list(params.parent.iterdir()) == [params]


@pytest.mark.parametrize("option", ["--help", "--epochs=3"])
def test_a_stage_asked_for_help_or_given_a_setting_starts_nothing(params: Path, option: str):
    command = [sys.executable, "-m", "pipeline.ingest", option]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=params.parent, env=env, text=True, capture_output=True)
    assert "usage: python -m pipeline.ingest" in ended.stdout + ended.stderr
    assert [path.name for path in params.parent.iterdir()] == ["params.yaml"]
