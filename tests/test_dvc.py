"""The graph in dvc.yaml: a change of the code behind a stage makes it run again. And DVC's lock file after a kill."""

import ast
import json
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import yaml

from flows import materialise
from pipeline.errors import StageError
from tests.conftest import ROOT, run

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
FILES = {
    path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path.as_posix()
    for path in (found.relative_to(ROOT) for found in (ROOT / "pipeline").rglob("*.py"))
}
"""Module -> its file."""

CARRY = {
    f"pipeline.{name}"
    for name in (
        *("cli", "errors", "labels", "params", "params_data", "params_loop", "params_train", "telemetry"),
        *("cores", "fingerprint", "ingestion.engine", "ingestion.ledger", "monitoring.labelling", "shards", "staging", "var"),
        *("lineage", "manifest", "memory", "package", "record", "tracking"),
        *(
            "evaluation",
            "ingestion",
            "monitoring",
            "training",
            "validation",
        ),  # the folders themselves hold no code
    )
} | {"pipeline"}
"""Modules that only pass on data and settings, without computing figures or images. Settings that matter are in `params`."""

APART = {
    "evaluate": {"pipeline.evaluation.judge_package"},
    "export": {f"pipeline.{name}" for name in ("sources", "sources.camera", "sources.faces", "sources.procedural")},
}
"""Modules that a stage's module imports only for another command, or for the starter model."""


def imports(module: str) -> set[str]:
    """Modules of the pipeline that a module imports, at any level."""
    nodes = list(ast.walk(ast.parse((ROOT / FILES[module]).read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) and node.module for alias in node.names]
    return (plain | {name for name, _ in named} | {f"{name}.{part}" for name, part in named}) & set(FILES)


def reached(module: str, without: Collection[str]) -> set[str]:
    """A module and all that it imports, directly or not, stopping at those left out."""
    found, waiting = set(), [module]
    while waiting:
        if (one := waiting.pop()) not in found and one not in without:
            found.add(one)
            waiting += imports(one)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_again_when_its_code_changes(stage: str):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/") and "templates" not in dep}
    needed = {FILES[module] for module in reached(f"pipeline.{stage}", CARRY | APART.get(stage, set()))}
    assert {path for path in needed if not any(path == dep or path.startswith(f"{dep}/") for dep in listed)} == set()


def test_a_process_that_has_the_number_of_a_killed_one_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    dvc = (sys.executable, "-m", "dvc")
    run(tmp_path, *dvc, "init", "--no-scm", "--quiet")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": {"cmd": "echo x > out", "outs": ["out"]}}}))
    note = tmp_path / materialise.NOTE
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"write": {str(tmp_path / "out"): {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}}))
    materialise.remove_stale_lock()
    assert note.is_file()  # this process existed when it was written, so it may be the holder
    os.utime(note, (0, 0))
    materialise.remove_stale_lock()
    run(tmp_path, *dvc, "repro", "--quiet")
    note.write_text('{"write": {"')
    materialise.remove_stale_lock()
    run(tmp_path, *dvc, "repro", "--force", "--quiet")


def test_a_download_without_git_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"is not a git repository: clone the project, or make one here with `git init`$"):
        materialise.stages()
