"""The page while the service is down, and with uploads that do not arrive."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

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
    with page.expect_response("**/model"):  # it keeps asking
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


@pytest.mark.parametrize(("status", "headers"), [(502, {"Content-Type": "text/html"}), (503, {"Retry-After": "3600"}), (504, {})])
def test_a_restart_behind_a_proxy_costs_no_picture(page: Page, status: int, headers: dict[str, str]):
    silent = page.get_by_role("heading", name="The service, or something before it, did not answer.")
    expect(page.locator("#model")).to_be_visible()
    page.clock.install()

    def gateway(route: Route) -> None:
        route.fulfill(status=status, headers=headers, body="<h1>Bad Gateway</h1>")

    page.route("**/predict", gateway)
    page.route("**/model", gateway)
    page.locator("#file").set_input_files([{"name": f"{index}.png", "mimeType": "image/png", "buffer": picture()} for index in range(5)])
    expect(silent).to_be_visible()
    expect(page.get_by_text("0 of 5 done", exact=True)).to_be_visible()
    page.unroute_all()
    page.clock.fast_forward(2_000)
    expect(silent).to_be_hidden()
    page.clock.fast_forward(60_000)
    expect(page.get_by_text("5 of 5 done", exact=True).first).to_be_visible(timeout=20_000)
    expect(page.locator("#rows .said.fake")).to_have_count(5)


def test_a_picture_that_waits_for_its_turn_says_why(page: Page):
    expect(page.locator("#model")).to_be_visible()
    page.clock.install()
    page.route("**/predict", failing(ApiError("too_many_requests", "More than 1200", "Wait.", {"Retry-After": "30"})), times=1)
    choose(page, "me.png", picture())
    expect(page.get_by_text("Too many requests in a short time. This page retries automatically.")).to_be_visible(timeout=20_000)
    page.clock.fast_forward(31_000)
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)


def test_a_file_that_is_too_large_for_a_proxy_is_said_to_be(page: Page):
    expect(page.locator("#model")).to_be_visible()
    page.route("**/predict", lambda route: route.fulfill(status=413, content_type="text/html", body="<h1>Too large</h1>"))
    choose(page, "me.png", picture())
    expect(page.get_by_role("alert")).to_contain_text("me.png: The file is larger than the service accepts.", timeout=20_000)
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_proxy_that_gives_up_on_a_picture_is_said_to(page: Page):
    expect(page.locator("#model")).to_be_visible()
    page.route("**/predict", lambda route: route.fulfill(status=504, content_type="text/html", body="<h1>Gateway Time-out</h1>"))
    choose(page, "me.png", picture())
    said = page.get_by_role("alert")
    expect(said).to_contain_text("me.png: The service, or something before it, did not answer.", timeout=20_000)
    expect(said).to_contain_text("longer than a proxy waits")


def test_an_upload_that_breaks_is_no_service_that_is_away(page: Page):
    expect(page.locator("#model")).to_be_visible()
    page.route("**/predict", lambda route: route.abort(), times=1)
    choose(page, "once.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    page.route("**/predict", lambda route: route.abort())
    choose(page, "twice.png", picture())
    expect(page.get_by_role("alert")).to_contain_text("twice.png: The picture did not reach the service.", timeout=20_000)
    expect(page.get_by_role("heading", name="The service does not answer.")).to_be_hidden()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#name")).to_have_text("twice.png")
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_all_that_failed_are_tried_again_at_once(page: Page):
    expect(page.locator("#model")).to_be_visible()
    page.route("**/predict", failing(ApiError("timeout", "No answer within 30 seconds", "Try again later.")))
    files = {"a.png": picture(), "b.png": picture(), "notes.txt": b"hello"}
    page.locator("#file").set_input_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files.items()])
    expect(page.get_by_text("3 of 3 done", exact=True).first).to_be_visible(timeout=20_000)
    page.unroute_all()
    page.get_by_role("button", name="Try failed ones again").click()
    expect(page.locator("#rows .said.fake")).to_have_count(2, timeout=20_000)
    expect(page.locator("#rows .said.bad")).to_have_text("This file is not a picture that can be read.")
    expect(page.get_by_role("button", name="Try failed ones again")).to_be_hidden()


def test_a_file_that_went_away_is_said_to_have(page: Page, tmp_path: Path):
    page.route("**/model", lambda route: route.abort())
    page.reload()
    (tmp_path / "gone.png").write_bytes(picture())
    page.locator("#file").set_input_files(tmp_path / "gone.png")
    expect(page.locator("#name")).to_have_text("gone.png")
    (tmp_path / "gone.png").unlink()
    page.unroute_all()
    expect(page.get_by_role("alert")).to_contain_text("gone.png: The picture did not reach the service.", timeout=20_000)
    expect(page.get_by_role("heading", name="The service does not answer.")).to_be_hidden()


def test_a_dropped_folder_is_left_out(page: Page, tmp_path: Path):
    expect(page.locator("#model")).to_be_visible()
    (tmp_path / "album").mkdir()
    (tmp_path / "me.png").write_bytes(picture())
    folders = page.get_by_role("alert").filter(has_text="A folder cannot be added.")
    _drop(page, tmp_path / "album")
    expect(folders).to_be_visible()
    expect(page.locator("#result")).to_be_hidden()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("alert")).to_contain_text("无法添加文件夹")
    page.get_by_role("button", name="EN").click()
    _drop(page, tmp_path / "album", tmp_path / "me.png")
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.locator("#name")).to_have_text("me.png")
    expect(page.locator("#rows li")).to_have_count(1)
    expect(folders).to_be_hidden()


def test_an_address_in_the_place_of_a_picture_is_said_to_be_none(page: Page):
    expect(page.locator("#model")).to_be_visible()
    refused = page.get_by_role("alert").filter(has_text="That was no picture. Save the picture, or copy the picture itself")
    _drop(page, address="https://example.com/me.jpg")  # dragging an image from another page drops its address
    expect(refused).to_be_visible()
    hand_over(page, "paste", "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(refused).to_be_hidden()


def _drop(page: Page, *paths: Path, address: str = "") -> None:
    """Drop files from disk, as a file manager does (a script cannot create a folder), or a link."""
    items = [{"mimeType": "text/uri-list", "data": address}] if address else []
    data = {"items": items, "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


def test_answers_to_many_pictures_are_not_left_by_a_slip(page: Page):
    page.locator("#file").set_input_files([{"name": f"{name}.png", "mimeType": "image/png", "buffer": picture()} for name in "ab"])
    expect(page.get_by_text("2 of 2 done", exact=True).first).to_be_visible(timeout=30_000)
    leave = page.get_by_role("link", name="Status of the service")
    page.once("dialog", lambda dialog: dialog.dismiss())
    with page.expect_event("dialog"):
        leave.click(no_wait_after=True)
    page.once("dialog", lambda dialog: dialog.dismiss())
    with page.expect_event("dialog"):
        page.get_by_role("button", name="Clear").click()
    expect(page.locator("#rows li")).to_have_count(2)
    with page.expect_download():
        page.get_by_role("button", name="Save as CSV").click()
    leave.click()
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
