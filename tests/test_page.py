"""The page in a real browser: headless Chromium against a real service."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline import feedback
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
    expect(page.get_by_role("button", name="Choose pictures")).to_be_disabled()
    package = tiny_package(
        tmp_path_factory.mktemp("packages") / "tiny", thresholds=META["thresholds"] | {"real_below": 0.0, "fake_above": 0.01}
    )
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    expect(page.get_by_role("button", name="Choose pictures")).to_be_enabled(timeout=30_000)
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
    expect(page.locator("#name")).to_have_text("me.png")
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
        expect(page.locator("#name")).to_have_text(f"{kind}.png", timeout=20_000)
        expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)


def test_a_bad_file_is_explained_and_the_next_one_works(page: Page):
    choose(page, "notes.txt", b"hello")
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture")
    choose(page, "half.png", picture()[:-400])
    expect(page.get_by_role("alert")).to_contain_text("damaged or cut off")
    choose(page, "big.png", bytes(20_000_001))
    expect(page.get_by_role("alert")).to_contain_text("larger than the service takes")
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


def test_many_pictures_get_a_row_each_and_a_csv_file(page: Page):
    kinds = {"=a.png": picture(), "b.txt": b"hello", 'c, "d".png': picture(size=(40, 40))}
    page.locator("#file").set_input_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in kinds.items()])
    rows = page.locator("#rows li")
    expect(rows).to_have_count(3)
    expect(page.get_by_text("3 of 3 done", exact=True).first).to_be_visible(timeout=30_000)
    expect(rows.nth(0)).to_contain_text("=a.png")
    expect(rows.nth(0)).to_contain_text("Likely")
    expect(rows.nth(1)).to_contain_text("This file is not a picture that can be read")

    rows.nth(2).get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text('c, "d".png')
    expect(page.get_by_text("The picture is very small")).to_be_visible()
    rows.nth(1).get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("b.txt: This file is not a picture")

    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    saved = list(csv.DictReader(download.value.path().read_text("utf-8-sig").splitlines()))
    assert [row["file"] for row in saved] == ["'=a.png", "b.txt", 'c, "d".png']  # no formula for a spreadsheet
    assert saved[0]["verdict"] in ("real", "fake", "uncertain") and 0 <= float(saved[0]["probability_fake"]) <= 1
    assert saved[1]["error"] == "not_an_image" and "too_small" in saved[2]["warnings"]

    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Is this face real?")).to_be_visible()


def test_feedback_keeps_the_picture_only_if_asked_to(page: Page, workspace: Path):
    folder = workspace / "var" / "feedback"
    for keep in (False, True):
        choose(page, f"{keep}.png", picture())
        expect(page.locator("#name")).to_have_text(f"{keep}.png")
        expect(page.locator("#said")).to_be_visible(timeout=20_000)
        page.get_by_text("This is wrong").click()
        page.get_by_label("It is real").check()
        consent = page.get_by_label("Keep this picture")
        expect(consent).not_to_be_checked()
        if keep:
            consent.check()
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_text("Thank you. It is noted.")).to_be_visible(timeout=20_000)
        said = feedback.read(folder)[-1]
        assert said.label == "real" and (said.image is not None) == keep
    assert [path.read_bytes() for path in (folder / "images").iterdir()] == [picture()]


def test_the_model_card_opens_and_closes(page: Page):
    page.locator("footer").get_by_role("button", name="Model card").click()
    card = page.get_by_role("dialog", name="Model card")
    expect(card.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    expect(card.get_by_role("cell", name="0.500")).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_the_status_page_shows_what_is_served_and_how_it_goes(page: Page, promoted: str, workspace: Path):
    page.request.post(f"{promoted}/predict", multipart={"image": {"name": "a.png", "mimeType": "image/png", "buffer": picture()}})
    (workspace / "var" / "drift").mkdir(parents=True, exist_ok=True)
    report = {"version": "1", "drift": True, "p_value": 0.0021, "alpha": 0.01, "window": 500}
    (workspace / "var" / "drift" / "report.json").write_text(json.dumps(report))
    page.get_by_role("link", name="Status of the service").click()
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
    expect(page.locator("#model-version")).to_contain_text("Model version")
    expect(page.locator("#answers")).to_contain_text("answers since the start")
    expect(page.locator("#verdicts")).to_contain_text("%")
    expect(page.locator("#latency")).to_contain_text(" s")
    expect(page.get_by_text("Traffic no longer looks like what the model was judged on.")).to_be_visible()
    expect(page.get_by_text("500 answers of version 1, p = 0.0021")).to_be_visible()


def test_the_page_asks_for_the_key_once(browser: Browser, tmp_path: Path):
    package = tiny_package(tmp_path / "tiny")
    folder = tmp_path / "workspace"
    folder.mkdir()
    with served(folder, UNMASK_PACKAGE=str(package), UNMASK_API_KEYS="open-sesame") as client:
        wait_for(lambda: client.get("/readyz").is_success)
        page = browser.new_page(locale="en-US")
        page.goto(str(client.base_url))
        for key in ("wrong", "open-sesame"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
            if key == "wrong":
                expect(page.get_by_text("did not take that key")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_hidden()
        choose(page, "me.png", picture())
        expect(page.locator("#said")).to_be_visible(timeout=20_000)
        page.get_by_role("link", name="Status of the service").click()
        expect(page.locator("#model-version")).to_contain_text("Model version", timeout=20_000)
        expect(page.get_by_label("API key")).to_be_hidden()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules_hold(promoted: str, browser: Browser, scheme: Literal["light", "dark"]):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    # axe-core is injected as a script, which the page's own policy would refuse.
    context = browser.new_context(locale="en-US", color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(promoted)
    expect(page.get_by_role("button", name="Choose pictures")).to_be_enabled()
    states = {"start": axe.run(page)}
    choose(page, "notes.txt", b"hello")
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    states["error"] = axe.run(page)
    choose(page, "me.png", picture(size=(40, 40)))
    expect(page.get_by_label("Attention map")).to_be_enabled(timeout=20_000)
    page.get_by_text("This is wrong").click()
    states["result"] = axe.run(page)
    page.locator("footer").get_by_role("button", name="Model card").click()
    expect(page.get_by_role("dialog", name="Model card")).to_be_visible()
    states["card"] = axe.run(page)
    page.goto(f"{promoted}/status")
    expect(page.locator("#model-version")).to_contain_text("Model version")
    states["status"] = axe.run(page)
    context.close()
    broken = {name: [violation["id"] for violation in found.response["violations"]] for name, found in states.items()}
    assert not any(broken.values()), broken


def test_the_keyboard_reaches_everything_in_reading_order(page: Page):
    expect(page.get_by_role("button", name="Choose pictures")).to_be_enabled()
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached == ["Unmask", "EN", "中文", "Choose pictures", "Model card", "Status of the service"]


def test_the_first_paint_is_light(promoted: str, browser: Browser):
    page = browser.new_page(locale="en-US")
    sizes = []
    page.on("response", lambda response: sizes.append(len(response.body())) if response.ok else None)
    page.goto(promoted)
    expect(page.get_by_role("button", name="Choose pictures")).to_be_enabled()
    page.close()
    assert 0 < sum(sizes) < 100_000


def test_a_promotion_shows_in_the_page_within_seconds(page: Page, workspace: Path, tmp_path: Path, promoted: str):
    choose(page, "me.png", picture())
    expect(page.locator("#model")).to_have_text("Model version 1", timeout=20_000)
    package = tiny_package(tmp_path / "next", thresholds=META["thresholds"] | {"real_below": 0.99, "fake_above": 0.995})
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    wait_for(lambda: page.request.get(f"{promoted}/model").json()["version"] == "2")
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely real")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("Model version 2, made Jan 2, 2026.")).to_be_visible()
