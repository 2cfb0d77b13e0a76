"""Pixel size: the only code that turns pixels into nanometres and back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CalibrationError

#: Where a pixel size came from, as written to ``analysis.json``.
SOURCES = ("metadata", "argument", "lattice")


@dataclass(frozen=True)
class PixelSize:
    """How a pixel step maps to nanometres on the specimen.

    Parameters
    ----------
    nm : float
        Pixel size [nm/px]; the geometric mean of both scan directions when they differ.
    source : {'metadata', 'argument', 'lattice'}
        Where the value came from.
    nominal_nm : float, optional
        The value that was given (by file or argument) before the check against the lattice [nm/px].
    distortion : ((float, float), (float, float)), optional
        Dimensionless 2 x 2 matrix, determinant 1, acting on (y, x): anisotropy and shear of the scan as
        the host lattice shows them. Identity when not known.

    Raises
    ------
    CalibrationError
        If the pixel size is not a positive finite number.
    """

    nm: float
    source: str = "argument"
    nominal_nm: float | None = None
    distortion: tuple[tuple[float, float], tuple[float, float]] = field(default=((1.0, 0.0), (0.0, 1.0)))

    def __post_init__(self) -> None:
        for name, value in (("pixel size", self.nm), ("nominal pixel size", self.nominal_nm)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise CalibrationError(f"{name} must be a positive number of nm, not {value!r}")
        if self.source not in SOURCES:
            raise CalibrationError(f"pixel size source must be one of {SOURCES}, not {self.source!r}")

    @classmethod
    def from_fov(cls, fov_nm: float, width_px: int, source: str = "argument") -> PixelSize:
        """Pixel size from the width of the field of view [nm] and the image width [px]."""
        if not (math.isfinite(fov_nm) and fov_nm > 0):
            raise CalibrationError(f"field of view must be a positive number of nm, not {fov_nm!r}")
        return cls(fov_nm / width_px, source, fov_nm / width_px)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(2, 2) float64: (y, x) steps in px to (y, x) steps in nm."""
        return self.nm * np.asarray(self.distortion, dtype=np.float64)

    def to_nm(self, yx_px: ArrayLike) -> NDArray[np.float64]:
        """Positions or steps (..., 2) in (y, x): px to nm."""
        return np.asarray(yx_px, dtype=np.float64) @ self.matrix.T

    def to_px(self, yx_nm: ArrayLike) -> NDArray[np.float64]:
        """Positions or steps (..., 2) in (y, x): nm to px."""
        return np.asarray(yx_nm, dtype=np.float64) @ np.linalg.inv(self.matrix).T

    def lengths_pm(self, steps_px: ArrayLike) -> NDArray[np.float64]:
        """Lengths [pm] of steps (..., 2) given in px."""
        steps = self.to_nm(steps_px)
        return 1e3 * np.hypot(steps[..., 0], steps[..., 1])


def beyond_pixel_size(warnings: Iterable[str], source: str | None) -> tuple[str, ...]:
    """Warnings without the one that a statement of the pixel size and its `source` says as well."""
    return tuple(w for w in warnings if not (source == "lattice" and w.startswith("pixel size")))
