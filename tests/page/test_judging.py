"""One image, or many, from choosing them to the feedback."""

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageOps
from playwright.sync_api import Page, Route, expect

from pipeline.monitoring import feedback
from serving.errors import ApiError
from tests.package_helpers import META, tiny_package
from tests.page.use import FACE, choose, failing, hand_over, needs_chromium, picture
from tests.service_helpers import register, wait_for

pytestmark = needs_chromium


def test_an_upload_gets_a_verdict_a_probability_and_a_map(page: Page):
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.locator("#percent")).to_contain_text("%")
    expect(page.get_by_role("img", name="Likely fake from 1.0%")).to_be_visible()
    expect(page.locator("#name")).to_have_text("me.png")
    expect(page.get_by_text("it can miss kinds of forgery that it was never shown")).to_be_visible()
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
    page.route("**/explain", failing(ApiError("timeout", "No answer within 30 seconds", "Try again later.")), times=1)
    choose(page, "me.png", picture())
    slider = page.get_by_label("Attention map")
    expect(slider).to_be_enabled(timeout=20_000)
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#map")).to_have_css("opacity", "0")
    expect(page.locator("#preview")).to_have_css("filter", "grayscale(0)")
    page.keyboard.press("End")
    expect(page.locator("#map")).to_have_css("opacity", "1")
    expect(page.locator("#preview")).to_have_css("filter", "grayscale(1)")


def test_a_picture_can_be_dropped_and_pasted(page: Page):
    for kind in ("paste", "drop"):
        hand_over(page, kind, f"{kind}.png", picture())
        expect(page.locator("#name")).to_have_text(f"{kind}.png", timeout=20_000)
        expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)


def test_text_pasted_into_the_comment_is_no_picture_even_if_it_comes_with_one(page: Page):
    choose(page, "me.png", picture())
    expect(page.locator("#said")).to_be_visible(timeout=20_000)
    page.get_by_text("This is wrong").click()
    paste = """comment => {
        const transfer = new DataTransfer();
        transfer.setData("text/plain", "I took it");
        transfer.items.add(new File([new Uint8Array(9)], "image.png", { type: "image/png" }));
        comment.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    }"""
    page.get_by_label("How do you know?").evaluate(paste)
    expect(page.locator("#name")).to_have_text("me.png")
    expect(page.locator("#rows li")).to_have_count(1)


def test_the_page_says_which_pictures_suit_the_model(page: Page):
    expect(page.locator("#limits")).to_contain_text("One upright face that fills the picture works best.")
    page.route("**/model", lambda route: route.fulfill(json=route.fetch().json() | {"face_detector": True}))
    page.reload()
    expect(page.locator("#limits")).to_contain_text("up to 20 MB each. Each face is found and judged by itself.")


def test_every_face_has_its_figure_in_sight_and_the_number_of_the_list(page: Page):
    boxes = [(2, 0, 30, 40), (-5, 4, 20, 30), (80, 60, 10, 40)]  # at the top, out of the left, narrow at the right
    _choose_with_faces(page, "many.png", boxes)
    expect(page.locator("#boxes span")).to_have_text(["1 · 90%", "2 · 80%", "3 · 70%"], timeout=20_000)
    expect(page.locator("#faces li")).to_have_text([f"Face {face}: {share}% · Likely fake" for face, share in enumerate((90, 80, 70), 1)])
    expect(page.locator("#map-note")).to_contain_text("the map covers only the most suspicious one", timeout=20_000)
    # Queried inside the page, because the labels are redrawn when the map arrives and a handle found earlier would be stale.
    seen = """() => [...document.querySelectorAll("#boxes span")].map((label) => {
        const inner = label.getBoundingClientRect(), outer = document.getElementById("stage").getBoundingClientRect();
        return inner.left >= outer.left && inner.right <= outer.right && inner.top >= outer.top && inner.bottom <= outer.bottom;
    })"""
    assert page.evaluate(seen) == [True] * 3
    _choose_with_faces(page, "one.png", boxes[:1])
    expect(page.locator("#boxes span")).to_have_text(["90%"], timeout=20_000)


def test_map_and_boxes_stay_on_the_picture_where_it_is_laid_out_anew(page: Page):
    page.route("**/explain", lambda route: route.fulfill(json=route.fetch().json() | {"heat": [[0, 1], [0, 0]]}), times=1)
    _choose_with_faces(page, "me.png", [(30, 20, 30, 40)])
    expect(page.locator("#map-note")).to_contain_text("Where the model looked", timeout=20_000)
    shares = """() => {
        const outer = document.getElementById("preview").getBoundingClientRect();
        const inner = [...document.querySelectorAll("#map, .box")].map((laid) => laid.getBoundingClientRect());
        const { left, top, width, height } = outer;
        return inner.flatMap((laid) => [(laid.left - left) / width, (laid.top - top) / height, laid.width / width, laid.height / height]);
    }"""
    opacity = """canvas => [[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]].map(([x, y]) =>
        canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3])"""
    left, hot, *below = page.locator("#map").evaluate(opacity)
    assert hot > 200 and max(left, *below) < 50
    screen = page.evaluate(shares)
    assert screen == pytest.approx([0, 0, 1, 1, 30 / 90, 20 / 120, 30 / 90, 40 / 120], abs=0.03)
    page.locator("#result").evaluate("result => { result.style.width = '40%'; }")  # as in print, which scripts do not notice
    assert page.evaluate(shares) == pytest.approx(screen, abs=0.03)


