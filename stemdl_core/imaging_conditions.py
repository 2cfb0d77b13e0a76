"""Imaging conditions measured on a user's own frames: what a simulation for these data has to look like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .analysis import FrameAnalysis
from .errors import StemdlError
from .frames import Frame
from .materials import get_material
from .preprocess import mend
from .refine import refine_sites
from .simulate.dataset import Ranges

#: More frames than this do not change a median.
MOST_FRAMES = 12
#: The fit is believed on frames with at least so many columns, and where the noise is not shared between pixels.
FEWEST_COLUMNS, WORST_MISFIT = 30, 20.0
#: How far beyond what was measured conditions are drawn: a factor on widths, on doses, on pixel sizes.
MARGIN, DOSE_MARGIN, PIXEL_MARGIN = 1.10, 1.6, 1.15


@dataclass(frozen=True)
class Measured:
    """Imaging conditions of some frames: medians, and (low, high) over the frames.

    Attributes
    ----------
    frames : int
        Frames that were measured.
    pixel_nm, sigma_nm, dose_e_per_atom : (float, float, float)
        Low, median, high of the pixel size [nm], the width of a column (one standard deviation of its core) [nm], and
        the detected electrons a host column; the dose is NaN where the noise shows no single electrons (an image
        that was smoothed or scaled).
    tail_fraction, tail_sigma_nm : float
        Share of the electrons in the probe's tail, and the tail's width [nm].
    jitter_nm : float
        Standard deviation of the shift of single lines [nm].
    background_e_per_px : float
        Electrons a pixel between the columns, and what acts like them (readout noise).
    misfit : float
        Residual variance over the expected one: far above 1, the image was processed.
    ellipticity : float
        Long over short axis of the probe.
    """

    frames: int
    pixel_nm: tuple[float, float, float]
    sigma_nm: tuple[float, float, float]
    dose_e_per_atom: tuple[float, float, float]
    tail_fraction: float
    tail_sigma_nm: float
    jitter_nm: float
    background_e_per_px: float
    misfit: float
    ellipticity: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not known is None."""
        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return [plain(v) for v in value]
            return value if isinstance(value, int) or np.isfinite(value) else None

        return {k: plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measured:
        """The inverse of `to_dict`."""
        def back(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(back(v) for v in value)
            return float("nan") if value is None else value

        return cls(**{k: back(v) for k, v in data.items()})

    def ranges(self, base: Ranges | None = None) -> Ranges:
        """Ranges to simulate from: a margin around what was measured, `base` for what was not.

        Disturbances that no fit measures (contamination, holes, gradients) stay as they are in `base`, half as often.
        """
        base = base or Ranges()
        low, _, high = self.sigma_nm
        tail = max(self.tail_sigma_nm, 0.06)
        dose = base.dose_e_per_atom
        if np.isfinite(self.dose_e_per_atom[1]):
            dose = (max(self.dose_e_per_atom[0] / DOSE_MARGIN, 5.0), self.dose_e_per_atom[2] * DOSE_MARGIN)
        return replace(
            base, pixel_nm=(self.pixel_nm[0] / PIXEL_MARGIN, self.pixel_nm[2] * PIXEL_MARGIN),
            sigma_nm=(low / MARGIN, high * MARGIN), dose_e_per_atom=dose,
            tail_sigma_nm=(0.8 * tail, 1.25 * tail),
            tail_fraction=(max(self.tail_fraction - 0.1, 0.0), min(self.tail_fraction + 0.1, 0.8)),
            nuisance=0.5 * base.nuisance)


def measure_conditions(items: Iterable[tuple[Frame, FrameAnalysis]]) -> Measured:
    """Probe, dose, jitter and background of some frames, each fitted with all its columns.

    Parameters
    ----------
    items : iterable of (Frame, FrameAnalysis)
        The first `MOST_FRAMES` that can be measured are.

    Raises
    ------
    StemdlError
        If none can: too few columns, or no fit.
    """
    found: list[tuple[float, ...]] = []
    for frame, analysis in items:
        sites = analysis.sites
        if len(sites) < FEWEST_COLUMNS:
            continue
        mended = mend(frame.image)
        foreign = ~np.isin(sites.species, get_material(analysis.material).species)
        refined = refine_sites(mended.image, sites.y_px, sites.x_px, pixel_size_nm=analysis.pixel_size.nm,
                               groups=foreign.astype(int), valid=mended.valid)
        imaging = refined.imaging
        if imaging is None:
            continue
        counting = imaging.gain > 0 and imaging.misfit < WORST_MISFIT
        level = imaging.background / imaging.gain + imaging.intercept / imaging.gain**2 if counting else np.nan
        found.append((analysis.pixel_size.nm, imaging.sigma_nm,
                      imaging.electrons_per_atom if counting else np.nan, imaging.tail_fraction,
                      imaging.sigma_nm * imaging.tail_ratio, 1e-3 * imaging.jitter_pm, max(level, 0.0),
                      imaging.misfit, imaging.ellipticity))
        if len(found) == MOST_FRAMES:
            break
    if not found:
        raise StemdlError(f"imaging conditions cannot be measured: no frame shows {FEWEST_COLUMNS} columns")
    table = np.array(found)
    good = table[np.isfinite(table[:, 2])] if np.isfinite(table[:, 2]).any() else table

    def three(column: int) -> tuple[float, float, float]:
        low, middle, high = np.quantile(good[:, column], (0.1, 0.5, 0.9))
        return float(low), float(middle), float(high)

    rest = [float(np.median(good[:, k])) for k in range(3, 9)]
    return Measured(len(found), three(0), three(1), three(2), *rest)
