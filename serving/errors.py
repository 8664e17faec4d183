"""Everything that a request can be refused with. Each error has one body: {"error": {"code", "message", "hint"}}."""

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
"""Code, which stays the same for programs -> HTTP status."""

CODES = {404: "not_found", 405: "method_not_allowed", 504: "timeout"}
"""HTTP status of an error that came without a body of ours -> its code."""


class ApiError(Exception):
    """A request that cannot be answered: a code of STATUS, what is wrong, what to do."""

    def __init__(self, code: str, message: str, hint: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.headers = code, message, hint, headers

    @property
    def body(self) -> dict[str, str]:
        """What stands under `error` in the answer."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"error": self.body}, STATUS[self.code], headers=self.headers)


def internal() -> ApiError:
    """What a client hears of a mistake of ours."""
    # The server closes the connection after it, and a client that was not told would send its next request there.
    return ApiError("internal", "Something went wrong inside", "Try again; the service's log says more.", {"Connection": "close"})


def http_error(status: int, headers: Mapping[str, str] | None = None) -> ApiError:
    """What a client hears of an error that a library answered, with its headers: 405 needs `Allow`."""
    if status >= 500 and status not in CODES:
        return internal()
    messages = {
        "not_found": "There is nothing at this address",
        "method_not_allowed": "Nothing at this address answers that method",
        "timeout": "The answer took too long",
        "bad_value": "The request cannot be understood",
    }
    code = CODES.get(status, "bad_value")
    return ApiError(code, messages[code], "GET /openapi.json lists what there is.", headers)
