"""Pictures of the accuracy tables: honesty of scores, sites by dose, positions against their bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#777777"


def _figure(columns: int) -> Figure:
    figure = Figure(figsize=(4.2 * columns, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain_log(axes: Axes, *, x: bool = True, y: bool = False) -> None:
    """Numbers as one writes them on logarithmic axes: 20 and not 2 x 10^1."""
    for axis in [axes.xaxis] * x + [axes.yaxis] * y:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def reliability(judged: NDArray[np.float64], *, error: float, bins: int = 10) -> Figure:
    """Observed frequency of true sites over their stated score, and how many sites are in each bin.

    Parameters
    ----------
    judged : (N, 2) float64
        Score, and whether the site was true.
    error : float
        Expected calibration error, for the title.
    bins : int
        Number of bins.
    """
    figure = _figure(2)
    curve, count = figure.subplots(1, 2)
    which = np.clip((judged[:, 0] * bins).astype(int), 0, bins - 1)
    filled = [k for k in range(bins) if (which == k).any()]
    stated = [judged[which == k, 0].mean() for k in filled]
    observed = np.array([judged[which == k, 1].mean() for k in filled])
    number = np.array([(which == k).sum() for k in filled])
    # Twice the standard error, that of a uniform prior where all sites agree.
    spread = 2 * np.sqrt((observed * number + 1) * ((1 - observed) * number + 1) / (number + 2) ** 3)
    curve.plot([0, 1], [0, 1], color=_GREY, lw=1)
    curve.errorbar(stated, observed, yerr=spread, fmt="o-", ms=4, color=_BLUE, capsize=2)
    curve.set(xlabel="stated score", ylabel="part that is true", xlim=(0, 1.02), ylim=(0, 1.05),
              title=f"expected calibration error {error:.3f}")
    count.bar((np.array(filled) + 0.5) / bins, number, width=0.9 / bins, color=_BLUE)
    count.set(xlabel="stated score", ylabel="sites", yscale="log", xlim=(0, 1.02), ylim=(1, None))
    return figure


def sites_by_dose(table: pd.DataFrame) -> Figure:
    """F1 of sites, and rms error of positions, over the dose."""
    figure = _figure(2)
    left, right = figure.subplots(1, 2)
    ends = np.array([[float(v) for v in e.split("-")] for e in table["electrons_per_atom"]])
    dose = np.sqrt(ends.prod(axis=1))
    left.plot(dose, table["site_F1"], "o-", ms=4, color=_BLUE, label="measured")
    left.plot([20, 100, 100, ends.max()], [0.98, 0.98, 0.995, 0.995], color=_RED, lw=1, ls="--", label="bar")
    left.set(xlabel="electrons per atom", ylabel="site F1", xscale="log")
    left.legend(frameon=False, loc="lower right")
    right.plot(dose, table["rms_pm"], "o-", ms=4, color=_BLUE)
    right.set(xlabel="electrons per atom", ylabel="rms error per axis [pm]", xscale="log", ylim=(0, None))
    for axes in (left, right):
        _plain_log(axes)
        axes.grid(alpha=0.3)
    return figure


def positions_over_bound(table: pd.DataFrame) -> Figure:
    """rms error over the Cramer-Rao bound by dose, for each pixel size: refinement, Laplacian, network."""
    kinds = list(dict.fromkeys(table["arrangement"]))
    figure = _figure(len(kinds))
    ways = {"LoG+parabola/bound": ("Laplacian and parabola", _RED), "network/bound": ("network alone", _GREY),
            "rms/bound": ("refined", _BLUE)}
    markers = dict(zip(sorted(set(table["pixel_pm"])), "osD^v", strict=False))
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    for axes, kind in zip(panels, kinds, strict=True):
        of_kind = table[table["arrangement"] == kind]
        for column, (_, colour) in ways.items():
            for pixel, rows in of_kind[of_kind[column].notna()].groupby("pixel_pm"):
                axes.plot(rows["electrons"], rows[column], marker=markers[pixel], ms=4, lw=1, color=colour)
        axes.axhline(1.2, color="k", lw=0.8, ls="--")
        axes.set(xlabel="electrons per atom", xscale="log", yscale="log", title=f"{kind} columns".replace(
            "lattice columns", "columns of a lattice"))
        _plain_log(axes, y=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("rms error / Cramer-Rao bound")
    # One legend for what colours mean and one for what markers mean, where the first panel is empty.
    colours = [Line2D([], [], color=c, label=name) for name, c in ways.values()]
    bar = Line2D([], [], color="k", lw=0.8, ls="--", label="bar")
    pixels = [Line2D([], [], color="k", ls="", marker=m, ms=4, label=f"{p:.0f} pm/px") for p, m in markers.items()]
    panels[0].legend(handles=[*colours, bar, *pixels], frameon=False, fontsize=7, loc="upper left", ncols=2)
    return figure
