"""TIFF: frames on demand, and the pixel size in the many ways in which programs write it."""

from __future__ import annotations

import math
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from .errors import ReadError
from .stack import Axis, Stack

#: Baseline tags know inches and centimetres only. A step below 1 nm can be no printer's and no screen's
#: resolution (25 million dots an inch), so it is a microscope's; anything coarser is taken for dots per inch.
_COARSEST_BASELINE_NM = 1.0


class _Pages:
    """Pages of the first series of a file, kept open between frames."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        self.tiff = tifffile.TiffFile(path)
        try:
            if not self.tiff.series:
                raise ReadError("has no image in it")
            self.series = self.tiff.series[0]
        except BaseException:
            self.tiff.close()
            raise

    def load(self, index: int, shape: tuple[int, ...]) -> NDArray:
        with self._lock:
            try:
                return self._load(index, shape)
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
            # tifffile decodes few compressions by itself; Pillow knows the old ones (LZW, PackBits, ...).
            from PIL import Image

            with Image.open(self._path) as picture:
                picture.seek(index)
                return np.array(picture)

    def _load(self, index: int, shape: tuple[int, ...]) -> NDArray:
        if len(shape) == 2:
            return self.series.asarray().reshape(shape)
        if len(self.series.pages) == shape[0]:
            page = self.series.pages[index]
            if page is None:
                raise ReadError(f"has no page for frame {index}")
            return page.asarray().reshape(shape[1:])
        if self.series.dataoffset is not None:
            # ImageJ writes one page header for all frames, which follow each other without gaps.
            count = math.prod(shape[1:])
            dtype = np.dtype(self.tiff.byteorder + self.series.dtype.char)
            start = self.series.dataoffset + index * count * dtype.itemsize
            self.tiff.filehandle.seek(start)
            return np.frombuffer(self.tiff.filehandle.read(count * dtype.itemsize), dtype).reshape(shape[1:])
        return self.series.asarray().reshape(shape)[index]

    def close(self) -> None:
        self.tiff.close()

    def __del__(self) -> None:
        if hasattr(self, "tiff"):
            self.tiff.close()


def open_tiff(path: Path) -> Stack:
    """A TIFF file: plain, ImageJ, OME, or with the tags of microscope software."""
    pages = _Pages(path)
    try:
        series = pages.series
        page = series.keyframe
        kept = [(n, axis) for n, axis in zip(series.shape, series.axes) if n > 1 or axis in "YX"]
        shape = tuple(int(n) for n, _ in kept)
        colour = any(axis == "S" for _, axis in kept) or page.photometric in (
            tifffile.PHOTOMETRIC.RGB,
            tifffile.PHOTOMETRIC.SEPARATED,
            tifffile.PHOTOMETRIC.YCBCR,
        )
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        others = pages.tiff.series[1:]
        if (
            others
            and len(shape) == 2
            and all((o.shape, o.dtype) == (series.shape, series.dtype) for o in others)
        ):
            # Pages that tifffile did not join, but that all look alike: a movie.
            return _separate_pages(pages, shape, colour, inverted)
        axes = _axes(pages.tiff, shape)

        def load(index: int) -> NDArray:
            image = pages.load(index, shape)
            return _upright(image, inverted)

        return Stack(shape, np.dtype(series.dtype), load, axes, colour, pages.close)
    except BaseException:
        pages.close()
        raise


def _separate_pages(pages: _Pages, shape: tuple[int, ...], colour: bool, inverted: bool) -> Stack:
    every = pages.tiff.series
    full = (len(every), *shape)

    def load(index: int) -> NDArray:
        return _upright(every[index].asarray().reshape(shape), inverted)

    return Stack(full, np.dtype(every[0].dtype), load, _axes(pages.tiff, full), colour, pages.close)


def _upright(image: NDArray, inverted: bool) -> NDArray:
    """Where the file says that zero is white, turn it round: bright must mean many electrons."""
    if not inverted:
        return image
    top = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else image.max()
    return top - image


def _axes(tiff: tifffile.TiffFile, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    first = (_frame_axis(tiff),) if len(shape) == 3 else ()
    for read_steps in (_imagej_steps, _ome_steps, _shaped_steps, _vendor_steps, _baseline_steps):
        steps = read_steps(tiff)
        if steps is not None:
            return (*first, *steps)
    return (*first, Axis(), Axis()) if first and first[0].units else ()


def _resolution_steps(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """(y, x) units per pixel from the resolution tags (pixels per unit)."""
    tags = tiff.pages.first.tags
    steps = []
    for name in ("YResolution", "XResolution"):
        value = tags[name].value if name in tags else None
        try:
            numerator, denominator = value if isinstance(value, tuple) else (value, 1)
            steps.append(float(denominator) / float(numerator))
        except (TypeError, ValueError, ZeroDivisionError):
            return None
    return steps[0], steps[1]


def _with_unit(tiff: tifffile.TiffFile, unit: Any) -> tuple[Axis, Axis] | None:
    steps = _resolution_steps(tiff)
    if not unit or steps is None or str(unit).lower() in ("inch", "pixel"):
        return None
    name = (
        str(unit)
        .replace("\\u00B5", "u")
        .replace("\\u00b5", "u")
        .replace("\\u00C5", "Å")
        .replace("\\u00c5", "Å")
    )
    return Axis(steps[0], name), Axis(steps[1], name)


def _imagej_steps(tiff: tifffile.TiffFile) -> tuple[Axis, Axis] | None:
    metadata = tiff.imagej_metadata if tiff.is_imagej else None
    return _with_unit(tiff, metadata.get("unit")) if metadata else None


def _shaped_steps(tiff: tifffile.TiffFile) -> tuple[Axis, Axis] | None:
    metadata = tiff.shaped_metadata if tiff.is_shaped else None
    return _with_unit(tiff, metadata[0].get("unit")) if metadata else None


def _ome_steps(tiff: tifffile.TiffFile) -> tuple[Axis, Axis] | None:
    pixels = _ome_pixels(tiff)
    if pixels is None or "PhysicalSizeX" not in pixels:
        return None
    x = float(pixels["PhysicalSizeX"])
    y = float(pixels.get("PhysicalSizeY", x))
    return (Axis(y, pixels.get("PhysicalSizeYUnit", "µm")), Axis(x, pixels.get("PhysicalSizeXUnit", "µm")))


def _ome_pixels(tiff: tifffile.TiffFile) -> dict[str, str] | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        return None
    found = next((e for e in root.iter() if e.tag.endswith("}Pixels") or e.tag == "Pixels"), None)
    return None if found is None else dict(found.attrib)


def _vendor_steps(tiff: tifffile.TiffFile) -> tuple[Axis, Axis] | None:
    """Tags of Digital Micrograph, FEI / Thermo Fisher, Zeiss, TVIPS and Olympus software."""
    tags = tiff.pages.first.tags
    if 65003 in tags and 65009 in tags:  # Digital Micrograph: units and scales of rows, columns
        rows = Axis(_number(tags[65009].value), _text(tags[65003].value))
        if 65004 in tags and 65010 in tags:
            return rows, Axis(_number(tags[65010].value), _text(tags[65004].value))
        return rows, rows
    if tiff.is_fei and tiff.fei_metadata:
        scan = tiff.fei_metadata.get("Scan") or {}
        return _both(scan.get("PixelHeight"), scan.get("PixelWidth"), "m")
    if tiff.is_sem and tiff.sem_metadata:
        entry = tiff.sem_metadata.get("ap_image_pixel_size") or tiff.sem_metadata.get("ap_pixel_size")
        return _both(entry[1], entry[1], str(entry[2])) if entry and len(entry) > 2 else None
    if tiff.is_tvips and tiff.tvips_metadata:
        return _both(tiff.tvips_metadata.get("PixelSizeY"), tiff.tvips_metadata.get("PixelSizeX"), "nm")
    if tiff.is_sis and tiff.sis_metadata:
        return _both(tiff.sis_metadata.get("pixelsizey"), tiff.sis_metadata.get("pixelsizex"), "m")
    return None


def _both(y: Any, x: Any, units: str) -> tuple[Axis, Axis] | None:
    steps = _number(y), _number(x)
    return (Axis(steps[0], units), Axis(steps[1], units)) if min(steps) > 0 else None


def _number(value: Any) -> float:
    try:
        return float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError):
        return 0.0


def _text(value: Any) -> str:
    text = value.decode("latin-1", "replace") if isinstance(value, bytes) else str(value)
    return text.replace("\x00", "").strip()


def _baseline_steps(tiff: tifffile.TiffFile) -> tuple[Axis, Axis] | None:
    tags = tiff.pages.first.tags
    unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    nm = {2: 25.4e6, 3: 1e7}.get(unit)
    steps = _resolution_steps(tiff)
    if nm is None or steps is None or not max(steps) * nm < _COARSEST_BASELINE_NM:
        return None
    return Axis(steps[0] * nm, "nm"), Axis(steps[1] * nm, "nm")


def _frame_axis(tiff: tifffile.TiffFile) -> Axis:
    """Time between frames, from ImageJ (``finterval`` [s] or ``fps``), OME or tifffile's own record."""
    candidates: list[dict[str, Any]] = []
    if tiff.is_imagej and tiff.imagej_metadata:
        candidates.append(tiff.imagej_metadata)
    if tiff.is_shaped and tiff.shaped_metadata:
        candidates.append(tiff.shaped_metadata[0])
    for metadata in candidates:
        try:
            if float(metadata.get("finterval") or 0) > 0:
                return Axis(float(metadata["finterval"]), str(metadata.get("tunit") or "s"))
            if float(metadata.get("fps") or 0) > 0:
                return Axis(1 / float(metadata["fps"]), "s")
        except (TypeError, ValueError):
            continue
    pixels = _ome_pixels(tiff)
    if pixels and "TimeIncrement" in pixels:
        return Axis(float(pixels["TimeIncrement"]), pixels.get("TimeIncrementUnit", "s"))
    return Axis()
