"""All errors that a request can end in. They share one body: {"error": {"code", "message", "hint"}}."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

STATUS = {
    "bad_form": 400,
    "bad_value": 400,
    "empty": 400,
    "too_many_images": 400,
    "wrong_field": 400,
    "unauthorized": 401,
    "cross_origin": 403,
    "loopback_only": 403,
    "no_card": 404,
    "no_report": 404,
    "not_found": 404,
    "unknown_id": 404,
    "method_not_allowed": 405,
    "upload_timeout": 408,
    "too_large": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "not_multipart": 415,
    "truncated": 422,
    "busy": 429,
    "too_many_requests": 429,
    "internal": 500,
    "no_model": 503,
    "timeout": 504,
    "no_room": 507,
}
"""Error code, stable for programs -> HTTP status."""

MEANING = {
    "bad_form": ("The multipart form cannot be read", "Send it like `curl -F image=@photo.jpg URL/predict`."),
    "bad_value": ("A field has a value that is not allowed", "The message names the field and what it may be."),
    "busy": ("Too many uploads are under way", "Wait as many seconds as `Retry-After` says."),
    "cross_origin": (
        "A page of another site may not use this service",
        "Use the service's own page, or a client that is not a browser. A proxy must pass `Host` on unchanged.",
    ),
    "empty": ("The file is empty", "Choose an image file."),
    "internal": ("Something went wrong inside the service", "Try again; the service log has details."),
    "loopback_only": (
        "Without API keys this service answers only requests from its own machine, addressed to localhost",
        "Set UNMASK_API_KEYS when you start the service, and send one of the keys.",
    ),
    "method_not_allowed": ("This endpoint does not support that method", "GET /openapi.json lists the endpoints."),
    "no_card": ("The package of this model has no card", "Models that `make run` trains have one."),
    "no_model": ("No model is promoted", "Run `make run`, or set the alias in MLflow."),
    "no_report": ("Drift has not been checked yet", "With `make up`, the flow `drift` checks it every hour."),
    "no_room": ("There is no room for more feedback", "Whoever runs the service can raise UNMASK_FEEDBACK_MEGABYTES."),
    "not_an_image": ("The file is not an image that can be read", "Use JPEG, PNG or WebP."),
    "not_found": ("There is no endpoint at this address", "GET /openapi.json lists the endpoints."),
    "not_multipart": ("The request is not a multipart form", "Send it like `curl -F image=@photo.jpg URL/predict`."),
    "timeout": ("The answer took too long", "Try again later, or send a smaller picture."),
    "too_large": ("The file is larger than allowed", "Send a smaller file."),
    "too_many_images": ("The form has more files than allowed", "Send fewer at a time."),
    "too_many_pixels": ("The image has more pixels than allowed", "Scale it down first."),
    "too_many_requests": ("More uploads per minute than one client may send", "Wait as many seconds as `Retry-After` says."),
    "truncated": ("The image file is damaged or cut off", "Save or upload it again."),
    "unauthorized": ("The API key is missing or wrong", "Send `Authorization: Bearer KEY` or `X-API-Key: KEY`."),
    "unknown_id": ("There is no answer with this id", "Send the `id` of an answer of this service."),
    "upload_timeout": ("The upload took too long", "Try again."),
    "wrong_field": ("A form field is missing, or of the wrong kind", "The message names the field."),
}
"""Error code -> default message and hint."""

CODES = {404: "not_found", 405: "method_not_allowed", 504: "timeout"}
"""HTTP status of an error that a library raised -> our code."""


class ApiError(Exception):
    """A request that cannot be answered: a code of STATUS, a message and a hint; the last two default to those in MEANING."""

    def __init__(self, code: str, message: str = "", hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.code, self.headers = code, headers
        self.message, self.hint = message or MEANING[code][0], hint or MEANING[code][1]
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, str]:
        """The content of `error` in the response."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse({"error": self.body}, STATUS[self.code], headers=self.headers)


def internal() -> ApiError:
    """What a client is told about a bug of ours."""
    # The server closes the connection afterwards; a client that is not told would send its next request on it.
    return ApiError("internal", headers={"Connection": "close"})


def http_error(status: int, headers: Mapping[str, str] | None) -> ApiError:
    """What a client is told about an error that a library answered, with its headers: 405 needs `Allow`."""
    if status >= 500 and status not in CODES:
        return internal()
    if status not in CODES:
        return ApiError("bad_value", "The request cannot be understood", "GET /openapi.json describes every request.", headers)
    return ApiError(CODES[status], headers=headers)
