"""The service as users see it: `bentoml serve`, following MLflow."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.hostile import chunk, png_of, special
from pipeline.cores import cores
from pipeline.images import HEIF
from tests.conftest import at_work_in
from tests.service_helpers import promote, register, served, wait_for

PIXELS = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(Image.fromarray(PIXELS), "PNG")
JPEG = encoded(Image.fromarray(PIXELS), "JPEG")


def predict(client: httpx.Client, data: bytes, field: str = "image") -> httpx.Response:
    return client.post("/predict", files={field: ("picture", data)})


def refusal(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"} and all(error.values())
    return response.status_code, error["code"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def store(workspace) -> str:
    return f"sqlite:///{workspace / 'mlflow.db'}"


@pytest.fixture(scope="module")
def service(workspace) -> Iterator[httpx.Client]:
    """A service that starts before there is any MLflow store."""
    with served(workspace) as client:
        yield client


@pytest.fixture(scope="module")
def client(service, store, package) -> httpx.Client:
    """The service after version 1 was promoted."""
    register(store, package)
    wait_for(lambda: service.get("/readyz").is_success)
    return service


def test_before_any_model_is_promoted_it_says_what_to_run(service):
    for response in (service.get("/readyz"), service.get("/model"), predict(service, PNG)):
        assert refusal(response) == (503, "no_model")
        assert "make run" in response.json()["error"]["hint"] and response.headers["retry-after"] == "5"
    assert service.get("/livez").is_success
    assert service.get("/").is_success


def test_an_answer_names_verdict_thresholds_and_lineage(client, package):
    meta = json.loads((package / "package.json").read_text())
    answer = predict(client, PNG).json()
    assert set(answer) == {"id", "verdict", "probability_fake", "thresholds", "faces", "warnings", "credentials", "model", "timing_ms"}
    assert 0 <= answer["probability_fake"] <= 1 and answer["faces"] == [] and answer["timing_ms"] > 0
    assert answer["thresholds"] == {name: meta["thresholds"][name] for name in ("real_below", "fake_above")}
    lineage = {name: meta["lineage"][name] for name in ("run_id", "data_md5", "git_commit")}
    assert answer["model"] == {"name": "unmask", "version": "1", "created": meta["created"]} | lineage
    assert predict(client, PNG).json()["id"] != answer["id"]


def test_the_same_picture_gets_the_same_figure_in_every_lossless_form(client):
    image = Image.fromarray(PIXELS)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held sideways
    forms = {
        "PNG": PNG,
        "16-bit PNG": _png16(PIXELS[..., 0]),
        "transparent PNG": encoded(image.convert("RGBA"), "PNG"),
        "TIFF": encoded(image, "TIFF"),
        "EXIF-rotated PNG": encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned),
    }
    figures = {name: predict(client, data).json()["probability_fake"] for name, data in forms.items()}
    gray = predict(client, encoded(Image.fromarray(PIXELS[..., 0]), "PNG")).json()["probability_fake"]
    assert figures.pop("16-bit PNG") == pytest.approx(gray, abs=1e-5)
    assert list(figures.values()) == pytest.approx([figures["PNG"]] * len(figures), abs=1e-5)


def test_odd_but_valid_pictures_get_a_verdict(client):
    image = Image.fromarray(PIXELS)
    frames = [image.convert("P"), image.rotate(90).convert("P")]
    odd = {
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "palette with transparency": encoded(image.convert("P"), "PNG", transparency=0),
        "animated GIF": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bilevel": encoded(image.convert("1"), "PNG"),
        "WebP": encoded(image, "WEBP"),
        **{kind: encoded(image, kind) for kind in HEIF},
    }
    for name, data in odd.items():
        answer = predict(client, data)
        assert answer.status_code == 200, f"{name}: {answer.text}"
    tiny = predict(client, encoded(Image.new("RGB", (1, 1)), "PNG"))
    assert tiny.status_code == 200 and "too_small" in tiny.json()["warnings"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (400, "empty")),
        (b"hello", (415, "not_an_image")),
        (b"%PDF-1.7 " + bytes(1000), (415, "not_an_image")),
        (JPEG[: len(JPEG) // 2], (422, "truncated")),
        (PNG[:-200], (422, "truncated")),
        (bytes(20_000_001), (413, "too_large")),
        (bytes(21_000_000), (413, "too_large")),
    ],
)
def test_a_bad_file_is_refused(client, data, expected):
    assert refusal(predict(client, data)) == expected


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client):
    assert refusal(predict(client, png_of(60_000, 60_000, zlib.compress(bytes(1000))))) == (413, "too_many_pixels")
    assert refusal(predict(client, png_of(2**31 - 1, 2**31 - 1, b"")))[0] in (413, 415)
    assert refusal(predict(client, special()["1 x 50,000,000 pixels"])) == (413, "too_many_pixels")


def test_the_memory_of_a_large_picture_is_given_back(client, workspace):
    def held() -> float:
        return sum(psutil.Process(pid).memory_info().rss for pid in at_work_in(workspace)) / 1e6

    assert predict(client, PNG).is_success
    before = held()
    assert predict(client, special()["bomb within the limit"]).is_success  # 49 megapixels, 147 MB as numbers
    assert held() - before < 100


@pytest.mark.parametrize(("path", "small"), [("/predict", "/explain"), ("/feedback", "/predict")])
def test_large_pictures_do_not_hold_up_small_ones(client, path, small):
    image = png_of(3000, 3000, zlib.compress(bytes(3000 * 9001)))
    told = {"id": predict(client, PNG).json()["id"], "label": "real", "keep_image": "true"} if path == "/feedback" else {}
    assert client.post(small, files={"image": PNG}).is_success
    with ThreadPoolExecutor(60) as pool:
        large = [pool.submit(client.post, path, data=told, files={"image": image}) for _ in range(min(3 * cores(), 60))]
        assert next(as_completed(large)).result().is_success
        assert client.post(small, files={"image": PNG}).is_success
        assert sum(not one.done() for one in large) >= len(large) / 2
        assert all(one.result().is_success for one in large)


def test_a_picture_for_feedback_has_a_deadline_too(package, tmp_path):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "predictions.db").touch()  # as a crash leaves it
    with served(tmp_path, UNMASK_PACKAGE=str(package), UNMASK_TIMEOUT="0.2") as hurried:
        told = {"id": "nothing", "label": "real", "keep_image": "true"}
        image = {"image": special()["bomb within the limit"]}
        wait_for(lambda: hurried.get("/readyz").is_success)
        assert refusal(hurried.post("/feedback", data=told, files=image)) == (404, "unknown_id")
        wait_for(lambda: predict(hurried, PNG).is_success)
        told["id"] = predict(hurried, PNG).json()["id"]
        assert refusal(hurried.post("/feedback", data=told, files=image)) == (504, "timeout")


def test_a_bad_request_is_refused(client):
    assert refusal(predict(client, PNG, field="picture")) == (400, "wrong_field")
    assert refusal(client.post("/predict", data={"image": "text"}, files={"other": PNG})) == (400, "wrong_field")
    assert refusal(client.post("/predict", files=[("image", PNG), ("image", PNG)])) == (400, "wrong_field")
    assert refusal(client.post("/predict", content=PNG)) == (415, "not_multipart")
    assert refusal(client.post("/predict", json={"image": "x"})) == (415, "not_multipart")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(client.post("/predict", content=b"no boundary here", headers=form)) == (400, "bad_form")
    assert refusal(client.post("/predict", content=b"", headers={"Content-Type": "multipart/form-data"})) == (400, "bad_form")
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    two = (head + PNG + b"\r\n") * 2
    assert refusal(client.post("/predict/batch", content=two, headers=form)) == (400, "bad_form")
    assert [one["index"] for one in client.post("/predict/batch", content=two + b"--x--", headers=form).json()["results"]] == [0, 1]
    assert refusal(client.get("/predict")) == (405, "method_not_allowed")
    assert refusal(client.get("/nothing")) == (404, "not_found")
    assert refusal(client.get("/../service.py")) == (404, "not_found")


def test_an_endless_upload_without_a_length_is_cut_off(client):
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(1_000_000)

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(client.post("/predict", content=chunks(), headers=form)) == (413, "too_large")


def test_explain_gives_numbers_or_a_picture(client):
    found = client.post("/explain", files={"image": PNG}).json()
    heat = np.array(found["heat"])
    assert found["method"] and heat.ndim == 2 and heat.min() >= 0 and heat.max() <= 1
    assert set(found["region"]) == {"left", "top", "width", "height"}
    answer = client.post("/explain", files={"image": PNG}, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    assert image.mode == "RGBA" and image.size == (100, 80)
    assert refusal(client.post("/explain", files={"image": b"hello"})) == (415, "not_an_image")


def test_the_page_runs_no_foreign_or_inline_script(client):
    for path, kind in {"/": "text/html", "/app.js": "text/javascript", "/style.css": "text/css", "/icon.svg": "image/svg+xml"}.items():
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        expected = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
        expected |= {"cross-origin-resource-policy": "same-origin", "cache-control": "no-cache"}
        assert {name: answer.headers.get(name) for name in expected} == expected
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


def test_metrics_count_answers_by_verdict_and_version(client):
    verdict = predict(client, PNG).json()["verdict"]
    lines = client.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("unmask_predictions_total") and verdict in line and 'version="1"' in line]
    assert len(counted) == 1 and float(counted[0].split()[-1]) >= 1
    assert any(line.startswith("unmask_prediction_seconds_count") and 'version="1"' in line for line in lines)


def test_it_follows_the_alias_and_refuses_a_broken_package(client, store, package, workspace, tmp_path):
    assert client.get("/model").json()["version"] == "1"
    register(store, package)
    wait_for(lambda: predict(client, PNG).json()["model"]["version"] == "2")  # no restart

    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    weights = broken / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    register(store, broken)
    wait_for(lambda: "Version 3 was refused" in (client.get("/readyz").json()["trouble"] or ""))
    trouble = client.get("/readyz").json()["trouble"]
    assert "model.safetensors" in trouble and "differs from the recorded one. Promote another version" in trouble
    assert predict(client, PNG).json()["model"]["version"] == "2"
    assert "Version 3 was refused" in (workspace / "service.log").read_text()

    promote(store, "1")
    # The new version answers a moment before the trouble with the old one is cleared.
    wait_for(lambda: client.get("/readyz").json() == {"ready": True, "version": "1", "trouble": None})
    assert predict(client, PNG).json()["model"]["version"] == "1"


def _png16(gray: np.ndarray) -> bytes:
    """A 16-bit grayscale PNG with the values of an 8-bit image."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in gray)
    header = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
