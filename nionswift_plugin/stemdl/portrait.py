"""The chosen defect as a graph: atoms with their elements, bonds with their lengths, in the size of the panel."""

from __future__ import annotations

import typing

import numpy

from . import adapters, overlay
from .canvas import Canvas

SIZE_PX = (172, 262)
_PAPER = 30
_BOND_RGB, _TEXT_RGB = (200, 208, 216), (240, 240, 240)


def empty() -> numpy.ndarray:
    """(h, w) uint32 BGRA: nothing chosen."""
    return _bgra(Canvas(numpy.full(SIZE_PX, _PAPER, numpy.uint8)).bgr)


def draw(
    metadata: typing.Mapping[str, typing.Any], table: numpy.ndarray, index: int | None
) -> numpy.ndarray:
    """The graph of one defect of a table of atoms.

    Parameters
    ----------
    metadata : mapping
        Of the table item.
    table : (N, K) ndarray
        Its rows.
    index : int or None
        Number of the defect.

    Returns
    -------
    (h, w) uint32 ndarray
        As Swift's image widgets take it.
    """
    defects = metadata.get("defects", ())
    if index is None or not 0 <= index < len(defects):
        return empty()
    defect = defects[index]
    ids = [i for i in defect.get("site_ids", ()) if i < len(table)]
    canvas = Canvas(numpy.full(SIZE_PX, _PAPER, numpy.uint8))
    if not ids:
        canvas.texts([(defect["name"], SIZE_PX[0] / 2, SIZE_PX[1] / 2)], 16, _TEXT_RGB)
        return _bgra(canvas.bgr)
    names = [name for name, _unit in adapters.COLUMNS]
    yx = table[:, [names.index("y_px"), names.index("x_px")]]
    z = table[:, names.index("Z")].astype(int)
    low, high = yx[ids].min(axis=0), yx[ids].max(axis=0)
    room = numpy.array(SIZE_PX, dtype=float) - 64
    bond = 0.15 / float(metadata["pixel_size_nm"])
    zoom = float(min(room / numpy.maximum(high - low, bond)))
    places = (yx - (low + high) / 2) * zoom + (numpy.array(SIZE_PX) - 1) / 2
    bonds = [(a, b, length) for a, b, length in defect.get("bonds", ()) if max(a, b) < len(table)]
    ends = numpy.array([(a, b) for a, b, _ in bonds], dtype=int).reshape(-1, 2)
    canvas.lines(places[ends[:, 0]], places[ends[:, 1]], 1.6, _BOND_RGB, 0.9)
    for number in sorted(set(z[ids].tolist())):
        symbol = metadata["species"].get(str(number), "?")
        rgb = overlay.SPECIES_RGB.get(symbol, (255, 255, 255))
        which = [i for i in ids if z[i] == number]
        canvas.discs(places[which], 13.0, rgb)
        canvas.texts([(symbol, places[i, 0] + 6, places[i, 1]) for i in which], 13, (255, 255, 255))
    if len(bonds) <= 14:
        middles = [(f"{length:.0f}", *(places[a] + (places[b] - places[a]) * 0.56)) for a, b, length in bonds]
        canvas.texts([(text, y + 5, x) for text, y, x in middles], 11, _TEXT_RGB)
    return _bgra(canvas.bgr)


def _bgra(bgr: numpy.ndarray) -> numpy.ndarray:
    pixels = numpy.empty((*bgr.shape[:2], 4), dtype=numpy.uint8)
    pixels[..., :3], pixels[..., 3] = bgr, 255
    return pixels.view(numpy.uint32)[..., 0]


def fitted(rgb: numpy.ndarray | None) -> numpy.ndarray:
    """A picture (h, w, 3) (red, green, blue), or nothing, in the size of the panel: (h, w) uint32 BGRA."""
    from PIL import Image

    paper = Image.new("RGB", SIZE_PX[::-1], (_PAPER,) * 3)
    if rgb is not None:
        picture = Image.fromarray(numpy.ascontiguousarray(rgb))
        picture.thumbnail(SIZE_PX[::-1])
        paper.paste(picture, tuple((a - b) // 2 for a, b in zip(paper.size, picture.size)))
    return _bgra(numpy.asarray(paper)[..., ::-1])
