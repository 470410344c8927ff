"""The page shell, the blur and figures: nothing is requested, nothing of the data becomes markup."""

from __future__ import annotations

import base64
import re

from matplotlib.figure import Figure

from trimtab import html

HOSTILE = '</span><script>alert(1)</script><img src=x onerror="alert(2)">'


def _drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_blurred_text_is_escaped_and_behind_a_box() -> None:
    shown = str(html.blurred(HOSTILE, 'the "prompt"'))
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert re.search(r'<input type="checkbox" aria-label="Show the &#34;prompt&#34;">', shown)


def test_a_figure_is_a_data_uri_with_an_escaped_alt_text() -> None:
    shown = str(html.figure(_drawing(), HOSTILE, HOSTILE))
    assert "<script" not in shown
    uri = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', shown)
    assert uri
    assert b"<svg" in base64.b64decode(uri[1])


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert html.svg_uri(_drawing()) == html.svg_uri(_drawing())


def test_the_shell_forbids_scripts_and_requests() -> None:
    page = html.render("shell")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert "default-src &#39;none&#39;" in policy[1]
    assert "script-src" not in policy[1]
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import""", page)
