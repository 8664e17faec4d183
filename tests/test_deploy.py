"""The files in deploy/, as far as they can be tested without a container engine."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from flows.ports import POOL
from flows.state.contents import ARTIFACTS, BACKEND, PREFECT
from flows.up import DEFAULTS
from pipeline import telemetry
from serving.settings import PREFIX, Settings
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
EXAMPLE = dotenv_values(DEPLOY / "env.example")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
MANIFESTS = [manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]
DEPLOYMENTS = {manifest["metadata"]["name"]: manifest["spec"]["template"] for manifest in MANIFESTS if manifest["kind"] == "Deployment"}
PODS = {name: template["spec"] for name, template in DEPLOYMENTS.items()}
UNITS = {path.stem: path.read_text() for path in (DEPLOY / "systemd").glob("*.service")}
OURS = ("mlflow", "prefect", "worker", "service")
IMAGE = dict(re.findall(r"([A-Z_]+)=([^\s\\]+)", (DEPLOY / "Dockerfile").read_text().partition("\nENV ")[2].partition("\nUSER ")[0]))
SERVED = {PREFIX + field.upper() for field in Settings.model_fields} - {"UNMASK_VAR"}
SERVED |= {"UNMASK_FACE_DETECTOR", "UNMASK_PACKAGE", "BENTOML_CONFIG_OPTIONS", "FORWARDED_ALLOW_IPS"}
"""Variables of the service that docs/serving.md documents; UNMASK_VAR is where its volume is mounted."""
CONTAINED = """mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && mkdir /tmp/project && cd /tmp/project &&
exec unshare --user --map-user=4242 --map-group=4242 "$@"
"""
SECRET = re.compile(r"PASSWORD|SECRET|KEY|AUTH_STRING|CONNECTION_URL|STORE_URI")


def commands() -> dict[str, str]:
    """The command of every unit, container and pod, with single spaces."""
    found = {f"systemd {name} {number}": line for name, text in UNITS.items() for number, line in enumerate(started(text))}
    found |= {f"compose {name}": " ".join(COMPOSE["services"][name]["command"]) for name in OURS}
    for name, pod in PODS.items():
        found[f"kubernetes {name}"] = " ".join(pod["containers"][0].get("command", []) + pod["containers"][0]["args"])
    found["Dockerfile"] = " ".join(json.loads((DEPLOY / "Dockerfile").read_text().rpartition("CMD ")[2]))
    return found


def started(unit: str) -> list[str]:
    return [line.partition("=")[2].replace("/opt/unmask/.venv/bin/", "") for line in unit.splitlines() if line.startswith("ExecStart")]


@pytest.mark.parametrize("place", commands())
def test_what_is_started_exists(place: str):
    shell = commands()[place].removeprefix("sh -c ")
    scripts = {entry.name for entry in entry_points(group="console_scripts")}
    for command in shell.split(" && "):
        program, *words = command.removeprefix("exec ").split()
        if program == "python":
            assert words[0] == "-m" and importlib.util.find_spec(words[1]), command
        else:
            assert program in scripts, command
        if program == "bentoml":
            assert words[:2] == ["serve", "service:Unmask"]
        if "--pool" in words:
            assert words[words.index("--pool") + 1] == POOL


@pytest.mark.parametrize("command", ["mlflow server", "prefect server start", "prefect worker start", "bentoml serve"])
def test_their_options_exist(command: str):
    used = {
        word for line in commands().values() for part in line.split(" && ") if command in part for word in re.findall(r"--[a-z-]+", part)
    }
    called = [sys.executable, "-m", *command.split(), "--help"]
    printed = subprocess.run(called, text=True, capture_output=True, check=True, env=os.environ | {"COLUMNS": "200"}).stdout
    assert used and not [option for option in used if option not in printed]


def test_one_file_names_every_setting():
    assert {BACKEND, ARTIFACTS, PREFECT[1], "UNMASK_API_KEYS"} <= set(EXAMPLE)
    assert not [name for name, value in EXAMPLE.items() if value and SECRET.search(name) and "PASSWORD" not in value]
    interpolated = set(re.findall(r"\$\{([A-Z_0-9]+)", (DEPLOY / "compose.yaml").read_text()))
    assert interpolated - set(EXAMPLE) == {"UNMASK_IMAGE", "SERVICE_ADDRESS"}  # these have a default
    keys = {
        value["valueFrom"]["secretKeyRef"]["key"] for pod in PODS.values() for value in environment(pod).values() if "valueFrom" in value
    }
    assert (keys | SERVED) <= set(EXAMPLE)
    assert Settings.from_environment({name: value or "" for name, value in EXAMPLE.items()}) == Settings()
    for name in (".env", "deploy/.env"):
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT).returncode == 0


def test_what_documented_commands_write_here_makes_no_version_dirty():
    text = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    written = {*re.findall(r"(?:--out|-o|unmask backup) ([a-z][\w.-]*\.\w+)", text), "dvc_plots/index.html"}
    assert len(written) > 4
    for name in written:
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT).returncode == 0, name


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {value["name"]: value for container in containers(pod) for value in container.get("env", [])}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_are_hardened(name: str):
    service = COMPOSE["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert not re.match(r"0|root", service["user"]) and service["tmpfs"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    for port in service.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${SERVICE_ADDRESS:-127.0.0.1}:"))
    for variable, value in service.get("environment", {}).items():
        assert not SECRET.search(variable) or value.startswith("${"), variable
    assert name in ("postgres", "minio") or "profiles" not in service


def test_the_service_has_keys_and_no_other_secret():
    composed = COMPOSE["services"]["service"]["environment"]
    assert composed["UNMASK_API_KEYS"].startswith("${UNMASK_API_KEYS:?")
    assert [name for name in composed if SECRET.search(name)] == ["UNMASK_API_KEYS"]
    pod = PODS["service"]
    assert {name for name, value in environment(pod).items() if "valueFrom" in value} == SERVED
    assert [name for name in environment(pod) if SECRET.search(name)] == ["UNMASK_API_KEYS"]
    assert not any("envFrom" in container for container in pod["containers"])
    unset = " ".join(line for line in UNITS["unmask-service"].splitlines() if line.startswith("UnsetEnvironment="))
    named = {name for name in EXAMPLE if SECRET.search(name)} - {"UNMASK_API_KEYS"}
    assert named <= set(unset.replace("UnsetEnvironment=", "").split())


@pytest.mark.parametrize("name", sorted(SERVED))
def test_every_setting_reaches_the_service(name: str):
    keys = name == "UNMASK_API_KEYS"
    assert COMPOSE["services"]["service"]["environment"][name].startswith(f"${{{name}:{'?' if keys else '-'}")
    secret = {"name": "unmask", "key": name} | ({} if keys else {"optional": True})
    assert environment(PODS["service"])[name]["valueFrom"] == {"secretKeyRef": secret}


def test_the_worker_knows_its_pool_and_the_service():
    composed = COMPOSE["services"]["worker"]["environment"]
    assert composed["UNMASK_TRAIN_POOL"] == "${UNMASK_TRAIN_POOL:-}"
    assert composed["UNMASK_FACE_DETECTOR"] == "${UNMASK_FACE_DETECTOR:-}"  # the flow `score` judges faces as the service does
    assert {"secretRef": {"name": "unmask"}} in PODS["worker"]["containers"][0]["envFrom"]  # all of .env
    port = PODS["service"]["containers"][0]["ports"][0]["containerPort"]
    assert composed["SERVICE_URL"] == environment(PODS["worker"])["SERVICE_URL"]["value"] == f"http://service:{port}"
    policies = {manifest["metadata"]["name"]: manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"}
    assert policies["service"]["ingress"] == [{"ports": [{"port": port}]}]  # from anywhere


def test_leases_survive_a_restart_of_prefects_server():
    storage = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    composed, pod = COMPOSE["services"]["prefect"], PODS["prefect"]
    assert composed["environment"][storage] == environment(pod)[storage]["value"] == DEFAULTS[storage]
    assert composed["environment"]["PREFECT_HOME"] == COMPOSE["services"]["worker"]["environment"]["PREFECT_HOME"]
    assert composed["volumes"] == ["./var:/project/var"] and composed["environment"]["PREFECT_HOME"].startswith("/project/var/")
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    kept = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    assert mounted[environment(pod)["PREFECT_HOME"]["value"]] in kept


def test_prefects_database_does_not_grow_for_ever():
    composed, pod, unit = COMPOSE["services"]["prefect"]["environment"], environment(PODS["prefect"]), UNITS["unmask-prefect"]
    for name in ("ENABLED", "RETENTION_PERIOD"):
        name = f"PREFECT_SERVER_SERVICES_DB_VACUUM_{name}"
        assert composed[name] == pod[name]["value"] == DEFAULTS[name] and f"{name}={DEFAULTS[name]}" in unit


def test_minio_keeps_nothing_in_what_a_restore_replaces():
    (volume,) = COMPOSE["services"]["minio"]["volumes"]
    folder = Path(volume.partition(":")[0])
    assert folder.parts[0] != "var" and subprocess.run(["git", "check-ignore", "--quiet", folder / "data"], cwd=ROOT).returncode == 0
    assert f"mkdir -p var {folder} &&" in (ROOT / "docs/deploy.md").read_text()


@pytest.mark.parametrize("name", OURS)
def test_pods_are_hardened(name: str):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert pod["containers"][0][probe]["httpGet"]["port"] == pod["containers"][0]["ports"][0]["containerPort"]
    for variable, value in environment(pod).items():
        assert not SECRET.search(variable) or "secretKeyRef" in value["valueFrom"], variable


def test_pods_fit_together():
    probes = PODS["service"]["containers"][0]
    assert (probes["livenessProbe"]["httpGet"]["path"], probes["readinessProbe"]["httpGet"]["path"]) == ("/livez", "/readyz")
    claims = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "PersistentVolumeClaim"}
    used = {volume["persistentVolumeClaim"]["claimName"] for pod in PODS.values() for volume in pod["volumes"] if "emptyDir" not in volume}
    assert used == claims
    for manifest in MANIFESTS:
        if manifest["kind"] == "Service":
            port = PODS[manifest["spec"]["selector"]["app"]]["containers"][0]["ports"][0]["containerPort"]
            assert manifest["spec"]["ports"] == [{"port": port, "targetPort": port}]
    policies = {manifest["metadata"]["name"]: manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert set(policies) == {"default-deny", "mlflow", "prefect", "service"} and "Egress" in policies["service"]["policyTypes"]


def test_the_image_is_nobodys_root_and_says_nothing_home():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert not [f"{name}={value}" for name, value in telemetry.OFF.items() if f"{name}={value}" not in text]
    common = (DEPLOY / "systemd/unmask-.service.d/common.conf").read_text()
    assert not [f"{name}={value}" for name, value in telemetry.OFF.items() if f"{name}={value}" not in common]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    assert ignored[1] == "*" and not [name for name in ignored if name.startswith("!") and not (ROOT / name[1:]).exists()]


def contained(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as in a container of the image: its environment, only /tmp writable, a user without a name."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"} | IMAGE
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", CONTAINED, "sh", *command]
    return subprocess.run(words, text=True, capture_output=True, env=environment)


def test_dvc_and_prefects_page_work_where_only_tmp_is_writable_and_the_user_has_no_name():
    if not shutil.which("unshare") or contained(sys.executable, "-c", "").returncode:
        pytest.skip("needs user namespaces")
    stage = "stages: {one: {cmd: echo face > out, outs: [out]}}"
    dvc = f"git init --quiet && dvc init --quiet && echo '{stage}' > dvc.yaml && dvc repro --quiet && cat out"
    done = contained("sh", "-c", dvc)
    assert done.stdout == "face\n", done.stderr
    page = """
