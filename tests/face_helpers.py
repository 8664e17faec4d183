"""Where real faces and a real face detector are, for tests that need them."""

import os
from pathlib import Path

import pytest

from tests.service_helpers import ROOT

YUNET = Path(os.environ.get("YUNET", ROOT.parent / "shared" / "weights" / "yunet" / "yunet_n_dynamic.onnx"))
PHOTOS = Path(os.environ.get("FACES", ROOT.parent / "shared" / "data" / "stylegan-faces"))
needs_yunet = pytest.mark.skipif(not YUNET.is_file(), reason="there is no YuNet here: set YUNET to its ONNX file")
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="there are no pictures of faces here: set FACES to a folder of them")
