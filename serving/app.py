"""The Starlette application that BentoML mounts, and its error handlers."""

import logging
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline.images import ImageError
from serving import routes
from serving.errors import ApiError, http_error, internal
from serving.front import WEB

log = logging.getLogger(__name__)


def make() -> Starlette:
    """The application. `state.context` must be set before the first request."""
    return Starlette(
        routes=[
            Route("/predict", routes.Predict),
            Route("/predict/batch", routes.PredictBatch),
            Route("/explain", routes.Explain),
            Route("/feedback", routes.Feedback),
            Route("/model", routes.model),
            Route("/model/card", routes.card),
            Route("/drift", routes.drift),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.schema),
            Route("/status", routes.status),
            Mount("/", StaticFiles(directory=WEB, html=True)),
        ],
        exception_handlers={
            ApiError: _answered(lambda error: error),
            ImageError: _answered(lambda error: ApiError(error.code, error.message, error.hint)),
            HTTPException: _answered(lambda error: http_error(error.status_code, error.headers)),
            Exception: _answered(lambda _: internal()),
            ClientDisconnect: _unread,
        },
    )


def _answered(as_api_error: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, found: Exception) -> Response:
        error = as_api_error(found)
        request.app.state.context.metrics.refused(error.code)
        return error.response()

    return handle


def _unread(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the status is for the access log