def test_a_webp_stands_upright_under_its_boxes(page: Page):
    lying, exif = Image.fromarray(FACE[:2, :3]), Image.Exif()
    shown = """async (bytes) => {
        const image = new Image(), canvas = new OffscreenCanvas(2, 3), file = new File([new Uint8Array(bytes)], "me.webp");
        image.src = await (await import("/upright.js")).upright(file);
        await image.decode();
        Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
        canvas.getContext("2d").drawImage(image, 0, 0);
        return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    for orientation in range(2, 9):
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "camera", orientation
        file = io.BytesIO()
        lying.save(file, "WEBP", lossless=True, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
        assert page.evaluate(shown, list(file.getvalue())) == list(upright.tobytes())
    choose(page, "me.webp", file.getvalue())  # 3 wide and 2 high as stored
    expect(page.locator("#seen")).to_have_attribute("style", re.compile("--ratio: 0.66"))


def test_a_map_of_another_model_than_the_verdict_is_said_to_be(page: Page):
    def promoted_meanwhile(route: Route) -> None:
        answer = route.fetch().json()
        route.fulfill(json=answer | {"model": answer["model"] | {"version": "9"}})

    page.route("**/explain", promoted_meanwhile, times=1)
    choose(page, "me.png", picture())
    expect(page.locator("#map-note")).to_contain_text("The map is from model version 9", timeout=20_000)
    choose(page, "me.png", picture())
    expect(page.locator("#map-note")).to_contain_text("Where the model looked", timeout=20_000)
    expect(page.locator("#map-note")).not_to_contain_text("The map is from")


def test_the_bar_keeps_its_colours_where_the_system_chooses_them(page: Page):
    choose(page, "me.png", picture())
    expect(page.locator("#said")).to_be_visible(timeout=20_000)
    page.emulate_media(forced_colors="active")
    shown = page.locator("#zone-real, #zone-fake").evaluate_all("zones => zones.map((zone) => getComputedStyle(zone).backgroundColor)")
    assert len(set(shown)) == 2


def _choose_with_faces(page: Page, name: str, boxes: list[tuple[int, int, int, int]]) -> None:
    """Choose an image with these faces, each a little less suspicious than the previous one."""
    places = [dict(zip(("x", "y", "width", "height"), box, strict=True)) for box in boxes]
    faces = [{"box": place, "score": 0.9, "probability_fake": 0.9 - index / 10} for index, place in enumerate(places)]
    page.route("**/predict", lambda route: route.fulfill(json=route.fetch().json() | {"faces": faces}), times=1)
    choose(page, name, picture())


def test_a_bad_file_is_explained_and_the_next_one_works(page: Page, tmp_path: Path):
    choose(page, "notes.txt", b"hello")
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture")
    page.evaluate(
        "window.read = 0; new MutationObserver(() => read += 1).observe(document.getElementById('error'), {subtree: true, childList: true})"
    )
    page.get_by_role("button", name="EN", exact=True).click()
    assert page.evaluate("read") == 0  # a screen reader repeats an alert whose text is set again
    choose(page, "half.png", picture()[:-400])
    expect(page.get_by_role("alert")).to_contain_text("damaged or cut off")
    (tmp_path / "big.png").write_bytes(bytes(20_000_001))
    page.locator("#file").set_input_files(tmp_path / "big.png")
    expect(page.get_by_role("alert")).to_contain_text("larger than the service accepts")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()  # the file would be just as large
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely fake")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_warnings_are_in_plain_words(page: Page):
    choose(page, "small.png", picture(size=(40, 40)))
    expect(page.get_by_text("The picture is very small")).to_be_visible(timeout=20_000)


def test_a_verdict_that_is_withheld_is_said_to_be(page: Page):
    left_open = {"verdict": "uncertain", "probability_fake": 0.95, "warnings": ["no_face"]}
    page.route("**/predict", lambda route: route.fulfill(json=route.fetch().json() | left_open), times=1)
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Cannot tell")).to_be_visible(timeout=20_000)
    expect(page.locator("#meaning")).to_contain_text("This model was trained on faces only.")


def test_many_pictures_get_a_row_each_and_a_csv_file(page: Page):
    kinds = {"=a.png": picture(), "b;=1+1.txt": b"hello", 'c, "d".png': picture(size=(40, 40))}
    page.locator("#file").set_input_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in kinds.items()])
    rows = page.locator("#rows li")
    expect(rows).to_have_count(3)
    expect(page.get_by_text("3 of 3 done", exact=True).first).to_be_visible(timeout=30_000)
    expect(rows.nth(0)).to_contain_text("=a.png")
    expect(rows.nth(0)).to_contain_text("Likely")
    expect(rows.nth(1)).to_contain_text("This file is not a picture that can be read")

    page.evaluate("window.laid = 0; new MutationObserver(() => laid += 1).observe(rows, {subtree: true, childList: true})")
    page.get_by_role("button", name="Clear").focus()
    for key in ("Tab", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#name")).to_have_text('c, "d".png')
    expect(page.get_by_text("The picture is very small")).to_be_visible()
    expect(page.get_by_label("Attention map")).to_be_enabled(timeout=20_000)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Attention map")).to_be_focused()
    rows.nth(1).get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("b;=1+1.txt: This file is not a picture")
    assert page.evaluate("laid") == 0  # unchanged rows are not redrawn: with hundreds of them each choice would take seconds

    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    lines = download.value.path().read_text("utf-8-sig").splitlines()
    saved = list(csv.DictReader(lines))
    assert [row["file"] for row in saved] == ["'=a.png", "b;=1+1.txt", 'c, "d".png']
    cells = [cell for separator in ",;\t" for row in csv.reader(lines, delimiter=separator) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)  # no formula for a spreadsheet, whatever the separator
    assert saved[0]["verdict"] in ("real", "fake", "uncertain") and 0 <= float(saved[0]["probability_fake"]) <= 1
    assert saved[1]["error"] == "not_an_image" and "too_small" in saved[2]["warnings"]

    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Is this face real?")).to_be_visible()


def test_a_screen_reader_is_told_of_each_tenth_of_many_pictures(page: Page):
    page.evaluate("window.told = []; new MutationObserver(() => told.push(announce.textContent)).observe(announce, {childList: true})")
    page.locator("#file").set_input_files([{"name": f"{index}.png", "mimeType": "image/png", "buffer": picture()} for index in range(25)])
    expect(page.locator("#announce")).to_have_text("25 of 25 done", timeout=30_000)
    assert 2 <= len(page.evaluate("told")) <= 10


def test_feedback_keeps_the_picture_only_if_asked_to(page: Page, workspace: Path):
    folder, sent = workspace / "var" / "feedback", []
    page.on("request", lambda request: sent.append(request) if request.url.endswith("/feedback") else None)
    for keep in (False, True):
        choose(page, f"{keep}.png", picture())
        expect(page.locator("#name")).to_have_text(f"{keep}.png")
        expect(page.locator("#said")).to_be_visible(timeout=20_000)
        page.get_by_text("This is wrong").click()
        page.get_by_label("It is real").check()
        page.get_by_label("How do you know?").fill("I took it")
        consent = page.get_by_label("Keep this picture")
        expect(consent).not_to_be_checked()
        if keep:
            consent.check()
        page.get_by_role("button", name="Send").dblclick()
        expect(page.get_by_text("Thank you. Your feedback was saved.")).to_be_visible(timeout=20_000)
        said = feedback.read(folder)[-1]
        assert said.label == "real" and said.comment == "I took it" and (said.image is not None) == keep
    assert len(sent) == 2  # one per image
    assert [path.read_bytes() for path in (folder / "images").iterdir()] == [picture()]


def test_feedback_that_was_begun_waits_until_its_picture_is_looked_at_again(page: Page):
    for name in ("one.png", "two.png"):
        choose(page, name, picture())
        expect(page.locator("#said")).to_be_visible(timeout=20_000)
        if name == "one.png":
            page.get_by_text("This is wrong").click()
            page.get_by_label("It is fake").check()
            page.get_by_label("How do you know?").fill("the left ear")
            page.get_by_label("Keep this picture").check()
    page.get_by_text("This is wrong").click()
    expect(page.get_by_label("How do you know?")).to_have_value("")
    expect(page.get_by_label("Keep this picture")).not_to_be_checked()
    page.locator("#rows").get_by_role("button", name="one.png").click()
    expect(page.get_by_label("How do you know?")).to_have_value("the left ear")
    expect(page.get_by_label("It is fake")).to_be_checked()
    expect(page.get_by_label("Keep this picture")).to_be_checked()


def test_a_promotion_shows_in_the_page_within_seconds(page: Page, workspace: Path, tmp_path: Path, promoted: str):
    choose(page, "me.png", picture())
    expect(page.locator("#model")).to_have_text("Model version 1", timeout=20_000)
    package = tiny_package(tmp_path / "next", thresholds=META["thresholds"] | {"real_below": 0.99, "fake_above": 0.995})
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    wait_for(lambda: page.request.get(f"{promoted}/model").json()["version"] == "2")
    choose(page, "me.png", picture())
    expect(page.get_by_role("heading", name="Likely real")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("Model version 2, made Jan 2, 2026.")).to_be_visible()
