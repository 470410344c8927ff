"""The data report: what it shows, what it hides and escapes, and that nothing is never 0."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trimtab.artifacts import git_revision, versions
from trimtab.judging import RulesJudge
from trimtab.schemas import RankedGroup, Response
from trimtab.synthesis.data_report import alike, notes, reading, write_report
from trimtab.synthesis.statistics import Statistics, sample_harmlessness

HOSTILE = "</pre><script>alert('x')</script> & <img src=http://evil.example/a.png>"
SAFE, UNSAFE = "I am sorry, I won't help with it", "First you take the bus"


def _group(number: int, hostile: str = "") -> RankedGroup:
    start = f"Sure {hostile}{'word ' * 40}end"
    responses = (
        Response(role="SR", text=f"{SAFE} {hostile}"),
        Response(role="SYN_1", text=f"{start} However, I must stop. {hostile}", num_prefill_chars=len(start)),
        Response(role=f"F$R{hostile}", text=f"{UNSAFE} {hostile} {'word ' * 200}last"),
    )
    return RankedGroup(
        id=f"g{number}", source="r", configuration="harmless", prompt=f"How {number}? {hostile}", responses=responses
    )


def _statistics(groups: list[RankedGroup]) -> dict[str, Any]:
    found = Statistics(configuration="harmless")
    for group in groups:
        found.add(group)
    return {**found.result(num_near_duplicates=1), "harmlessness": sample_harmlessness(groups, RulesJudge())}


def _page(output: Path, **values: Any) -> str:
    given: dict[str, Any] = {
        "config_yaml": "", "counts": {}, "statistics": {}, "quarantined": {}, "examples": [], "inputs": {},
    }  # fmt: skip
    path = write_report(output, **(given | values))
    assert path == output / "data_report.html"
    return path.read_text(encoding="utf-8")


class Markup(HTMLParser):
    """What a browser would fetch, the tags in use, and the text behind blur."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.veiled: list[str] = []
        self.alts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values)
        self.tags.append(tag)
        self.links += [values[name] or "" for name in ("src", "href", "srcset", "action", "data") if name in values]
        self.alts += [values["alt"] or ""] if tag == "img" else []
        if values.get("class") == "veiled":
            self._inside = True
            self.veiled.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "span"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.veiled[-1] += data


def test_nothing_is_shown_as_not_available_and_never_as_a_rate(tmp_path: Path) -> None:
    for number, statistics in enumerate(({}, _statistics([]))):
        output = tmp_path / str(number)
        output.mkdir()
        page = _page(output, statistics=statistics)
        body = page[page.index("<main") : page.index("Recipe and provenance")]
        assert body.count("n/a") >= 3
        assert "<img" not in body
        assert re.findall(r">[^<]*\b0[.%][^<]*<", body) == []
        assert "Groups: n/a. 0 rows quarantined." in body


def test_reasons_that_differ_in_numbers_and_quotations_are_one() -> None:
    rows = {
        ("generation", "SYN_3: loop: 0.83 of its words repeat earlier ones (limit 0.5)"): 2,
        ("generation", "SYN_3: loop: 0.9 of its words repeat earlier ones (limit 0.5)"): 1,
        ("generation", "SYN_4: correction: doesn't turn away by rules-1 (it must)"): 2,
        ("source", "is equal to an earlier row with prompt 'How can't I?'"): 1,
        ("source", 'is equal to an earlier row with prompt "Isn\'t it?"'): 1,
        ("source", "repeats row 12 (same prompt and harmful response)"): 1,
    }
    assert alike(rows) == [
        ("generation", "SYN_3: loop: N of its words repeat earlier ones (limit 0.5)", 3),
        ("generation", "SYN_4: correction: doesn't turn away by rules-1 (it must)", 2),
        ("source", "is equal to an earlier row with prompt …", 2),
        ("source", "repeats row N (same prompt and harmful response)", 1),
    ]


def test_the_table_of_reasons_is_short_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    page = _page(tmp_path, quarantined={("plan", f"reason {chr(97 + n)}{HOSTILE}"): 30 - n for n in range(26)})
    assert page.count("reason ") == 25
    assert "1 rarer reasons are left out." in page
    assert "465 rows quarantined" not in page
    assert f"{sum(30 - n for n in range(26))} rows quarantined" in page
    assert "<script" not in page


def test_counts_and_recipe_and_inputs_and_versions_are_there(tmp_path: Path) -> None:
    page = _page(
        tmp_path, counts={"groups": 12345, "near_duplicates": 3}, config_yaml=f"model: {HOSTILE}\n",
        inputs={"data": "0123abcd"},
    )  # fmt: skip
    assert '<th scope="row">groups</th><td class="number">12,345</td>' in page
    assert '<th scope="row">near duplicates</th><td class="number">3</td>' in page
    assert "model: &lt;/pre&gt;&lt;script&gt;" in page
    assert "  data: 0123abcd\n" in page
    assert f"  python: {versions()['python']}\n" in page
    assert f"git: {git_revision() or 'none'}" in page


