"""Around the verdict: languages, screens, accessibility, the card, the status, the key."""

import json
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.package_helpers import tiny_package
from tests.page.use import choose, needs_chromium, picture
from tests.service_helpers import served, wait_for

pytestmark = needs_chromium


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


def test_the_model_card_opens_and_closes(page: Page):
    page.locator("footer").get_by_role("button", name="Model card").click()
    card = page.get_by_role("dialog", name="Model card")
    expect(card.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    expect(card.get_by_role("cell", name="0.500")).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_the_model_card_is_a_page_of_its_own_in_both_languages(page: Page, promoted: str):
    page.goto(f"{promoted}/model/card")
    expect(page.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    expect(page.get_by_role("cell", name="0.500")).to_be_visible()
    assert page.title() == "Model card"
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_text("信任该模型之前应当了解的内容")).to_be_visible()
    page.get_by_role("link", name="返回主页").click()
    expect(page.get_by_role("heading", name="这张脸是真的吗")).to_be_visible()


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

        fresh = browser.new_page(locale="en-US")  # another tab, which has no key yet
        fresh.goto(f"{client.base_url}/model/card")
        fresh.get_by_label("API key").fill("open-sesame")
        fresh.get_by_role("button", name="Use this key").click()
        expect(fresh.get_by_role("heading", name="Unmask: model card")).to_be_visible()
        fresh.close()


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
    page.goto(f"{promoted}/model/card")
    states["card page"] = axe.run(page)
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
