"""Sites: the located atom columns of one frame, as parallel columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

_DTYPES: dict[str, str] = {
    "y_px": "f8", "x_px": "f8", "species": "U4", "score": "f8", "sigma_pm": "f8",
    "intensity": "f8", "intensity_sigma": "f8", "edge": "?",
}


@dataclass(frozen=True)
class Sites:
    """Located atom columns.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Position [px], pixel centres at integers.
    species : (N,) str
        Chemical symbol of the atom (or of the column, e.g. 'Se').
    score : (N,) float64
        Calibrated probability that a column of this species is here.
    sigma_pm : (N,) float64
        Standard deviation of the position along one axis [pm]; NaN where not known.
    intensity : (N,) float64
        Scattered intensity of the column over its surroundings, in units of the median host column; NaN
        where not measured.
    intensity_sigma : (N,) float64
        Standard deviation of `intensity`.
    edge : (N,) bool
        Too near the border (of the image or of a masked region) to have all its bonds in view.
    """

    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    species: NDArray[np.str_]
    score: NDArray[np.float64]
    sigma_pm: NDArray[np.float64]
    intensity: NDArray[np.float64]
    intensity_sigma: NDArray[np.float64]
    edge: NDArray[np.bool_]

    def __post_init__(self) -> None:
        length = len(np.atleast_1d(self.y_px))
        for name, dtype in _DTYPES.items():
            column = np.array(getattr(self, name), dtype=dtype, ndmin=1)
            if column.shape != (length,):
                raise ValueError(f"column {name} has shape {column.shape}, expected ({length},)")
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    @classmethod
    def from_columns(cls, *, y_px: ArrayLike, x_px: ArrayLike, species: ArrayLike, score: ArrayLike | None = None,
                     sigma_pm: ArrayLike | None = None, intensity: ArrayLike | None = None,
                     intensity_sigma: ArrayLike | None = None, edge: ArrayLike | None = None) -> Sites:
        """Sites from positions and species; columns left out are 1 (score), NaN (measures) or False (edge)."""
        n = len(np.atleast_1d(np.asarray(y_px)))
        nan = np.full(n, np.nan)
        return cls(np.asarray(y_px), np.asarray(x_px), np.asarray(species, dtype="U4"),
                   np.ones(n) if score is None else np.asarray(score),
                   nan if sigma_pm is None else np.asarray(sigma_pm),
                   nan if intensity is None else np.asarray(intensity),
                   nan if intensity_sigma is None else np.asarray(intensity_sigma),
                   np.zeros(n, bool) if edge is None else np.asarray(edge))

    @classmethod
    def empty(cls) -> Sites:
        """No sites, with the same columns and dtypes."""
        return cls.from_columns(y_px=[], x_px=[], species=np.array([], dtype="U4"))

    def __len__(self) -> int:
        return len(self.y_px)

    @property
    def yx_px(self) -> NDArray[np.float64]:
        """(N, 2) positions (y, x) [px]."""
        return np.stack([self.y_px, self.x_px], axis=1)

    def select(self, which: ArrayLike) -> Sites:
        """The sites of a boolean mask or an index array."""
        keep = np.asarray(which)
        if keep.size == 0:
            keep = keep.astype(int)
        return Sites(*(getattr(self, f.name)[keep] for f in fields(self)))

    def replace(self, **columns: ArrayLike) -> Sites:
        """A copy with the named columns changed."""
        return Sites(*(np.asarray(columns.get(f.name, getattr(self, f.name))) for f in fields(self)))

    def to_dataframe(self) -> pd.DataFrame:
        """One row a site, with its number in column ``id``."""
        table = pd.DataFrame({f.name: getattr(self, f.name) for f in fields(self)})
        table["species"] = table["species"].astype(object)
        table.insert(0, "id", np.arange(len(self)))
        return table
