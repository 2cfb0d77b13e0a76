"""Frames of a movie that say nothing about the specimen, told from the image alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter

from .frames import Frame

#: Part of the rows without any signal, at the beginning or end of the scan, that makes a frame half-scanned.
_EMPTY_ROWS = 0.08
#: Part of the pixels at the highest value that makes a frame saturated (with more than `_FEW_LEVELS` levels).
_SATURATED, _FEW_LEVELS = 0.04, 24
#: Contrast relative to the frame before below which a frame is black.
_BLACK = 0.08
#: Spacings among which every host lattice here has its strongest spots [nm].
_SPACINGS_NM = (0.11, 0.34)
#: Power of lattice spots over noise that shows a lattice, and the part of it that an out-of-focus frame keeps.
_CLEAR, _BLURRED = 20.0, 0.12


@dataclass(frozen=True)
class Look:
    """What is compared between frames.

    Parameters
    ----------
    shape : (int, int)
        Size of the image [px].
    contrast : float
        Difference between the 99th and the 1st percentile.
    spots : float
        Power of the strongest lattice spots relative to the noise; NaN where the pixel size is not known.
    image : (H, W) float32
    """

    shape: tuple[int, int]
    contrast: float
    spots: float
    image: NDArray[np.float32]


def look(frame: Frame) -> Look:
    """Measure a frame for `frame_fault`."""
    low, high = np.percentile(frame.image[::2, ::2], (1.0, 99.0))
    return Look(frame.shape, float(high - low), lattice_spots(frame), frame.image)


def frame_fault(frame: Frame, previous: Frame | Look | None = None, *, now: Look | None = None) -> str | None:
    """Why a frame cannot be used, or None.

    Parameters
    ----------
    frame : Frame
    previous : Frame or Look, optional
        The last good frame of the same movie: without it duplicates, sizes and focus cannot be judged.
    now : Look, optional
        `look(frame)`, where it is known already.

    Returns
    -------
    str or None
        'different size...', 'duplicate...', 'half-scanned...', 'saturated...', 'black...', 'out of focus...'.
    """
    fault = _alone(frame.image)
    if fault is not None or previous is None:
        return fault
    before = previous if isinstance(previous, Look) else look(previous)
    if frame.shape != before.shape:
        return f"different size: {frame.shape[0]} x {frame.shape[1]} px after {before.shape[0]} x {before.shape[1]} px"
    if np.array_equal(frame.image, before.image):
        return "duplicate of the frame before"
    now = now or look(frame)
    lost = before.spots > _CLEAR and now.spots < _BLURRED * before.spots
    # Few counts are black, too, though their contrast is that of single electrons.
    if now.contrast < _BLACK * before.contrast or (lost and now.contrast < 3 * _BLACK * before.contrast):
        return f"black: {100 * now.contrast / before.contrast:.0f} % of the contrast of the frame before"
    if lost:
        left = max(now.spots / before.spots, 0.0)
        return f"out of focus: lattice spots have {100 * left:.0f} % of their power before"
    return None


def _alone(image: NDArray[np.float32]) -> str | None:
    """Faults that one image shows by itself."""
    spread = image.std(axis=1)
    typical = float(np.median(spread))
    # When more than half of the rows are empty their median is no measure of a scanned row.
    scanned = float(np.percentile(spread, 95)) if typical < 0.05 * float(spread.max()) else typical
    empty = spread < 0.02 * scanned
    for rows in (empty, empty[::-1]):
        count = len(rows) if rows.all() else int(np.argmin(rows))
        if count >= max(2, _EMPTY_ROWS * len(rows)):
            return f"half-scanned: {count} of {len(rows)} rows are empty"
    top = image == image.max()
    if top.mean() > _SATURATED and (top.mean() > 0.3 or len(np.unique(image[::2, ::2])) > _FEW_LEVELS):
        return f"saturated: {100 * top.mean():.0f} % of the pixels at the highest value"
    return None


def lattice_spots(frame: Frame) -> float:
    """Power of the strongest spots at lattice spacings, in medians, above that of noise; NaN without a pixel size."""
    if frame.pixel_size is None:
        return float("nan")
    image = frame.image
    size = 2 * round(max(0.4 / frame.pixel_size.nm, 1.0)) + 1
    image = image - uniform_filter(uniform_filter(image, size), size)
    # Single bright atoms have power everywhere: they are clipped.
    sample = image[::2, ::2]
    limit = 4.0 * 1.4826 * float(np.median(np.abs(sample - np.median(sample))))
    if limit > 0:
        image = np.clip(image, -limit, limit)
    window = np.hanning(image.shape[0]).astype(np.float32)[:, None] * np.hanning(image.shape[1]).astype(np.float32)
    power = np.abs(fft.rfft2((image - image.mean()) * window)) ** 2
    fy = np.fft.fftfreq(image.shape[0], frame.pixel_size.nm)[:, None]
    fx = np.fft.rfftfreq(image.shape[1], frame.pixel_size.nm)[None, :]
    spacing = 1.0 / np.maximum(np.hypot(fy, fx), 1e-9)
    ring = power[(spacing > _SPACINGS_NM[0]) & (spacing < _SPACINGS_NM[1])]
    if ring.size < 60:
        return float("nan")
    # The six highest of N values of pure noise (exponentially distributed) stand at (log(N/6) + 1) means.
    noise = (np.log(ring.size / 6) + 1.0) / np.log(2.0)
    return float(np.sort(ring)[-6:].mean() / max(float(np.median(ring)), 1e-30) - noise)
