"""Helpers for the tests of the page."""

import io
import os
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route

from serving.errors import ApiError

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: apt install chromium, or set CHROMIUM to its path")
KEY = "open-sesame"
FACE = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)


def picture(kind: str = "PNG", size: tuple[int, int] = (90, 120)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(FACE).resize(size).save(file, kind)
    return file.getvalue()


def choose(page: Page, name: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": data})


def hand_over(page: Page, kind: str, name: str, data: bytes) -> None:
    """Trigger a `paste` or `drop` with an image."""
    put = """([name, kind, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const pasted = kind === "paste";
        const event = pasted ? new ClipboardEvent(kind, { clipboardData: transfer }) : new DragEvent(kind, { dataTransfer: transfer });
        window.dispatchEvent(event);
    }"""
    page.evaluate(put, [name, kind, list(data)])


def failing(error: ApiError) -> Callable[[Route], None]:
    """A handler that answers with an error as the service would."""
    answer = error.response()
    return lambda route: route.fulfill(status=answer.status_code, headers=dict(answer.headers), body=bytes(answer.body))


def saying(body: str) -> Callable[[Route], None]:
    """A handler that answers with this text."""
    return lambda route: route.fulfill(body=body)
