"""The chat on the page, by mouse and by keyboard."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine, Hold
from live_server import TIMEOUT_S, LiveServer
from playwright.sync_api import FilePayload, Page, expect

from pippin.core.messages import ChatPrompt
from pippin.core.parsing.events import ReasoningDelta

from .conftest import OpenPage, ask, focused_name, tab_to

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

CHAT = "/v1/chat/completions"


def test_an_answer_streams_and_the_conversation_goes_on(page: Page, engine: FakeEngine) -> None:
    engine.script = ("Hel", Hold(), "lo")
    engine.num_cached_tokens = 3
    ask(page, "first")
    answer, send = page.locator(".answer"), page.locator("#send")
    expect(answer.locator(".text")).to_have_text("Hel")
    expect(send).to_have_text("Stop")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "true")

    engine.release()

    expect(answer.locator(".text")).to_have_text("Hello")
    expect(send).to_have_text("Send")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
    expect(answer.locator(".note")).to_contain_text("2 tokens")
    expect(answer.locator(".note")).to_contain_text("3 of 12 prompt tokens cached")
    assert engine.submissions[0].params.temperature == 1.0

    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    ask(page, "second")
    expect(answer).to_have_count(2)
    expect(answer.last.locator(".copy")).to_be_visible()
    prompt = engine.submissions[1].prompt
    assert isinstance(prompt, ChatPrompt)
    said = [(message.role, message.text) for message in prompt.messages]
    assert said == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "Hello"),
        ("user", "second"),
    ]
    assert engine.submissions[1].params.temperature == 0.25

    page.get_by_role("button", name="New chat").click()
    expect(answer).to_have_count(0)
    ask(page, "third")
    expect(answer.locator(".copy")).to_be_visible()
    assert len(engine.submissions[2].prompt.messages) == 2  # type: ignore[union-attr]


def test_all_of_a_chat_by_keyboard(page: Page, engine: FakeEngine) -> None:
    engine.script = ("`a`", "\n```\nb\n```")
    page.keyboard.press("Tab")
    assert focused_name(page) == "Chat"
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()

    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")

    expect(page.locator(".answer pre")).to_have_text("b")
    assert engine.submissions[0].prompt.messages[-1].text == "one\ntwo"  # type: ignore[union-attr]
    assert tab_to(page, "Send") == ["Add image", "Send"]
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    assert focused_name(page) == "Copy"
    page.locator("#clear").focus()
    passed = tab_to(page, "Message")
    assert passed == ["Settings", "Conversation", "Copy", "b", "Copy", "Message"]


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop_ends_the_answer_at_both_ends(page: Page, engine: FakeEngine, way: str) -> None:
    engine.script = ("So far", Hold(), "never")
    ask(page, "go")
    expect(page.locator(".answer .text")).to_have_text("So far")

    if way == "button":
        page.locator("#send").click()
    else:
        page.keyboard.press(way)

    assert engine.aborted.wait(TIMEOUT_S)
    expect(page.locator(".answer .note")).to_contain_text("Stopped.")
    expect(page.locator("#send")).to_have_text("Send")
    engine.release()
    engine.script = ("on",)
    ask(page, "go on")
    expect(page.locator(".answer .text").last).to_have_text("on")
    said = [message.text for message in engine.submissions[1].prompt.messages]  # type: ignore[union-attr]
    assert said == ["go", "So far", "go on"]


def test_reasoning_is_folded(page: Page, engine: FakeEngine) -> None:
    engine.script = (ReasoningDelta("Let me see."), Hold(), "Yes.")
    ask(page, "go")
    fold = page.locator(".reasoning")
    expect(fold.locator("summary")).to_have_text("Thinking")
    engine.release()
    expect(fold.locator("summary")).to_have_text("Reasoning")
    expect(page.get_by_text("Let me see.")).to_be_hidden()
    fold.locator("summary").press("Enter")
    expect(page.get_by_text("Let me see.")).to_be_visible()
    expect(page.locator(".answer .text")).to_have_text("Yes.")


@pytest.mark.parametrize("way", ["chosen", "pasted", "dropped"])
def test_a_refused_image_leaves_the_conversation_usable(
    page: Page, server: LiveServer, engine: FakeEngine, tmp_path: Path, way: str
) -> None:
    if way == "chosen":
        (tmp_path / "dot.png").write_bytes(PNG)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add image").press("Enter")
        chooser.value.set_files(tmp_path / "dot.png")
    else:
        page.locator("#message").evaluate(
            """(target, [way, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "dot.png", {type: "image/png"}));
              const options = {bubbles: true, cancelable: true};
              target.dispatchEvent(way === "pasted"
                ? new ClipboardEvent("paste", {...options, clipboardData: data})
                : new DragEvent("drop", {...options, dataTransfer: data}));
            }""",
            [way, list(PNG)],
        )
    thumbnail = page.locator("#images img")
    expect(thumbnail).to_have_count(1)
    assert thumbnail.evaluate("it => it.decode().then(() => it.naturalWidth)") == 1
    ask(page, "what is it?")

    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    refusal = httpx.post(f"{server.url}{CHAT}", json=body)
    assert refusal.status_code == 400
    expect(page.get_by_role("alert").last).to_have_text(refusal.json()["error"]["message"])
    expect(page.locator("#images img")).to_have_count(0)
    expect(page.locator("#message")).to_have_value("what is it?")
    page.press("#message", "Enter")
    expect(page.locator(".answer .text").last).to_have_text("Hello")
    assert len(engine.submissions[0].prompt.messages) == 1  # type: ignore[union-attr]


def test_an_image_can_be_taken_back(page: Page) -> None:
    image: FilePayload = {"name": "a", "mimeType": "image/png", "buffer": PNG}
    text: FilePayload = {"name": "b", "mimeType": "text/plain", "buffer": b"b"}
    page.locator("#image-file").set_input_files([image, text])
    expect(page.locator("#images img")).to_have_count(1)
    page.get_by_role("button", name="Remove image 1").press("Enter")
    expect(page.locator("#images img")).to_have_count(0)
    expect(page.locator("#message")).to_be_focused()


def test_an_error_in_the_middle_is_told(page: Page, engine: FakeEngine) -> None:
    engine.script = ("So far", RuntimeError("secret"))
    ask(page, "go")
    expect(page.locator(".answer [role=alert]")).to_have_text("The server failed on this request.")
    expect(page.locator(".answer .text")).to_have_text("So far")
    expect(page.locator("#send")).to_have_text("Send")


def test_copy_gives_the_markdown(
    server: LiveServer, open_page: OpenPage, engine: FakeEngine
) -> None:
    engine.script = ("**a** `b`",)
    page = open_page(server.url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.locator("#state")).to_have_text("Ready")
    ask(page, "go")
    page.locator(".answer .copy").click()
    expect(page.locator(".answer .copy")).to_have_text("Copied")
    assert page.locator("html").evaluate("() => navigator.clipboard.readText()") == "**a** `b`"
