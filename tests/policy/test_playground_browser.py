"""The playground in a real browser, by clicks and keys, against a real server behind the real gate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from tests.browser import Tab, browser
from tests.policy.served import MARKUP, gated, listening
from trimtab.chat import Chat
from trimtab.policy import keys
from trimtab.safety import PRESETS

pytestmark = pytest.mark.browser

NARROW_PX, WIDE_PX = 360, 1200
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA)
PROMPT = "How do I sharpen a pencil?"
TEXTS = "[...document.querySelectorAll('.answer')].map(part => part.textContent)"
IDLE = "document.getElementById('stop').getAttribute('aria-disabled') === 'true'"
# The contrast of every text that is seen, by WCAG's formula.
CONTRAST = """(() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const share = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * share(c[0]) + 0.7152 * share(c[1]) + 0.0722 * share(c[2]);
  const behind = part => { for (let e = part; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  return [...document.querySelectorAll('main *')]
    .filter(part => part.checkVisibility() && !part.closest('[aria-disabled=true]')
      && [...part.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
    .map(part => { const a = light(rgba(getComputedStyle(part).color)), b = light(behind(part));
      return {text: part.textContent.trim().slice(0, 30), paper: b,
              contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)}; });
})()"""
# What the parser makes of an event stream that is cut into two at each of its bytes, and into single bytes.
PARSED = """(async () => {
  const { events } = await import('./playground.js');
  const bytes = new TextEncoder().encode(STREAM);
  const stream = parts => new ReadableStream({start(to) { parts.forEach(part => to.enqueue(part)); to.close(); }});
  const parse = async parts => { const found = [];
    for await (const data of events(stream(parts))) found.push(data); return JSON.stringify(found); };
  const seen = new Set([await parse([...bytes].map(byte => Uint8Array.of(byte)))]);
  for (let cut = 0; cut <= bytes.length; cut++) seen.add(await parse([bytes.slice(0, cut), bytes.slice(cut)]));
  return [...seen].map(text => JSON.parse(text));
})()"""


class Site(NamedTuple):
    """The server and the secrets of its keys."""

    url: str
    every: str
    """May choose all presets."""
    harmless: str
    limited: str
    """One request a minute."""


@pytest.fixture(scope="module")
def site(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    grants = (keys.Grant(presets=("*",)), keys.Grant(), keys.Grant(presets=("*",), requests_per_minute=1))
    secrets = [keys.create(file, grant)[1] for grant in grants]
    with listening(gated(chat, file)) as root:
        yield Site(f"{root}/", *secrets)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One browser for all of these tests."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.fixture
def tab(window: Tab, site: Site) -> Tab:
    """The page as it is first seen."""
    window.show(site.url, WIDE_PX, dark=False)
    return window


def _connect(tab: Tab, secret: str, num_columns: int = 2) -> None:
    """Type the key and press Enter."""
    tab.click("#key")
    tab.write(secret)
    tab.press("Enter")
    tab.wait(f"document.querySelectorAll('#columns article').length === {num_columns}")


def _ask(tab: Tab, prompt: str) -> None:
    """Write a prompt, send it by Ctrl+Enter, and wait for the end of all answers."""
    _begin(tab, prompt)
    tab.wait(IDLE)


def _begin(tab: Tab, prompt: str) -> None:
    tab.evaluate("document.getElementById('prompt').value = ''")
    tab.click("#prompt")
    tab.write(prompt)
    tab.press("Enter", control=True)


def _facts(tab: Tab, name: str) -> list[str]:
    return [str(text) for text in tab.evaluate(f"[...document.querySelectorAll('.{name}')].map(e => e.textContent)")]


def _problems(tab: Tab) -> list[str]:
    return _facts(tab, "problem:not([hidden])")


def test_two_configurations_answer_side_by_side(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    _ask(tab, PROMPT)
    for text, name in zip(tab.evaluate(TEXTS), ("harmless", "uncensored"), strict=True):
        assert text.strip() == f"“{PRESETS[name].system}” was asked: {PROMPT}"
    applied = _facts(tab, "applied")
    assert [text.split()[0] for text in applied] == ["Harmless", "Uncensored"]
    assert all(len(text.split()[1]) == 16 for text in applied)
    assert [int(text) for text in _facts(tab, "tokens")] == [len(text.split()) for text in tab.evaluate(TEXTS)]
    assert all(float(text.removesuffix(" s")) > 0 for text in [*_facts(tab, "time"), *_facts(tab, "first")])
    assert tab.evaluate("document.getElementById('status').textContent") == "All answers are there."
    assert _problems(tab) == []
    marked = tab.evaluate("[...document.querySelectorAll('.mark')].map(part => part.checkVisibility())")
    assert marked == [False, True], "the uncensored column, and it alone, is marked"


def test_nothing_is_asked_elsewhere_nor_kept_nor_complained_of(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    _ask(tab, PROMPT)
    asked = [url for url in tab.requests() if not url.startswith("data:")]
    assert len(asked) >= 8, "page, styles, script, two lists, two answers"
    assert [url for url in asked if not url.startswith(site.url)] == []
    assert not [url for url in asked if site.every in url or "?" in url]
    assert tab.complaints() == []
    kept = tab.evaluate("[location.href, document.cookie, localStorage.length, sessionStorage.length]")
    assert kept == [site.url, "", 0, 0]
    assert site.every not in tab.evaluate("document.documentElement.outerHTML")
    tab.send("Page.reload")
    tab.wait("document.readyState === 'complete' && document.getElementById('key').value === ''")


def test_markup_in_an_answer_is_text(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    _ask(tab, "markup")
    assert [text.strip() for text in tab.evaluate(TEXTS)] == [MARKUP, MARKUP]
    assert tab.evaluate("document.querySelectorAll('.answer *').length") == 0
    assert tab.complaints() == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_stream_survives_cuts_at_every_byte(tab: Tab, end: str) -> None:
    lines = [
        ": a comment",
        'data: {"a": "Grüße 🌊"}',
        "",
        "event: x",
        "data:one",
        "data:  two",
        "",
        "data: [DONE]",
        "",
        "",
    ]
    found = tab.evaluate(PARSED.replace("STREAM", json.dumps(end.join(lines) + ("x" if end == "\r" else ""))))
    assert found == [['{"a": "Grüße 🌊"}', "one\n two", "[DONE]"]]


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_ends_all_answers_and_keeps_what_came(tab: Tab, site: Site, by: str) -> None:
    _connect(tab, site.every)
    _begin(tab, "endless")
    tab.wait(f"{TEXTS}.every(text => text.length > 20)")
    if by == "button":
        tab.click("#stop")
    else:
        tab.press("Escape")
    tab.wait(IDLE)
    stopped = tab.evaluate(TEXTS)
    assert all("wave" in text and len(text) < 5 * 1000 for text in stopped)
    assert _problems(tab) == ["Stopped.", "Stopped."]
    assert all(text.startswith("about ") for text in _facts(tab, "tokens"))
    _ask(tab, PROMPT)
    assert _problems(tab) == [], "it can be asked again"


def test_wrong_key_is_told_in_words(tab: Tab) -> None:
    tab.click("#key")
    tab.write("tt-wrong")
    tab.click("#connect button")
    tab.wait("document.getElementById('connection').classList.contains('wrong')")
    told = tab.evaluate("document.getElementById('connection').textContent")
    assert told.startswith("The server doesn’t know this key, or it has expired. (401")
    _begin(tab, PROMPT)
    tab.wait(IDLE)
    assert tab.evaluate("document.querySelectorAll('#columns article').length") == 0


def test_limit_says_when_to_come_back(tab: Tab, site: Site) -> None:
    _connect(tab, site.limited)
    _ask(tab, PROMPT)
    (problem,) = _problems(tab)
    assert problem.startswith("Too many requests or tokens for this key. Try again in ")
    assert tab.evaluate("document.getElementById('status').textContent").startswith("Ended; 1 of 2")


def test_key_for_one_configuration_shows_that_one(tab: Tab, site: Site) -> None:
    _connect(tab, site.harmless, num_columns=1)
    assert tab.evaluate("[...document.querySelector('.preset').options].map(o => o.value)") == ["harmless"]
    _ask(tab, PROMPT)
    assert _facts(tab, "applied")[0].startswith("Harmless")


@pytest.mark.parametrize(
    ("prompt", "told"), [("cut short", "The answer broke off before"), ("fail", "The server failed.")]
)
def test_answer_that_ends_early_is_told(tab: Tab, site: Site, prompt: str, told: str) -> None:
    _connect(tab, site.every)
    _ask(tab, prompt)
    problems = _problems(tab)
    assert len(problems) == 2
    assert all(problem.startswith(told) for problem in problems)


def test_columns_are_added_and_removed_and_take_a_persona(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    tab.click("#add")
    tab.click("#add")
    assert tab.evaluate("document.getElementById('add').hidden"), "four are the most"
    chosen = tab.evaluate("[...document.querySelectorAll('.preset')].map(select => select.value)")
    assert chosen == ["harmless", "uncensored", "honest", "role_play"]
    tab.click("#columns article:nth-child(3) .remove")
    tab.click("#columns article:last-child .persona textarea")
    tab.write("a grumpy lighthouse keeper")
    _ask(tab, PROMPT)
    assert '“You play this persona and answer as it would: "a grumpy lighthouse keeper"”' in tab.evaluate(TEXTS)[2]
    tab.click("#columns article:nth-child(1) .remove")
    assert tab.evaluate("document.querySelectorAll('#columns article').length") == 2
    assert not tab.evaluate("[...document.querySelectorAll('.remove')].some(part => part.checkVisibility())")


def test_configuration_is_chosen_by_keyboard_and_clears_the_old_answer(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    _ask(tab, PROMPT)
    tab.evaluate("document.querySelector('.preset').focus()")
    tab.press("ArrowDown")
    tab.wait("document.querySelector('.preset').value === 'uncensored'")
    assert tab.evaluate("document.querySelector('.mark').checkVisibility()")
    cleared, kept = tab.evaluate(TEXTS)
    assert cleared == ""
    assert kept != ""
    assert _facts(tab, "applied")[0] == "–"


def test_keyboard_alone_is_enough_in_the_order_of_the_page(tab: Tab, site: Site) -> None:
    _connect(tab, site.every)
    order = []
    for _ in range(12):
        tab.press("Tab")
        order.append(
            tab.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    first = order.index("prompt")
    assert order[first : first + 9] == [
        "prompt", "send", "stop", "max-tokens", "temperature",
        "column-1-preset", "SUMMARY", "column-2-preset", "SUMMARY",
    ]  # fmt: skip
    controls = "[...document.querySelectorAll('main input, main select, main textarea')]"
    assert tab.evaluate(f"{controls}.filter(part => !part.labels.length).length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_narrow_page_is_no_wider_than_its_window_and_readable(window: Tab, site: Site, dark: bool) -> None:
    window.show(site.url, NARROW_PX, dark)
    _connect(window, site.every)
    _ask(window, "markup" + "x" * 200)
    assert window.evaluate("document.documentElement.scrollWidth") == NARROW_PX
    texts: list[dict[str, Any]] = window.evaluate(CONTRAST)
    assert len(texts) > 20
    assert [text for text in texts if text["contrast"] < LEAST_CONTRAST] == []
    paper = median(text["paper"] for text in texts)
    assert (paper < 0.1) if dark else (paper > 0.8), "the page has the shade that was asked for"


def test_nothing_moves_where_motion_is_unwanted(window: Tab, site: Site) -> None:
    window.show(site.url, WIDE_PX, dark=False, prefers_reduced_motion="reduce")
    _connect(window, site.every)
    _begin(window, "endless")
    window.wait("document.querySelector('.answer').getAttribute('aria-busy') === 'true'")
    assert window.evaluate("getComputedStyle(document.querySelector('.answer'), '::after').animationName") == "none"
    window.press("Escape")
    window.wait(IDLE)


def test_pages_shot_is_taken_by_the_readmes_script(site: Site, tmp_path: Path) -> None:
    from tests.screenshot import take

    take(site.url, site.every, tmp_path / "page.png", PROMPT)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
