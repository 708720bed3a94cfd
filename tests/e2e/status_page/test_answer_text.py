"""What models write: Markdown becomes elements, everything else stays text."""

from __future__ import annotations

import re

from fake_engine import FakeEngine
from playwright.sync_api import Page, expect

from pippin.core.parsing.events import ReasoningDelta

from .conftest import ask

HOSTILE = """<img src=x onerror="document.title='gone'"> <script>document.title='gone'</script>
[a](javascript:document.title='gone') [b](data:text/html,x) ![c](https://example.com/c.png)

<iframe src="https://example.com"></iframe>

- <svg onload=alert(1)>

| <b>x</b> | y |
|---|---|
| <i>z</i> | `<u>` |

```html
<script>alert(1)</script></code></pre><img src=x>
```
"""


def test_what_a_model_says_stays_text(page: Page, engine: FakeEngine) -> None:
    title = page.title()
    engine.script = (ReasoningDelta(HOSTILE), *re.findall(r"(?s).{1,7}", HOSTILE))
    ask(page, HOSTILE)
    log = page.locator("#log")
    expect(log.locator(".answer .copy").last).to_be_visible()

    assert log.locator("img, script, iframe, svg, b, i, u, [onerror], [onload]").count() == 0
    links = log.locator("a").evaluate_all("all => all.map(it => it.href)")
    assert set(links) == {"https://example.com/c.png", "https://example.com/"}
    assert page.title() == title
    expect(log.locator(".answer .text pre")).to_have_text(
        "<script>alert(1)</script></code></pre><img src=x>"
    )
    for words in (
        'onerror="document.title',
        "[a](javascript:",
        "<iframe",
        "<svg onload",
        "<b>x</b>",
    ):
        expect(log.locator(".answer .text")).to_contain_text(words)
    expect(log.locator(".you p")).to_contain_text("<script>document.title")


MARKDOWN = """# Head
First **bold *both*** and *it* and _so_ with `a*b`, snake_case_name and 2 * 3 * 4.
Second line, see [here](https://example.org/a_(b)) or https://example.org/x.

3. three
   - inner
   - more

     a paragraph of it
4. four
goes on

> quoted
> - item

| a | b |
|:--|--:|
| 1 | 2 |

---

```python
def f():

    return "```"
```
~~~
open"""


def test_markdown_becomes_elements(page: Page, engine: FakeEngine) -> None:
    engine.script = re.findall(r"(?s).{1,5}", MARKDOWN)
    ask(page, "go")
    expect(page.locator(".answer .note .copy")).to_be_visible()

    # Tags and texts; without what the page adds to code, and the attributes that it is styled by.
    outline = page.locator(".answer .text").evaluate(
        """text => {
          const children = node => [...node.childNodes].map(walk);
          const name = node => node.localName + (node.start > 1 ? node.start : "");
          const walk = node => node.nodeType === 3 ? node.data
            : node.matches(".code > div") ? [] : [name(node), ...children(node)];
          return [...text.children].map(walk);
        }"""
    )
    assert outline == [
        ["h3", "Head"],
        [
            "p",
            "First ",
            ["strong", "bold ", ["em", "both"]],
            " and ",
            ["em", "it"],
            " and ",
            ["em", "so"],
            " with ",
            ["code", "a*b"],
            ", snake_case_name and 2 * 3 * 4.\nSecond line, see ",
            ["a", "here"],
            " or ",
            ["a", "https://example.org/x"],
            ".",
        ],
        [
            "ol3",
            ["li", "three", ["ul", ["li", "inner"], ["li", "more", ["p", "a paragraph of it"]]]],
            ["li", "four\ngoes on"],
        ],
        ["blockquote", ["p", "quoted"], ["ul", ["li", "item"]]],
        [
            "div",
            [
                "table",
                ["thead", ["tr", ["th", "a"], ["th", "b"]]],
                ["tbody", ["tr", ["td", "1"], ["td", "2"]]],
            ],
        ],
        ["hr"],
        ["div", [], ["pre", ["code", 'def f():\n\n    return "```"']]],
        ["div", [], ["pre", ["code", "open"]]],
    ]
