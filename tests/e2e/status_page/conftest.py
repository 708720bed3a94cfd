"""A headless Chromium that opens the page of a real server, in front of a scripted engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fake_engine import FakeEngine
from live_server import TIMEOUT_S, LiveServer, serve
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")  # no wider: other tests run event loops of their own
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH, such as from `apt install chromium`")
    with sync_playwright() as playwright:
        # Containers run tests as root, where Chromium has no sandbox. It sees our own page only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open the page of a server; afterwards see that it asked nobody else and broke nothing."""
    complaints: list[str] = []
    asked: list[str] = []
    with ExitStack() as stack:

        def open_it(url: str, **context: object) -> Page:
            page = browser.new_page(**context)  # type: ignore[arg-type]
            stack.callback(page.close)
            page.set_default_timeout(TIMEOUT_S * 1000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(url)
            # Refusals that the tests want are written to the console by the browser itself.
            return page

        yield open_it
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)
    assert [it for it in complaints if not it.startswith("Failed to load resource")] == []


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[LiveServer]:
    with serve(engine) as server:
        yield server


@pytest.fixture
def page(server: LiveServer, open_page: OpenPage) -> Page:
    page = open_page(server.url)
    expect(page.locator("#state")).to_have_text("Ready")
    return page


def ask(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def focused_name(page: Page) -> str:
    """What a screen reader would say of the focused element, or something like it."""
    name: str = page.locator(":focus").evaluate(
        """it => it.ariaLabel || it.labels?.[0]?.textContent || it.textContent.trim()"""
    )
    return name


def tab_to(page: Page, name: str) -> list[str]:
    """Press Tab until an element of that name has the focus; all names on the way."""
    passed = []
    for _ in range(40):
        page.keyboard.press("Tab")
        outline = page.locator(":focus").evaluate("it => getComputedStyle(it).outlineStyle")
        assert outline == "solid"
        passed.append(focused_name(page))
        if passed[-1] == name:
            return passed
    raise AssertionError(f"{name} was not among {passed}")
