"""/openapi.json, made from the models of the answers and the table of errors; and the routes as BentoML's own client wants them."""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from pipeline.feedback import LONGEST_COMMENT
from pipeline.tracking import MODEL
from serving import answers
from serving.access import OWN_PAGE
from serving.errors import STATUS

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

MEANING = {
    "bad_form": ("The multipart form cannot be read", "Send it like `curl -F image=@photo.jpg URL/predict`."),
    "bad_value": ("A field has a value that is not allowed", "The message names the field and what it may be."),
    "busy": ("Too many uploads are under way", "Wait as many seconds as `Retry-After` says."),
    "cross_origin": ("A page of another site may not use this service", OWN_PAGE),
    "empty": ("The file is empty", "Choose an image file."),
    "internal": ("Something went wrong inside", "Try again; the service's log says more."),
    "loopback_only": ("Without API keys this service answers only its own machine", "Set UNMASK_API_KEYS where the service is started."),
    "method_not_allowed": ("Nothing at this address answers that method", "GET /openapi.json lists what there is."),
    "no_card": ("The package of this model has no card", "Models that `make run` trains have one."),
    "no_model": ("No model is promoted", "Run `make run`, or set the alias in MLflow."),
    "no_report": ("Drift was not checked yet", "The flow `drift` does it every hour where `make up` runs."),
    "no_room": ("There is no room for more feedback", "Whoever runs the service can make some: UNMASK_FEEDBACK_MEGABYTES."),
    "not_an_image": ("The file is not an image that can be read", "Use JPEG, PNG or WebP."),
    "not_found": ("There is nothing at this address", "GET /openapi.json lists what there is."),
    "not_multipart": ("The request is not a multipart form", "Send it like `curl -F image=@photo.jpg URL/predict`."),
    "timeout": ("The answer took too long", "Try again later, or send a smaller picture."),
    "too_large": ("The file is larger than allowed", "Send a smaller file."),
    "too_many_images": ("The form has more files than allowed", "Send fewer at a time."),
    "too_many_pixels": ("The image has more pixels than allowed", "Scale it down first."),
    "too_many_requests": ("More uploads a minute than one client may send", "Wait as many seconds as `Retry-After` says."),
    "truncated": ("The image file is damaged or cut off", "Save or upload it again."),
    "unauthorized": ("The API key is missing or wrong", "Send `Authorization: Bearer KEY` or `X-API-Key: KEY`."),
    "unknown_id": ("There is no answer with this id", "Send the `id` of an answer of this service."),
    "upload_timeout": ("The upload took too long", "Try again."),
    "wrong_field": ("A field of the form is missing, or has the wrong kind", "The message names the field."),
}
"""Code -> example of a message and a hint."""

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
    """The OpenAPI 3.1 description of the service; it takes that many images at a time."""
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
                "Say what an image really is; the image is kept only with `keep_image=true`",
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
        "/model": {"get": _operation("What answers, and how good it was", _json(answers.About), ("no_model",))},
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
    """/schema.json for `bentoml.SyncHTTPClient`, which makes a method of each route: `client.predict(image=Path("photo.jpg"))`."""
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
    summary: str, fields: dict[str, Any], required: tuple[str, ...], body: type[answers.Answer], codes: tuple[str, ...], others: Any = None
) -> dict[str, Any]:
    form = {"schema": {"type": "object", "properties": fields, "required": list(required)}}
    operation = _operation(summary, _json(body) | (others or {}), codes)
    return operation | {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


def _operation(summary: str, content: dict[str, Any], codes: tuple[str, ...], secured: bool = True) -> dict[str, Any]:
    """An operation with its answer, and with every error that it can end in as an example."""
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
