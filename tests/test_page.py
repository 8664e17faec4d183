"""The page in a real browser: headless Chromium against a real service."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.package_helpers import META, tiny_package
from tests.service_helpers import register, served, wait_for

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: apt install chromium, or set CHROMIUM to its path")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
FACE = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)


def picture(kind: str = "PNG", size: tuple[int, int] = (90, 120)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(FACE).resize(size).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    """A service that no model was promoted for yet."""
    with served(workspace) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def promoted(address: str, workspace: Path, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same service with a model; the page that was open all the time says so first."""
    page = browser.new_page(locale="en-US")
    page.goto(address)
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_visible()
    expect(page.get_by_text("make run", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Choose a picture")).to_be_disabled()
    package = tiny_package(
        tmp_path_factory.mktemp("packages") / "tiny", thresholds=META["thresholds"] | {"real_below": 0.0, "fake_above": 0.01}
    )
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    expect(page.get_by_role("button", name="Choose a picture")).to_be_enabled(timeout=30_000)
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_hidden()
    page.close()
    return address


@pytest.fixture
def page(promoted: str, browser: Browser) -> Iterator[Page]:
    """The page in English; a script error or a refused request of it fails the test."""
    context = browser.new_context(locale="en-US", viewport={"width": 1200, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security Policy" in message.text else None)
    page.goto(promoted)
    yield page
    context.close()
    assert not problems


def choose(page: Page, name: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": data})


def test_an_upload_gets_a_verdict_a_probability_and_a_map(page: Page):
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.locator("#percent")).to_contain_text("%")
    expect(page.get_by_role("img", name="Likely fake from 1.0%")).to_be_visible()
    expect(page.get_by_text("me.png")).to_be_visible()
    expect(page.get_by_text("it can miss forgeries of a kind it was never shown")).to_be_visible()
    expect(page.locator("#map-note")).to_contain_text("Where the model looked", timeout=20_000)
    canvas, preview = page.locator("#map"), page.locator("#preview")
    expect(canvas).to_be_visible()
    drawn = canvas.evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0)"
    )
    assert drawn
    over, under = canvas.bounding_box(), preview.bounding_box()
    assert over and under
    assert over["height"] == pytest.approx(under["height"], abs=2) and over["width"] == pytest.approx(over["height"] * 90 / 120, abs=3)
    assert over["x"] + over["width"] / 2 == pytest.approx(under["x"] + under["width"] / 2, abs=2)


def test_the_map_fades_with_the_slider(page: Page):
    choose(page, "me.png", picture())
    slider = page.get_by_label("Attention map")
    expect(slider).to_be_enabled(timeout=20_000)
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#map")).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#map")).to_have_css("opacity", "1")


def test_a_picture_can_be_dropped_and_pasted(page: Page):
    put = """([name, kind, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const pasted = kind === "paste";
        const event = pasted ? new ClipboardEvent(kind, { clipboardData: transfer }) : new DragEvent(kind, { dataTransfer: transfer });
        window.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate(put, [f"{kind}.png", kind, list(picture())])
        expect(page.get_by_text(f"{kind}.png")).to_be_visible(timeout=20_000)
        expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)


def test_a_bad_file_is_explained_and_the_next_one_works(page: Page):
    choose(page, "notes.txt", b"hello")
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture")
    choose(page, "half.png", picture()[:-400])
    expect(page.get_by_role("alert")).to_contain_text("damaged or cut off")
    choose(page, "big.png", bytes(20_000_001))
    expect(page.get_by_role("alert")).to_contain_text("larger than 20 MB")
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_warnings_are_in_plain_words(page: Page):
    choose(page, "small.png", picture(size=(40, 40)))
    expect(page.get_by_text("The picture is very small")).to_be_visible(timeout=20_000)


def test_it_speaks_chinese_and_remembers(page: Page):
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", name="可能是伪造")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.reload()
    expect(page.get_by_role("button", name="选择图片")).to_be_visible()


def test_the_browsers_language_is_taken(promoted: str, browser: Browser):
    page = browser.new_page(locale="zh-CN")
    page.goto(promoted)
    expect(page.get_by_role("heading", name="这张脸是真的吗")).to_be_visible()
    page.close()


def test_a_phone_shows_it_without_scrolling_sideways(promoted: str, browser: Browser):
    page = browser.new_page(locale="en-US", viewport={"width": 360, "height": 740})
    page.goto(promoted)
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_a_promotion_shows_in_the_page_within_seconds(page: Page, workspace: Path, tmp_path: Path, promoted: str):
    choose(page, "me.png", picture())
    expect(page.locator("#model")).to_have_text("Model version 1", timeout=20_000)
    package = tiny_package(tmp_path / "next", thresholds=META["thresholds"] | {"real_below": 0.99, "fake_above": 0.995})
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    wait_for(lambda: page.request.get(f"{promoted}/model").json()["version"] == "2")
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely real")).to_be_visible(timeout=20_000)
    expect(page.locator("#model")).to_have_text("Model version 2")
