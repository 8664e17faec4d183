"""Receives MLflow's webhook when an alias is moved, and starts the flow `deploy` at once instead of within a minute.

Prefect's own webhooks exist only in Prefect Cloud. MLflow signs its messages; unsigned and old ones are refused.
"""

import base64
import hashlib
import hmac
import logging
import os
import sys
import time
from collections.abc import Mapping

import uvicorn
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent, WebhookEventStr
from mlflow.webhooks.constants import WEBHOOK_DELIVERY_ID_HEADER, WEBHOOK_SIGNATURE_HEADER, WEBHOOK_TIMESTAMP_HEADER
from prefect.deployments import run_deployment
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.ports import HOOK_SECRET, HOST
from pipeline.champion_source import CHAMPION
from pipeline.tracking import MODEL, connect

NAME = "unmask-deploy"
OLDEST = 300.0
"""Seconds. A message that was signed longer ago may be a replay."""

LARGEST = 100_000
"""Bytes of a message; larger ones are refused."""

EVENTS: list[WebhookEventStr | WebhookEvent] = [
    WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, action) for action in (WebhookAction.CREATED, WebhookAction.DELETED)
]
log = logging.getLogger("unmask.hook")


def signed(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Whether the message was signed with the secret, at most OLDEST seconds ago."""
    sent = headers.get(WEBHOOK_TIMESTAMP_HEADER, "")
    if not sent.isdecimal() or abs(time.time() - int(sent)) > OLDEST:
        return False
    text = f"{headers.get(WEBHOOK_DELIVERY_ID_HEADER, '')}.{sent}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(expected.encode(), headers.get(WEBHOOK_SIGNATURE_HEADER, "").encode())


def app(secret: str) -> Starlette:
    """One route: POST / answers 202 if it started the flow, 204 for other messages, 401 if unsigned, 413 if too large."""

    async def receive(request: Request) -> Response:
        if int(request.headers.get("content-length", LARGEST + 1)) > LARGEST:
            return Response(status_code=413)
        body = await request.body()
        if not signed(request.headers, body, secret):
            log.warning("a message without a valid signature was refused")
            return Response(status_code=401)
        data = (await request.json()).get("data", {})
        if (data.get("name"), data.get("alias")) != (MODEL, CHAMPION):
            return Response(status_code=204)
        await run_deployment("deploy/default", timeout=0)  # type: ignore[misc]
        return Response(status_code=202)

    return Starlette(routes=[Route("/", receive, methods=["POST"])])


def subscribe(url: str, secret: str) -> None:
    """Register this receiver with MLflow, or update its registration."""
    connect()
    client = MlflowClient()
    for known in client.list_webhooks():
        if known.name == NAME:
            client.update_webhook(known.webhook_id, url=url, events=EVENTS, secret=secret)
            return
    client.create_webhook(NAME, url, EVENTS, secret=secret)


def mlflow_environment(secret: str) -> dict[str, str]:
    """Settings that let an MLflow server on this machine reach the receiver: by default it accepts only https and public addresses."""
    key = base64.urlsafe_b64encode(hashlib.sha256(f"mlflow {secret}".encode()).digest()).decode()
    return {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": key,
    }


def main() -> None:
    """Subscribe, and listen on the port given as the only argument."""
    secret = os.environ.get(HOOK_SECRET, "")
    if not secret:
        sys.exit(f"error: {HOOK_SECRET} is not set: choose a secret that only MLflow and this receiver share")
    port = int(sys.argv[1])
    subscribe(f"http://{HOST}:{port}/", secret)
    uvicorn.run(app(secret), host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    main()
