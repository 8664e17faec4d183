"""The API except /predict: batches, feedback, the model card, the OpenAPI description, and both kinds of Python client."""

import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import bentoml
import httpx
import jsonschema
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from pipeline.monitoring import feedback
from serving import card
from serving.errors import MEANING, STATUS
from tests.package_helpers import CARD, META, tiny_package
from tests.service_helpers import served, wait_for


class Elements(HTMLParser):
    """The elements of a page, as a browser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def client(workspace, tmp_path_factory) -> Iterator[httpx.Client]:
    package = tiny_package(tmp_path_factory.mktemp("packages") / "tiny", thresholds=META["thresholds"] | {"real_below": 0.40000012345})
    with served(
        workspace, UNMASK_PACKAGE=str(package), UNMASK_MAX_BATCH="4", UNMASK_MAX_BATCH_MEGABYTES="1", UNMASK_FEEDBACK_MEGABYTES="0.1"
    ) as client:
        wait_for(lambda: client.get("/readyz").is_success)
        yield client


@pytest.fixture(scope="module")
def document(client) -> dict:
    return client.get("/openapi.json").json()


def batch(client: httpx.Client, *images: bytes) -> httpx.Response:
    return client.post("/predict/batch", files=[("images", (f"{index}.png", data)) for index, data in enumerate(images)])


def test_a_batch_answers_each_image_in_order_and_a_bad_one_fails_alone(client):
    answer = batch(client, png(1), b"hello", png(2), png(1)[:-300])
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [item["index"] for item in results] == [0, 1, 2, 3] and results[2]["name"] == "2.png"
    assert [item["error"] and item["error"]["code"] for item in results] == [None, "not_an_image", None, "truncated"]
    alone = [client.post("/predict", files={"image": png(seed)}).json()["probability_fake"] for seed in (1, 2)]
    together = [results[place]["result"]["probability_fake"] for place in (0, 2)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_batch_has_its_limits(client):
    assert refusal(batch(client, *[png()] * 5)) == (400, "too_many_images")
    assert refusal(batch(client, *[png()] * 40)) == (400, "too_many_images")
    assert refusal(client.post("/predict/batch", files={"image": png()})) == (400, "wrong_field")
    assert refusal(batch(client, bytes(600_000), bytes(600_000))) == (413, "too_large")


def test_feedback_is_noted_and_keeps_the_image_only_with_consent(client, workspace):
    answer = client.post("/predict", files={"image": png(3)}).json()
    said = client.post("/feedback", files={"id": (None, answer["id"]), "label": (None, "real")})
    assert said.json() == {"id": answer["id"], "label": "real", "image_kept": False}
    noted = feedback.read(workspace / "var" / "feedback")[-1]
    assert (noted.id, noted.label, noted.verdict, noted.image, noted.comment) == (answer["id"], "real", answer["verdict"], None, None)
    assert noted.probability_fake == pytest.approx(answer["probability_fake"], abs=1e-6)
    assert not list((workspace / "var" / "feedback" / "images").iterdir())

    form = {"id": (None, answer["id"]), "label": (None, "fake"), "image": ("../../evil.png", png(3))}
    form |= {"comment": (None, " 眼睛里的反光\n<b>不一样</b> ")}
    assert refusal(client.post("/feedback", files=form)) == (400, "bad_value")
    assert client.post("/feedback", files=form | {"keep_image": (None, "true")}).json()["image_kept"] is True
    noted = feedback.read(workspace / "var" / "feedback")[-1]
    assert noted.label == "fake" and noted.image is not None and noted.comment == "眼睛里的反光\n<b>不一样</b>"
    kept = list((workspace / "var" / "feedback" / "images").iterdir())
    assert [path.name for path in kept] == [noted.image] and kept[0].read_bytes() == png(3)


def test_feedback_that_makes_no_sense_is_refused(client):
    answer = client.post("/predict", files={"image": png(3)}).json()
    assert refusal(client.post("/feedback", files={"id": (None, "nothing"), "label": (None, "real")})) == (404, "unknown_id")
    assert refusal(client.post("/feedback", files={"id": (None, answer["id"]), "label": (None, "maybe")})) == (400, "bad_value")
    long = {"id": (None, answer["id"]), "label": (None, "real"), "comment": (None, "a" * 1001)}
    assert refusal(client.post("/feedback", files=long)) == (400, "bad_value")
    assert refusal(client.post("/feedback", files={"id": (None, answer["id"])})) == (400, "wrong_field")
    form = {"id": (None, answer["id"]), "label": (None, "real"), "keep_image": (None, "true"), "image": ("a.png", b"hello")}
    assert refusal(client.post("/feedback", files=form)) == (415, "not_an_image")
    unknown = form | {"id": (None, b"\xed\xa0\x80")}  # the image is not even read
    assert refusal(client.post("/feedback", files=unknown)) == (404, "unknown_id")


@pytest.mark.parametrize("charset", ["punycode", "undefined", "unicode_escape"])
def test_a_form_in_another_charset_is_refused(client, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="id"\r\n\r\n\\ud800\r\n'
    body += b'--x\r\nContent-Disposition: form-data; name="label"\r\n\r\nreal\r\n--x--\r\n'

    def told(charset: str) -> httpx.Response:
        return client.post("/feedback", content=body, headers={"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"})

    assert refusal(told(charset)) == (400, "bad_form") and charset in told(charset).json()["error"]["message"]
    assert refusal(told("UTF-8")) == (404, "unknown_id")


def test_feedback_ends_where_its_room_does(client, workspace):
    answer = client.post("/predict", files={"image": png(3)}).json()

    def told(seed: int) -> httpx.Response:
        form = {"id": (None, answer["id"]), "label": (None, "real"), "keep_image": (None, "true"), "image": ("a.png", png(seed))}
        return client.post("/feedback", files=form)

    answers = [told(100 + seed) for seed in range(5)]  # 24 KB each, with room for 100 KB
    assert answers[0].is_success and refusal(answers[-1]) == (507, "no_room")
    assert feedback.sizes(workspace / "var" / "feedback").total() <= 100_000


def test_figures_have_no_digits_that_say_nothing(client):
    assert client.post("/predict", files={"image": png()}).json()["thresholds"] == {"real_below": 0.4, "fake_above": 0.6}
    assert client.get("/model").json()["thresholds"]["real_below"] == 0.4


def test_the_model_and_its_card(client):
    about = client.get("/model").json()
    assert about["limits"]["batch"] == 4 and about["limits"]["megabytes"] == 20 and "JPEG" in about["limits"]["formats"]
    assert about["trained_on"] == "whole" and about["face_detector"] is False and about["figures"]["auc"]["value"] == 0.5
    card = client.get("/model/card")
    assert card.headers["content-type"].startswith("text/markdown") and card.text == CARD
    page = client.get("/model/card", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and page.headers["vary"] == card.headers["vary"] == "Accept"
    assert "<h1>Unmask: model card</h1>" in page.text and "<td>0.500</td>" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "<style" not in page.text


def test_a_card_cannot_bring_markup_or_fetch_anything():
    hostile = """# <img src=x onerror=alert(1)>
