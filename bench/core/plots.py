"""Figures: throughput under the copy roof, and a heat map of speed-ups."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from .case import OURS, PEER, Case, Result, geomean
from .table import rivals

if TYPE_CHECKING:
    from .report import Run

COLOURS = {OURS: "#0b6e4f", PEER: "#c8553d", "compile": "#7b5ea7", "triton": "#3a7ca5"}
# Red below 1×, white at 1×, green above.
SPEEDUP_MAP = LinearSegmentedColormap.from_list("speedup", ["#b5382a", "#ffffff", "#0b6e4f"])
PANELS_WIDE = 4
HEAT_LIMIT = 2  # log2: colours are full at 4× and at 1/4×
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def report_figures(run: Run) -> list[Figure]:
    """A throughput figure per op with a sweep, then the heat map of everything else."""
    figures = []
    with plt.rc_context(STYLE):
        for op in dict.fromkeys(r.case.op for r in run.results):
            if curves := _curves(run.results, op):
                figures.append(_throughput_figure(run, op, curves))
        if any(r.case.suite == "sweep" for r in run.results):
            figures.append(_heat_figure(run.results))
    return figures


def summary(run: Run) -> Figure:
    """One picture for a README: the softmax sweep under the roof, and the heat map."""
    with plt.rc_context(STYLE):
        curves = list(_curves(run.results, "softmax").items())[:PANELS_WIDE]
        heat = _heat_rows(run.results)
        heights = (3.1, 0.9 + 0.3 * len(heat))
        figure = plt.figure(figsize=(11, sum(heights) + 0.3))
        grid = figure.add_gridspec(2, max(len(curves), 1), height_ratios=heights)
        first = None
        for column, (key, points) in enumerate(curves):
            axes = first = figure.add_subplot(grid[0, column], sharey=first)
            _throughput(axes, run, key, points)
        _from_zero(first)
        if heat:
            _heat(figure.add_subplot(grid[1, :]), heat)
        _head(figure, f"fastops on {run.title}", first)
    return figure


def speedups(run: Run) -> Figure:
    """One picture of everything measured: for each op the mean speed-up over each of its peers."""
    means = mean_speedups(run.results)
    peers = list(dict.fromkeys(peer for bars in means.values() for peer in bars))
    with plt.rc_context(STYLE):
        count = sum(len(bars) + 1 for bars in means.values())
        figure, axes = plt.subplots(figsize=(9, 1 + 0.17 * count))
        y, ticks, seen = 0, [], set()
        for op, bars in means.items():
            ticks.append((y + (len(bars) - 1) / 2, op))
            for peer, value in bars.items():
                colour = COLOURS.get(peer, plt.get_cmap("tab20")(peers.index(peer) % 20))
                label = None if peer in seen else f"over {peer}"
                axes.barh(y, value, color=colour, height=0.8, label=label)
                axes.text(value, y, f" {value:.2f}×", va="center", fontsize=7)
                seen.add(peer)
                y += 1
            y += 1
        axes.axvline(1, color="#888888", linewidth=1, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_yticks([at for at, _ in ticks], [op for _, op in ticks])
        axes.invert_yaxis()
        axes.set_xlabel("geometric mean of speed-ups: right of 1 we are faster")
        axes.set_title(f"fastops on {run.title}")
        axes.legend(frameon=False, fontsize=8)
    return figure


def mean_speedups(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """op -> peer -> geometric mean over the cases that both did."""
    values: dict[str, dict[str, list[float]]] = {}
    for r in results:
        for peer in rivals(r):
            values.setdefault(r.case.op, {}).setdefault(peer, []).append(r.speedup(peer))
    return {op: {p: geomean(v) for p, v in peers.items()} for op, peers in values.items()}


def _head(figure: Figure, title: str, axes: Axes | None) -> None:
    """The title on the left of the figure's top line, the legend of `axes` on its right."""
    # The empty second line keeps the legend clear of the panels.
    figure.suptitle(f"{title}\n", fontsize=9, x=0.01, ha="left", color="#444444")
    if axes:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="upper right", ncols=4, frameon=False, fontsize=8
        )


# ---- throughput -------------------------------------------------------------------------------

Curves = dict[tuple[str, int], list[Result]]


def _curves(results: Sequence[Result], op: str) -> Curves:
    """The sweeps of an op by (dtype, threads), ordered by N; no curve from a single point."""
    curves: Curves = {}
    for r in sorted(results, key=lambda r: r.case.n):
        if r.case.op == op and r.case.suite == "sweep":
            curves.setdefault((r.case.dtype, r.case.threads), []).append(r)
    order = {"fp32": 0, "bf16": 1, "fp16": 2}
    curves = {key: points for key, points in curves.items() if len(points) > 1}
    return dict(sorted(curves.items(), key=lambda item: (item[0][1], order.get(item[0][0], 3))))