def test_at_most_three_examples_shortened_and_blurred(tmp_path: Path) -> None:
    page = _page(tmp_path, examples=[_group(number, HOSTILE) for number in range(4)])
    markup = Markup(page)
    assert set(markup.tags) & {"script", "img"} == set()
    assert markup.links == ["data:,", "#main"]
    assert len(markup.veiled) == 3 * 4
    prompt, sr, syn, harmful = markup.veiled[:4]
    assert prompt == f"How 0? {HOSTILE}"
    assert sr == f"{SAFE} {HOSTILE}"
    assert re.fullmatch(r"… .{1,140} ▸ However, I must stop\. .*", syn, re.S)
    assert harmful.startswith(UNSAFE)
    assert harmful.endswith(" …")
    assert len(harmful) < 430
    outside = re.sub(r'<span class="veiled".*?</span>', "", page, flags=re.S)
    assert "However, I must stop" not in outside
    assert UNSAFE not in outside


def test_the_first_sentence_says_what_was_made() -> None:
    groups = [_group(0), _group(1)]
    flips = [groups[0].flip("uncensored", None)]
    made = "2 ranked groups from 2 distinct prompts (1 near-duplicate removed), and 1 flip. 3 rows quarantined."
    statistics = _statistics([*groups, *flips])
    assert reading(statistics, 3) == reading({**statistics, "described_share": 1.0}, 3) == made
    assert reading({**statistics, "described_share": 0.045}, 3) == f"Described here, from 4.5% of the shards: {made}"


@pytest.mark.parametrize(("num_turning", "warned"), [(0, True), (1, True), (9, False), (20, False)])
def test_corrections_that_only_their_triggers_make_are_pointed_out(num_turning: int, warned: bool) -> None:
    found = Statistics(triggers=("However, I must stop, as",))
    for number in range(20):
        behind = "it would hurt them" if number < num_turning else "it is raining now"
        text = f"Sure, However, I must stop, as {behind}"
        correction = Response(role="SYN_1", text=text, num_prefill_chars=len("Sure,"))
        group = _group(number)
        found.add(group.model_copy(update={"responses": (group.responses[0], correction, group.responses[2])}))
    said = notes(found.result())
    assert len(said) == warned
    if said:
        assert f"(SYN_1 {num_turning / 20:.2f})" in said[0]
    assert notes({}) == []


@pytest.mark.slow
def test_pictures_have_words_and_nothing_is_fetched(tmp_path: Path) -> None:
    groups = [_group(number, HOSTILE) for number in range(5)]
    page = _page(tmp_path, statistics=_statistics(groups), examples=groups[:1])
    markup = Markup(page)
    assert "script" not in markup.tags
    pictures = [link for link in markup.links if link not in ("data:,", "#main")]
    assert len(pictures) == 2
    assert all(b"<svg" in base64.b64decode(link.removeprefix("data:image/svg+xml;base64,")) for link in pictures)
    assert markup.alts[0].startswith(
        "Share of safe answers with 95 % intervals, from the best rank to the worst: SR 1.00 ["
    )
    assert markup.alts[1].startswith("A histogram of the number of words for each role. Medians: SR ")
    assert "By this judge harmlessness falls along the ranking, clearly at 1 of 2 steps (Spearman -" in page
    assert "default-src &#39;none&#39;" in page


@pytest.mark.slow
def test_the_table_of_roles_has_intervals_and_no_rate_where_there_is_none(tmp_path: Path) -> None:
    page = _page(tmp_path, statistics=_statistics([_group(number) for number in range(5)]))
    table = page[page.index('id="roles"') : page.index('id="lengths"')]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table, re.S)
    cells = {name: re.sub(r"<[^>]+>|\s+", " ", row).split() for name, row in rows}
    assert list(cells) == ["SR", "SYN_1", "F$R"]
    assert cells["SR"][-3:] == ["[0.57,", "1.00]", "n/a"]
    assert cells["SYN_1"][-3:] == ["1.00", "[0.57,", "1.00]"]
    assert cells["F$R"][-4:] == ["0.00", "[0.00,", "0.43]", "n/a"]


@pytest.mark.slow
def test_the_same_values_give_the_same_page(tmp_path: Path) -> None:
    statistics = _statistics([_group(0), _group(1)])
    assert _page(tmp_path, statistics=statistics) == _page(tmp_path, statistics=statistics)
