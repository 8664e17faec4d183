"""A real browser, headless Chromium, against a real service."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline.package import STARTER
from tests.package_helpers import META, tiny_package
from tests.page.use import CHROMIUM, KEY
from tests.service_helpers import ROOT, register, served, wait_for

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


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
    """A service without a model; each file has its own, so that two can be tested at a time."""
    with served(workspace) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def promoted(address: str, workspace: Path, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same service with a model, once the page that was open all the time shows it."""
    page = browser.new_page(locale="en-US")
    page.goto(address)
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_visible()
    expect(page.get_by_text("make run", exact=True)).to_be_visible()
    expect(page.locator("#model")).to_be_hidden()
    package = tiny_package(
        tmp_path_factory.mktemp("packages") / "tiny", thresholds=META["thresholds"] | {"real_below": 0.0, "fake_above": 0.01}
    )
    register(f"sqlite:///{workspace / 'mlflow.db'}", package)
    expect(page.locator("#model")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("heading", name="No model is served yet")).to_be_hidden()
    page.close()
    return address


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with the starter model that requires a key and has no room for users' images."""
    settings = {"UNMASK_PACKAGE": str(ROOT / STARTER), "UNMASK_API_KEYS": KEY, "UNMASK_FEEDBACK_MEGABYTES": "0.001"}
    with served(tmp_path_factory.mktemp("guarded"), UNMASK_TIMEOUT="120", **settings) as client:  # the first map waits for PyTorch
        wait_for(lambda: client.get("/readyz").is_success)
        yield str(client.base_url)


@pytest.fixture
def page(promoted: str, browser: Browser) -> Iterator[Page]:
    """The page in English; a script error or a refused request fails the test."""
    context = browser.new_context(locale="en-US", viewport={"width": 1200, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security Policy" in message.text else None)
    page.goto(promoted)
    yield page
    context.close()
    assert not problems
