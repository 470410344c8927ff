"""The report in a real browser: it asks for nothing, complains of nothing, and is readable narrow and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab, browser
from tests.evaluation.outputs import retention_output, three_models, training_output
from trimtab.evaluation import report
from trimtab.evaluation.reporting.config import ReportConfig

pytestmark = [pytest.mark.slow, pytest.mark.browser]

NARROW_PX, WIDE_PX = 380, 1280
LEAST_CONTRAST, LEAST_FONT_PX = 4.5, 12  # WCAG 2.2, 1.4.3 (AA)
OPEN_ALL = "document.querySelectorAll('details').forEach(part => { part.open = true; })"
OVERFLOW = """(() => {
  const page = document.documentElement;
  const held = part => { for (let e = part.parentElement; e; e = e.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true; return false; };
  const out = [...document.body.querySelectorAll('*')]
    .filter(part => part.getBoundingClientRect().right > page.clientWidth + 1 && !held(part))
    .map(part => part.tagName + ' ' + part.textContent.trim().slice(0, 40));
  return {width: page.clientWidth, over: page.scrollWidth - page.clientWidth, parts: out};
})()"""
TEXTS = """(() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const share = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * share(c[0]) + 0.7152 * share(c[1]) + 0.0722 * share(c[2]);
  const behind = part => { for (let e = part; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const part = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !part.checkVisibility()) continue;
    const style = getComputedStyle(part), a = light(rgba(style.color)), b = light(behind(part));
    found.push({text: text.slice(0, 40), contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
                size: parseFloat(style.fontSize), paper: b});
  }
  return found;
})()"""
BLURS = "[...document.querySelectorAll('.veiled')].map(part => getComputedStyle(part).filter)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, one of whose models has a long name without a space."""
    folder = tmp_path_factory.mktemp("report")
    config = three_models(folder)
    base = retention_output(folder / "base" / "ret", 0.0)
    others = [retention_output(folder / model.name / "ret", 0.1, base) for model in config.models[1:]]
    names = ("base", "m" * 60, "<b>cst</b>")
    models = tuple(
        model.model_copy(update={"name": name, "retention": retention})
        for model, name, retention in zip(config.models, names, [base, *others], strict=True)
    )
    training = training_output(folder / "train")
    report.run(ReportConfig(output=config.output, models=models, training=training, title="T" * 70))
    return config.output / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One browser for all of these tests."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [NARROW_PX, WIDE_PX])
def test_page_asks_for_nothing_and_has_an_empty_console(page: Path, tab: Tab, width: int, dark: bool) -> None:
    tab.show(page, width, dark)
    tab.evaluate(OPEN_ALL)
    asked = tab.requests()
    assert asked[0] == page.as_uri(), "the events are there"
    assert [url for url in asked[1:] if not url.startswith("data:")] == []
    assert tab.complaints() == []
    assert tab.evaluate("document.querySelectorAll('script').length") == 0
    pictures = tab.evaluate("[...document.images].map(picture => [picture.complete, picture.naturalWidth > 0])")
    assert len(pictures) == 5
    assert all(complete and drawn for complete, drawn in pictures)


@pytest.mark.parametrize("width", [NARROW_PX, WIDE_PX])
def test_page_is_no_wider_than_its_window(page: Path, tab: Tab, width: int) -> None:
    tab.show(page, width, dark=False)
    tab.evaluate(OPEN_ALL)
    found: dict[str, Any] = tab.evaluate(OVERFLOW)
    assert found == {"width": width, "over": 0, "parts": []}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_contrast_and_is_large_enough(page: Path, tab: Tab, dark: bool) -> None:
    tab.show(page, NARROW_PX, dark)
    tab.evaluate(OPEN_ALL)
    texts: list[dict[str, Any]] = tab.evaluate(TEXTS)
    assert len(texts) > 200
    assert [text for text in texts if text["contrast"] < LEAST_CONTRAST] == []
    assert [text for text in texts if text["size"] < LEAST_FONT_PX] == []
    paper = max(text["paper"] for text in texts) if dark else min(text["paper"] for text in texts)
    assert (paper < 0.1) if dark else (paper > 0.8), "the page has the shade that was asked for"


def test_text_is_blurred_until_it_is_clicked(page: Path, tab: Tab) -> None:
    tab.show(page, NARROW_PX, dark=False)
    before: list[str] = tab.evaluate(BLURS)
    assert len(before) > 10
    assert all("blur" in shown for shown in before)
    tab.click(".veil")
    after: list[str] = tab.evaluate(BLURS)
    assert after[0] == "none"
    assert after[1:] == before[1:]
