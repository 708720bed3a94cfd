"""What the page shows of the server: numbers, requests, trouble, and where it asks for a key."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import httpx
import pytest
from busy_engine import make_busy_engine
from fake_engine import FakeEngine, Hold, make_card
from live_server import TIMEOUT_S, LiveServer, posted, serve
from playwright.sync_api import Browser, Page, expect
from prometheus_client.parser import text_string_to_metric_families

from pippin.core.engine.stats import StepStats
from pippin.server.config import ServerConfig
from pippin.server.metrics import Metrics

from .conftest import OpenPage, ask, tab_to

CHAT = "/v1/chat/completions"

HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def read_series(url: str) -> dict[str, float]:
    """By name with labels, and for the first of a name by the name alone."""
    series: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
            series.setdefault(sample.name, sample.value)
            series[f"{sample.name}{{{labels}}}"] = sample.value
    return series


def reads_as(text: str, how: str, value: float) -> bool:
    """Whether a number on the page says ``value``, as far as its digits go."""
    if how == "yes":
        return text == ("yes" if value else "no")
    if how == "count":
        return text == f"{int(value):,}"
    found = re.fullmatch(r"([\d.]+) ?(\D*)", text)
    assert found is not None
    scale = {"%": 0.01, "ms": 0.001, "MiB": 2**20, "GiB": 2**30}.get(found[2], 1)
    half_a_digit = 0.501 / 10 ** len(found[1].partition(".")[2])
    return bool(abs(float(found[1]) - value / scale) <= half_a_digit)


def test_numbers_equal_the_metrics(open_page: OpenPage) -> None:
    engine, metrics = make_busy_engine()
    with serve(engine, metrics=metrics) as server:
        page = open_page(server.url)
        running = page.locator("[data-metric=pippin_running_answers]")
        expect(running).to_have_text("3")
        series = read_series(server.url)

        shown = page.locator("[data-metric]").evaluate_all(
            "all => all.map(it => ({...it.dataset, text: it.textContent, title: it.title}))"
        )
        for entry in shown:
            value = series[entry["metric"]]
            exact = [value]
            if "per" in entry:
                exact.append(series[entry["per"]])
                value /= exact[1]
            assert [float(it) for it in entry["title"].split(" of ")] == exact
            assert reads_as(entry["text"], entry["as"], value), entry
        assert len(shown) > 30
        blocks = page.locator(".bar i").evaluate_all("all => all.map(it => +it.style.flexGrow)")
        assert blocks == [1096, 1203, 1701]

        engine.engine_stats = replace(engine.engine_stats, num_running=4_321)
        expect(running).to_have_text("4,321")


def test_rates_are_those_between_two_readings(open_page: OpenPage) -> None:
    metrics = Metrics()
    with serve(FakeEngine(), metrics=metrics) as server:
        page = open_page(server.url)
        expect(page.locator("#rate")).to_have_text("0")
        expect(page.locator("#ttft")).to_have_text("\N{EN DASH}")

        metrics.observe_step(StepStats(duration_s=1, num_decode_tokens=5_432, ttft_s=(0.2, 0.3)))

        expect(page.locator("#ttft")).to_have_text("250 ms")
        expect(page.locator("#rate")).to_have_text("0")  # again, at the next reading
        rate, ttft = page.locator("figure svg").all()
        told = re.compile(r"^Output tokens per second, last 5 minutes: .*, highest \d,\d{3}$")
        expect(rate).to_have_attribute("aria-label", told)
        expect(rate.locator(".line")).to_have_attribute(
            "d", re.compile(r"^(M\S+ 100.00)(L\S+ \S+)+$")
        )
        expect(ttft).to_have_attribute(
            "aria-label", "Time to first token, last 5 minutes: mean 250 ms, highest 250 ms"
        )
        expect(ttft.locator(".line")).to_have_attribute("d", re.compile(r"^M\S+ 16.67V100$"))


def test_the_model_is_described(open_page: OpenPage) -> None:
    details = {
        "quantization": "4-bit",
        "device": "gpu",
        "num_parameters": 8_190_735_360,
        "attention_kernel": "cuda",
        "speculation": "auto",
        "blas": None,
        "a_new_fact": ["x", {"with_parts": 3}],
    }
    engine = FakeEngine(card=make_card(model_id="<b>tiny</b>", details=details))
    with serve(engine, ServerConfig(port=0, aliases=("claude-*",))) as server:
        page = open_page(server.url)
        rows = page.locator("#model > div")
        expect(rows).to_have_count(9)
        texts = rows.evaluate_all(
            "all => all.map(it => [...it.children].map(it => it.textContent))"
        )

    assert texts == [
        ["Name", "<b>tiny</b>"],
        ["Also answers to", "tiny, claude-*"],
        ["Context", "4,096 tokens"],
        ["Quantisation", "4-bit"],
        ["Device", "gpu"],
        ["Parameters", "8.19B"],
        ["Attention kernel", "cuda"],
        ["Speculation", "auto"],
        ["a new fact", "x, with parts 3"],
    ]


@pytest.mark.parametrize(("healthy", "state"), [(False, "Engine stopped"), (None, "No connection")])
def test_trouble_is_told(
    page: Page, server: LiveServer, engine: FakeEngine, healthy: bool | None, state: str
) -> None:
    if healthy is None:
        page.route("**/*", lambda route: route.abort())
    else:
        engine.healthy = healthy
    expect(page.locator("#state")).to_have_text(state)


def test_requests_are_listed_and_cancelled_by_keyboard(
    page: Page, server: LiveServer, engine: FakeEngine
) -> None:
    engine.script = ("a", "b", Hold())
    engine.num_cached_tokens = 1
    with (
        posted(server.port, CHAT, HI),
        posted(server.port, "/v1/messages", {**HI, "max_tokens": 9}),
    ):
        rows = page.locator("#requests tbody tr")
        expect(rows).to_have_count(2)
        request_id = engine.submissions[0].request_id
        row = rows.filter(has_text=request_id)
        numbers = row.locator("td")
        expect(numbers.nth(0)).to_have_text("answering")
        expect(numbers.nth(2)).to_have_text(str(len("user: hi\n")))
        expect(numbers.nth(3)).to_have_text("1")
        expect(numbers.nth(4)).to_have_text("2")

        cancel = page.get_by_role("button", name=f"Cancel {request_id}")
        tab_to(page, f"Cancel {request_id}")
        expect(cancel).to_be_focused()
        page.keyboard.press("Enter")
        assert engine.aborted.wait(TIMEOUT_S)
        engine.release()
        expect(row).to_have_count(0)
        assert page.locator(":focus").count() == 1  # not thrown back to the page's beginning
    expect(page.locator("#requests-note")).to_have_text("None.")


def test_a_key_is_asked_for_and_kept_in_the_tab(open_page: OpenPage) -> None:
    with serve(FakeEngine(), ServerConfig(port=0, api_keys=("s3cret",))) as server:
        page = open_page(server.url)
        field, note = (
            page.get_by_label("This server asks for an API key"),
            page.locator("#requests-note"),
        )
        expect(field).to_be_visible()
        expect(note).to_have_text("Shown to who has a key.")
        expect(page.locator("[data-metric=pippin_running_answers]")).to_have_text("1")
        ask(page, "hi")
        expect(page.locator(".answer [role=alert]")).to_have_text("No API key provided.")
        expect(field).to_be_focused()

        page.keyboard.type("guess")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_have_text("The server does not know this key.")
        page.fill("#key", "s3cret")
        page.keyboard.press("Enter")
        expect(field).to_be_hidden()
        expect(note).to_have_text("None.")
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".answer .text").last).to_have_text("Hello")

        stored = (
            "() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
        )
        assert page.locator("html").evaluate(stored) == [["s3cret"], [], ""]
        page.reload()
        expect(note).to_have_text("None.")
        expect(field).to_be_hidden()


def test_a_hidden_page_asks_nothing(browser: Browser, server: LiveServer) -> None:
    page = browser.new_page()
    away = "sessionStorage.getItem('away') === '1'"
    page.add_init_script(f"Object.defineProperty(document, 'hidden', {{get: () => {away}}})")
    page.clock.install()
    page.goto(server.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    turn = """(html, away) => {
        sessionStorage.setItem('away', away);
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    with page.expect_response("**/v1/requests"):
        page.clock.run_for(2_000)
    page.locator("html").evaluate(turn, "1")
    page.wait_for_load_state("networkidle")
    asked.clear()

    page.clock.run_for(60_000)
    assert asked == []

    with page.expect_response("**/v1/requests"):
        page.locator("html").evaluate(turn, "0")
    assert [url.rpartition("/")[2] for url in asked] == ["health", "metrics", "requests"]
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (820, "dark"), (1440, "light")])
def test_it_fits_and_follows_the_colour_scheme(
    open_page: OpenPage, width: int, scheme: str
) -> None:
    engine, metrics = make_busy_engine(make_card(model_id="somebody/" + "a-long-name-" * 8))
    engine.script = (
        "a" * 300 + "\n```\n" + "b" * 300 + "\n```\n|x|y|\n|-|-|\n|" + "c " * 300 + "|1|",
    )
    with serve(engine, metrics=metrics) as server:
        size = {"width": width, "height": 800}
        page = open_page(server.url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
        ask(page, "d" * 300)
        expect(page.locator(".answer .note .copy")).to_be_visible()
        html = page.locator("html")
        assert html.evaluate("it => it.scrollWidth") <= width
        clipped = page.locator("dd, dt, th, button").evaluate_all(
            "all => all.filter(it => it.scrollWidth > it.clientWidth + 1).map(it => it.textContent)"
        )
        assert clipped == []
        shade = page.locator("body").evaluate("it => getComputedStyle(it).backgroundColor")
        assert (int(json.loads(f"[{shade[4:-1]}]")[0]) > 127) == (scheme == "light")
        engine.script = ("still", Hold())
        ask(page, "go")
        caret = page.locator(".running .text > p")
        expect(caret).to_have_text("still")
        assert caret.evaluate("it => getComputedStyle(it, '::after').animationName") == "none"
        engine.release()
