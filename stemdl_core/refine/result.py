"""What a refinement returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .model import Array

#: What a refinement says of each column.
_PER_COLUMN = ("y_px", "x_px", "amplitude", "amplitude_sigma", "sigma_pm", "background", "converged")


@dataclass(frozen=True)
class Imaging:
    """How the frame was imaged, as the fit sees it.

    Parameters
    ----------
    sigma_nm : float
        Width (one standard deviation) of the core of a column [nm].
    ellipticity, angle_deg : float
        Long axis over short axis of the core, and direction of the long axis from +x towards +y [degrees].
    tail_fraction, tail_ratio : float
        Share of a column's electrons in the tail, and width of the tail over that of the core.
    volume_px : float
        Integral of a column's profile of peak height one [raw px].
    gain, intercept : float
        Variance of a raw pixel = intercept + gain * mean, in image units; of noise that pixels share, the variance
        that independent pixels would need for as much noise under a column. With a linear counting detector
        `gain` is the image units one electron adds, and -intercept / gain the reading of a dark pixel.
    electrons_per_atom : float
        Electrons under the profile of the median host column; NaN where the noise shows no gain.
    background : float
        Median height of the background [image units].
    misfit : float
        Residual variance over the variance expected, 1 where the model holds.
    jitter_pm : float
        Standard deviation of the shift of single scan lines along x [pm].
    """

    sigma_nm: float
    ellipticity: float
    angle_deg: float
    tail_fraction: float
    tail_ratio: float
    volume_px: float
    gain: float
    intercept: float
    electrons_per_atom: float
    background: float
    misfit: float
    jitter_pm: float


@dataclass(frozen=True)
class Refined:
    """Refined columns, in the order of the start positions.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Position [raw px], pixel centres at integers.
    amplitude, amplitude_sigma : (N,) float64
        Peak height over the background and its standard deviation [image units].
    sigma_pm : (N,) float64
        Standard deviation of the position along one axis [pm].
    background : (N,) float64
        Height of the background under the column [image units].
    converged : (N,) bool
        False where the fit ran away or saw no column: the start position is kept there.
    imaging : Imaging or None
        The probe and the noise that were found; None where nothing could be fitted.
    sharpened : (H, W) float array or None
        The image that was fitted, where it is not the given one: its smoothing undone. Heights, background, probe and
        noise are of this image.
    """

    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    amplitude_sigma: NDArray[np.float64]
    sigma_pm: NDArray[np.float64]
    background: NDArray[np.float64]
    converged: NDArray[np.bool_]
    imaging: Imaging | None
    sharpened: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for name in _PER_COLUMN:
            column = np.array(getattr(self, name), dtype=bool if name == "converged" else np.float64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.y_px)

    def first(self, count: int) -> Refined:
        """The same with the first columns only."""
        return replace(self, **{name: getattr(self, name)[:count] for name in _PER_COLUMN})


def unrefined(y: Array, x: Array, prior_sigma_pm: float) -> Refined:
    """The start positions, where there is nothing to fit."""
    nan = np.full(len(y), np.nan)
    return Refined(y, x, nan, nan, np.full(len(y), prior_sigma_pm), nan, np.zeros(len(y), bool), None)