def _throughput_figure(run: Run, op: str, curves: Curves) -> Figure:
    wide = min(len(curves), PANELS_WIDE)
    high = -(-len(curves) // wide)
    figure, grid = plt.subplots(
        high, wide, figsize=(max(3 * wide, 6), 2.6 * high + 0.3), sharey=True, squeeze=False
    )
    for axes in grid.flat[len(curves) :]:
        axes.remove()
    for axes, (key, points) in zip(grid.flat, curves.items(), strict=False):
        _throughput(axes, run, key, points)
    _from_zero(grid[0, 0])
    _head(figure, op, grid[0, 0])
    return figure


def _from_zero(axes: Axes | None) -> None:
    """Once all panels that share the scale are drawn: set earlier, a limit cuts off the rest."""
    if axes:
        axes.set_ylim(bottom=0)


def _throughput(axes: Axes, run: Run, key: tuple[str, int], points: list[Result]) -> None:
    dtype, threads = key
    n = [r.case.n for r in points]
    roof = run.ceilings.copy.get(threads)
    if roof:
        axes.axhline(
            roof * 1e-9, color="#888888", linewidth=1, linestyle="--", label="streaming copy"
        )
    for name in dict.fromkeys(name for r in points for name in r.times if name != "copy"):
        rate = [
            r.traffic / r.times[name].median * 1e-9 if name in r.times else np.nan for r in points
        ]
        axes.plot(n, rate, marker="o", markersize=3, color=COLOURS.get(name, "#555555"), label=name)
        quartiles = [
            [
                r.traffic / q * 1e-9
                for r in points
                if name in r.times
                for q in (side(r.times[name]),)
            ]
            for side in (lambda s: s.q3, lambda s: s.q1)
        ]
        if len(quartiles[0]) == len(n):
            axes.fill_between(n, *quartiles, color=COLOURS.get(name, "#555555"), alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    ticks = [t for t in (64, 1 << 10, 1 << 14, 1 << 18, 1 << 24) if n[0] <= t <= n[-1]]
    axes.set_xticks(ticks, [size(t) for t in ticks])
    axes.set_xlabel("row length N")
    case: Case = points[0].case
    axes.set_title(
        f"{dtype}, {threads} thread{'s' * (threads > 1)}" if case.device == "cpu" else dtype
    )
    axes.grid(axis="y", color="#eeeeee")
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("GB/s of minimal traffic")


# ---- heat map ---------------------------------------------------------------------------------

HeatRows = dict[str, dict[int, float]]


def _heat_rows(results: Sequence[Result]) -> HeatRows:
    """Speed-up over torch by row (op, dtype, threads) and N, of the sweeps."""
    rows: HeatRows = {}
    for r in results:
        if r.case.suite == "sweep" and (value := r.speedup()):
            threads = f" {r.case.threads}T" if r.case.device == "cpu" else ""
            rows.setdefault(f"{r.case.op} {r.case.dtype}{threads}", {})[r.case.n] = value
    return rows


def _heat_figure(results: Sequence[Result]) -> Figure:
    rows = _heat_rows(results)
    figure, axes = plt.subplots(figsize=(10, 1 + 0.32 * len(rows)))
    _heat(axes, rows)
    return figure


def _heat(axes: Axes, rows: HeatRows) -> None:
    sizes = sorted({n for row in rows.values() for n in row})
    values = np.array([[row.get(n, np.nan) for n in sizes] for row in rows.values()])
    # Colour by the logarithm: 2× and 1/2× are as far from 1×.
    axes.imshow(
        np.log2(values), cmap=SPEEDUP_MAP, norm=Normalize(-HEAT_LIMIT, HEAT_LIMIT), aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = abs(np.log2(value)) > 0.6 * HEAT_LIMIT
            text = f"{value:.2f}" if value < 2 else f"{value:.1f}"
            colour = "white" if dark else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_facecolor("#eeeeee")  # not measured
    axes.set_xticks(range(len(sizes)), [size(n) for n in sizes])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"speed-up over {PEER}, by row length")


def size(n: int) -> str:
    """1024 as 1K, 16777216 as 16M."""
    for unit, scale in (("M", 1 << 20), ("K", 1 << 10)):
        if n >= scale and n % scale == 0:
            return f"{n // scale}{unit}"
    return str(n)
