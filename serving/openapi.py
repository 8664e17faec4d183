"""Makes /openapi.json from the response models and the table of errors, and the schema that BentoML's own client reads."""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from pipeline.monitoring.feedback import LONGEST_COMMENT
from pipeline.tracking import MODEL
from serving import answers
from serving.errors import MEANING, STATUS

BODIES = (
    answers.Prediction,
    answers.Batch,
    answers.Explanation,
    answers.Feedback,
    answers.About,
    answers.DriftReport,
    answers.Ready,
    answers.Error,
)

ANYWHERE = ("unauthorized", "loopback_only", "cross_origin", "method_not_allowed", "internal")
UPLOADED = ("not_multipart", "bad_form", "wrong_field", "too_large", "too_many_images", "upload_timeout", "too_many_requests", "busy")
IMAGE = ("empty", "not_an_image", "too_many_pixels", "truncated")
FILE = {
    "type": "string",
    "format": "binary",
    "description": "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF and, where its codec is installed, HEIC; of an animation the first frame",
}


@cache
def document(max_batch: int) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the service; `max_batch` is the most images per batch."""
    _, definitions = models_json_schema([(body, "serialization") for body in BODIES], ref_template="#/components/schemas/{model}")
    png = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    paths = {
        "/predict": {
            "post": _upload("Judge an image", {"image": FILE}, ("image",), answers.Prediction, (*UPLOADED, *IMAGE, "no_model", "timeout"))
        },
        "/predict/batch": {
            "post": _upload(
                "Judge several images; one that cannot be judged has an error of its own",
                {"images": {"type": "array", "items": FILE, "minItems": 1, "maxItems": max_batch}},
                ("images",),
                answers.Batch,
                (*UPLOADED, "no_model", "timeout"),
            )
        },
        "/explain": {
            "post": _upload(
                "Where the model looked, as numbers or, with `Accept: image/png`, as a transparent picture to lay over the image",
                {"image": FILE},
                ("image",),
                answers.Explanation,
                (*UPLOADED, *IMAGE, "no_model", "timeout"),
                png,
            )
        },
        "/feedback": {
            "post": _upload(
                "Report what an image really is; the image is kept only with `keep_image=true`",
                {
                    "id": {"type": "string", "examples": [answers.EXAMPLE_ID], "description": "of the answer"},
                    "label": {"type": "string", "enum": ["real", "fake"]},
                    "comment": {"type": "string", "maxLength": LONGEST_COMMENT, "description": "in the user's own words"},
                    "keep_image": {"type": "string", "enum": ["true", "false"], "default": "false"},
                    "image": FILE,
                },
                ("id", "label"),
                answers.Feedback,
                (*UPLOADED, *IMAGE, "bad_value", "unknown_id", "timeout", "no_room"),
            )
        },
        "/model": {"get": _operation("The model that answers, and its figures", _json(answers.About), ("no_model",))},
        "/model/card": {
            "get": _operation(
                "The model card; a page with `Accept: text/html`",
                {kind: {"schema": {"type": "string"}} for kind in ("text/markdown", "text/html")},
                ("no_model", "no_card"),
            ),
        },
        "/drift": {"get": _operation("What the last drift check found", _json(answers.DriftReport), ("no_report",))},
        "/metrics": {"get": _operation("Figures for Prometheus", {"text/plain": {"schema": {"type": "string"}}}, ())},
        "/openapi.json": {"get": _operation("This description", {"application/json": {"schema": {"type": "object"}}}, ())},
        "/livez": {"get": _operation("Whether the process runs", {"text/plain": {"schema": {"type": "string"}}}, (), secured=False)},
        "/readyz": {"get": _operation("Whether a model is served", _json(answers.Ready), ("no_model",), secured=False)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Unmask", "version": "1", "description": "Tells real faces from deepfakes in images: a hint, never proof."},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"header": []}, {}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "where UNMASK_API_KEYS is set"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same"},
            },
        },
    }


def bentoml_schema() -> dict[str, Any]:
    """/schema.json for `bentoml.SyncHTTPClient`, which turns each route into a method: `client.predict(image=Path("photo.jpg"))`."""
    image = {"type": "object", "properties": {"image": {"type": "file"}}, "required": ["image"]}
    images = {"type": "object", "properties": {"images": {"type": "array", "items": {"type": "file"}}}, "required": ["images"]}
    routes = [("predict", "/predict", image), ("predict_batch", "/predict/batch", images), ("explain", "/explain", image)]
    return {
        "name": MODEL,
        "type": "service",
        "routes": [{"name": name, "route": route, "input": accepts, "output": {"type": "object"}} for name, route, accepts in routes],
    }


def _json(body: type[answers.Answer]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}


def _upload(
    summary: str,
    fields: dict[str, Any],
    required: tuple[str, ...],
    body: type[answers.Answer],
    codes: tuple[str, ...],
    others: dict[str, Any] | None = None,
) -> dict[str, Any]:
    form = {"schema": {"type": "object", "properties": fields, "required": list(required)}}
    operation = _operation(summary, _json(body) | (others or {}), codes)
    return operation | {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


def _operation(summary: str, content: dict[str, Any], codes: tuple[str, ...], secured: bool = True) -> dict[str, Any]:
    """An operation with its response, and an example of every error that it can end in."""
    responses: dict[str, Any] = {"200": {"description": summary, "content": content}}
    for code in sorted({*codes, *(ANYWHERE if secured else ())}, key=lambda code: (STATUS[code], code)):
        message, hint = MEANING[code]
        response = responses.setdefault(str(STATUS[code]), {"description": "", "content": _json(answers.Error)})
        examples = response["content"]["application/json"].setdefault("examples", {})
        examples[code] = {"summary": message, "value": {"error": {"code": code, "message": message, "hint": hint}}}
        response["description"] = ", ".join(f"`{name}`" for name in examples)
        if STATUS[code] in (429, 503):
            response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {"summary": summary, "responses": responses} | ({} if secured else {"security": []})
