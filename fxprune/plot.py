"""The picture of a report: every layer's width, and its share of latency, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fxprune.units import format_resource, format_seconds

if TYPE_CHECKING:  # report.py imports this module when it draws
    from fxprune.report import Report

DENSE = "#c9ccd1"  # muted grey
SLIM = "#1f6fb4"
INK = "#33373d"

_INCHES_PER_LAYER = 0.21
_POINTS = 7.5


def layers_figure(report: Report) -> Figure:
    """Layers from input (top) to output, two panels: output channels, and share of latency.

    Where both networks were measured, both shares are of the *dense* one's latency, so that a slim
    bar is short because the layer takes less time.  Without shares there is no second panel.
    """
    timed = _has_shares(report)
    height = 1.5 + _INCHES_PER_LAYER * max(len(report.layers), 4)
    figure = Figure(figsize=(9.5 if timed else 6.0, height), dpi=200)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]

    widths = [(layer.dense_out, layer.slim_out) for layer in report.layers]
    _bars(panels[0], widths, [f"{b}" if b == a else f"{b} → {a}" for b, a in widths])
    panels[0].set_title("Output channels", loc="left", fontsize=9, color=INK)
    panels[0].set_yticks(range(len(widths)), [layer.name for layer in report.layers])
    if timed:
        shares = _shares_of_dense(report)
        _bars(panels[1], shares, [f"{b:.1f} → {a:.1f}" for b, a in shares])
        title = "Latency, % of the dense network's" if report.speedup else "Share of latency, %"
        panels[1].set_title(title, loc="left", fontsize=9, color=INK)
    _legend(figure, report)
    return figure


def _has_shares(report: Report) -> bool:
    return bool(report.layers) and all(
        layer.dense_latency_share is not None and layer.slim_latency_share is not None
        for layer in report.layers
    )


def _shares_of_dense(report: Report) -> list[tuple[float, float]]:
    scale = 1.0 if report.speedup is None else 1.0 / report.speedup
    return [
        (100 * (layer.dense_latency_share or 0), 100 * scale * (layer.slim_latency_share or 0))
        for layer in report.layers
    ]


def _bars(panel: Axes, pairs: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    rows = range(len(pairs))
    panel.barh(rows, [before for before, _ in pairs], height=0.78, color=DENSE)
    panel.barh(rows, [after for _, after in pairs], height=0.40, color=SLIM)
    longest = max((max(pair) for pair in pairs), default=1.0) or 1.0
    for row, pair, label in zip(rows, pairs, labels, strict=True):
        end = max(pair) + 0.012 * longest
        panel.text(end, row, label, va="center_baseline", fontsize=_POINTS - 1, color=INK)
    panel.set_xlim(0, 1.22 * longest)  # room for the label of the longest bar
    panel.set_ylim(len(pairs) - 0.3, -0.7)  # the input at the top
    # The numbers stand at the bars: axes and ticks would only repeat them.
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0, labelsize=_POINTS, labelcolor=INK)
    for side in panel.spines.values():
        side.set_visible(False)


def _legend(figure: Figure, report: Report) -> None:
    before, after = report.dense, report.slim
    if report.speedup is None or before.latency is None or after.latency is None:
        labels = [
            f"dense: {format_resource('macs', before.macs)}",
            f"slim: {format_resource('macs', after.macs)}",
        ]
    else:
        labels = [
            f"dense: {format_seconds(before.latency.seconds)}",
            f"slim: {format_seconds(after.latency.seconds)}, {report.speedup:.2f}x faster",
        ]
    figure.legend(
        [Patch(color=DENSE), Patch(color=SLIM)],
        labels,
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
    )
