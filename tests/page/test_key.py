"""The key that a service may require, and where the browser keeps it."""

from playwright.sync_api import Browser, Page, Route, expect

from tests.page.use import KEY, choose, needs_chromium, picture

pytestmark = needs_chromium


def test_the_page_asks_for_the_key_once(guarded: str, browser: Browser):
    page = browser.new_page(locale="en-US")
    page.goto(guarded)
    for key in ("ｏｐｅｎ－ｓｅｓａｍｅ", "wrong", f" {KEY} "):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        if key.strip() != KEY:
            expect(page.get_by_text("did not accept that key")).to_be_visible()
            page.get_by_role("button", name="中文").click()
            expect(page.get_by_role("alert")).to_have_text("该密钥无效。")
            page.get_by_role("button", name="EN").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    expect(page.locator("#curl")).to_have_text(
        f'curl -H "Authorization: Bearer $UNMASK_KEY" -F image=@photo.jpg {guarded}/predict', timeout=20_000
    )
    choose(page, "me.png", picture())
    expect(page.locator("#said")).to_be_visible(timeout=20_000)
    page.get_by_role("link", name="Status of the service").click()
    expect(page.locator("#model-version")).to_contain_text("Model version", timeout=20_000)
    expect(page.get_by_label("API key")).to_be_hidden()
    page.close()

    fresh = browser.new_page(locale="en-US")  # another tab, which has no key yet
    fresh.goto(f"{guarded}/model/card")
    fresh.get_by_label("API key").fill(KEY)
    fresh.get_by_role("button", name="Use this key").click()
    expect(fresh.get_by_role("heading", name="Unmask: model card")).to_be_visible()
    fresh.close()


def test_a_proxy_may_have_a_password_of_its_own(guarded: str, browser: Browser):
    page = browser.new_page(locale="en-US")

    def proxy(route: Route) -> None:
        if "authorization" in route.request.headers:  # the browser's own is added behind this, and only where there is none
            route.fulfill(status=401, headers={"WWW-Authenticate": "Basic"}, body="<h1>Authorization Required</h1>")
        else:
            route.continue_()

    page.route("**/*", proxy)
    page.goto(guarded)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_be_visible(timeout=20_000)
    page.close()


def test_a_login_that_a_proxy_asks_for_is_not_taken_for_the_services_key(page: Page):
    page.route("**/predict", lambda route: route.fulfill(status=401, content_type="text/html", body="<h1>Sign in</h1>"))
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Something before the service asks for a login.")).to_be_visible(timeout=20_000)
    expect(page.get_by_label("API key")).to_be_hidden()


def test_a_browser_that_keeps_nothing_is_no_obstacle(guarded: str, browser: Browser):
    context = browser.new_context(locale="en-US")
    context.add_init_script(
        "for (const kind of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, kind, { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    page = context.new_page()
    page.goto(guarded)
    page.get_by_role("button", name="中文").click()
    page.get_by_label("API 密钥").fill(KEY)
    page.get_by_role("button", name="使用此密钥").click()
    expect(page.locator("#model")).to_be_visible(timeout=20_000)
    context.close()
