"""What a file holds, before any pixel is read: shape, type, axes, and how to load one frame."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import PixelSize
from .errors import ReadError
from .frames import MAX_PIXELS, MIN_SIDE_PX

#: Nanometres in one unit of length, by the names that microscope software writes (compared in lower case).
_NM_PER_UNIT = {
    "pm": 1e-3,
    "picometer": 1e-3,
    "picometre": 1e-3,
    "a": 0.1,
    "å": 0.1,
    "ang": 0.1,
    "angstrom": 0.1,
    "angstroms": 0.1,
    "ångström": 0.1,
    "\\u00c5": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometers": 1.0,
    "nanometre": 1.0,
    "nanometres": 1.0,
    "um": 1e3,
    "μm": 1e3,
    "\\u00b5m": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
    "meter": 1e9,
    "metre": 1e9,
}
_SECONDS_PER_UNIT = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "μs": 1e-6,
    "min": 60.0,
}
_NOT_CALIBRATED = {"", "px", "pixel", "pixels", "none", "<undefined>", "unknown", "\\u0000"}
_ENERGY = {"ev", "kev", "mev"}
#: Steps in both directions that differ by less than this relative amount are rounding, not anisotropy.
_SAME_STEP = 1e-4


@dataclass(frozen=True)
class Axis:
    """Calibration of one dimension as the file states it: step per index and its unit."""

    scale: float = 1.0
    units: str = ""

    @property
    def unit_name(self) -> str:
        """The unit in lower case: one spelling of the micro and the angstrom sign, ``[n_m]`` as nm."""
        return unicodedata.normalize("NFKC", str(self.units or "")).strip(" []").replace("_", "").lower()


def _nothing_to_close() -> None:
    pass


@dataclass(frozen=True)
class Stack:
    """A 2-D image or a 3-D (T, H, W) series in a file.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array in the file.
    dtype : numpy dtype
        Its type.
    load : callable
        ``load(i)`` reads the (H, W) array of frame i (0 for a 2-D file), and nothing else.
    axes : tuple of Axis
        One for each dimension; empty when the file says nothing.
    colour : bool
        The file declares a colour picture.
    close : callable
        Gives the file back.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[int], NDArray]
    axes: tuple[Axis, ...] = ()
    colour: bool = False
    close: Callable[[], None] = _nothing_to_close

    @property
    def is_sequence(self) -> bool:
        """Whether it has frames."""
        return len(self.shape) == 3

    def check(self) -> None:
        """Refuse what is no image or series of images of a size that fits, before any memory is taken.

        Raises
        ------
        ReadError
            1-D, 4-D, colour, complex, not numeric, empty or too large.
        """
        shape, dtype = self.shape, self.dtype
        if self.colour or dtype.fields is not None or (len(shape) == 3 and shape[-1] in (3, 4)):
            raise ReadError(f"is a colour (RGB) picture of shape {shape}: give the grey-scale detector image")
        if dtype.kind == "c":
            raise ReadError("is complex: give a real image (for instance the magnitude)")
        if dtype.kind == "O":
            raise ReadError("holds Python objects instead of numbers, which are not read for safety")
        if dtype.kind not in "fiub":
            raise ReadError(f"has no numbers in it (dtype {dtype})")
        if len(shape) not in (2, 3):
            raise ReadError(
                f"has {len(shape)} dimension{'s' * (len(shape) != 1)} (shape {shape}): "
                "an image has 2, a sequence (frames, rows, columns) 3"
            )
        if 0 in shape:
            raise ReadError(f"is empty (shape {shape})")
        if shape[-1] * shape[-2] > MAX_PIXELS:
            raise ReadError(
                f"has images of {shape[-2]} x {shape[-1]} px, more than {math.isqrt(MAX_PIXELS)} x "
                f"{math.isqrt(MAX_PIXELS)}: crop or bin them first"
            )

    def pixel_size(self) -> PixelSize | None:
        """The pixel size the file states, None where it states none.

        Raises
        ------
        ReadError
            If the axes are no lengths: a diffraction pattern, a spectrum, an unknown unit.
        """
        if len(self.axes) != len(self.shape):
            return None
        y_nm, x_nm = (_step_nm(axis) for axis in self.axes[-2:])
        if y_nm is None or x_nm is None:
            return None
        if abs(y_nm - x_nm) <= _SAME_STEP * x_nm:
            return PixelSize(x_nm, "metadata", x_nm)
        mean = math.sqrt(y_nm * x_nm)
        return PixelSize(mean, "metadata", mean, ((y_nm / mean, 0.0), (0.0, x_nm / mean)))

    def frame_time_s(self) -> float | None:
        """The time from frame to frame that the file states [s], None where it states none."""
        if not self.is_sequence or len(self.axes) != 3:
            return None
        axis = self.axes[0]
        seconds = float(axis.scale or 0) * _SECONDS_PER_UNIT.get(axis.unit_name, 0.0)
        return seconds if math.isfinite(seconds) and seconds > 0 else None


def _step_nm(axis: Axis) -> float | None:
    unit = axis.unit_name
    if unit in _NOT_CALIBRATED:
        return None
    compact = unit.replace(" ", "")
    if compact.startswith("1/") or compact.endswith(("^-1", "-1", "⁻¹")) or compact in ("mrad", "rad", "deg"):
        raise ReadError(
            f"is calibrated in {axis.units!r}: a diffraction pattern or transform, not an image of atoms"
        )
    if unit in _ENERGY:
        raise ReadError(f"has an energy axis ({axis.units}): a spectrum, not an image of atoms")
    if unit not in _NM_PER_UNIT:
        raise ReadError(
            f"is calibrated in the unknown unit {axis.units!r}: give the field of view (--fov-nm)"
        )
    step = abs(float(axis.scale or 0)) * _NM_PER_UNIT[unit]
    return step if math.isfinite(step) and step > 0 else None


def from_array(array: Any, axes: Sequence[Axis] = (), close: Callable[[], None] | None = None) -> Stack:
    """A stack over anything that slices like an array (memory map, HDF5 dataset, dask array)."""
    if array.ndim == 3:

        def load(index: int) -> NDArray:
            return np.asarray(array[index])
    else:

        def load(index: int) -> NDArray:
            return np.asarray(array[...])

    stack = Stack(tuple(int(n) for n in array.shape), np.dtype(array.dtype), load, tuple(axes))
    return stack if close is None else Stack(stack.shape, stack.dtype, load, stack.axes, close=close)


def choose(candidates: Mapping[str, Any], key: str | None, what: str) -> Any:
    """The candidate that was asked for, or the only one."""
    if key is not None:
        if key not in candidates:
            raise ReadError(f"has no {what} {key!r}: choose one of {', '.join(candidates) or '(none)'}")
        return candidates[key]
    if not candidates:
        raise ReadError(f"has no {what} that could be an image")
    if len(candidates) > 1:
        raise ReadError(f"has {len(candidates)} {what}s: choose one of {', '.join(candidates)} with --key")
    return next(iter(candidates.values()))


def could_be_image(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether an array has the type and the size of an image or a series of them."""
    return len(shape) in (2, 3) and dtype.kind in "fiu" and min(shape[-2:]) >= MIN_SIDE_PX
