"""Requests that schemathesis generates from the OpenAPI description: answers match it, and are never a 500."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import photograph
from tests.package_helpers import tiny_package
from tests.service_helpers import served, wait_for

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"


@pytest.mark.long
def test_the_description_holds_for_thousands_of_made_up_requests(tmp_path):
    command = Path(sys.executable).parent / "schemathesis"
    if not command.is_file():
        pytest.skip("pip install schemathesis")
    with served(tmp_path, UNMASK_PACKAGE=str(tiny_package(tmp_path / "tiny"))) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        client.post("/explain", files={"image": photograph(64, 0)}).raise_for_status()  # the first one loads the network
        arguments = ["--checks", CHECKS, "--max-examples", "100", "--seed", "1", "--request-timeout", "60"]
        done = subprocess.run([command, "run", f"{client.base_url}/openapi.json", *arguments], cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout[-5000:]
        assert client.get("/readyz").is_success
