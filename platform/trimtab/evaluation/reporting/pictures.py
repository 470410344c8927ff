"""The report's drawings, from plain values to matplotlib figures; no state outlives a call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.html import INK, canvas
from trimtab.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#5f6875", "#0b62c4", "#b4410e", "#157347", "#7a3fc0", "#8a6100")
MARKERS = ("o", "s", "^", "D", "v", "P")
FAINT = "#c9d0d9"
LABEL_CHARS, LABEL_PT = 24, 10
MARK_PT, LEGEND_PT = 36, 288
"""Room for a mark, and for all of a legend."""


def corr_curves(curves: Mapping[str, Mapping[int, Estimate]], unit: str = "words") -> Figure:
    """Corr@k over k with its 95 % band, a line for each model.

    Args:
        unit: what k counts.
    """
    figure, (axes,) = canvas(3.3)
    for number, (name, points) in enumerate(curves.items()):
        known = [(k, e) for k, e in sorted(points.items()) if e.value is not None]
        ks, values = [k for k, _ in known], [e.value for _, e in known]
        band = [(k, e) for k, e in known if e.low is not None]
        style = _style(number)
        axes.fill_between([k for k, _ in band], [e.low for _, e in band], [e.high for _, e in band],
                          color=style["color"], alpha=0.15, linewidth=0)  # fmt: skip
        axes.plot(ks, values, label=_label(name), linewidth=2, markersize=5, **style)
    highest = max((e.high or e.value or 0.0 for points in curves.values() for e in points.values()), default=0.0)
    top = min(1.0, max(0.2, 1.15 * highest))
    axes.set(xlabel=f"k, {unit} of the harmful start", ylabel="Corr@k", ylim=(-0.02 * top, 1.02 * top))
    axes.set_xticks(sorted({k for points in curves.values() for k in points}))
    _legend(axes)
    return figure


def quadrants(points: Mapping[str, tuple[Estimate, Estimate]]) -> Figure:
    """S1 over S0 with both intervals; on the dashed line S0 + S1 = 1 a setting changes nothing."""
    figure, (axes,) = canvas(4.9)
    axes.plot([0, 1], [1, 0], color=INK, linestyle=(0, (4, 3)), linewidth=1)
    axes.axhline(0.5, color=FAINT, linewidth=1)
    axes.axvline(0.5, color=FAINT, linewidth=1)
    for x, y, text in ((0, 1.1, "always safe"), (1, 1.1, "follows its setting"),
                       (0, -0.1, "does the opposite"), (1, -0.1, "never safe")):  # fmt: skip
        across, up = ("left" if x == 0 else "right"), ("bottom" if y < 0 else "top")
        axes.text(x, y, text, ha=across, va=up, color="#4d5766", fontsize=9.5)
    for number, (name, (s0, s1)) in enumerate(points.items()):
        if s0.value is not None and s1.value is not None:
            style = _style(number) | {"linestyle": "none"}
            axes.plot([s0.value], [s1.value], markersize=9, label=_label(name), zorder=3, **style)
            axes.errorbar(s0.value, s1.value, xerr=_arms(s0), yerr=_arms(s1), capsize=3, **style)
    axes.set(xlabel="S0, unsafe answers under uncensored", ylabel="S1, safe answers under harmless",
             xlim=(-0.13, 1.13), ylim=(-0.13, 1.13), aspect="equal")  # fmt: skip
    axes.grid(visible=False)
    _legend(axes)
    return figure


def attack_rates(rates: Mapping[str, Mapping[str, Estimate]], label: str) -> Figure:
    """Success rates of each kind of attack with their intervals, a mark for each model; the first kind on top.

    Args:
        rates: by model, then by kind; all models have the same kinds.
        label: what the rates are the shares of.
    """
    kinds = list(dict.fromkeys(kind for found in rates.values() for kind in found))
    figure, (axes,) = canvas(1.1 + 0.42 * len(kinds), grid="x")
    step = 0.5 / max(1, len(rates))
    for number, (name, found) in enumerate(rates.items()):
        style = _style(number) | {"linestyle": "none"}
        shift = (number - (len(rates) - 1) / 2) * step
        known = [(place + shift, found[kind]) for place, kind in enumerate(kinds)
                 if kind in found and found[kind].value is not None]  # fmt: skip
        axes.plot([e.value for _, e in known], [y for y, _ in known], markersize=7, label=_label(name), **style)
        for y, estimate in known:
            axes.errorbar(estimate.value, y, xerr=_arms(estimate), capsize=3, color=style["color"])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(kinds) - 0.5, -0.5), xlabel=label)
    axes.set_yticks(range(len(kinds)), [_label(kind) for kind in kinds])
    _legend(axes)
    return figure


def losses(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """DPO loss above, margin of the better answer below, over the optimizer steps; validation as dots."""
    figure, (loss, margin) = canvas(4.4, rows=2)
    numbers = [step["step"] for step in steps]
    loss.axhline(math.log(2), color=INK, linestyle=(0, (4, 3)), linewidth=1, label="untrained (ln 2)")
    loss.plot(numbers, [step["dpo_loss"] for step in steps], color=COLORS[1], linewidth=1.8, label="DPO loss")
    margin.axhline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    margin.plot(numbers, [step["margin"] for step in steps], color=COLORS[2], linewidth=1.8)
    if validation:
        at, dots = [line["step"] for line in validation], {"linestyle": "none", "marker": "o", "color": INK}
        loss.plot(at, [line["eval_dpo_loss"] for line in validation], label="validation", **dots)
        margin.plot(at, [line["eval_margin"] for line in validation], **dots)
    loss.set(ylabel="DPO loss")
    margin.set(ylabel="margin", xlabel="optimizer step")
    _legend(loss)
    return figure


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": "-"}


def _label(name: str) -> str:
    """A name as plain text, no longer than there is room for: no mathematics, and not hidden from the legend."""
    short = name if len(name) <= LABEL_CHARS else name[: LABEL_CHARS - 1] + "…"
    return f" {short}".replace("$", r"\$")


def _arms(estimate: Estimate) -> list[list[float]] | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _legend(axes: Any) -> None:
    """What is what, above the drawing, in as many columns as there is room for."""
    from matplotlib.textpath import TextPath

    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    widths = sorted((TextPath((0, 0), label, size=LABEL_PT).get_extents().width for label in labels), reverse=True)
    columns = next(n for n in (3, 2, 1) if n == 1 or sum(widths[:n]) + MARK_PT * n <= LEGEND_PT)
    axes.legend(fontsize=LABEL_PT, labelcolor=INK, frameon=False, loc="lower left", bbox_to_anchor=(0, 1),
                ncols=columns, borderaxespad=0.2, handletextpad=0.5)  # fmt: skip