<script>alert(1)</script>
</article><iframe src="//evil.example">

| `<b>` |
| --- |
| [here](javascript:alert(1)) [there](https://example.org 't" onclick=x') ![seen](https://evil.example/a.png) |
"""
    request = Request({"type": "http", "headers": [(b"accept", b"text/html")]})
    page = card.answer(request, hostile).body.decode()
    parsed = Elements()
    parsed.feed(page[page.index('<article id="card-text"') : page.index("</main>")])
    assert {tag for tag, _ in parsed.found} == {"article", "h1", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "a"}
    links = [attributes for tag, attributes in parsed.found if tag == "a"]
    assert {attributes["href"] for attributes in links} == {"https://example.org", "https://evil.example/a.png"}
    assert not any(name.startswith("on") or name == "src" for _, attributes in parsed.found for name in attributes)


def test_the_last_drift_check_is_shown(client, workspace):
    assert refusal(client.get("/drift")) == (404, "no_report")
    (workspace / "var" / "drift").mkdir(parents=True)
    report = {"version": "3", "drift": True, "p_value": 0.002, "alpha": 0.01, "window": 500, "statistics": []}
    (workspace / "var" / "drift" / "report.json").write_text(json.dumps(report | {"announced": "the id of another client's answer"}))
    found = client.get("/drift").json()
    assert found.pop("checked").startswith("20") and found == report
    for broken in ("", '{"version": "3", "dri', "[]", '{"p_value": NaN}'):
        (workspace / "var" / "drift" / "report.json").write_text(broken)
        assert refusal(client.get("/drift")) == (404, "no_report"), broken


def test_the_description_names_every_address_and_every_error(client, document):
    assert set(document["paths"]) >= {"/predict", "/predict/batch", "/explain", "/feedback", "/model", "/model/card", "/drift", "/readyz"}
    assert set(MEANING) == set(STATUS)
    seen = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] and "200" in operation["responses"], path
            for status, response in operation["responses"].items():
                assert response["description"]
                for name, example in response["content"].get("application/json", {}).get("examples", {}).items():
                    assert set(example["value"]["error"]) == {"code", "message", "hint"} and str(STATUS[name]) == status
                    seen[name] = method
    assert set(seen) == set(STATUS) - {"not_found"}  # the answer of unknown addresses
    assert "504" in document["paths"]["/feedback"]["post"]["responses"]


def test_answers_and_examples_are_as_described(client, document):
    schemas = document["components"]["schemas"]

    def check(name: str, value: dict) -> None:
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}).validate(value)

    prediction = client.post("/predict", files={"image": png()}).json()
    check("Prediction", prediction)
    check("Batch", batch(client, png(), b"hello").json())
    check("Explanation", client.post("/explain", files={"image": png()}).json())
    check("About", client.get("/model").json())
    check("Ready", client.get("/readyz").json())
    check("Feedback", client.post("/feedback", files={"id": (None, prediction["id"]), "label": (None, "real")}).json())
    check("Error", client.get("/nothing").json())
    for name in ("Prediction", "Batch", "Explanation", "Feedback", "DriftReport"):
        for example in schemas[name]["examples"]:
            check(name, example)
    with pytest.raises(jsonschema.ValidationError):
        check("Prediction", prediction | {"verdict": "perhaps"})


def test_bentos_own_client_works(client, tmp_path):
    (tmp_path / "photo.png").write_bytes(png())
    with bentoml.SyncHTTPClient(str(client.base_url)) as own:
        assert own.predict(image=tmp_path / "photo.png")["verdict"] in ("real", "fake", "uncertain")
        assert len(own.predict_batch(images=[tmp_path / "photo.png"] * 2)["results"]) == 2


def test_errors_of_bentos_own_addresses_have_the_same_body(client):
    assert refusal(client.post("/metrics")) == (405, "method_not_allowed")
    assert refusal(client.delete("/livez")) == (405, "method_not_allowed")
    assert refusal(client.post("/model")) == (405, "method_not_allowed")
    known = (("POST", "/model", {"GET", "HEAD"}), ("GET", "/predict", {"POST"}), ("DELETE", "/livez", {"GET", "HEAD"}))
    for method, path, allowed in known:
        assert set(client.request(method, path).headers["allow"].split(", ")) == allowed, path


def test_metrics_count_refusals_and_feedback(client):
    lines = client.get("/metrics").text.splitlines()
    assert any(line.startswith('unmask_errors_total{code="not_an_image"}') for line in lines)
    assert any(line.startswith("unmask_feedback_total{") and 'label="fake"' in line for line in lines)
