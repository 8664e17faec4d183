"""Every imported package is declared: a transitive dependency may be gone with the next release of what brings it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

from packaging.requirements import Requirement

from tests.conftest import ROOT

OWN = ("pipeline", "flows", "serving", "service")


def imported() -> set[str]:
    """Packages that the program's modules import, at any level."""
    files = [*(path for folder in OWN for path in (ROOT / folder).rglob("*.py")), ROOT / "service.py"]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in plain | named} - sys.stdlib_module_names - set(OWN)


def normal(name: str) -> str:
    """A package name, normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_of_a_declared_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for name, extra in project["optional-dependencies"].items() if name != "dev" for line in extra]
    declared = {normal(re.split(r"[\[<>=! ]", line)[0]) for line in lines}
    brought = packages_distributions()
    packages = imported()
    assert {"torch", "prefect", "yaml"} <= packages
    assert {name for name in packages if not declared & {normal(package) for package in brought[name]}} == set()


def test_what_a_locked_package_asks_for_is_locked():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {normal(line.partition("==")[0]) for line in lines}
    asked = [Requirement(text) for name in locked for text in requires(name) or ()]
    needed = {normal(one.name) for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})}
    assert len(locked) == len(lines) and needed - locked <= {"setuptools", "wheel", "pip"}
