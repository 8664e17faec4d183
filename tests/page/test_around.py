"""The page beyond the verdict: languages, screens, accessibility, model card, status."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pipeline.package import GOLDEN, STARTER
from serving.errors import STATUS, internal
from tests.page.use import KEY, choose, failing, needs_chromium, picture, saying
from tests.service_helpers import ROOT

pytestmark = needs_chromium

OTHERWISE = {"unauthorized", "no_report"}
"""Error codes for which the pages have a form or a state instead of a text."""
MISTAKES = {"bad_value", "method_not_allowed", "not_found", "not_multipart", "too_many_images", "wrong_field"}
"""Error codes of wrong calls, which the pages never make."""


def test_it_speaks_chinese_and_remembers(page: Page):
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", name="可能是伪造的")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.reload()
    expect(page.get_by_role("button", name="选择图片")).to_be_visible()


def test_the_browsers_language_is_taken(promoted: str, browser: Browser):
    page = browser.new_page(locale="zh-CN")
    page.goto(promoted)
    expect(page.get_by_role("heading", name="这张脸是真的吗")).to_be_visible()
    page.close()


def test_a_phone_shows_it_without_scrolling_sideways(promoted: str, browser: Browser):
    page = browser.new_page(locale="en-US", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.goto(promoted)
    expect(page.locator("#model")).to_be_visible()
    expect(page.get_by_role("region", name="Choose pictures or take a photo")).to_be_visible()
    expect(page.get_by_text("Drop pictures")).to_be_hidden()
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    choose(page, f"{'x' * 90}.png", b"hello")
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#file").set_input_files([{"name": f"{index}.png", "mimeType": "image/png", "buffer": picture()} for index in range(5)])
    expect(page.get_by_text("7 of 7 done", exact=True).first).to_be_visible(timeout=30_000)
    page.locator("#rows").get_by_role("button", name="4.png").click()
    expect(page.locator("#verdict")).to_be_in_viewport()
    page.close()


def test_every_problem_has_words_in_both_languages(page: Page):
    words = page.evaluate(
        "async () => Object.entries((await import('/i18n.js')).WORDS).map(([language, words]) => [language, Object.keys(words)])"
    )
    assert [language for language, _ in words] == ["en", "zh"] and set(words[0][1]) == set(words[1][1])
    needed = {f"{part}_{code}" for code in STATUS.keys() - OTHERWISE - MISTAKES for part in ("error", "hint")}
    assert needed <= set(words[0][1])


def test_figures_and_thresholds_that_differ_look_different(page: Page):
    thresholds = {"real_below": 0.130948, "fake_above": 0.79834}
    percents = "async ([figure, thresholds]) => (await import('/i18n.js')).percents(figure, thresholds)"
    for figure, shown in {
        0.5: ["50%", "13%", "80%"],
        0.795: ["79.5%", "13.1%", "79.8%"],
        0.7983: ["79.830%", "13.095%", "79.834%"],
        0.79834: ["80%", "13%", "80%"],
        0.00001: ["< 0.1%", "13%", "80%"],
    }.items():
        assert page.evaluate(percents, [figure, thresholds]) == shown
    assert page.evaluate(percents, [0.0004, thresholds | {"real_below": 0.0008}]) == ["0.04%", "0.08%", "79.8%"]


def test_the_model_card_opens_and_closes(page: Page):
    page.route("**/model/card", lambda route: route.abort())
    page.locator("footer").get_by_role("button", name="Model card").click()
    card = page.get_by_role("dialog", name="Model card")
    expect(card.get_by_role("alert")).to_contain_text("The service does not answer.")
    card.get_by_role("button", name="Close").click()
    page.unroute_all()
    page.locator("footer").get_by_role("button", name="Model card").click()
    expect(card.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    expect(card.get_by_role("alert")).to_be_empty()
    at_its_top = "card => document.elementFromPoint(innerWidth / 2, card.getBoundingClientRect().top + 6).closest('form')?.method"
    assert card.evaluate(at_its_top) == "dialog"  # not covered by the card's scrolled text
    expect(card.get_by_role("cell", name="0.500")).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_the_model_card_is_a_page_of_its_own_in_both_languages(page: Page, promoted: str):
    page.goto(f"{promoted}/model/card")
    expect(page.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    expect(page.get_by_role("cell", name="0.500")).to_be_visible()
    assert page.title() == "Model card"
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_text("使用该模型前应了解的信息")).to_be_visible()
    page.get_by_role("link", name="返回主页").click()
    expect(page.get_by_role("heading", name="这张脸是真的吗")).to_be_visible()


def test_a_phone_breaks_no_figure_of_the_card(guarded: str, browser: Browser):
    context = browser.new_context(locale="en-US", viewport={"width": 320, "height": 640})
    context.add_init_script(f"sessionStorage.setItem('unmask-key', '{KEY}')")
    page = context.new_page()
    page.goto(guarded)
    page.locator("footer").get_by_role("button", name="Model card").click()
    figures = page.get_by_role("dialog").get_by_role("cell").filter(has_text=re.compile(r"^[\d.]+$"))
    expect(figures.first).to_be_visible()
    lines = """cells => cells.map((cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(({ top }) => top)).size;
    })"""
    assert set(figures.evaluate_all(lines)) == {1}
    page.locator("tr").evaluate_all("rows => rows.forEach((row) => row.insertCell().textContent = '0.1234567890123456789')")
    assert page.get_by_role("dialog").evaluate("card => card.scrollWidth <= card.clientWidth")  # its table scrolls
    context.close()


def test_the_status_page_shows_what_is_served_and_how_it_goes(page: Page, promoted: str, workspace: Path):
    for content in (picture(), b""):
        page.request.post(f"{promoted}/predict", multipart={"image": {"name": "a.png", "mimeType": "image/png", "buffer": content}})
    (workspace / "var" / "drift").mkdir(parents=True, exist_ok=True)
    report = {"version": "1", "drift": True, "p_value": 0.0021, "alpha": 0.01, "window": 500}
    (workspace / "var" / "drift" / "report.json").write_text(json.dumps(report))
    page.clock.install()
    page.get_by_role("link", name="Status of the service").click()
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
    expect(page.locator("#model-version")).to_contain_text("Model version")
    expect(page.locator("#answers")).to_contain_text("Answers since the start")
    expect(page.locator("#verdicts")).to_contain_text("%")
    expect(page.locator("#latency")).to_contain_text(" s")
    expect(page.locator("#errors")).to_contain_text("The file is empty. (empty)")
    expect(page.get_by_text("Traffic no longer looks like the data that the model was evaluated on.")).to_be_visible()
    expect(page.get_by_text("500 different pictures judged by version 1, p = 0.0021")).to_be_visible()

    before = page.locator("#answers").text_content()
    assert before and not before.endswith(" 0")
    page.context.set_offline(True)
    page.clock.fast_forward(11_000)
    expect(page.get_by_role("heading", name="The service does not answer.")).to_be_visible()
    expect(page.get_by_text("The figures below are out of date")).to_be_visible()
    expect(page.locator("#answers")).to_have_text(before)
    page.context.set_offline(False)
    page.clock.fast_forward(11_000)
    expect(page.get_by_text("The figures below are out of date")).to_be_hidden()
    page.get_by_role("button", name="中文").click()
    assert page.title() == "Unmask：状态"


@pytest.mark.parametrize("broken", [failing(internal()), saying("{"), saying("{}"), saying("null")])
def test_a_drift_report_that_cannot_be_had_leaves_the_other_figures(page: Page, promoted: str, broken: Callable[[Route], None]):
    page.route("**/drift", broken)
    page.goto(f"{promoted}/status")
    drift = page.get_by_role("region", name="Last drift check")
    expect(drift).to_contain_text("The result of the last check cannot be shown.")
    expect(drift).to_have_css("border-style", "dashed")
    expect(page.locator("#model-version")).to_contain_text("Model version")
    expect(page.get_by_role("region", name="Verdicts")).to_have_css("border-style", "solid")
    expect(page.locator("#failed")).to_be_hidden()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_text("无法显示最近一次检查的结果。")).to_be_visible()


def test_the_status_page_names_the_challenger_and_a_check_that_says_nothing_of_today(page: Page, promoted: str):
    served = page.request.get(f"{promoted}/model").json()
    trial = {"version": "7", "mode": "canary", "share": 0.1, "ended": None, "trouble": None}
    check = {"version": served["version"], "drift": False, "p_value": 0.4, "alpha": 0.01, "window": 500}
    checked = datetime.now(UTC) - timedelta(days=3, hours=1)

    def look(challenger: dict[str, Any], version: str) -> None:
        page.route("**/model", lambda route: route.fulfill(json=served | {"challenger": trial | challenger}))
        page.route("**/drift", lambda route: route.fulfill(json=check | {"version": version, "checked": checked.isoformat()}))
        page.goto(f"{promoted}/status")

    look({}, served["version"])
    expect(page.get_by_text("version 7 answers 10% of the pictures")).to_be_visible()
    expect(page.get_by_text("This check is 3 d old.")).to_be_visible()
    expect(page.get_by_role("region", name="Last drift check")).to_have_css("border-style", "dashed")
    look({"ended": "it called too many pictures fake"}, "999")
    expect(page.get_by_text("its canary was ended: it called too many pictures fake")).to_be_visible()
    expect(page.get_by_text("This check is of another version than the one that is served now.")).to_be_visible()


def test_a_map_of_evidence_is_called_one_and_may_be_empty(guarded: str, browser: Browser):
    context = browser.new_context(locale="en-US")
    context.add_init_script(f"sessionStorage.setItem('unmask-key', '{KEY}')")
    page = context.new_page()
    page.goto(guarded)
    golden = json.loads((ROOT / STARTER / GOLDEN / "golden.json").read_text())
    real, *_, fake = sorted(golden, key=lambda name: golden[name]["probability_fake"])
    choose(page, fake, (ROOT / STARTER / GOLDEN / fake).read_bytes())
    expect(page.get_by_label("Heat map: regions that suggest a fake")).to_be_enabled(timeout=120_000)
    expect(page.locator("#map-note")).to_contain_text("The stronger the colour, the more a region suggests a fake")

    def nowhere(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        route.fulfill(response=response, json=answer | {"heat": [[0.0] * len(row) for row in answer["heat"]]})

    page.route("**/explain", nowhere)
    choose(page, real, (ROOT / STARTER / GOLDEN / real).read_bytes())
    expect(page.locator("#map-note")).to_contain_text("No region suggests a fake", timeout=20_000)
    expect(page.get_by_label("Heat map: regions that suggest a fake")).to_be_disabled()
    expect(page.locator("#scale")).to_be_hidden()

    page.get_by_text("This is wrong").click()
    page.get_by_label("It is fake").check()
    page.get_by_label("Keep this picture").check()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#feedback-said")).to_contain_text("The service has no room for more feedback.", timeout=20_000)
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#map-note")).to_contain_text("没有任何位置支持“伪造”的判断")
    context.close()


@pytest.mark.parametrize(("valid", "words"), [(True, "The signature is valid"), (False, "The signature is not valid")])
def test_what_the_file_says_of_itself_is_shown(page: Page, valid: bool, words: str):
    signed = {"signer": "Ada", "claim_generator": "Brush 2", "valid": valid, "problems": []}
    for sources in ([], ["trainedAlgorithmicMedia"]):
        signed["ai_generated"] = sources
        page.route("**/predict", lambda route: route.fulfill(json=route.fetch().json() | {"credentials": signed}), times=1)
        choose(page, "me.png", picture())
        expect(page.locator("#credentials")).to_contain_text("Signed by Ada; created with Brush 2", timeout=20_000)
        expect(page.locator("#credentials")).to_contain_text(words)
        expect(page.get_by_text("generative AI made or edited this picture")).to_be_visible(visible=bool(sources))
    choose(page, "plain.png", picture())
    expect(page.locator("#name")).to_have_text("plain.png")
    expect(page.locator("#said")).to_be_visible(timeout=20_000)
    expect(page.locator("#credentials")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules_hold(promoted: str, browser: Browser, scheme: Literal["light", "dark"]):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    # axe-core is injected as a script, which the page's content security policy would refuse.
    context = browser.new_context(locale="en-US", color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(promoted)
    expect(page.locator("#model")).to_be_visible()
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
    expect(page.locator("#model")).to_be_visible()
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
    expect(page.locator("#model")).to_be_visible()
    page.close()
    assert 0 < sum(sizes) < 100_000
