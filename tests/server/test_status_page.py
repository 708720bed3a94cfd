"""The status page as a response: whole in itself, shut to scripts of others, free of secrets."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest
from busy_engine import make_busy_engine

from .conftest import MakeClient


class Outline(HTMLParser):
    """Collects attributes of all elements, and the text of ``style`` and ``script``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {"style": [], "script": []}
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.texts:
            self.texts[self._inside][-1] += data


@pytest.fixture
def page(make_client: MakeClient) -> str:
    return make_client().get("/").text


def test_it_is_html_that_is_asked_for_anew(make_client: MakeClient) -> None:
    client = make_client()

    answer = client.get("/")

    assert answer.status_code == client.head("/").status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_nothing_comes_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    addresses = [
        value for _, name, value in outline.attributes if name in ("src", "href", "action")
    ]
    assert addresses
    assert all(it.startswith(("data:", "#")) for it in addresses)
    assert not re.findall(r"@import|url\(", "".join(outline.texts["style"]))
    assert not re.findall(r"\bimport\b", "".join(outline.texts["script"]))


def test_the_policy_allows_these_styles_and_this_script_only(make_client: MakeClient) -> None:
    answer = make_client().get("/")
    outline = Outline(answer.text)
    directives = dict(
        it.split(" ", 1) for it in answer.headers["content-security-policy"].split("; ")
    )

    for name in ("style", "script"):
        (text,) = outline.texts[name]
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert directives == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert not [it for it in outline.attributes if it[1].startswith("on") or it[1] == "style"]


def test_no_text_is_ever_taken_for_html_or_code(page: str) -> None:
    (script,) = Outline(page).texts["script"]
    assert "textContent" in script
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|eval\(|Function\("
    )
    assert not re.findall(ways, script)


def test_every_number_on_it_is_one_of_the_metrics(make_client: MakeClient) -> None:
    engine, metrics = make_busy_engine()
    client = make_client(engine, metrics=metrics)
    told = re.findall(r"^(\w+)({.*})? \S+$", client.get("/metrics").text, re.MULTILINE)
    series = {name for name, _ in told} | {name + labels for name, labels in told}

    attributes = Outline(client.get("/").text).attributes

    named = {
        value
        for _, name, value in attributes
        if name in ("data-metric", "data-per", "data-grow", "data-needs", "data-lacks")
    }
    assert len(named) > 30
    assert named <= series


def test_it_needs_no_key_and_holds_none(make_client: MakeClient) -> None:
    answer = make_client(api_keys=("s3cret",)).get("/")

    assert answer.status_code == 200
    assert answer.text == make_client().get("/").text
    assert "s3cret" not in answer.text
