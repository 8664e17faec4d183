"""The face detector that a package is used with, and fetching YuNet."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.project import free_port
from pipeline import face_weights
from pipeline.detector import Detector
from pipeline.errors import StageError
from pipeline.face_weights import NONE, SHA256, YUNET, detector_for, located
from pipeline.package import FACES, seal, verify
from tests.face_helpers import YUNET as FILE
from tests.face_helpers import needs_yunet
from tests.package_helpers import META, tiny_package

CONTENT = b"the weights"


@contextmanager
def home(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A web server that answers everything with the content. Yields its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/yunet.onnx", asked
    server.shutdown()


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is fetched from outside. Returns the folder that the weights are kept in."""
    monkeypatch.setenv("UNMASK_VAR", str(tmp_path / "var"))
    monkeypatch.setattr(face_weights, "HOME", f"http://127.0.0.1:{free_port()}/yunet.onnx")
    return tmp_path / "var"


def test_yunet_is_fetched_once(monkeypatch, offline):
    with home(CONTENT) as (address, asked):
        monkeypatch.setattr(face_weights, "HOME", address)
        monkeypatch.setattr(face_weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())
        path = located(YUNET)
        assert located(YUNET) == path and path.is_relative_to(offline) and path.read_bytes() == CONTENT
        assert asked == ["/yunet.onnx"]


def test_another_file_than_yunet_is_not_kept(monkeypatch, offline):
    with home(b"a login page") as (address, _):
        monkeypatch.setattr(face_weights, "HOME", address)
        with pytest.raises(StageError, match=r"cannot be fetched from http://\S+: what came is another file"):
            located(YUNET)
    assert list(offline.iterdir()) == []


def test_without_a_network_the_message_says_what_to_do(offline):
    with pytest.raises(StageError, match=r"cannot be fetched .*Connection refused") as said:
        located(YUNET)
    path = Path(str(said.value).rpartition("save it as ")[2])
    path.write_bytes(CONTENT)
    assert located(YUNET).resolve() == path


def test_a_file_is_used_as_it_is(tmp_path):
    assert located(tmp_path / "other.onnx") == tmp_path / "other.onnx"


@needs_yunet
def test_the_known_hash_is_that_of_yunet():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256


@needs_yunet
def test_a_model_that_was_trained_on_faces_gets_yunet_unless_told_otherwise(tmp_path, monkeypatch, caplog):
    faces, whole = (tiny_package(tmp_path / kind, trained_on=kind) for kind in ("faces", "whole"))
    assert not Detector.load(faces, "cpu").finds_faces  # there is no network
    assert "judges whole images: face detector: YuNet cannot be fetched" in caplog.text
    with home(FILE.read_bytes()) as (address, asked):
        monkeypatch.setattr(face_weights, "HOME", address)
        assert not Detector.load(whole, "cpu").finds_faces and not Detector.load(faces, "cpu", NONE).finds_faces
        assert asked == []
        assert Detector.load(faces, "cpu").finds_faces and Detector.load(whole, "cpu", YUNET).finds_faces


def test_the_face_detector_of_a_package_comes_first_and_a_chosen_one_before_it(tmp_path):
    folder = tiny_package(tmp_path / "package")
    (folder / FACES).write_bytes(b"its own")
    seal(folder, META | {"trained_on": "faces"})
    package = verify(folder)
    assert detector_for(package, None) == folder / FACES
    assert detector_for(package, tmp_path / "chosen.onnx") == tmp_path / "chosen.onnx"
    assert detector_for(package, NONE) is None
    with pytest.raises(StageError, match="cannot be fetched"):  # what somebody asked for is not left out silently
        detector_for(package, YUNET)
