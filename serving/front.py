"""Middleware before every route, BentoML's own included: access, limits, security headers, and one body for all errors."""

import logging
from pathlib import Path

from starlette.datastructures import MutableHeaders, State
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import card
from serving.access import check
from serving.answers import Ready, trouble_text
from serving.context import Context
from serving.errors import ApiError, http_error, internal
from serving.openapi import bentoml_schema

WEB = Path(__file__).parent.parent / "web"
CARD = "/model/card"
"""The only page that needs a key: without one, an empty card is served, which asks for it."""

HEALTH = {"/livez", "/healthz", "/readyz"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

log = logging.getLogger(__name__)


class Front:
    """ASGI middleware. `state.context` is set when the service starts."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        # The page itself contains nothing to protect, and a browser has no key until the page has asked for it.
        self.page = {"/", "/status"} | {f"/{path.name}" for path in WEB.iterdir()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        context: Context = self.state.context
        request = Request(scope)
        uploading = False
        try:
            if scope["path"] == "/readyz":
                if scope["method"] not in ("GET", "HEAD"):
                    raise http_error(405, {"Allow": "GET, HEAD"})
                await _ready(context)(scope, receive, answer)
                return
            if scope["path"] not in HEALTH and not (context.settings.api_keys and scope["path"] in self.page):
                client = request.state.client = check(request, context.settings)
                if scope["method"] == "POST":
                    context.rate.acquire(client)
                    context.uploads.enter(client)
                    request.state.held = 0
                    uploading = True
            if scope["path"] == "/schema.json":
                await JSONResponse(bentoml_schema())(scope, receive, answer)
                return
            await self.app(scope, receive, answer)
        except ApiError as error:
            context.metrics.refused(error.code)
            if error.code == "unauthorized" and scope["path"] == CARD and card.wants_page(request):
                answer.replaces = False
                await card.page(status=401, headers=error.headers)(scope, receive, answer)
            else:
                await error.response()(scope, receive, answer)
        except Exception:
            if answer.started:  # the application has already answered and logged it
                raise
            # Without an answer BentoML would keep the client waiting until its own timeout, and would not shut down before.
            log.exception("a request failed outside the routes")
            context.metrics.refused("internal")
            await internal().response()(scope, receive, answer)
        finally:
            if uploading:
                context.uploads.leave(request.state.client, request.state.held)


class _Answer:
    """Wraps `send`: adds our headers, and replaces the body of a library's error with ours."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.replaces, self.replaced, self.started = True, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            if self.replaces and message["status"] >= 400 and not headers.get("content-type", "").startswith("application/json"):
                self.replaced = True
                response = http_error(message["status"], {"Allow": headers["allow"]} if "allow" in headers else None).response()
                response.status_code = message["status"]
                response.headers.update(HEADERS)
                await self.send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
                await self.send({"type": "http.response.body", "body": response.body})
                return
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        if not self.replaced:
            await self.send(message)


def _ready(context: Context) -> Response:
    try:
        served, trouble = context.served(), context.champion.trouble
    except ApiError as error:  # not counted: a probe is not a client's request
        return error.response()
    return JSONResponse(Ready(ready=True, version=served.version, trouble=trouble_text(trouble)).model_dump())
