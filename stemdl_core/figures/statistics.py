"""What the statistics of a movie say, in three panels: dwell times, spreading, resting places."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..statistics import dwell_times, mean_squared_displacement, occupancy, time_unit
from ..trajectories import Tracks
from . import canvas

#: Types of defects and places shown; cell of the map [nm]; least side of the map [nm].
_TYPES, _CELL_NM, _SIDE_NM = 8, 0.02, 0.6


def statistics_figure(tracks: Tracks) -> Figure | None:
    """Mean dwell times with their intervals, mean squared displacement, and the time spent at each place.

    Returns
    -------
    Figure or None
        None where there are no tracks.
    """
    if not len(tracks):
        return None
    figure, page = canvas.pixel_figure(1200, 380)
    page.remove()
    dwell, spread, places = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.1, right=0.985, top=0.89, bottom=0.16, wspace=0.32)
    _draw_dwells(dwell, tracks)
    _draw_spreading(spread, tracks)
    _draw_places(places, tracks)
    return figure


def _draw_dwells(axes: Axes, tracks: Tracks) -> None:
    table = dwell_times(tracks).sort_values("time", ascending=False).head(_TYPES).iloc[::-1]
    at = np.arange(len(table))
    low, mean, high = (table[k].to_numpy() for k in ("low", "mean", "high"))
    known = np.isfinite(mean)
    # A state that was never left has a shortest dwell time only.
    far = float(np.max(np.r_[low, mean[known], high[np.isfinite(high)]]))
    axes.hlines(at, low, np.where(np.isfinite(high), high, 1.15 * far), color="#495057", linewidth=1.5)
    axes.plot(mean[known], at[known], "o", color="#d9480f", markersize=6)
    axes.plot(low[~known], at[~known], ">", color="#495057", markersize=6)
    labels = [f"{n}\n{s} stay{'' if s == 1 else 's'}, {c} ended" for n, s, c in
              zip(table["name"], table["stays"], table["completed"])]  # fmt: skip
    axes.set_yticks(at, labels, fontsize=8)
    axes.set(ylim=(-0.6, len(table) - 0.4), xlim=(0, 1.2 * far))
    axes.set_xlabel(f"mean dwell time [{time_unit(tracks)}], 95 % interval")
    axes.set_title("dwell times", fontsize=10)


def _draw_spreading(axes: Axes, tracks: Tracks) -> None:
    curve = mean_squared_displacement(tracks)
    if len(curve):
        axes.errorbar(curve["time"], 1e3 * curve["msd_nm2"], 1e3 * curve["sigma_nm2"], fmt="o-", color="#1864ab",
                      markersize=3, linewidth=1.0, elinewidth=0.8)  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"lag [{time_unit(tracks)}]")
    axes.set_ylabel(r"mean squared displacement [$10^{-3}$ nm$^2$]", fontsize=9)
    axes.set_title("displacement on the lattice", fontsize=10)


def _draw_places(axes: Axes, tracks: Tracks) -> None:
    spent = occupancy(tracks, pixel_nm=_CELL_NM)
    y, x = spent.origin_nm
    height, width = (n * spent.pixel_nm for n in spent.time.shape)
    side = max(_SIDE_NM, 1.15 * max(height, width))
    shown = np.ma.masked_equal(spent.time, 0.0)
    picture = axes.imshow(shown, cmap="viridis", extent=(x, x + width, y + height, y), interpolation="nearest")
    axes.set_xlim(x + 0.5 * (width - side), x + 0.5 * (width + side))
    axes.set_ylim(y + 0.5 * (height + side), y + 0.5 * (height - side))
    axes.set_facecolor("#f1f3f5")
    axes.set(xlabel="x [nm]", ylabel="y [nm]", aspect="equal")
    axes.set_title(f"time at each place [{time_unit(tracks)}]", fontsize=10)
    axes.figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.04)
