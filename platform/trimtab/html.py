"""Every HTML file the project writes: the page shell, figures as data URIs, escaping, and the blur over harmful text.

A page is one file without scripts that makes no request: its Content-Security-Policy allows inline
styles and ``data:`` pictures and nothing else, and every value that a template prints is escaped.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
INK, FRAME, GRID = "#1c2430", "#7b8594", "#e6eaef"
WIDTH_IN, DPI = 4.9, 160
SHELL = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{% block title %}{% endblock %}</title>
<style>
{{ style }}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<main id="main">
{% block body %}{% endblock %}
</main>
</body>
</html>
"""


def render(template: str, **context: Any) -> str:
    """A whole page from a template of ``templates/`` that extends ``shell``; all values are escaped.

    Templates may use the functions ``figure`` and ``blurred`` of this module.
    """
    return _environment().get_template(template).render(**context)


def _environment() -> Environment:
    from jinja2 import ChoiceLoader, DictLoader, Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([DictLoader({"shell": SHELL}), FileSystemLoader(TEMPLATES)])
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    found.globals |= {"policy": POLICY, "style": style, "figure": figure, "blurred": blurred}
    return found


def figure(drawing: Figure, alt: str, caption: str) -> Markup:
    """A drawing inside the page, on a light card that stays readable in dark mode.

    Args:
        alt: what the picture shows, for those who can't see it.
        caption: how to read it.
    """
    from markupsafe import Markup

    text = '<figure><div class="card"><img src="{}" alt="{}"></div><figcaption>{}</figcaption></figure>'
    return Markup(text).format(svg_uri(drawing), alt, caption)


def canvas(height_in: float, rows: int = 1, grid: Literal["x", "y"] = "y") -> tuple[Figure, Any]:
    """An empty drawing as wide as a page's column: the figure and its panels, from top to bottom, shape ``[rows]``.

    Args:
        grid: the axis whose values are read off.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained", facecolor="white")
    panels = drawing.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FRAME)
        axes.tick_params(colors=INK, labelsize=10)
        axes.xaxis.label.set(color=INK, size=10.5)
        axes.yaxis.label.set(color=INK, size=10.5)
    return drawing, panels


def svg_uri(drawing: Figure) -> str:
    """A matplotlib figure as an SVG data URI; the same drawing gives the same bytes."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "trimtab"}):
        drawing.savefig(stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def blurred(text: str, label: str) -> Markup:
    """Text that stays blurred until it is clicked, or its box is ticked by keyboard.

    Args:
        label: what the text is, for the box's accessible name.
    """
    from markupsafe import Markup

    box = '<input type="checkbox" aria-label="Show {}">'
    cover = '<span class="cover" aria-hidden="true">Show</span>'
    shown = '<span class="veiled" dir="auto">{}</span>'
    return Markup(f'<label class="veil">{box}{cover}{shown}</label>').format(label, text)
