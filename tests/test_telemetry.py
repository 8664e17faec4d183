"""Telemetry is off."""

import os
import subprocess
import sys
from pathlib import Path


def test_openvino_and_nncf_are_imported_without_a_word_to_intel(tmp_path: Path):
    # Both write a user id into the home folder before they send anything.
    code = "import pipeline, openvino, nncf; from openvino.tools import ovc; print(type(ovc.telemetry).__module__)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)}, text=True, capture_output=True, check=True
    ).stdout
    assert found.strip() == "openvino.tools.ovc.telemetry_stub" and not (tmp_path / "intel").exists()
