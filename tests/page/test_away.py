"""What the page does while the service is away, and with uploads that do not arrive."""

from playwright.sync_api import Page, expect

from serving.errors import ApiError
from tests.page.use import choose, failing, hand_over, needs_chromium, picture

pytestmark = needs_chromium


def test_a_picture_waits_for_a_model_that_went_away(page: Page):
    expect(page.locator("#model")).to_be_visible()
    gone = failing(ApiError("no_model", "No model is promoted", "Run `make run`.", {"Retry-After": "1"}))
    page.route("**/predict", gone)
    page.route("**/model", gone)
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_visible()
    with page.expect_response("**/model"):  # it goes on asking
        pass
    expect(page.get_by_text("Looking at the picture…")).to_be_visible()
    page.unroute_all()
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_hidden()


def test_a_service_that_cannot_be_reached_is_said_and_waited_for(page: Page):
    silent = page.get_by_role("heading", name="The service does not answer.")
    page.route("**/model", lambda route: route.abort())
    page.reload()
    expect(silent).to_be_visible()
    expect(page.get_by_role("button", name="Choose pictures")).to_be_enabled()
    for kind in ("paste", "drop"):
        hand_over(page, kind, f"{kind}.png", picture())
        expect(page.locator("#name")).to_have_text(f"{kind}.png")
        expect(page.get_by_text("Looking at the picture…")).to_be_visible()
    page.unroute_all()
    expect(page.get_by_text("2 of 2 done", exact=True).first).to_be_visible(timeout=20_000)
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible()
    expect(silent).to_be_hidden()
    page.context.set_offline(True)
    choose(page, "me.png", picture())
    expect(silent).to_be_visible(timeout=20_000)
    page.context.set_offline(False)
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(silent).to_be_hidden()
