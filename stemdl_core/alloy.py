"""How much of a foreign metal there is around each place of an alloy, with an error bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import FrameAnalysis

#: Radius of the surroundings that are averaged [nm]: some thirty metal sites.
SURROUNDINGS_NM = 1.0


@dataclass(frozen=True)
class LocalComposition:
    """Part of the metal sites around each site that one element holds.

    Parameters
    ----------
    fraction : (N,) float64
        x in the surroundings of every site; NaN where no metal site is in view.
    sigma : (N,) float64
        Its standard deviation from counting so few sites, by the rule of succession: never zero, although all sites
        around may be of one element.
    count : (N,) int64
        Metal sites that were counted.
    """

    fraction: NDArray[np.float64]
    sigma: NDArray[np.float64]
    count: NDArray[np.int64]


def local_composition(analysis: FrameAnalysis, element: str, *,
                      radius_nm: float = SURROUNDINGS_NM) -> LocalComposition:
    """Local composition x of an alloy around every site of a frame.

    Parameters
    ----------
    analysis : FrameAnalysis
        Of a dichalcogenide.
    element : str
        A metal.
    radius_nm : float
        Metal sites within this distance count [nm]; those at the border, whose element is less certain, do not.
    """
    yx = analysis.pixel_size.to_nm(analysis.sites.yx_px).reshape(-1, 2)
    species = analysis.sites.species
    metals = {*analysis.host_species[:1], *analysis.alloy, element}
    metal = np.flatnonzero(np.isin(species, sorted(metals)) & ~analysis.sites.edge)
    n = len(yx)
    near = np.zeros(0, dtype=[("i", np.intp), ("j", np.intp)])
    if len(metal):
        near = cKDTree(yx).sparse_distance_matrix(cKDTree(yx[metal]), radius_nm, output_type="ndarray")
    count = np.bincount(near["i"], minlength=n).astype(np.int64)
    own = np.bincount(near["i"], weights=species[metal][near["j"]] == element, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = own / count
        smooth = (own + 1.0) / (count + 2.0)
        sigma = np.where(count > 0, np.sqrt(smooth * (1.0 - smooth) / (count + 3.0)), np.nan)
    return LocalComposition(fraction, sigma, count)
