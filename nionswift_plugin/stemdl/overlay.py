"""Draws atoms, bonds and defects over an image: in milliseconds, without a plotting library."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass

import numpy

from stemdl_core import crowding

from .canvas import Canvas

if typing.TYPE_CHECKING:
    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.trajectories import Tracks

#: Small images are enlarged until their longer side has this many pixels, so that marks and names are
#: legible.
TARGET_PX = 1024
#: Larger ones are averaged down: Swift sends the whole picture to the screen at each change.
LARGEST_PX = 2048
#: Colours (R, G, B) that stay apart for colour-blind eyes and on grey. Hosts are cool, foreign atoms warm.
SPECIES_RGB: dict[str, tuple[int, int, int]] = {
    "C": (86, 180, 233),
    "Si": (255, 159, 28),
    "N": (120, 110, 255),
    "B": (255, 170, 190),
    "O": (255, 80, 80),
    "P": (255, 96, 56),
    "Al": (230, 200, 90),
    "Ge": (210, 150, 60),
    "H": (245, 245, 245),
    "Mo": (64, 206, 227),
    "W": (255, 99, 190),
    "Se": (170, 220, 80),
    "S": (245, 225, 80),
    "V": (255, 140, 60),
    "Te": (200, 140, 70),
    "Nb": (90, 220, 160),
    "Re": (240, 120, 120),
}
_OTHER_RGB = (255, 255, 255)
_DEFECT_RGB = (255, 221, 87)
_UNKNOWN_RGB = (255, 138, 196)
#: Where there are too many defects for names, kinds get these colours, commonest first.
_KIND_RGB = ((255, 159, 28), (255, 99, 190), (90, 220, 160), (255, 221, 87), (255, 96, 96), (150, 160, 255),
             (170, 220, 80), (255, 255, 255))  # fmt: skip
_BOND_RGB = (225, 235, 245)
#: Okabe & Ito's palette without black: apart for colour-blind eyes.
_TRACK_RGB = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
              (90, 140, 255))  # fmt: skip


@dataclass(frozen=True)
class Style:
    """What to draw.

    Parameters
    ----------
    atoms, bonds, defects, names : bool
        Discs at the atoms, lines along the bonds, outlines of the defects, and their names.
    min_score : float
        Atoms of a lower score, and bonds to them, are not drawn.
    """

    atoms: bool = True
    bonds: bool = True
    defects: bool = True
    names: bool = True
    min_score: float = 0.0


def zoom_for(shape: tuple[int, int]) -> float:
    """Size of the picture relative to the image: a whole number, or one over a whole number."""
    longest = max(shape)
    if longest > LARGEST_PX:
        return 1 / math.ceil(longest / LARGEST_PX)
    return float(max(1, round(TARGET_PX / longest)))


def background(image: numpy.ndarray, zoom: float) -> numpy.ndarray:
    """(h, w) uint8 grey picture of an (H, W) image, `zoom` times as large.

    The range is that of the percentiles 1 to 99.7: one bright atom must not make the lattice black.
    """
    from PIL import Image

    sample = image[:: max(1, image.shape[0] // 256), :: max(1, image.shape[1] // 256)]
    low, high = numpy.percentile(sample, (1.0, 99.7))
    gain = 190.0 / max(float(high - low), 1e-30)
    grey = numpy.clip((image - low) * gain, 0, 235).astype(numpy.uint8)
    if zoom < 1:
        step = round(1 / zoom)
        height, width = grey.shape[0] // step, grey.shape[1] // step
        blocks = grey[: height * step, : width * step].reshape(height, step, width, step)
        return blocks.mean(axis=(1, 3), dtype=numpy.float32).astype(numpy.uint8)
    if zoom == 1:
        return grey
    size = (int(image.shape[1] * zoom), int(image.shape[0] * zoom))
    return numpy.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))


def plain(image: numpy.ndarray) -> numpy.ndarray:
    """(h, w, 3) uint8: the image alone, as shown until the first result is there."""
    return Canvas(background(image, zoom_for(image.shape))).bgr


def render(image: numpy.ndarray, analysis: FrameAnalysis, style: Style) -> numpy.ndarray:
    """The image with what was found in it.

    Parameters
    ----------
    image : (H, W) array
        The frame that was analysed.
    analysis : FrameAnalysis
        What was found.
    style : Style
        What to draw of it.

    Returns
    -------
    (h, w, 3) uint8 ndarray
        In the order blue, green, red, which is Swift's.
    """
    zoom = zoom_for(analysis.shape)
    canvas = Canvas(background(image, zoom))
    sites, bonds = analysis.sites, analysis.bonds
    yx = (sites.yx_px + 0.5) * zoom - 0.5
    shown = sites.score >= style.min_score if style.min_score > 0 else numpy.ones(len(sites), bool)
    bond = _bond_length(analysis) * zoom
    width = min(max(0.055 * bond, 1.0), 3.0)
    if style.bonds and len(bonds):
        both = shown[bonds.a] & shown[bonds.b]
        canvas.lines(yx[bonds.a[both]], yx[bonds.b[both]], 0.5 * width, _BOND_RGB, 0.55)
        ends = numpy.array([(b.a, b.b) for d in analysis.defects for b in d.bonds], dtype=int).reshape(-1, 2)
        canvas.lines(yx[ends[:, 0]], yx[ends[:, 1]], width, _DEFECT_RGB, 0.9)
    kinds = crowding.kinds(analysis.defects, _KIND_RGB)
    if style.defects:
        for defect in analysis.defects:
            members = yx[list(defect.site_ids)]
            center = (numpy.asarray(defect.center_px, dtype=float)[None] + 0.5) * zoom - 0.5
            rgb = kinds[defect.name][1] if kinds else _defect_rgb(defect.name)
            if not len(members) or (kinds and crowding.compact(defect)):
                members = center
            canvas.outline(members, 0.72 * bond, 0.75 * width, rgb)
    if style.atoms:
        host = set(analysis.host_species)
        for species in sorted(set(sites.species.tolist()), key=lambda s: s not in host):
            which = shown & (sites.species == species)
            radius = min(max((0.15 if species in host else 0.23) * bond, 1.2), 11.0)
            canvas.discs(yx[which], radius, SPECIES_RGB.get(species, _OTHER_RGB))
    if style.names:
        side = max(canvas.shape)
        size = int(min(max(0.85 * bond, 0.026 * side, 11), max(0.034 * side, 11)))
        canvas.legend([(f"{name}  x {count}", rgb) for name, (count, rgb) in kinds.items()], size)
        labels = [] if kinds else [
            _label(defect.name, defect.center_px, defect.site_ids, yx, zoom, bond)
            for defect in analysis.defects
        ]
        for unknown in (False, True):
            chosen = [label for label in labels if (label[0] == "unknown") == unknown]
            canvas.texts(chosen, size, _UNKNOWN_RGB if unknown else _DEFECT_RGB)
    return canvas.bgr


def _label(
    name: str,
    center_px: tuple[float, float],
    site_ids: tuple[int, ...],
    yx: numpy.ndarray,
    zoom: float,
    bond: float,
) -> tuple[str, float, float]:
    """A name, and the point above its defect where the middle of its foot stands."""
    y, x = ((v + 0.5) * zoom - 0.5 for v in center_px)
    top = float(yx[list(site_ids), 0].min()) if site_ids else y
    return name, top - 0.95 * bond, x


def _defect_rgb(name: str) -> tuple[int, int, int]:
    return _UNKNOWN_RGB if name == "unknown" else _DEFECT_RGB


def _bond_length(analysis: FrameAnalysis) -> float:
    from .adapters import bond_px

    return bond_px(analysis)


def trajectories(image: numpy.ndarray, tracks: Tracks) -> numpy.ndarray:
    """The first frame of a movie with the path of every defect.

    Returns
    -------
    (h, w, 3) uint8 ndarray
        In the order blue, green, red.
    """
    known = {}
    for number in tracks.ids.tolist():
        rows = tracks.track_id == number
        known[number] = (
            numpy.stack([tracks.y_px[rows], tracks.x_px[rows]], axis=1),
            str(tracks.name[rows][-1]),
        )
    return paths(image, known)


def paths(
    image: numpy.ndarray, known: typing.Mapping[int, tuple[numpy.ndarray, str]]
) -> numpy.ndarray:
    """An image with paths of defects, by number: (N, 2) positions in (y, x) px, and the name at their end."""
    zoom = zoom_for(image.shape)
    canvas = Canvas(background(image, zoom))
    labels, side = [], max(canvas.shape)
    for number, (positions, name) in known.items():
        yx = (positions + 0.5) * zoom - 0.5
        rgb = _TRACK_RGB[number % len(_TRACK_RGB)]
        canvas.lines(yx[:-1], yx[1:], 1.0, rgb, 0.9)
        canvas.discs(yx[-1:], 6.0, rgb)
        labels.append((f"{name} #{number}", float(yx[-1, 0]) - 0.024 * side, float(yx[-1, 1])))
    canvas.texts(labels, max(int(0.029 * side), 11), _DEFECT_RGB)
    return canvas.bgr


def timeline(tracks: Tracks, *, band_px: int = 26, least_width_px: int = 480) -> numpy.ndarray:
    """One band a track: time runs to the right, the colour is the type of the defect at that time.

    Returns
    -------
    (h, w, 3) uint8 ndarray
        In the order blue, green, red; the longest tracks come first, at most 40.
    """
    numbers, lengths = numpy.unique(tracks.track_id, return_counts=True)
    chosen = numbers[numpy.argsort(-lengths, kind="stable")][:40]
    frames = max(int(tracks.frames), 1)
    step = max(1, math.ceil(least_width_px / frames))
    margin = 170
    canvas = Canvas(
        numpy.full((band_px * max(len(chosen), 1) + 8, margin + frames * step + 8), 24, numpy.uint8)
    )
    names = sorted(set(tracks.name.tolist()))
    labels = []
    for band, number in enumerate(chosen.tolist()):
        rows = tracks.track_id == number
        top = band * band_px + 6
        for frame, name in zip(tracks.frame[rows].tolist(), tracks.name[rows].tolist()):
            left = margin + frame * step
            rgb = _UNKNOWN_RGB if name == "unknown" else _TRACK_RGB[names.index(name) % len(_TRACK_RGB)]
            canvas.fill((slice(top, top + band_px - 6), slice(left, left + step)), rgb)
        last = str(tracks.name[rows][-1])
        labels.append((f"{number}  {last}", top + 16.0, margin / 2))
    canvas.texts(labels, 15, (235, 235, 235))
    return canvas.bgr