import getpass, os
from pathlib import Path
from prefect.server.api.server import create_ui_app
from starlette.testclient import TestClient
answer = TestClient(create_ui_app(ephemeral=False)).get("/", headers={"Accept": "text/html"})
copied = list(Path(os.environ["PREFECT_UI_STATIC_DIRECTORY"]).glob("*/index.html"))
print(getpass.getuser(), answer.status_code, len(copied) > 0)
"""
    done = contained(sys.executable, "-c", page)
    assert done.stdout == "unmask 200 True\n", done.stderr


def test_training_pods_are_hardened_like_the_others():
    template = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())
    manifest = template["job_configuration"]["job_manifest"]["spec"]["template"]
    pod, worker = manifest["spec"], PODS["worker"]
    assert {"parallelism", "completions"} <= set(pod)  # Prefect refuses a template without them
    for name in ("securityContext", "enableServiceLinks", "automountServiceAccountToken"):
        assert pod[name] == worker[name]
    assert pod["containers"][0]["securityContext"] == worker["containers"][0]["securityContext"]
    assert pod["containers"][0]["volumeMounts"] == worker["containers"][0]["volumeMounts"]
    assert manifest["metadata"]["labels"]["app"] == "flow-run" and "flow-run" in (DEPLOY / "kubernetes/network.yaml").read_text()
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_builds_all_of_it():
    built = subprocess.run(["kubectl", "kustomize", DEPLOY / "kubernetes"], text=True, capture_output=True, check=True).stdout
    found = list(yaml.safe_load_all(built))
    assert len(found) == len(MANIFESTS)
    assert all(manifest["metadata"].get("namespace") == "unmask" for manifest in found if manifest["kind"] != "Namespace")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_units(tmp_path: Path):
    shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    for file in (tmp_path / "units").rglob("*.*"):
        if file.is_file():  # /opt/unmask is not on this machine; its programs are here
            file.write_text(
                file.read_text().replace("/opt/unmask/.venv/bin", str(Path(sys.executable).parent)).replace("=unmask\n", "=root\n")
            )
    units = sorted(path.name for path in (tmp_path / "units").iterdir() if path.is_file())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path / "units",
        text=True,
        capture_output=True,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}/units:"},
    )
    ours = [line for line in done.stderr.splitlines() if "unmask" in line]
    assert not ours, done.stderr
