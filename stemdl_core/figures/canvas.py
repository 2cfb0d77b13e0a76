"""What all figures share: figures measured in pixels, contrast, colours of species, a scale bar."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..analysis import FrameAnalysis
from ..frames import Frame

DPI = 100
INK, PAPER, FAINT = "#1a1a1a", "#ffffff", "#6b6b6b"

#: Colours that stay apart for colour-blind eyes and on grey (after Okabe and Ito, brightened): the host
#: lattice is cool, foreign atoms are warm.
_HOST = ("#56b4e9", "#f0e442")
_FOREIGN = ("#ff6a13", "#d55ec2", "#00c389", "#f0e442", "#ff2d55", "#9ad13c")
_FIXED = {
    "C": "#56b4e9",
    "Si": "#ff6a13",
    "N": "#00c389",
    "B": "#d55ec2",
    "P": "#f0e442",
    "O": "#ff2d55",
    "Mo": "#56b4e9",
    "W": "#56b4e9",
    "Se": "#f0e442",
    "S": "#f0e442",
    "Te": "#f0e442",
}

#: Images are shown blurred by this standard deviation [nm]; the probe alone is wider than 0.04 nm.
DISPLAY_SIGMA_NM = 0.012

#: Radii of the marks [nm]: those of the host are dots that leave the atom's own shape visible.
HOST_RADIUS_NM, FOREIGN_RADIUS_NM = 0.016, 0.052


def pixel_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure of so many pixels, and axes over all of it whose coordinates are its pixels (y downwards)."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, zorder=5)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.patch.set_visible(False)
    return figure, axes


def image_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes over a rectangle given in pixels of the figure, from its upper left corner."""
    full_width, full_height = figure.get_size_inches() * DPI
    axes = figure.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height),
        zorder=1,
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure with exactly its pixels, and without a record of when and by what."""
    figure.savefig(
        path,
        dpi=DPI,
        facecolor=figure.get_facecolor(),
        metadata={"Software": None},
        pil_kwargs={"compress_level": 3},
    )


def points(pixels: float) -> float:
    """Pixels as the typographic points in which matplotlib takes widths and font sizes."""
    return pixels * 72 / DPI


def text_width(figure: Figure, text: str, size_px: float, *, weight: str = "normal") -> float:
    """Width of a line of text [px]."""
    artist = figure.text(0, 0, text, fontsize=points(size_px), fontweight=weight)
    width = artist.get_window_extent(figure.canvas.get_renderer()).width  # type: ignore[attr-defined]
    artist.remove()
    return float(width)


def species_colors(analysis: FrameAnalysis) -> dict[str, str]:
    """A colour for each species of the host and of the frame, the same in every figure of it."""
    host = analysis.host_species
    colors = {name: _HOST[i % 2] for i, name in enumerate(host)}
    for name in sorted(set(analysis.sites.species.tolist()) - set(host)):
        fixed = _FIXED.get(name)
        free = [c for c in _FOREIGN if c not in colors.values()] or list(_FOREIGN)
        colors[name] = fixed if fixed and fixed not in colors.values() else free[0]
    return colors


def show_image(axes: Axes, frame: Frame, analysis: FrameAnalysis) -> None:
    """The image in grey, pixel centres at integers.

    The grey scale is that of the host lattice: the surroundings of foreign atoms are left out of the
    percentiles and get some room above, so that one bright atom does not turn the others black.
    """
    image = displayed(frame.image, analysis.pixel_size.nm)
    height, width = image.shape
    quiet = np.ones(image.shape, bool)
    radius = 0.12 / analysis.pixel_size.nm
    host = analysis.host_species
    bright = ~np.isin(analysis.sites.species, host)
    for y, x in analysis.sites.yx_px[bright]:
        y0, y1 = max(int(y - radius), 0), min(int(y + radius) + 2, height)
        x0, x1 = max(int(x - radius), 0), min(int(x + radius) + 2, width)
        quiet[y0:y1, x0:x1] = False
    values = image[quiet] if quiet.mean() > 0.2 else image.ravel()
    low, high = np.percentile(values[:: max(1, values.size // 500_000)], (1.0, 99.5))
    low, top = low - 0.15 * (high - low), high + 0.6 * (high - low)
    low, top = max(low, float(image.min())), min(top, float(image.max()))
    if not top > low:
        low, top = float(image.min()), float(image.max())
    axes.imshow(
        image,
        cmap="gray",
        norm=PowerNorm(0.85, low, top, clip=True),
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        origin="upper",
        aspect="auto",
    )


def displayed(image: NDArray[np.float32], pixel_nm: float) -> NDArray[np.float32]:
    """The image as it is shown: smoothed by a tenth of a column's width, which hides no detail but noise."""
    sigma = DISPLAY_SIGMA_NM / pixel_nm
    return gaussian_filter(image, min(sigma, 4.0)) if sigma > 0.5 else image


