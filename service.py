"""HTTP in, verdict out: thin over pipeline/.

The routes are a Starlette application that BentoML mounts, and not `@bentoml.api` methods: those parse the whole upload, of any
size, before a method sees it, and answer a bad file or a wrong field with bodies of their own.
"""

import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import bentoml
import yaml
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, State, UploadFile
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import predictions, telemetry
from pipeline.champion import Champion, Served, champion
from pipeline.images import ImageError, Limits, Picture, decode
from pipeline.overlay import overlay, region
from pipeline.predictions import PredictionLog
from pipeline.tracking import MODEL

telemetry.off()
Result = TypeVar("Result")

HERE = Path(__file__).parent
LIMITS = Limits()
FORM_BYTES = 64_000
"""What a multipart form may add to its file: boundaries, headers, small fields."""
UPLOAD_SECONDS = 60
MODEL_SECONDS = 30
STATUS = {"empty": 400, "too_large": 413, "not_an_image": 415, "too_many_pixels": 413, "truncated": 422}
EXAMPLE = "Send it like `curl -F image=@photo.jpg URL`."
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class ApiError(Exception):
    """A request that cannot be answered: HTTP status, stable code, what is wrong, what to do."""

    def __init__(self, status: int, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint


class Form(MultiPartParser):
    """A parser that keeps an upload in memory: the size is bounded, and no picture touches the disk."""

    spool_max_size = LIMITS.max_bytes + FORM_BYTES


class Predict(HTTPEndpoint):
    """POST /predict."""

    async def post(self, request: Request) -> Response:
        """The verdict on the form's `image`."""
        started = time.perf_counter()
        _served(request)  # without a model there is no use in receiving the picture
        data = await _upload(request)
        served = _served(request)
        prediction = await _in_thread(request, lambda: served.detector.predict([decode(data, LIMITS)])[0])
        name = str(uuid.uuid4())
        seconds = time.perf_counter() - started
        request.app.state.metrics(prediction.verdict, served.version, seconds)
        request.app.state.log.record(id=name, package=served.detector.package.digest, version=served.version, prediction=prediction)
        thresholds = served.detector.package.meta.thresholds
        answer = {
            "id": name,
            "verdict": prediction.verdict,
            "probability_fake": round(prediction.probability_fake, 6),
            "thresholds": {"real_below": thresholds.real_below, "fake_above": thresholds.fake_above},
            "faces": [],  # no face detector looked
            "warnings": prediction.warnings,
            "model": _model(served),
            "timing_ms": round(seconds * 1000, 1),
        }
        return JSONResponse(answer)


class Explain(HTTPEndpoint):
    """POST /explain."""

    async def post(self, request: Request) -> Response:
        """Where the model looked, as numbers or, if `Accept` asks for image/png, as a transparent picture to lay over the image."""
        _served(request)
        data = await _upload(request)
        served = _served(request)

        def look() -> tuple[Picture, Any]:
            picture = decode(data, LIMITS)
            return picture, served.detector.explain(picture)

        picture, found = await _in_thread(request, look)
        seen = region(picture.rgb.size, served.detector.preprocess.keep_aspect)
        if "image/png" in request.headers.get("accept", ""):
            return Response(
                overlay(found.heat, seen, picture.rgb.size), media_type="image/png", headers={"X-Explanation-Method": found.method}
            )
        heat = [[round(float(value), 3) for value in row] for row in found.heat]
        return JSONResponse({"method": found.method, "heat": heat, "region": seen, "model": _model(served)})


async def model(request: Request) -> Response:
    """GET /model: what answers, and how good it was on its test part."""
    served = _served(request)
    meta = served.detector.package.meta
    trouble = request.app.state.champion.trouble
    about = {
        **_model(served),
        "created": meta.created,
        "runtime": served.detector.runtime.name,
        "thresholds": meta.thresholds.model_dump(),
        "figures": meta.figures,
        "lineage": meta.lineage,
        "trouble": trouble and " ".join(trouble),
    }
    return JSONResponse(about)


class Front:
    """What BentoML's own routes do not give: a /readyz that says why not, and security headers on every answer."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == "/readyz":
            await self._ready()(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _ready(self) -> Response:
        served, trouble = self.state.champion.served, self.state.champion.trouble
        if served is None:
            return _error(ApiError(503, "no_model", *(trouble or ("", ""))))
        return JSONResponse({"ready": True, "version": served.version, "trouble": trouble and " ".join(trouble)})


def _served(request: Request) -> Served:
    state = request.app.state
    if state.champion.served is None:
        raise ApiError(503, "no_model", *state.champion.trouble)
    return state.champion.served


def _model(served: Served) -> dict[str, Any]:
    lineage = served.detector.package.meta.lineage
    return {"name": MODEL, "version": served.version} | {key: lineage.get(key) for key in ("run_id", "data_md5", "git_commit")}


async def _upload(request: Request) -> bytes:
    """The bytes of the form's one file in the field `image`."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "not_multipart", "The request is not a multipart form", EXAMPLE)
    limit = LIMITS.max_bytes + FORM_BYTES
    too_large = ApiError(413, "too_large", f"The upload is larger than {LIMITS.max_bytes / 1e6:.0f} MB", "Send a smaller file.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large

    async def bounded() -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:  # a chunked upload has no length to look at beforehand
                raise too_large
            yield chunk

    try:
        with anyio.fail_after(UPLOAD_SECONDS):
            form = await Form(request.headers, bounded(), max_files=8, max_fields=32).parse()
    except MultiPartException as error:
        raise ApiError(400, "bad_form", f"The multipart form cannot be read: {error.message}", EXAMPLE) from None
    except TimeoutError:
        raise ApiError(408, "timeout", f"The upload took more than {UPLOAD_SECONDS} seconds", "Try again.") from None
    files = form.getlist("image")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        kinds = [(name, "file" if isinstance(value, UploadFile) else "text") for name, value in form.multi_items()]
        names = ", ".join(f"`{name[:40]}` ({kind})" for name, kind in kinds) or "none"
        await form.close()
        raise ApiError(400, "wrong_field", f"The form needs one file in the field `image`; it has {names}", EXAMPLE)
    data = await files[0].read()
    await form.close()
    return data


async def _in_thread(request: Request, work: Callable[[], Result]) -> Result:
    try:
        with anyio.fail_after(MODEL_SECONDS):
            return await anyio.to_thread.run_sync(work, limiter=request.app.state.threads, abandon_on_cancel=True)
    except TimeoutError:
        raise ApiError(504, "timeout", f"No answer within {MODEL_SECONDS} seconds", "Try again later, or send a smaller picture.") from None


def _error(error: ApiError, headers: Any = None) -> JSONResponse:
    body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    return JSONResponse(body, error.status, headers=headers)


def _on_api_error(_: Request, error: Any) -> Response:
    return _error(error, {"Retry-After": "5"} if error.status == 503 else None)


def _on_image_error(_: Request, error: Any) -> Response:
    return _error(ApiError(STATUS[error.code], error.code, error.message, error.hint))


def _on_http_error(_: Request, error: Any) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return _error(
        ApiError(error.status_code, code, error.detail, "POST /predict, POST /explain, GET / and GET /model are there."), error.headers
    )


def _on_disconnect(_: Request, __: Any) -> Response:
    return Response(status_code=499)  # nobody reads it; the status is for the access log


def _on_failure(_: Request, __: Exception) -> Response:
    return _error(ApiError(500, "internal", "Something went wrong inside", "Try again; the service's log says more."))


def _champion() -> Champion:
    """Inside a bento, whose sources lie in a folder beside bento.yaml, the package that was packed with them."""
    bento = HERE.parent / "bento.yaml"
    if not bento.is_file():
        return champion()
    labels = yaml.safe_load(bento.read_text()).get("labels") or {}
    return champion(HERE / "models" / "champion", labels.get("model_version", ""))


def _metrics() -> Callable[[str, str, float], None]:
    """A function that counts an answer: verdict, version, seconds."""
    # Imported late: prometheus_client looks once for the folder that BentoML names before it makes the service.
    from prometheus_client import Counter, Histogram

    count = Counter("unmask_predictions", "Answers, by verdict and model version", ["verdict", "version"])
    duration = Histogram("unmask_prediction_seconds", "From the request's headers to the answer, by model version", ["version"])

    def record(verdict: str, version: str, seconds: float) -> None:
        count.labels(verdict, version).inc()
        duration.labels(version).observe(seconds)

    return record


routes = Starlette(
    routes=[
        Route("/predict", Predict),
        Route("/explain", Explain),
        Route("/model", model),
        Mount("/", StaticFiles(directory=HERE / "web", html=True)),
    ],
    exception_handlers={
        ApiError: _on_api_error,
        ImageError: _on_image_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        Exception: _on_failure,
    },
)


@bentoml.service(name=MODEL, workers=1, traffic={"timeout": UPLOAD_SECONDS + MODEL_SECONDS + 30})
@bentoml.asgi_app(routes, path="/")
class Unmask:
    """The detector behind HTTP: the champion of MLflow, or the package inside the bento."""

    def __init__(self) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        var = Path(os.environ.get("UNMASK_VAR", "var"))
        self.champion, self.log = _champion(), PredictionLog(var / predictions.FILE)
        routes.state.champion, routes.state.log, routes.state.metrics = self.champion, self.log, _metrics()
        routes.state.threads = anyio.CapacityLimiter(os.cpu_count() or 2)
        self.champion.start()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop following, and write what is not written yet."""
        self.champion.stop()
        self.log.close()


Unmask.add_asgi_middleware(Front, state=routes.state)  # type: ignore[attr-defined]