def draw_bonds(axes: Axes, analysis: FrameAnalysis, *, width_px: float, alpha: float = 0.75) -> None:
    """Bonds as lines in the colour of the host, those of foreign atoms in theirs."""
    if not len(analysis.bonds):
        return
    colors, host = species_colors(analysis), analysis.host_species
    xy = analysis.sites.yx_px[:, ::-1]
    a, b = analysis.bonds.a, analysis.bonds.b
    species = analysis.sites.species
    foreign_a, foreign_b = ~np.isin(species[a], host), ~np.isin(species[b], host)
    color = [
        colors[species[i]] if fi else colors[species[j]] if fj else colors[host[0]]
        for i, j, fi, fj in zip(a, b, foreign_a, foreign_b)
    ]
    widths = np.where(foreign_a | foreign_b, 1.6, 1.0) * points(width_px)
    axes.add_collection(
        LineCollection(
            list(np.stack([xy[a], xy[b]], axis=1)),
            colors=color,
            linewidths=widths,
            alpha=alpha,
            zorder=2,
            capstyle="round",
        ),
        autolim=False,
    )


def draw_sites(axes: Axes, analysis: FrameAnalysis, *, ring_px: float, scale: float = 1.0) -> None:
    """Host atoms as dots, foreign atoms as large vivid rings with a dot; atoms at the border are paler."""
    colors, host = species_colors(analysis), analysis.host_species
    for name, color in colors.items():
        chosen = analysis.sites.species == name
        foreign = name not in host
        for edge, alpha in ((False, 1.0), (True, 0.55)):
            xy = analysis.sites.yx_px[chosen & (analysis.sites.edge == edge)][:, ::-1]
            if not len(xy):
                continue
            dot = scale * HOST_RADIUS_NM * (1.2 if foreign else 1.0)
            _circles(
                axes, xy, 2 * dot / analysis.pixel_size.nm, face=color, edge="none", width=0, alpha=alpha
            )
            if foreign:
                ring = 2 * scale * FOREIGN_RADIUS_NM / analysis.pixel_size.nm
                _circles(
                    axes,
                    xy,
                    ring,
                    face="none",
                    edge="#000000",
                    width=points(2.2 * ring_px),
                    alpha=0.6 * alpha,
                )
                _circles(axes, xy, ring, face="none", edge=color, width=points(1.5 * ring_px), alpha=alpha)


def _circles(
    axes: Axes, xy: NDArray, diameter: float, *, face: str, edge: str, width: float, alpha: float
) -> None:
    sizes = np.full(len(xy), diameter)
    axes.add_collection(
        EllipseCollection(
            sizes,
            sizes,
            np.zeros(len(xy)),
            units="x",
            offsets=xy,
            offset_transform=axes.transData,
            facecolors=face,
            edgecolors=edge,
            linewidths=width,
            alpha=alpha,
            zorder=3,
        ),
        autolim=False,
    )


def scale_bar_nm(field_nm: float) -> float:
    """A round length [nm] of about a fifth of the field."""
    target = max(field_nm, 1e-6) / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1.0, 2.0, 5.0) if step * power <= target * 1.0001))


def draw_scale_bar(page: Axes, x: float, y: float, *, width_px: float, px_per_nm: float, text: float,
                   more: str = "") -> None:
    """A scale bar beside an image: a dark line, its length and what else is to be said there.

    Parameters
    ----------
    page : Axes
        Of the whole figure, see `pixel_figure`.
    x, y : float
        Where it begins [px of the page].
    width_px : float
        Width of the image that it is for [px of the page].
    px_per_nm : float
        Scale of that image.
    text : float
        Size of the letters [px].
    more : str
        What stands after the length.
    """
    length = scale_bar_nm(width_px / px_per_nm)
    end = x + length * px_per_nm
    page.plot([x, end], [y, y], color=INK, linewidth=points(0.35 * text), solid_capstyle="butt")
    page.text(end + 0.6 * text, y, length_text(length) + more, fontsize=points(text), color=INK, va="center")


def length_text(nm: float) -> str:
    """A length with the unit that reads best."""
    return f"{1e3 * nm:g} pm" if nm < 0.1 else f"{nm:g} nm"


def spread(wanted: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Positions in the order of `wanted`, near them, at least `pitch` apart and within [low, high].

    Neighbours that are too close form blocks centred on their members' mean wish (the pool-adjacent-violators
    solution of the least-squares problem).
    """
    n = len(wanted)
    if n == 0:
        return []
    pitch = min(pitch, (high - low) / max(n - 1, 1)) if n > 1 else pitch
    blocks: list[list[float]] = []  # [sum of wishes freed of the pitch, count]
    for i, wish in enumerate(wanted):
        blocks.append([wish - i * pitch, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    free = [total / count for total, count in blocks for _ in range(int(count))]
    top = high - (n - 1) * pitch
    return [min(max(f, low), top) + i * pitch for i, f in enumerate(free)]
